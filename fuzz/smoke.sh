#!/bin/sh
# Runs each fuzz target for some seconds (the first argument, default 30). Exit code 0 when all held, and when it could
# not be tried at all, which it says; else that of the first target that failed.
set -eu
cd "$(dirname "$0")/.."
seconds="${1:-30}"
# Leaks are not looked for: that needs ptrace, which containers refuse, and may hang there at the end of a run.
export ASAN_OPTIONS="detect_leaks=0"

skip() {
    echo "fuzz: SKIPPED, nothing was fuzzed: $1"
    exit 0
}
cargo +nightly --version >/dev/null 2>&1 || skip "no nightly toolchain (rustup toolchain install nightly --profile minimal)"
cargo +nightly fuzz --version >/dev/null 2>&1 || skip "no cargo-fuzz (cargo install cargo-fuzz --version 0.13.2 --locked)"

for target in request_head response_head body_framing config; do
    seeds="fuzz/seeds/$target"
    options="-dict=fuzz/http.dict"
    if [ "$target" = config ]; then
        seeds="$seeds config"
        options="-dict=fuzz/toml.dict -max_len=1500"
    fi
    mkdir -p "fuzz/corpus/$target"
    log="$(mktemp)"
    status=0
    # Words are split on purpose.
    # shellcheck disable=SC2086
    cargo +nightly fuzz run "$target" "fuzz/corpus/$target" $seeds -- \
        -max_total_time="$seconds" -timeout=30 $options >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 60 "$log"
        rm -f "$log"
        echo "fuzz: $target FAILED"
        exit "$status"
    fi
    echo "fuzz: $target held: $(grep '^Done ' "$log")"
    rm -f "$log"
done
