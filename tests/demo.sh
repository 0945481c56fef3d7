#!/usr/bin/env bash
# Shows what Halfway is for, step by step, against a real RabbitMQ, and leaves nothing running. It can be run again.
# RabbitMQ comes from Docker Compose where an engine runs, else from Debian's package, started in a folder of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

folder=$(mktemp -d "${TMPDIR:-/tmp}/halfway-demo.XXXXXX")
# Questions to the order service are signed with it.
secret=$(head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n')

# --- What the demonstration needs ---------------------------------------------------------------------------------

# The configuration of the checker, which the proxy finds on this host.
checker() {
    echo "[{ name = 'orders', url = 'http://$1:$orders_port/half/check', match = { transaction = 'order-*' }," \
        "first_after = '2s', interval = '1s', max_interval = '1s' }]"
}

# Two ways to have RabbitMQ and the proxy; each defines the same functions, and the variables amqp_port (the
# proxy's), user, password, relay (the account that the proxy publishes with), and orders_port and orders_address
# (where the order service of the second act listens).

with_compose() {
    tests/setup.sh pika
    read -r orders_port AMQP_PORT ADMIN_PORT MANAGEMENT_PORT < <(.venv/bin/python tests/demo/free_ports.py 4)
    export AMQP_PORT ADMIN_PORT MANAGEMENT_PORT
    # The container reaches this machine at an address that is not loopback.
    orders_address=0.0.0.0
    ORDERS_CHECKER=$(checker host.docker.internal)
    ORDERS_SECRET=$secret
    export ORDERS_CHECKER ORDERS_SECRET
    compose() { "${compose[@]}" --project-name halfway-demo --file docker-compose.yml --file tests/demo/compose.yml "$@"; }
    # Older ones can't wait by themselves.
    up() {
        compose up --detach "$@"
        for _ in $(seq 600); do
            [ "$(docker inspect --format '{{.State.Health.Status}}' "$(compose ps -q halfway)")" = healthy ] && return
            sleep 0.2
        done
        echo "the proxy's container did not become healthy" >&2
        compose logs --tail 20 >&2
        exit 1
    }
    start_all() {
        say "Building the proxy and starting it beside RabbitMQ with Docker Compose; the first time takes minutes."
        up --build
    }
    rabbitmqctl() { compose exec -T rabbitmq rabbitmqctl --quiet "$@"; }
    kill_proxy() { compose kill -s KILL halfway; }
    start_proxy() { up halfway; }
    halfway() { compose exec -T halfway halfway "$@"; }
    stop_all() { compose down --volumes --timeout 5 >/dev/null 2>&1 || true; }
    amqp_port=$AMQP_PORT user=app password=app relay=halfway
}

with_debian() {
    bin=/usr/lib/rabbitmq/bin proxy_pid=
    tests/setup.sh demo
    read -r broker_port distribution_port epmd_port amqp_port admin_port orders_port \
        < <(.venv/bin/python tests/demo/free_ports.py 6)
    orders_address=127.0.0.1
    user=guest password=guest relay=halfway
    rabbitmq() {
        local program=$1
        shift
        env HOME="$folder" ERL_EPMD_PORT="$epmd_port" RABBITMQ_NODENAME="halfway-demo-$broker_port@localhost" \
            RABBITMQ_MNESIA_BASE="$folder/data" RABBITMQ_LOG_BASE="$folder/log" RABBITMQ_CONF_ENV_FILE=/dev/null \
            RABBITMQ_CONFIG_FILE="$folder/rabbitmq" RABBITMQ_ENABLED_PLUGINS_FILE="$folder/enabled_plugins" \
            RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$broker_port" \
            RABBITMQ_DIST_PORT="$distribution_port" \
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}" "$bin/$program" "$@"
    }
    rabbitmqctl() { rabbitmq rabbitmqctl --quiet --node "halfway-demo-$broker_port@localhost" "$@"; }
    start_all() {
        say "Starting RabbitMQ on port $broker_port with everything in $folder."
        echo '[].' >"$folder/enabled_plugins"
        echo 'log.file.level = warning' >"$folder/rabbitmq.conf"
        head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$folder/.erlang.cookie"
        chmod 400 "$folder/.erlang.cookie"
        epmd -port "$epmd_port" -address 127.0.0.1 &
        epmd_pid=$!
        rabbitmq rabbitmq-server >"$folder/rabbitmq.out" 2>&1 &
        for _ in $(seq 60); do
            rabbitmqctl await_startup --timeout 60 >/dev/null 2>&1 && break
            sleep 1
        done
        rabbitmqctl add_user $relay secret
        rabbitmqctl set_user_tags $relay impersonator
        rabbitmqctl set_permissions $relay '^$' '.*' '^$'
        say "Building the proxy and starting it on port $amqp_port."
        cargo build --quiet
        start_proxy
    }
    start_proxy() {
        HALFWAY_LISTEN__ADDRESS="127.0.0.1:$amqp_port" HALFWAY_ADMIN__ADDRESS="127.0.0.1:$admin_port" \
            HALFWAY_UPSTREAM__URLS="[\"amqp://127.0.0.1:$broker_port\"]" HALFWAY_RELAY__USERNAME=$relay \
            HALFWAY_RELAY__PASSWORD=secret HALFWAY_STORE__URL="sqlite:$folder/halfway.db" \
            HALFWAY_CHECKER="$(checker 127.0.0.1)" HALFWAY_CHECKER__ORDERS__SECRET=$secret \
            "${CARGO_TARGET_DIR:-target}/debug/halfway" serve --config config.toml >>"$folder/halfway.log" 2>&1 &
        proxy_pid=$!
        for _ in $(seq 300); do
            # Ports of the proxy open when it is ready for clients.
            (exec 3<>"/dev/tcp/127.0.0.1/$amqp_port") 2>/dev/null && return
            kill -0 $proxy_pid 2>/dev/null || { cat "$folder/halfway.log"; exit 1; }
            sleep 0.1
        done
        echo "the proxy did not open port $amqp_port" >&2
        exit 1
    }
    halfway() { "${CARGO_TARGET_DIR:-target}/debug/halfway" "$@" --url "http://127.0.0.1:$admin_port"; }
    kill_proxy() {
        kill -KILL $proxy_pid
        wait $proxy_pid 2>/dev/null || true
    }
    stop_all() {
        [ -z "$proxy_pid" ] || kill -TERM $proxy_pid 2>/dev/null || true
        rabbitmqctl shutdown >/dev/null 2>&1 || true
        [ -z "${epmd_pid:-}" ] || kill $epmd_pid 2>/dev/null || true
        wait 2>/dev/null || true
    }
}

finish() {
    local status=$?
    trap - EXIT
    if [ $status != 0 ] && [ -f "$folder/halfway.log" ]; then
        echo "The demonstration failed. The proxy's last words:" >&2
        tail -n 20 "$folder/halfway.log" >&2
    fi
    if [ $status != 0 ] && [ -f "$folder/orders.log" ]; then
        echo "The order service's last words:" >&2
        tail -n 20 "$folder/orders.log" >&2
    fi
    say "Stopping everything and removing $folder."
    stop_service
    stop_all
    rm -rf "$folder"
    exit $status
}

# The order service, as it is or with something around it: a program and its arguments.
service_pid=
start_service() {
    .venv/bin/python -B "$@" --amqp "amqp://$user:$password@127.0.0.1:$amqp_port" --database "sqlite:$folder/orders.db" \
        --listen "$orders_address:$orders_port" --secret-file "$folder/orders.secret" >>"$folder/orders.log" 2>&1 &
    service_pid=$!
    # It is to be killed, and the shell would remark on that.
    disown "$service_pid"
    for _ in $(seq 100); do
        (exec 3<>"/dev/tcp/127.0.0.1/$orders_port") 2>/dev/null && return
        sleep 0.1
    done
    echo "the order service did not open port $orders_port" >&2
    exit 1
}
stop_service() {
    [ -z "$service_pid" ] || kill "$service_pid" 2>/dev/null || true
    wait_for_service
}
wait_for_service() {
    while [ -n "$service_pid" ] && kill -0 "$service_pid" 2>/dev/null; do sleep 0.1; done
    service_pid=
}
# Where a line of the example stands, as orders_until.py wants it.
line() {
    local found
    found=$(grep --max-count=1 --line-number --fixed-strings "$2" "docs/examples/orders/$1")
    echo "$1:${found%%:*}#1"
}
# Has an order placed with a service that dies just before the line that has this text.
order_and_die() {
    start_service tests/clients/orders_until.py orders KILL "$(line "$2" "$3")"
    shop order "$orders_port" "$1"
    wait_for_service
}
# Waits until a transaction is in a state.
until_state() {
    for _ in $(seq 300); do
        halfway tx list --name "$1" --state "$2" 2>/dev/null | grep --quiet --fixed-strings "$2" && return
        sleep 0.1
    done
    echo "$1 did not become $2" >&2
    exit 1
}

shop() { .venv/bin/python -B tests/demo/shop.py "$@"; }
client() { .venv/bin/python tests/demo/demo.py "$1" "$amqp_port" "$user" "$password"; }

# --- The demonstration --------------------------------------------------------------------------------------------

stop_all() { :; }
trap finish EXIT
trap 'exit 130' INT TERM
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
if docker info >/dev/null 2>&1 && "${compose[@]}" version >/dev/null 2>&1; then with_compose; else with_debian; fi
start_all

say "Act one: a pika program connects to Halfway instead of RabbitMQ; nothing but its port has changed."
client first

say "Now the relay's account is locked out of RabbitMQ: its password changes, and its connections are closed."
rabbitmqctl change_password $relay "$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')" >/dev/null
rabbitmqctl close_all_user_connections $relay "locked out by the demonstration" >/dev/null

say "The program commits again. Halfway can't forward, but it has the messages safe on its disk."
client parked

say "Halfway is killed with SIGKILL, as a crash would."
kill_proxy

say "The relay's account may log in again, and Halfway starts."
rabbitmqctl change_password $relay secret >/dev/null
start_proxy

say "A consumer reads the queue."
client arrive

say "Act two: an order goes into a database and into a queue, into both or into neither."
echo "   The service is docs/examples/orders. It publishes in a named transaction, so that Halfway keeps the message"
echo "   even if the service dies, and then asks it what became of its database's transaction."
printf '%s\n' "$secret" >"$folder/orders.secret"

say "The service is killed after its database's commit and before tx.commit."
order_and_die 1001 orders.py "channel.tx_commit()"
shop orders "$folder/orders.db"

say "The order is placed, its message is not sent. Halfway has it, and is in doubt: halfway tx list --state in_doubt"
until_state order-1001 in_doubt
halfway tx list --state in_doubt

say "The service starts again. Halfway asks it, and the database says: committed."
start_service docs/examples/orders/orders.py
until_state order-1001 delivered
halfway tx show --name order-1001 --user $user
stop_service

say "Now the service is killed before its database's commit, so the database rolls back."
order_and_die 1002 sqlite.py 'connection.execute("COMMIT")'
shop orders "$folder/orders.db"

say "Again Halfway can't know that, and is in doubt: halfway tx list --state in_doubt"
until_state order-1002 in_doubt
halfway tx list --state in_doubt

say "The service starts again. This time the answer is: rolled back."
start_service docs/examples/orders/orders.py
until_state order-1002 rolled_back
halfway tx show --name order-1002 --user $user
stop_service

say "A consumer reads the queue."
shop arrive "$folder/orders.db" "$amqp_port" "$user" "$password"

say "That is all: what was committed arrives, what was rolled back never does, and who dies in between is asked later."
