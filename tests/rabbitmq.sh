#!/usr/bin/env bash
# Makes a small Debian with another RabbitMQ in target/rabbitmq-VERSION, unless it is there, and prints where it is.
# RABBITMQ_ROOT has tests/it run against it. Only root can: the folder is made by debootstrap, RabbitMQ runs in it by chroot.
#
#   tests/rabbitmq.sh 4.0    from Debian 13, trixie
#   tests/rabbitmq.sh 4.3    from Debian's unstable, sid
#
# Ends with 75 if it can't be had from here.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:-}
case $version in
    4.0) suite=trixie ;;
    4.3) suite=sid ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

unavailable() { printf 'no RabbitMQ %s to test with: %s\n' "$version" "$*" >&2; exit 75; }

[ "$(id -u)" = 0 ] || unavailable "only root can make a Debian in a folder"
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
root=$(realpath "$target")/rabbitmq-$version
# It gets its name when all is in it.
if [ -d "$root" ]; then
    echo "$root"
    exit
fi

command -v apt-get >/dev/null || unavailable "this is no Debian"
# The mirror that this machine uses itself, which has the other suites too.
own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $own" 2>/dev/null |
    grep --max-count=1 '/debian/\?$') || unavailable "apt knows no mirror of Debian"
command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null ||
    unavailable "debootstrap can't be installed"

printf 'Making a Debian %s with RabbitMQ in %s, once; it takes minutes.\n' "$suite" "$root" >&2
made=$root.made
log=$root.log
trap 'rm -rf "$made"' EXIT
trap 'exit 130' INT TERM
rm -rf "$made"
debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$made" "$mirror" >"$log" 2>&1 ||
    unavailable "debootstrap fails: $(tail --lines=1 "$log")"
found=$(chroot "$made" dpkg-query --show --showformat='${Version}' rabbitmq-server)
[[ $found == "$version".* ]] || unavailable "Debian $suite has $found by now"
# RabbitMQ's nodes find each other by this name.
printf '127.0.0.1 localhost\n::1 localhost\n' >"$made/etc/hosts"
rm -rf "$made"/var/cache/apt/*.bin "$made"/var/cache/apt/archives/*.deb
mv "$made" "$root"
echo "$root"
