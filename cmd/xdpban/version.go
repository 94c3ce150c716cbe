package main

import (
	"fmt"
	"io"
	"runtime"
)

type versionCmd struct{}

func (c *versionCmd) Run(a *app) error {
	v := struct {
		Version string `json:"version"`
		Go      string `json:"go"`
		OS      string `json:"os"`
		Arch    string `json:"arch"`
	}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
	return a.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "xdpban %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
	})
}
