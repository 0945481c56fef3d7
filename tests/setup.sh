#!/usr/bin/env bash
# Installs what the tests and the demonstration need and this machine lacks; does nothing when all is there.
#
#   tests/setup.sh pika    pika alone
#   tests/setup.sh demo    this, RabbitMQ, and a C compiler for the build
#   tests/setup.sh         these, PostgreSQL with psycopg, Prometheus' promtool, Chromium, schemas of Kubernetes,
#                          schemathesis, and the clients of docs/clients
#   tests/setup.sh all     these, a C++ compiler for the fuzz targets, and HAProxy for the benchmarks
#
# RabbitMQ, PostgreSQL, Prometheus, Chromium, HAProxy, the languages and the clients for Java, Go and PHP come from Debian;
# pika, Celery, psycopg and schemathesis go to .venv, amqplib and playwright-core to tests/clients/node_modules.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-test} in
    pika) level=0 ;;
    demo) level=1 ;;
    test) level=2 ;;
    all) level=3 ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

as_root() {
    # A proxy's settings have to survive sudo.
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=http_proxy,https_proxy "$@"; fi
}

install() {
    echo "Installing $* with apt-get, once." >&2
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    # Debian starts these servers with their packages. Every test has its own, and these would hold ports 5672 and 5432.
    local server
    for server in rabbitmq-server postgresql prometheus; do
        [[ " $* " == *" $server "* ]] || continue
        if [ -d /run/systemd/system ]; then
            as_root systemctl disable --quiet --now $server
        else
            as_root service $server stop >/dev/null 2>&1 || true
        fi
    done
}

missing=()
need() { [ $level -lt "$1" ] || "${@:3}" >/dev/null 2>&1 || read -ra missing <<<"${missing[*]} $2"; }

# Debian's Python has venv in a package of its own.
need 0 "python3 python3-venv" python3 -c 'import ensurepip, venv'
need 1 rabbitmq-server test -x /usr/lib/rabbitmq/bin/rabbitmq-server
# SQLite, which the store brings along, and ring are C.
need 1 "gcc libc6-dev" command -v cc
need 2 "nodejs npm" command -v npm
need 2 prometheus command -v promtool
need 2 default-jdk-headless command -v javac
need 2 librabbitmq-client-java test -f /usr/share/java/amqp-client.jar
need 2 golang-go command -v go
need 2 golang-github-rabbitmq-amqp091-go-dev test -d /usr/share/gocode/src/github.com/rabbitmq/amqp091-go
need 2 php-cli command -v php
need 2 php-amqplib test -f /usr/share/php/PhpAmqpLib/autoload.php
need 2 chromium test -x /usr/bin/chromium
need 2 postgresql compgen -G '/usr/lib/postgresql/*/bin/initdb'
need 3 g++ command -v c++
need 3 haproxy test -x /usr/sbin/haproxy
[ ${#missing[@]} = 0 ] || install "${missing[@]}"

if ! .venv/bin/python -c 'import pika' 2>/dev/null; then
    # Half a folder, left by an interrupted run, can't be repaired.
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check "pika>=1.3,<2"
fi

if [ $level -ge 2 ] && ! .venv/bin/python -c 'import celery, psycopg' 2>/dev/null; then
    .venv/bin/pip install --quiet --disable-pip-version-check "celery>=5.3,<6" "psycopg[binary]>=3.1,<4"
fi

# It has the schemas of Kubernetes with it.
if [ $level -ge 2 ] && [ ! -x .venv/bin/kubernetes-validate ]; then
    .venv/bin/pip install --quiet --disable-pip-version-check "kubernetes-validate==1.37.0"
fi

if [ $level -ge 2 ] && [ ! -x .venv/bin/schemathesis ]; then
    .venv/bin/pip install --quiet --disable-pip-version-check "schemathesis>=4.32,<5"
fi

lock=tests/clients/package-lock.json
installed=tests/clients/node_modules/.package-lock.json
if [ $level -ge 2 ] && { [ ! -f $installed ] || [ $lock -nt $installed ]; }; then
    npm ci --prefix tests/clients --silent --no-audit --no-fund
    touch $installed
fi
