#!/usr/bin/env bash
# Installs what the tests and the demonstration need and this machine lacks; does nothing when all is there.
#
#   tests/setup.sh demo    RabbitMQ and pika
#   tests/setup.sh         these, and amqplib for Node
#   tests/setup.sh all     these, and HAProxy, which the benchmarks compare with
#
# RabbitMQ, Node and HAProxy come from Debian, pika goes to .venv, amqplib to tests/clients/node_modules.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}

debian() {
    echo "Installing $* with apt-get, once." >&2
    local sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    # A proxy's settings have to survive sudo.
    $sudo env DEBIAN_FRONTEND=noninteractive http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
        sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null' sh "$@"
}

missing=()
need() { missing+=("$@"); }

broker=/usr/lib/rabbitmq/bin/rabbitmq-server
[ -x $broker ] || need rabbitmq-server
# Debian's Python has venv in a package of its own, and a folder made without it lacks pip.
python3 -c 'import ensurepip, venv' 2>/dev/null || need python3 python3-venv
# The bundled SQLite and ring are C.
command -v cc >/dev/null || need gcc libc6-dev
if [ "$what" != demo ]; then
    command -v npm >/dev/null || need nodejs npm
fi
if [ "$what" = all ]; then
    [ -x /usr/sbin/haproxy ] || command -v haproxy >/dev/null || need haproxy
fi
if [ ${#missing[@]} -gt 0 ]; then
    new_broker=false
    [ -x $broker ] || new_broker=true
    debian "${missing[@]}"
    # Debian starts a broker with the package. Every test has its own, and this one would hold port 5672.
    if $new_broker && [ -d /run/systemd/system ]; then
        if [ "$(id -u)" = 0 ]; then systemctl disable --now rabbitmq-server; else sudo systemctl disable --now rabbitmq-server; fi
    fi
fi

if ! .venv/bin/python -c 'import pika' 2>/dev/null; then
    # Half a folder, left by an interrupted run, can't be repaired.
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check "pika>=1.3,<2"
fi

lock=tests/clients/package-lock.json
installed=tests/clients/node_modules/.package-lock.json
if [ "$what" != demo ] && [ -f $lock ] && { [ ! -f $installed ] || [ $lock -nt $installed ]; }; then
    npm ci --prefix tests/clients --silent --no-audit --no-fund
    touch $installed
fi
