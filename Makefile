# xdpban: `sudo make demo` shows it at work, `sudo make test` tests all of it.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# sudo's secure_path leaves out the usual place of a hand-installed Go.
export PATH := $(PATH):/usr/local/go/bin

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
DESTDIR ?=
LDFLAGS := -s -w -X main.version=$(VERSION)

# One compiler for the committed objects: another clang makes other bytes.
CLANG        ?= clang-14
LLVM_STRIP   ?= llvm-strip-14
CLANG_FORMAT ?= clang-format-14
BPF_C        := $(wildcard bpf/*.c bpf/*.h bpf/*/*.c bpf/*/*.h)

# Debian packages, by what needs them.
DEPS_RUN   := iproute2 systemd
DEPS_DEMO  := $(DEPS_RUN) iputils-ping openssh-client openssh-server sshpass util-linux
DEPS_BUILD := clang-14 llvm-14 clang-format-14 libbpf-dev
DEPS_TEST  := $(DEPS_BUILD) $(DEPS_DEMO) fail2ban gcc libc6-dev nginx-light rsyslog xz-utils zstd

# Installs what is missing of the packages given, and asks for nothing when
# all are there.
define need
	@missing=$$(for p in $(1); do \
		[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -o DPkg::Lock::Timeout=300 -qq update; \
		apt-get -o DPkg::Lock::Timeout=300 -qq -y --no-install-recommends install $$missing </dev/null; \
	fi
endef

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: build
build: ## build ./xdpban, one static binary
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o xdpban ./cmd/xdpban

.PHONY: deps
deps: ## install the Debian packages that building and testing need
	$(call need,$(DEPS_TEST))

.PHONY: test
test: deps ## run every test, kernel ones included, race detector on (as root)
	$(GO) run -buildvcs=false ./test/gate -race -count=1 -p 2 -timeout 20m ./...

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, clang-format
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt would change: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(if $(BPF_C),$(CLANG_FORMAT) --dry-run --Werror $(BPF_C))

.PHONY: fmt
fmt: ## format Go and C
	gofmt -w .
	$(if $(BPF_C),$(CLANG_FORMAT) -i $(BPF_C))

.PHONY: generate
generate: ## compile the BPF program again, with the one clang
	$(GO) generate ./bpf/...

.PHONY: check-generated
check-generated: ## fail if the committed BPF objects aren't what the source makes
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	cp -r go.mod go.sum bpf "$$tmp"; \
	(cd "$$tmp" && $(GO) generate ./bpf/...); \
	diff -r bpf "$$tmp/bpf" || { echo "generated files are not current: run make generate"; exit 1; }
