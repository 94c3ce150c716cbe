package jaild_test

import (
	"testing"

	jaild "xdpban/jail.d"
	"xdpban/jails"
)

func TestLoads(t *testing.T) {
	c, problems := jails.Load(jaild.FS, t.TempDir())
	if problems != nil {
		t.Fatal(problems)
	}
	for _, w := range c.Warnings {
		t.Error(w)
	}
}
