# A static binary in an empty image.
#
#   docker build -t coriolis-ovm-exporter .
#   docker run --cap-drop=ALL --cap-add=DAC_OVERRIDE --cap-add=DAC_READ_SEARCH --cap-add=FOWNER --read-only \
#       --stop-timeout 300 --tmpfs /run/coriolis-ovm-exporter:mode=0711 -p 5544:5544 -v /OVS:/OVS:rslave \
#       -v /etc/ovs-agent/db:/etc/ovs-agent/db:ro -v /etc/coriolis-ovm-exporter:/etc/coriolis-ovm-exporter \
#       coriolis-ovm-exporter
#
# The service is root in the container, because disks belong to any user; it needs these three capabilities, as in the
# systemd unit. The client needs none of them: docker run --user 65534 … coriolis-ovm-exporter backup …
# Without --stop-timeout, Docker kills the service after 10 seconds, while it may wait for hooks that thaw a guest.
#
# An empty image has no CA certificates: name the manager's certificate in [manager].

FROM debian:12 AS builder
# Install the build tools in their own layer. Versions are not pinned, because Debian removes old ones.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates cargo-web gcc libc6-dev make rustc-web \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN make release

FROM scratch
LABEL org.opencontainers.image.title="coriolis-ovm-exporter" \
      org.opencontainers.image.description="Incremental disk exporter for virtualization hosts" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /build/target/release/coriolis-ovm-exporter /coriolis-ovm-exporter
# The folder of the Unix socket, which the health check uses.
WORKDIR /run/coriolis-ovm-exporter
WORKDIR /
EXPOSE 5544
# The image has no shell and no curl. A start can take minutes, after a crash.
HEALTHCHECK --interval=30s --timeout=15s --start-period=10m CMD ["/coriolis-ovm-exporter", "health"]
ENTRYPOINT ["/coriolis-ovm-exporter"]
