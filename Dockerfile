# A static binary in an empty image.
#
#   docker build -t coriolis-ovm-exporter .
#   docker run --privileged -p 5544:5544 -v /OVS:/OVS:rslave -v /etc/ovs-agent/db:/etc/ovs-agent/db:ro \
#       -v /etc/coriolis-ovm-exporter:/etc/coriolis-ovm-exporter coriolis-ovm-exporter
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
COPY --from=builder /build/target/release/coriolis-ovm-exporter /coriolis-ovm-exporter
EXPOSE 5544
ENTRYPOINT ["/coriolis-ovm-exporter"]
