package bpf

// The compiler is pinned to one version so that anybody gets the same bytes.
// Both multiarch folders are named because the headers of <linux/*.h> need
// asm/types.h of whatever machine compiles.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type sample -type write_args -type request -output-stem xdpban kern xdpban.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
