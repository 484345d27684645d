# Every command that anyone types. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=

# Debian's names. To build: the compiler, libbtrfsutil and what bindgen needs to read its header.
BUILD_PACKAGES := gcc libc6-dev pkg-config libbtrfsutil-dev libclang-dev
# To run: mkfs.btrfs, mount and losetup; what is not linked statically, as the tests are not, needs the library.
RUN_PACKAGES := btrfs-progs mount util-linux libbtrfsutil1
# To test: the demo's and the tests' images, the other decompressors, a file system to be embedded in; and in the virtual
# machine, where tests/it runs again, these too.
INSIDE_PACKAGES := busybox-static e2fsprogs attr acl libcap2-bin gzip xz-utils zstd bzip2 procps kmod iproute2 nftables openssl ca-certificates
# The peers, registries, failing devices, the virtual machine.
TEST_PACKAGES := $(INSIDE_PACKAGES) keyutils debootstrap docker.io docker-registry podman runc skopeo umoci apache2-utils curl \
  strace nbdkit libnbd-bin fuse3 xfsprogs mmdebstrap qemu-system-x86
# To fuzz: libFuzzer is C++.
FUZZ_PACKAGES := g++
VM_PACKAGES := $(RUN_PACKAGES) $(INSIDE_PACKAGES) apparmor
PACKAGES := $(BUILD_PACKAGES) $(RUN_PACKAGES) $(TEST_PACKAGES)

# Under sudo, the toolchain that rustup installed for the person who typed it.
ifneq ($(SUDO_USER),)
sudo_home := $(shell getent passwd '$(SUDO_USER)' | cut -d: -f6)
ifneq ($(wildcard $(sudo_home)/.cargo/bin/cargo),)
export PATH := $(PATH):$(sudo_home)/.cargo/bin
export RUSTUP_HOME ?= $(sudo_home)/.rustup
endif
endif
# What root built belongs to whoever owns the checkout, so that a plain `cargo build` works afterwards.
give_back = { [ "$$(stat -c %u .)" = 0 ] || chown -R --reference=. target images/*/out 2>/dev/null || true; }

.PHONY: help setup build demo test test-crash test-vm vm-packages bench fuzz lint install package clean need-root need-rust

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install the Debian packages that building and testing need
	@if ! command -v dpkg-query >/dev/null; then \
	  echo "setup knows Debian's packages only; install what these hold: $(PACKAGES)" >&2; exit 1; fi; \
	missing=(); for package in $(PACKAGES); do \
	  [[ $$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null) == installed ]] || missing+=($$package); done; \
	if (( $${#missing[@]} == 0 )); then exit 0; fi; \
	if (( $$(id -u) != 0 )); then \
	  echo "missing packages; type: sudo apt-get install --no-install-recommends $${missing[*]}" >&2; exit 1; fi; \
	echo "installing $${missing[*]}"; \
	export DEBIAN_FRONTEND=noninteractive; \
	{ apt-get update -q && apt-get install -qy --no-install-recommends "$${missing[@]}"; } >/dev/null

need-rust:
	@command -v $(CARGO) >/dev/null || { echo "cargo not found: install Rust (https://rustup.rs) first" >&2; exit 1; }
	@$(CARGO) --version >/dev/null

# Asked as `make need-root FOR=demo`, so that the message names the command to type.
need-root:
	@if (( $$(id -u) != 0 )); then \
	  echo "make $(FOR) needs root (mounts, loop devices, namespaces); type: sudo make $(FOR)" >&2; \
	  echo "with a Rust toolchain that root cannot see: sudo env \"PATH=\$$PATH\" \"RUSTUP_HOME=$${RUSTUP_HOME:-$$HOME/.rustup}\" make $(FOR)" >&2; \
	  exit 1; fi

build: setup need-rust ## build target/release/tupper
	$(CARGO) build --release --locked --bin tupper

demo: ## see the whole line at work: embedded store, import, snapshot, throwaway shell (needs root)
	@$(MAKE) need-root FOR=demo
	@trap '$(give_back)' EXIT; \
	if [ -z "$${TUPPER:-}" ]; then $(MAKE) build; export TUPPER=target/release/tupper; fi; \
	tests/demo "$$TUPPER"

test: ## run all tests, those on a real kernel and against Docker included (needs root)
	@$(MAKE) need-root FOR=test
	@$(MAKE) setup need-rust
	@trap '$(give_back)' EXIT; images/busybox/build; images/debian/build; $(CARGO) test --locked --no-fail-fast

test-crash: ## kill every command before each change, make each call fail, cut the power; `make test` samples it (needs root)
	@$(MAKE) need-root FOR=test-crash
	@$(MAKE) setup need-rust
	@trap '$(give_back)' EXIT; images/busybox/build; TUPPER_SWEEP=whole $(CARGO) test --locked --no-fail-fast --test crash --test power --test stress

test-vm: ## test on a real host in a virtual machine: systemd, cgroup v2, btrfs root, loss of power (needs root)
	@$(MAKE) need-root FOR=test-vm
	@$(MAKE) setup need-rust
	@trap '$(give_back)' EXIT; tests/vm/run

# What the machine of test-vm has beside what makes it boot.
vm-packages:
	@echo $(VM_PACKAGES)

bench: ## measure import, snapshot and run against the kernel's floors (needs root)
	@$(MAKE) need-root FOR=bench
	@$(MAKE) setup need-rust
	@trap '$(give_back)' EXIT; images/busybox/build; images/debian/build; $(CARGO) bench --locked --bench '*'

# FUZZ_TARGETS names some of fuzz/seeds; without, it is all.
fuzz: ## feed every parser of foreign bytes with bytes made up, FUZZ_SECONDS each (needs root)
	@$(MAKE) need-root FOR=fuzz
	@$(MAKE) setup need-rust PACKAGES='$(BUILD_PACKAGES) $(FUZZ_PACKAGES)'
	@command -v target/tools/bin/cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked --root target/tools
	@trap '$(give_back)' EXIT; PATH="$$PWD/target/tools/bin:$$PATH" fuzz/run $(FUZZ_SECONDS) $(FUZZ_TARGETS)

lint: setup need-rust ## formatting, clippy, documentation, licences
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --quiet
	@if command -v cargo-deny >/dev/null; then set -x; $(CARGO) deny --log-level error check licenses bans sources; \
	else echo "cargo-deny is not installed: licences not checked (cargo install cargo-deny)"; fi

install: ## install the built binary, completions, man pages, documents and a unit below $(DESTDIR)$(PREFIX)
	@[ -x target/release/tupper ] || { echo "nothing to install yet; type: make build" >&2; exit 1; }
	install -D -m 0755 target/release/tupper '$(DESTDIR)$(PREFIX)/bin/tupper'
	@generated=$$(mktemp -d); trap 'rm -rf "$$generated"' EXIT; tupper=target/release/tupper; share='$(DESTDIR)$(PREFIX)/share'; \
	mkdir "$$generated/man"; "$$tupper" man "$$generated/man"; \
	for shell in bash zsh fish; do "$$tupper" completion $$shell >"$$generated/$$shell"; done; \
	install -D -m 0644 -t "$$share/man/man1" "$$generated"/man/*.1; \
	install -D -m 0644 "$$generated/bash" "$$share/bash-completion/completions/tupper"; \
	install -D -m 0644 "$$generated/zsh" "$$share/zsh/site-functions/_tupper"; \
	install -D -m 0644 "$$generated/fish" "$$share/fish/vendor_completions.d/tupper.fish"; \
	install -D -m 0644 -t "$(DESTDIR)$(PREFIX)/lib/systemd/network" docs/host/10-tupper.network; \
	install -D -m 0644 -t "$(DESTDIR)$(PREFIX)/lib/udev/rules.d" docs/host/85-tupper.rules; \
	install -D -m 0644 -t "$$share/doc/tupper" README.md CHANGELOG.md; \
	install -D -m 0644 -t "$$share/doc/tupper/docs" docs/*.md docs/*.svg; \
	sed 's|/usr/local/bin|$(PREFIX)/bin|' docs/tupper.service >"$$generated/tupper.service"; \
	install -D -m 0644 -t "$(DESTDIR)$(PREFIX)/lib/systemd/system" "$$generated/tupper.service"; \
	[ -e '$(DESTDIR)/etc/tupper/tupper.toml' ] || install -D -m 0644 -t '$(DESTDIR)/etc/tupper' docs/tupper.toml; \
	echo "installed completions, man pages and documents below $$share, settings that say nothing yet, and a unit that nothing enables"

# What is in it, `make install` says.
package: ## make target/debian/tupper_*.deb, install it on a clean Debian in a container and run the demo there (needs root)
	@$(MAKE) need-root FOR=package
	@$(MAKE) build
	@[ -x target/tools/bin/cargo-deb ] || $(CARGO) install cargo-deb --locked --root target/tools
	rm -rf target/package target/debian
	$(MAKE) install DESTDIR=target/package PREFIX=/usr
	target/tools/bin/cargo-deb --no-build --no-strip --locked
	@trap '$(give_back)' EXIT; images/debian/build; tests/package target/release/tupper target/debian/tupper_*.deb

clean: ## remove what was built
	$(CARGO) clean
	rm -rf images/*/out
