# docker build -t turnix .    (docker/ has what to run it with)
FROM rust:1.95-bookworm AS build
# cmake: for TLS (aws-lc-rs) where there is no prebuilt assembly. setcap: for ports below 1024 without root.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake libcap2-bin \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY benches ./benches
COPY src ./src
RUN cargo build --locked --release --bin turnix \
    && setcap cap_net_bind_service=+ep target/release/turnix \
    && mkdir /state

# The C library, root certificates and nothing else: no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="turnix" \
      org.opencontainers.image.description="TURN and STUN relay server" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /build/target/release/turnix /usr/bin/turnix
# What the quick start makes; without a volume here its credentials change with every container.
COPY --from=build --chown=65532:65532 --chmod=700 /state /var/lib/turnix
ENV STATE_DIRECTORY=/var/lib/turnix
VOLUME ["/var/lib/turnix"]
# Ports are published by docker/compose*.yml: the relay's are a range, and how wide it is depends on the network.
EXPOSE 3478/tcp 3478/udp 443/tcp 443/udp
# nonroot
USER 65532:65532
# The admin API answers, also while it drains. Without http.admin, switch the check off.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/usr/bin/turnix", "allocations"]
# Calls may go on for drain.grace; see stop_grace_period.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/turnix"]
CMD ["serve"]
