#!/usr/bin/env bash
# Two proxies under the same load at the same time, on the same two CPUs: CPU a request of the second by that of the first, round by
# round. Where the machine's speed changes from second to second, as that of a guest does, it changes for both: the ratios of two builds agree
# to one in a hundred, where those of measurements one after the other differ by ten. Each has half of the proxies' CPU, so
# that rates and latencies mean nothing here; and they share its caches.
#
#   loadtest/beside.sh ROUNDS CASE SECONDS FIRST SECOND [FOLDER]
#
# FIRST and SECOND are what `loadtest compare --peers` takes, or the path of a ringmesh. CASE is what `--case` takes. Every round is kept
# in FOLDER/raw.jsonl. Uses loopback only.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 5 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
rounds=$1 case=$2 seconds=$3 folder=${6:-target/beside}
loadtest=target/release/loadtest
[ -x $loadtest ] || { echo "beside: no $loadtest: cargo build --release"; exit 2; }
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# measure WHO NAME: one round of one of them.
measure() {
    local who=(--peers "$1")
    case $1 in */*) who=(--peers ringmesh --ringmesh "$1") ;; esac
    "$loadtest" compare --case "$case" --rounds 1 --seconds "$seconds" "${who[@]}" --out "$scratch/$2" >"$scratch/$2.log" 2>&1 ||
        { cat "$scratch/$2.log"; return 1; }
}

for round in $(seq "$rounds"); do
    # Who is started first changes.
    if ((round % 2)); then
        measure "$4" first & one=$!; measure "$5" second & two=$!
    else
        measure "$5" second & two=$!; measure "$4" first & one=$!
    fi
    wait $one; wait $two
    for which in first second; do
        sed "s/^{/{\"beside\":\"$which\",\"beside_round\":$round,/" "$scratch/$which/raw.jsonl" >>"$scratch/all.jsonl"
    done
    [ -t 2 ] && printf '\rround %d of %d ' "$round" "$rounds" >&2 || true
done
[ -t 2 ] && printf '\r' >&2 || true
cp "$scratch/all.jsonl" "$folder/raw.jsonl"
awk -v first="$4" -v second="$5" -v case="$case" '
    function number(name) { return match($0, "\"" name "\":[0-9.]+") ? substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0 : 0 }
    function median(list, n,   i, j, t) {
        for (i = 2; i <= n; i++) { t = list[i]; for (j = i - 1; j >= 1 && list[j] > t; j--) list[j + 1] = list[j]; list[j + 1] = t }
        return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    /"beside":"first"/ { a[number("beside_round")] = number("cpu_us") }
    /"beside":"second"/ { b[number("beside_round")] = number("cpu_us") }
    END {
        for (round in a) if (round in b) { n++; r[n] = b[round] / a[round]; x[n] = a[round]; y[n] = b[round] }
        m = median(r, n)
        printf "%s: %s / %s = %.3f [%.2f-%.2f] of %d rounds; CPU us a request %.1f and %.1f\n", case, second, first, m, r[1], r[n], n, median(x, n), median(y, n)
    }' "$folder/raw.jsonl"
