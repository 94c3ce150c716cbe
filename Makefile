# xdpban: `sudo make demo` shows it at work, `sudo make test` tests all of it.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

# sudo's secure_path leaves out the usual place of a hand-installed Go.
export PATH := $(PATH):/usr/local/go/bin

GO      ?= go
# The newest release that CHANGELOG.md describes.
VERSION ?= $(shell sed -n 's/^\#\# \([0-9][^ ]*\).*/\1/p' CHANGELOG.md | head -n 1)
PREFIX  ?= /usr/local
DESTDIR ?=
LDFLAGS := -s -w -X main.version=$(VERSION)

# One compiler for the committed objects: another clang makes other bytes.
CLANG        ?= clang-14
LLVM_STRIP   ?= llvm-strip-14
CLANG_FORMAT ?= clang-format-14
BPF_C        := $(wildcard bpf/*.c bpf/*.h bpf/*/*.c bpf/*/*.h)

UNITS := xdpban.service xdpban-net.service xdpban-net.socket xdpban-nats.service xdpban-hook.service xdpban-hook.socket

# Debian packages, by what needs them.
DEPS_DEMO   := iproute2 iputils-ping openssh-client openssh-server passwd sshpass systemd util-linux
DEPS_BUILD  := clang-14 llvm-14 clang-format-14 libbpf-dev
DEPS_TEST   := $(DEPS_BUILD) $(DEPS_DEMO) chromium curl fail2ban fish gcc ipset libc6-dev libsqlite3-0 mandoc nftables nginx-light prometheus rpm rsyslog tcpdump tmux xdp-tools xz-utils zsh zstd
DEPS_SYSTEM := $(DEPS_DEMO) curl debootstrap lintian systemd-container
DEPS_KERNEL := $(DEPS_BUILD) cpio iproute2 iputils-ping qemu-system-x86 tcpdump util-linux xdp-tools xz-utils
DEPS_BENCH  := $(DEPS_DEMO) ethtool fail2ban grep ipset iptables nftables sshguard xdp-tools

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
build: ## build ./xdpban, one static binary, and ./xdpban-nats, a server for fleets
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o xdpban ./cmd/xdpban
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o xdpban-nats ./cmd/xdpban-nats

.PHONY: deps
deps: ## install the Debian packages that building and testing need
	$(call need,$(DEPS_TEST))
	$(MAKE) -s .cache/crowdsec/.made

# Installing it would ask the Internet for its rules, and run it: what the tests
# need is in the package.
.cache/crowdsec/.made:
	rm -rf $(@D)
	mkdir -p $(@D)
	@cd $(@D); \
	apt-cache show crowdsec >/dev/null 2>&1 || apt-get -o DPkg::Lock::Timeout=300 -qq update; \
	for pause in 5 30 0; do \
		apt-get -o APT::Sandbox::User=root -qq download crowdsec && break; sleep $$pause; \
	done; \
	dpkg-deb -x crowdsec_*.deb .; \
	rm crowdsec_*.deb
	touch $@

.PHONY: corpus
corpus: ## run fail2ban's annotated logs through its filters, converted; of another copy with FILTERS=DIR LOGS=DIR
	$(if $(FILTERS),,$(call need,fail2ban))
	XDPBAN_CORPUS_FILTERS='$(FILTERS)' XDPBAN_CORPUS_LOGS='$(LOGS)' CI=true $(GO) test -count=1 -v -run '^TestCorpus$$' ./internal/fail2ban

.PHONY: demo
demo: ## show the main job for real on two throwaway hosts (as root)
	$(call need,$(DEPS_DEMO))
	$(MAKE) -s build
	./xdpban demo

.PHONY: test
test: deps ## run every test, kernel ones included, race detector on (as root)
	$(GO) run -buildvcs=false ./test/gate -race -count=1 -p 2 -timeout 20m ./...

.PHONY: test-kill
test-kill: deps ## kill the daemon at 200 random moments, and compare with one left alone (as root)
	XDPBAN_KILLS=200 $(GO) test -count=1 -v -timeout 60m -run '^TestKilledOrNot$$' ./test

SOAK ?= 15m
.PHONY: soak
soak: deps ## keep the daemon busy and see that memory and descriptors stay level (as root); shorter with SOAK=2m
	XDPBAN_SOAK=$(SOAK) $(GO) test -count=1 -v -timeout 0 -run '^TestSoak$$' ./test

.PHONY: bench
bench: ## measure xdpban and its peers side by side (as root); a tenth of it with QUICK=1, some with TABLES="auth-log bans"
	$(call need,$(DEPS_BENCH))
	$(MAKE) -s build
	mkdir -p .cache/bench
	$(GO) build -buildvcs=false -o .cache/bench/bench ./test/bench
	cd test/bench/report && $(GO) build -buildvcs=false -o ../../../.cache/bench/report .
	.cache/bench/bench $(if $(QUICK),-quick) -out .cache/bench $(TABLES)
	.cache/bench/report -docs docs/performance.md .cache/bench/*.txt

.PHONY: bench-paths
bench-paths: deps ## measure single parts of xdpban, and their allocations
	$(GO) test -run '^$$' -bench . -benchtime 1x ./test
	$(GO) test -run '^$$' -bench . -benchmem ./bpf ./matcher/... ./jails ./internal/...

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, clang-format; and all of it builds for arm64
	@out=$$(gofmt -l .); [ -z "$$out" ] || { echo "gofmt would change: $$out"; exit 1; }
	$(GO) vet ./...
	cd test/bench/report && $(GO) vet .
	$(GO) tool staticcheck ./...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) vet ./...
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build -o /dev/null ./cmd/xdpban
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build -o /dev/null ./cmd/xdpban-nats
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

UNITDIR ?= $(PREFIX)/lib/systemd/system
.PHONY: install
install: ## install the program and all that belongs to it: PREFIX, DESTDIR, UNITDIR
	[ -x xdpban ] && [ -x xdpban-nats ] || $(MAKE) build
	install -D -m 755 xdpban $(DESTDIR)$(PREFIX)/bin/xdpban
	install -D -m 755 xdpban-nats $(DESTDIR)$(PREFIX)/lib/xdpban/xdpban-nats
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 packaging/man/xdpban.1
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man5 packaging/man/xdpban.toml.5 packaging/man/xdpban-jail.5
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/xdpban/fail2ban packaging/fail2ban/xdpban.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/xdpban/monitoring packaging/monitoring/alerts.yml packaging/monitoring/dashboard.json
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	./xdpban completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/xdpban
	./xdpban completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_xdpban
	./xdpban completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/xdpban.fish
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)/etc/xdpban/jail.d
	for unit in $(UNITS); do sed 's|=/usr/bin/xdpban |=$(PREFIX)/bin/xdpban |; s|=/usr/lib/xdpban/|=$(PREFIX)/lib/xdpban/|' packaging/$$unit >$(DESTDIR)$(UNITDIR)/$$unit; done
	for file in xdpban.toml jail.d/local.toml; do \
		[ -e $(DESTDIR)/etc/xdpban/$$file ] || install -m 644 packaging/$$file $(DESTDIR)/etc/xdpban/$$file; \
	done

.PHONY: uninstall
uninstall: ## take away what install brought, but for the configuration
	rm -f $(DESTDIR)$(PREFIX)/bin/xdpban $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/,man/man1/xdpban.1 man/man5/xdpban.toml.5 man/man5/xdpban-jail.5 \
		bash-completion/completions/xdpban zsh/site-functions/_xdpban fish/vendor_completions.d/xdpban.fish)
	rm -rf $(DESTDIR)$(PREFIX)/share/xdpban $(DESTDIR)$(PREFIX)/lib/xdpban

# The same tree makes the same bytes: every time in a package is the last
# commit's.
DIST  := dist
ARCHS := amd64 arm64
KINDS := deb rpm
.PHONY: package
package: ## build dist/*.deb and dist/*.rpm for amd64 and arm64
	rm -rf $(DIST)
	mkdir -p $(DIST)/stage
	cp -r packaging/nfpm.yaml packaging/scripts packaging/lintian-overrides packaging/xdpban.toml packaging/jail.d/local.toml $(addprefix packaging/,$(UNITS)) $(DIST)/stage
	cp packaging/monitoring/* $(DIST)/stage
	cp packaging/fail2ban/xdpban.conf $(DIST)/stage/fail2ban-action.conf
	for page in packaging/man/*; do gzip -9n <$$page >$(DIST)/stage/$${page##*/}.gz; done
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/stage/native ./cmd/xdpban
	for shell in bash zsh fish; do $(DIST)/stage/native completion $$shell >$(DIST)/stage/completion.$$shell; done
	gzip -9n <CHANGELOG.md >$(DIST)/stage/changelog.gz
	printf 'xdpban (%s-1) stable; urgency=medium\n\n  * See changelog.gz.\n\n -- xdpban maintainers <maintainers@example.org>  %s\n' \
		'$(VERSION)' "$$(LC_ALL=C TZ=UTC git log -1 --format=%cd --date=rfc-local)" | gzip -9n >$(DIST)/stage/changelog.Debian.gz
	packaging/copyright >$(DIST)/stage/copyright
	$(GO) build -buildvcs=false -modfile=packaging/tools.mod -o $(DIST)/stage/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); \
	for ARCH in $(ARCHS); do \
		CGO_ENABLED=0 GOARCH=$$ARCH $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/stage/xdpban ./cmd/xdpban; \
		CGO_ENABLED=0 GOARCH=$$ARCH $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/stage/xdpban-nats ./cmd/xdpban-nats; \
		for kind in $(KINDS); do \
			(cd $(DIST)/stage && ARCH=$$ARCH VERSION=$(VERSION) ./nfpm package --config nfpm.yaml --packager $$kind --target ..); \
		done; \
	done
	rm -rf $(DIST)/stage
	@ls -l $(DIST)

# A Debian to test in, made once for a list of packages. A mirror may hiccup.
# fail2ban is there to be left: without rsyslog it fails at the first boot.
ROOT := .cache/debian-12
ROOT_PACKAGES := systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,nginx-light,iproute2,iputils-ping,procps,openssl,fail2ban,python3-systemd
.PHONY: root
root:
	@[ "$$(cat $(ROOT).made 2>/dev/null)" = '$(ROOT_PACKAGES)' ] && exit; \
	for pause in 5 30 0; do \
		rm -rf $(ROOT) $(ROOT).made; mkdir -p $(ROOT); \
		if debootstrap --variant=minbase --include=$(ROOT_PACKAGES) bookworm $(ROOT); then \
			systemctl --quiet --root=$(ROOT) disable fail2ban; \
			echo '$(ROOT_PACKAGES)' >$(ROOT).made; exit; \
		fi; \
		sleep $$pause; \
	done; \
	echo 'making a Debian failed three times: see $(ROOT)/debootstrap/debootstrap.log'; exit 1

.PHONY: test-system
test-system: ## install, attack, crash, upgrade, reboot and purge on a whole Debian (as root)
	$(call need,$(DEPS_SYSTEM))
	$(MAKE) root
	rm -rf .cache/debs
	mkdir -p .cache/debs
	$(MAKE) package DIST=.cache/debs/next VERSION=$(VERSION)+next KINDS=deb ARCHS="$$(dpkg --print-architecture)"
	$(MAKE) package DIST=.cache/debs/this KINDS=deb ARCHS="$$(dpkg --print-architecture)"
	lintian --allow-root --fail-on error,warning .cache/debs/this/*.deb
	XDPBAN_TEST_ROOT=$(abspath $(ROOT)) XDPBAN_TEST_DEBS=$(abspath .cache/debs) $(GO) test -count=1 -v -timeout 15m ./test/system

# Kernels to test on, by the Debian release whose package they are: the oldest
# that we support, Debian 12's own, and a newer one.
KERNELS := bullseye bookworm trixie
.cache/kernels/%/.made:
	rm -rf $(@D)
	mkdir -p $(@D)/lists/partial
	@cd $(@D); \
	mirror=$$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1); \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror $* main" >sources.list; \
	for o in Dir::Etc::sourcelist=$$PWD/sources.list Dir::Etc::sourceparts=- Dir::State::lists=$$PWD/lists \
		Dir::Cache::pkgcache= Dir::Cache::srcpkgcache= Acquire::Languages=none APT::Sandbox::User=root; do \
		echo "$${o%%=*} \"$${o#*=}\";"; \
	done >apt.conf; \
	export APT_CONFIG=$$PWD/apt.conf; \
	apt-get -qq update; \
	apt-get -qq download $$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.* Depends: //p'); \
	dpkg-deb -x linux-image-*.deb .; \
	rm -r linux-image-*.deb lists
	touch $@

# An object of the example for a machine without a compiler, and what boots
# that machine.
.cache/kernels/synlimit.o: bpf/example/synlimit.bpf.c
	mkdir -p $(@D)
	$(CLANG) -O2 -g -Wall -Werror -target bpf -idirafter /usr/include/x86_64-linux-gnu -c $< -o $@

.PHONY: .cache/kernels/boot
.cache/kernels/boot:
	CGO_ENABLED=0 $(GO) build -buildvcs=false -o $@ ./test/kernels

# An emulated machine is too slow for ignorecommand's time limit, which no
# kernel has a part in, and for loading the program a thousand times to count
# its instructions. It has none of the programs that publish's script reads lists
# with, and Linux 5.10 can't load what coexist puts in our way: a stranger's
# program that is fit for jumbo frames.
.PHONY: test-kernels
test-kernels: ## run the tests of the packet path on older and newer kernels, in an emulated machine
	$(call need,$(DEPS_KERNEL))
	$(MAKE) $(KERNELS:%=.cache/kernels/%/.made) .cache/kernels/synlimit.o .cache/kernels/boot
	$(GO) build -buildvcs=false -o .cache/kernels/gate ./test/gate
	export CI=true CGO_ENABLED=0 XDPBAN_TEST_SYNLIMIT=$(abspath .cache/kernels/synlimit.o); \
	for k in $(KERNELS); do \
		boot="$(abspath .cache/kernels/boot) $(abspath .cache/kernels)/$$k"; \
		skip="ignorecommand|publish"; [ $$k != bullseye ] || skip="$$skip|coexist"; \
		echo; echo "The package of $$k: Linux $$(cd .cache/kernels/$$k/boot; ls vmlinuz-* | sed s/vmlinuz-//)"; \
		.cache/kernels/gate -exec "$$boot" -count=1 -timeout 30m -skip '^TestFeaturesNotInUseCostNothing$$' ./bpf; \
		.cache/kernels/gate -exec "$$boot" -count=1 -timeout 30m -run '^TestKernelScripts$$' -skip "/($$skip)" ./cmd/xdpban; \
	done
