#!/usr/bin/env bash
# Builds the Debian package and tries it in a clean Debian of its own: installs it, runs its unit's command line, reloads
# and ends that, upgrades, removes and purges the package. Says why if it can't. The binary in it is the one of the tests,
# for a release build takes minutes and its package is the same.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
skip() { printf 'skipped: the Debian package is not tried: %s\n' "$*"; exit 0; }
fail() { printf 'failed: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || skip "only root can make a Debian in a folder"
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || skip "this is no Debian"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ -n "$suite" ] || skip "this Debian has no name"
# The mirror that this machine uses itself.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $suite" 2>/dev/null |
    grep --max-count=1 '/debian/\?$') || skip "apt knows no mirror of Debian $suite"
command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null ||
    skip "debootstrap can't be installed"

work=$(mktemp --directory "${TMPDIR:-/tmp}/halfway-package.XXXXXX")
root=$work/root
pid=
finish() {
    status=$?
    trap - EXIT
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    [ $status = 0 ] || tail --lines=20 "$work"/*.log >&2 || true
    rm -rf "$work"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

say "Building the package"
command -v cargo-deb >/dev/null || cargo install --locked --quiet --debug cargo-deb@^3
target=${CARGO_TARGET_DIR:-target}
cargo build --locked --quiet
mkdir -p "$work/target/release"
cp "$target/debug/halfway" "$work/target/release/"
docs/packaging/stage.sh "$target/debug/halfway" target/package
version=$(cargo metadata --locked --no-deps --format-version 1 | python3 -c \
    'import json, sys; print(json.load(sys.stdin)["packages"][0]["version"])')
for number in 1 2; do
    CARGO_TARGET_DIR=$work/target cargo deb --quiet --no-build --fast --deb-version "$version-$number" \
        --output "$work/halfway_$number.deb" >"$work/cargo-deb.log" 2>&1
done

say "Making a Debian $suite in a folder"
debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/debootstrap.log" 2>&1 ||
    skip "debootstrap fails: $(tail --lines=1 "$work/debootstrap.log")"
cp "$work"/halfway_?.deb "$root/srv/"
within=(chroot "$root" env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin)
inside() { "${within[@]}" "$@"; }
# Everything but what dpkg writes about itself.
listing() {
    (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache -o -path "./srv/*" \) -prune -o -print) |
        grep --invert-match --extended-regexp '^\./etc/(group|gshadow|passwd|shadow)-$' | sort
}
expect() { [ "$2" = "$3" ] || fail "$1: expected '$3', found '$2'"; }

listing >"$work/before"
say "Installing"
inside dpkg --install /srv/halfway_1.deb >"$work/dpkg.log" 2>&1 || fail "dpkg does not install it"
of_config() { inside stat --format='%a %U:%G' "$1"; }
expect "/etc/halfway" "$(of_config /etc/halfway)" "750 root:halfway-config"
expect "config.toml" "$(of_config /etc/halfway/config.toml)" "640 root:halfway-config"
expect "the configuration" "$(inside halfway config check)" "/etc/halfway/config.toml is valid."
inside bash -n /usr/share/bash-completion/completions/halfway
for file in usr/share/man/man1/halfway.1.gz usr/share/doc/halfway/copyright usr/share/doc/halfway/config.toml usr/lib/systemd/system/halfway.service; do
    [ -s "$root/$file" ] || fail "/$file is not there"
done

read -r amqp_port admin_port < <(python3 tests/demo/free_ports.py 2)
unit=$root/usr/lib/systemd/system/halfway.service
setting() { sed --quiet "s/^$1=//p" "$unit" | tail --lines=1; }
# As systemd does it with DynamicUser, SupplementaryGroups and StateDirectory.
expect "the user" "$(setting DynamicUser) $(setting SupplementaryGroups) $(setting StateDirectory)" \
    "yes halfway-config halfway"
user=61234
as_service=("${within[@]}" HALFWAY_LISTEN__ADDRESS="127.0.0.1:$amqp_port"
    HALFWAY_ADMIN__ADDRESS="127.0.0.1:$admin_port" setpriv --reuid=$user --regid=$user
    --groups="$(inside getent group halfway-config | cut --delimiter=: --fields=3)" --no-new-privs --bounding-set=-all)
start() {
    install --directory --owner=$user --group=$user --mode=700 "$root/var/lib/halfway"
    read -ra command < <(setting ExecStart)
    # No function, so that the signals reach the program itself.
    "${as_service[@]}" "${command[@]}" >>"$work/halfway.log" 2>&1 &
    pid=$!
    until_true "an answer" healthy
    until_true "its store" test -s "$root/var/lib/halfway/halfway.db"
}
healthy() { "${as_service[@]}" halfway doctor --health >/dev/null 2>&1; }
until_true() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" && return
        kill -0 $pid 2>/dev/null || fail "it ended"
        sleep 0.1
    done
    fail "waited in vain for $what"
}
stop() {
    kill -TERM $pid
    wait $pid || fail "it ended with $?"
    pid=
}

say "Running its unit's command line"
start
printf '[log]\nlevel = "debug"\n' >>"$root/etc/halfway/config.toml"
expect "the unit's reload" "$(setting ExecReload)" "/bin/sh -c 'kill -HUP \$MAINPID'"
read -ra check < <(sed --quiet "s/^ExecReload=//p" "$unit" | head --lines=1)
"${as_service[@]}" "${check[@]}" >/dev/null || fail "the unit's check refuses a configuration that is valid"
printf 'wrong = 1\n' >>"$root/etc/halfway/config.toml"
"${as_service[@]}" "${check[@]}" >/dev/null 2>&1 && fail "the unit's check finds nothing wrong with \`wrong = 1\`"
sed --in-place '$d' "$root/etc/halfway/config.toml"
kill -HUP $pid
for _ in $(seq 100); do
    grep --quiet "configuration reloaded" "$work/halfway.log" && break
    sleep 0.1
done
grep --quiet "key=log.level" "$work/halfway.log" || fail "the reload did nothing"
stop
# Others can't read what may hold secrets.
inside setpriv --reuid=$user --regid=$user --clear-groups cat /etc/halfway/config.toml >/dev/null 2>&1 &&
    fail "everybody can read the configuration"

say "Upgrading"
inside dpkg --install /srv/halfway_2.deb >"$work/dpkg.log" 2>&1 </dev/null || fail "dpkg does not upgrade it"
expect "the version" "$(inside dpkg-query --show --showformat='${Version}' halfway)" "$version-2"
grep --quiet 'level = "debug"' "$root/etc/halfway/config.toml" || fail "the upgrade changed the configuration"
expect "config.toml" "$(of_config /etc/halfway/config.toml)" "640 root:halfway-config"
start
stop

say "Removing and purging"
inside dpkg --remove halfway >"$work/dpkg.log" 2>&1 || fail "dpkg does not remove it"
[ ! -e "$root/usr/bin/halfway" ] || fail "the binary is still there"
[ -e "$root/etc/halfway/config.toml" ] && [ -e "$root/var/lib/halfway/halfway.db" ] || fail "it removed too much"
inside dpkg --purge halfway >"$work/dpkg.log" 2>&1 || fail "dpkg does not purge it"
listing >"$work/after"
diff "$work/before" "$work/after" || fail "the purge left something, or took too much"
inside getent group halfway-config && fail "the group is still there"
say "The package installs, runs, upgrades and goes."
