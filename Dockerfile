FROM rust:1-slim-bookworm AS build
WORKDIR /src
# Dependencies by themselves, so that a change of the sources does not build them again.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src benches/proxy \
    && touch src/lib.rs benches/store.rs benches/proxy/main.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin halfway \
    && rm -r src benches
COPY . .
# cargo goes by the files' times, and these are older than what was built in their place.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin halfway \
    && cp target/release/halfway /halfway \
    && strip --strip-debug /halfway

FROM debian:bookworm-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="halfway" \
    org.opencontainers.image.description="A transactional proxy for RabbitMQ: half messages, durable commits, check-back" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# The system's certificate authorities, for amqps:// without a CA of one's own.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 halfway \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/halfway halfway \
    && install --directory --owner=halfway --group=halfway --mode=700 /var/lib/halfway
# In a container the ports must be open to the outside. Mount a file of your own over this one, or set HALFWAY_…
# variables; `docker run … config show` tells what is in force.
RUN mkdir /etc/halfway && printf '%s\n' \
    '[listen]' 'address = "0.0.0.0:5673"' \
    '[store]' 'url = "sqlite:/var/lib/halfway/halfway.db"' \
    '[admin]' 'address = "0.0.0.0:15673"' > /etc/halfway/config.toml
COPY --from=build /halfway /usr/local/bin/halfway

# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/halfway
VOLUME /var/lib/halfway
EXPOSE 5673 15673
# SIGTERM drains, SIGHUP reloads.
STOPSIGNAL SIGTERM
# Life, not readiness: a restart would not bring RabbitMQ back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["halfway", "doctor", "--health"]
ENTRYPOINT ["halfway"]
CMD ["serve"]
