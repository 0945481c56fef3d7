#!/usr/bin/env bash
# Puts what a package has beside the binary, and the binary makes itself, into a folder:
#
#   docs/packaging/stage.sh BINARY FOLDER
set -euo pipefail
binary=$1 folder=$2
mkdir -p "$folder/completions"
"$binary" man "$folder/man"
"$binary" completions bash >"$folder/completions/halfway.bash"
"$binary" completions zsh >"$folder/completions/_halfway"
"$binary" completions fish >"$folder/completions/halfway.fish"
