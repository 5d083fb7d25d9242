#!/bin/sh
# Builds the OpenTelemetry Collector of a manifest with the Collector's own builder.
#
#   sh deploy/collector/build.sh [DIRECTORY [MANIFEST]]
#   sh deploy/collector/build.sh "" elastic.yaml
#
# MANIFEST, in this folder, is builder.yaml (otelcol) or elastic.yaml (otelcol-elastic). Leaves the binary
# in DIRECTORY (default: /usr/local/bin when it is writable, else ~/.local/bin), where tests and benchmarks
# find it when that directory is on the PATH. Does nothing when the binary of that version is already there. Needs Go (https://go.dev/doc/install) and its module proxy; takes some
# minutes on two cores the first time. Go's own variables (GOPROXY, GOFLAGS, ...) are respected.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
manifest=$here/${2:-builder.yaml}
version=$(sed -n 's/^  version: *//p' "$manifest")
name=$(sed -n 's/^  name: *//p' "$manifest")

if [ -n "${1:-}" ]; then
    target=$1
elif [ -w /usr/local/bin ]; then
    target=/usr/local/bin
else
    target=$HOME/.local/bin
fi
mkdir -p "$target"

if [ -x "$target/$name" ] && "$target/$name" --version 2>/dev/null | grep -qF "$version"; then
    echo "$target/$name is version $version already"
    exit 0
fi
command -v go >/dev/null || {
    echo "building $name needs Go on the PATH: https://go.dev/doc/install" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# The builder writes a main.go for the components of the manifest and has Go compile it.
echo "installing the builder, v$version"
GOBIN=$work/bin GOFLAGS="${GOFLAGS:-} -mod=mod" go install "go.opentelemetry.io/collector/cmd/builder@v$version"
# output_path is relative to the working directory.
cp "$manifest" "$work/builder.yaml"
echo "building $name $version; this takes some minutes the first time"
(cd "$work" && ./bin/builder --config builder.yaml)
install -m 0755 "$work/_build/$name" "$target/$name"
echo "$target/$name: $("$target/$name" --version)"
