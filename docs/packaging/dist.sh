#!/usr/bin/env bash
# Builds target/dist/halfway-VERSION-TARGET.tar.gz and its checksum, twice the same from the same sources and tools. The
# program is linked statically with musl where that can be had; else it needs the C library of this machine or a later one.
set -euo pipefail
cd "$(dirname "$0")/../.."

arch=$(uname -m)
target=$arch-unknown-linux-musl
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
# SQLite and ring are C, so musl's compiler has to be there too.
if ! command -v "$arch-linux-musl-gcc" >/dev/null && ! command -v musl-gcc >/dev/null; then
    as_root apt-get install -y -qq --no-install-recommends musl-tools >/dev/null 2>&1 || true
fi
if ! { command -v musl-gcc >/dev/null && rustup target add "$target" >/dev/null 2>&1; }; then
    target=$arch-unknown-linux-gnu
    echo "There is no musl for $arch here: the program will need glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2) or later."
fi
command -v cargo-cyclonedx >/dev/null || cargo install --locked --quiet cargo-cyclonedx@^0.5

version=$(cargo metadata --locked --no-deps --format-version 1 | python3 -c \
    'import json, sys; print(json.load(sys.stdin)["packages"][0]["version"])')
# The time of the last change, so that it is no time of building.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
# Folders of this machine have no place in the program.
RUSTFLAGS="--remap-path-prefix=$PWD=/halfway --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo -C strip=debuginfo"
export RUSTFLAGS
cargo build --release --locked --target "$target"

name=halfway-$version-$target
folder=target/dist/$name
rm -rf "$folder"
mkdir -p "$folder"
binary=${CARGO_TARGET_DIR:-target}/$target/release/halfway
install -m 755 "$binary" "$folder/"
docs/packaging/stage.sh "$binary" "$folder"
install -m 644 LICENSE README.md CHANGELOG.md config.toml docs/packaging/halfway.service \
    docs/packaging/halfway.sysusers.conf "$folder/"

# Made of Cargo.lock, for this target, without what only the tests need.
cargo cyclonedx --quiet --format json --target "$target" --spec-version 1.5 --override-filename halfway.sbom
# The number and the time of making differ each time, and the folder is this machine's.
python3 - "$folder/sbom.cdx.json" <<'PYTHON'
import json, os, sys
with open("halfway.sbom.json") as file:
    sbom = json.loads(file.read().replace("file://" + os.getcwd(), "file:///halfway"))
sbom.pop("serialNumber", None)
sbom["metadata"].pop("timestamp", None)
text = json.dumps(sbom, indent=2, sort_keys=True) + "\n"
with open(sys.argv[1], "w") as file:
    file.write(text)
PYTHON
rm halfway.sbom.json

(cd "$folder" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
tar --create --directory target/dist --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --mode='u+rw,go=rX' "$name" | gzip --no-name --best >"target/dist/$name.tar.gz"
(cd target/dist && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
