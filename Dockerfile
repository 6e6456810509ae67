# A static binary in an empty image.
#
#   docker build -t coriolis-ovm-exporter .
#   docker run --privileged -p 5544:5544 -v /OVS:/OVS -v /etc/coriolis-ovm-exporter:/etc/coriolis-ovm-exporter \
#       coriolis-ovm-exporter

FROM debian:12 AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates cargo-web gcc libc6-dev rustc-web \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# A target of its own, so that build scripts and macros are not made static too.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" \
 && cp "target/$target/release/coriolis-ovm-exporter" /coriolis-ovm-exporter

FROM scratch
COPY --from=builder /coriolis-ovm-exporter /coriolis-ovm-exporter
EXPOSE 5544
ENTRYPOINT ["/coriolis-ovm-exporter"]
