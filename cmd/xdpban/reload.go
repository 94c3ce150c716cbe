package main

import (
	"fmt"
	"io"
	"strings"

	"xdpban/internal/control"
)

type reloadCmd struct{}

func (c *reloadCmd) Run(a *app) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	r, err := client.Reload(a.ctx)
	if err != nil {
		return err
	}
	for _, w := range r.Warnings {
		a.warn("%s", w)
	}
	return a.print(r, func(w io.Writer) {
		fmt.Fprintf(w, "reloaded; jails: %s\n", printable(strings.Join(r.Jails, ", ")))
	})
}
