#!/usr/bin/env bash
# Runs docker-compose.yml as a user would: builds the image, starts the proxy beside RabbitMQ, works with it, reloads it,
# kills it and ends it. Says why if it can't. The first build takes minutes, and later ones are quick.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
skip() { printf 'skipped: docker-compose.yml is not tried: %s\n' "$*"; exit 0; }
fail() { printf 'failed: %s\n' "$*" >&2; exit 1; }

docker info >/dev/null 2>&1 || skip "no Docker engine answers"
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
"${compose[@]}" version >/dev/null 2>&1 || skip "there is no Docker Compose"
for image in $(sed --quiet 's/^FROM \([^ ]*\).*/\1/p' Dockerfile) $(sed --quiet 's/^ *image: //p' docker-compose.yml); do
    docker image inspect "$image" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$image" >/dev/null 2>&1 ||
        skip "the image $image is not here and can't be pulled"
done
tests/setup.sh pika
read -r AMQP_PORT ADMIN_PORT MANAGEMENT_PORT < <(.venv/bin/python tests/demo/free_ports.py 3)
export AMQP_PORT ADMIN_PORT MANAGEMENT_PORT

compose() { "${compose[@]}" --project-name halfway-test "$@"; }
finish() {
    status=$?
    trap - EXIT
    [ $status = 0 ] || compose logs --tail 30 >&2 || true
    compose down --volumes --timeout 5 >/dev/null 2>&1 || true
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM
container() { compose ps -q halfway; }
inspect() { docker inspect --format "$1" "$(container)"; }
until_true() {
    local what=$1
    shift
    for _ in $(seq 600); do "$@" && return; sleep 0.2; done
    fail "waited in vain for $what"
}
healthy() { [ "$(inspect '{{.State.Health.Status}}')" = healthy ]; }
logged() { compose logs halfway 2>&1 | grep --quiet "$1"; }
client() { .venv/bin/python tests/demo/demo.py "$1" "$AMQP_PORT" app app; }

say "Building the image and starting it beside RabbitMQ"
compose up --detach --build >/dev/null 2>&1 || fail "it can't be started"
until_true "the proxy to be healthy" healthy
[ "$(inspect '{{.Config.User}}')" = 10001:10001 ] || fail "the image does not name its user"
[ "$(compose exec -T halfway id -u)" = 10001 ] || fail "it runs as $(compose exec -T halfway id -u)"
[ "$(inspect '{{index .Config.Labels "org.opencontainers.image.title"}}')" = halfway ] || fail "the image has no labels"
compose exec -T halfway halfway doctor || fail "the doctor finds something"

say "Committing, and killing the proxy with messages that RabbitMQ does not have"
client first >/dev/null
compose exec -T rabbitmq rabbitmqctl --quiet change_password halfway locked >/dev/null
compose exec -T rabbitmq rabbitmqctl --quiet close_all_user_connections halfway locked >/dev/null
client parked >/dev/null
compose kill -s KILL halfway >/dev/null 2>&1
compose exec -T rabbitmq rabbitmqctl --quiet change_password halfway secret >/dev/null
compose up --detach halfway >/dev/null 2>&1
until_true "the proxy to be healthy" healthy
client arrive >/dev/null || fail "the messages did not arrive"

say "Reloading and ending it"
compose kill -s HUP halfway >/dev/null 2>&1
until_true "the reload" logged "configuration reloaded"
compose stop halfway >/dev/null 2>&1
[ "$(docker inspect --format '{{.State.ExitCode}}' "$(compose ps -a -q halfway 2>/dev/null || container)")" = 0 ] ||
    fail "it did not end by itself"
say "docker-compose.yml works."
