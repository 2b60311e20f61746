#!/usr/bin/env bash
# Builds spire-server and spire-agent into target/peers/spire: some ten minutes. Needs Go, its module proxy and a C compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."
VERSION=v1.13.3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p target/peers/spire
bin=$(realpath target/peers/spire)
cd "$folder"
go mod init tools
programs=(github.com/spiffe/spire/cmd/spire-server github.com/spiffe/spire/cmd/spire-agent)
go get -tool "${programs[@]/%/@$VERSION}"
GOBIN=$bin go install "${programs[@]}"
"$bin/spire-server" --version
