FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin halfway

FROM debian:bookworm-slim
# The system's certificate authorities, for amqps:// without a CA of one's own.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/halfway halfway
COPY --from=build /src/target/release/halfway /usr/local/bin/halfway
# In a container the ports must be open to the outside. Mount a file of your own over this one, or set HALFWAY_…
# variables; `docker run … config show` tells what is in force.
RUN mkdir /etc/halfway && printf '%s\n' \
    '[listen]' 'address = "0.0.0.0:5673"' \
    '[store]' 'url = "sqlite:/var/lib/halfway/halfway.db"' \
    '[admin]' 'address = "0.0.0.0:15673"' > /etc/halfway/config.toml

USER halfway
WORKDIR /var/lib/halfway
VOLUME /var/lib/halfway
EXPOSE 5673 15673
# Life, not readiness: a restart would not bring RabbitMQ back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["halfway", "doctor", "--health"]
ENTRYPOINT ["halfway"]
CMD ["serve"]
