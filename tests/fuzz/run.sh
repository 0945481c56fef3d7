#!/usr/bin/env bash
# Fuzzes each target: tests/fuzz/run.sh LIMIT [TARGET...]
#
# LIMIT is a time in seconds (30), or a number of inputs (30000x), half of them from each of two fixed seeds, side by side: the
# same inputs each time, so that a check which turns red has turned red over the change it checks.
#
# It takes the stable toolchain and no cargo-fuzz: the flags are what coverage guidance needs, without a sanitizer, for
# the proxy has no unsafe code. What is found stands in tests/fuzz/artifacts, and the run fails.
set -euo pipefail
cd "$(dirname "$0")"
case ${1:-30} in
    *x) limit=(-runs="$((${1%x} / 2))") seeds=(1 2) corpus=$(mktemp -d) && trap 'rm -rf "$corpus"' EXIT ;;
    *) limit=(-max_total_time="${1:-30}") seeds=(0) corpus=corpus ;;
esac
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(frames session)

command -v c++ >/dev/null || { echo "libFuzzer needs a C++ compiler: apt-get install g++" >&2; exit 1; }
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, the flags reach the targets and their dependencies, but no build script.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
cargo build --release --locked --target "$host"

for target in "${targets[@]}"; do
    mkdir -p "artifacts/$target"
    runs=()
    for seed in "${seeds[@]}"; do
        mkdir -p "$corpus/$target/$seed"
        "target/$host/release/$target" "$corpus/$target/$seed" "seeds/$target" -seed="$seed" "${limit[@]}" -max_len=2048 \
            -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 -artifact_prefix="artifacts/$target/" &
        runs+=($!)
    done
    for run in "${runs[@]}"; do
        wait "$run" || { kill "${runs[@]}" 2>/dev/null; exit 1; }
    done
done
