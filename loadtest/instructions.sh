#!/usr/bin/env bash
# How many instructions a request takes in ringmesh, and in which functions, counted by valgrind: what noise of a machine cannot hide. Without
# the kernel, which takes more than half of the time, and blind for misses of caches; so it says where to look, and never what is gained.
#
#   loadtest/instructions.sh CONFIG [OTHER]
#
# CONFIG is a template of `loadtest compare` for one proxy, such as loadtest/peers/policies/ringmesh.toml. With OTHER its functions stand beside
# those of CONFIG, the largest difference first. Each is the difference of two runs, with 1000 and with 5000 requests by HTTP/1.1 (or as
# many as REQUESTS says, "1000 5000"), which leaves out start and end; what is done by time (merging telemetry) is in it by chance. The first run
# builds ringmesh, which takes some minutes. Uses loopback only. Needs x86-64, valgrind, a C compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] && [ $# -le 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
for config in "$@"; do [ -r "$config" ] || { echo "instructions: no $config"; exit 2; }; done
for tool in valgrind callgrind_annotate cc; do
    command -v $tool >/dev/null || { echo "instructions: no $tool: apt-get install valgrind gcc libc6-dev"; exit 2; }
done
read -r few many <<<"${REQUESTS:-1000 5000}"
work=target/counted
mkdir -p $work

# rustix looks for the vDSO where valgrind hides it: through libc it does not.
RUSTFLAGS="--cfg rustix_use_libc" cargo build --locked --release --target-dir $work --bins
cc -O2 -Wall -shared -fPIC -o $work/ring.so loadtest/instructions/ring.c

scratch=$(mktemp -d)
children=()
trap 'for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done; rm -rf "$scratch"' EXIT

: >"$scratch/origin"
"$work/release/loadtest" server --listen 127.0.0.1:0 --also 127.0.0.2 >"$scratch/origin" 2>&1 &
children+=($!)
until origin=$(sed -n 's/^listening on .*://p' "$scratch/origin") && [ -n "$origin" ]; do sleep 0.1; done

# count CONFIG REQUESTS NAME: a profile by function in $scratch/NAME.
count() {
    local listen='' proxy
    sed "s/{{proxy_cpu}}/0/; s/{{listen_port}}/0/; s/{{admin_port}}/0/; s/{{origin_port}}/$origin/g" "$1" >"$scratch/ringmesh.toml"
    : >"$scratch/log"
    LD_PRELOAD=$PWD/$work/ring.so valgrind --tool=callgrind --callgrind-out-file="$scratch/counts" \
        "$work/release/ringmesh" run --config "$scratch/ringmesh.toml" >"$scratch/log" 2>&1 &
    proxy=$!
    children+=($proxy)
    until listen=$(sed -n 's/.* listening .*address=[^ ]*:\([0-9]*\).*/\1/p' "$scratch/log") && [ -n "$listen" ] && grep -q ' ready$' "$scratch/log"; do
        kill -0 $proxy 2>/dev/null || { cat "$scratch/log"; return 1; }
        sleep 0.1
    done
    "$work/release/loadtest" client --connections 8 --requests "$2" "http://127.0.0.1:$listen/size/1024" >"$scratch/client" ||
        { cat "$scratch/client" "$scratch/log"; return 1; }
    kill -INT $proxy
    wait $proxy || true
    callgrind_annotate --threshold=100 --show-percs=no --tree=none --auto=no "$scratch/counts" 2>/dev/null |
        awk '/file:function/ { on = 1; next }
            on && $1 ~ /^[0-9,]+$/ { gsub(",", "", $1); n = $1; $1 = ""; sub(/^ [^:]*:/, ""); sub(/ \[.*\]$/, ""); sub(/\x27[0-9]+$/, ""); sum[$0] += n }
            END { for (name in sum) printf "%d\t%s\n", sum[name], name }' >"$scratch/$3"
}

n=0
for config in "$@"; do
    n=$((n + 1))
    for requests in $few $many; do
        [ -t 2 ] && printf '\r%s, %d requests ' "$config" "$requests" >&2 || true
        count "$config" "$requests" "$n-$requests"
    done
done
[ -t 2 ] && printf '\r' >&2 || true
awk -F '\t' -v requests=$((many - few)) -v two=$((n == 2)) '
    { split(FILENAME, part, "/"); split(part[length(part)], of, "-"); run = of[1]; sign = of[2] == few ? -1 : 1
      per[run, $2] += sign * $1 / requests; total[run] += sign * $1 / requests; names[$2] = 1 }
    END {
        if (two) printf "%9s %9s %9s  in all\n%9.0f %9.0f %9.0f\n", "more", "CONFIG", "OTHER", total[2] - total[1], total[1], total[2]
        else printf "%9.0f  in all\n", total[1]
        for (name in names) {
            by = two ? per[2, name] - per[1, name] : per[1, name]
            if (by > 15 || by < -15) {
                if (two) printf "%9.0f %9.0f %9.0f  %.120s\n", by, per[1, name], per[2, name], name | "sort -rn"
                else printf "%9.0f  %.120s\n", by, name | "sort -rn"
            }
        }
    }' few="$few" "$scratch"/[12]-*
