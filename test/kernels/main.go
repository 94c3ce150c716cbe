// Command kernels runs a test binary on another kernel: go test calls it by
// -exec. It boots a virtual machine whose only file system is an initramfs
// with the binary, the package's folder and the few programs that tests run,
// and passes on what the test writes and how it ends.
//
//	go test -exec 'kernels PACKAGE' ./bpf
//
// PACKAGE is the folder of an unpacked Debian kernel package. In the machine
// this same program is the first process.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	if os.Getpid() == 1 {
		guest()
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: kernels PACKAGE BINARY [ARG...]")
		os.Exit(2)
	}
	err := host(os.Args[1], os.Args[2:])
	var status exitStatus
	if errors.As(err, &status) {
		os.Exit(int(status))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// job is what the machine is to run.
type job struct {
	Args    []string
	Dir     string
	Env     []string
	Modules []string
}

// jobFile is where the machine finds its job.
const jobFile = "/job.json"

// The machine's serial lines. The test's output must come out as it is
// written, so the kernel's messages have a line of their own.
const (
	consoleLine = "ttyS0"
	outputLine  = "/dev/ttyS1"
	statusLine  = "/dev/ttyS2"
)

// exitStatus is a test's failure, as against one of the machine.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }
