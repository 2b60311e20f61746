#!/usr/bin/env bash
# What a rate and a latency do not show: changes under load must not fail a request, and size must not cost.
#
#   loadtest/trials.sh [OUT]      OUT: folder for the raw results (default: target/trials)
#
# Needs the release binaries (cargo build --release), curl and jq. Uses 127.0.0.0/8 only, stops all that it started, and
# exits 1 if a trial did not hold. One shard, telemetry on; the proxy has CPU 0, origin and client have CPU 1.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/trials}
bin=target/release
scratch=$(mktemp -d)
mkdir -p "$out"
: > "$out/trials.jsonl"
trap 'jobs -p | xargs -r kill 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$scratch"' EXIT
command -v jq > /dev/null || { echo "trials: jq is missing: apt-get install jq"; exit 2; }
[ -x "$bin/ringmesh" ] || { echo "trials: no $bin/ringmesh: cargo build --release"; exit 2; }
failed=0

# origin NAME [ARGUMENTS...]: starts an origin on a free port; sets origin_port and origin_pid.
origin() {
    local name=$1
    shift
    $bin/loadtest server --listen 127.0.0.1:0 --cpus 1 "$@" > "$scratch/$name.origin" &
    origin_pid=$!
    until origin_port=$(grep -oE '127\.0\.0\.1:[0-9]+' "$scratch/$name.origin" | head -1 | cut -d: -f2) && [ -n "$origin_port" ]; do sleep 0.05; done
}

# config FILE TIMEOUT: one listener, one service, one route. TIMEOUT is what reloads change.
config() {
    cat > "$1.new" << TOML
shards = [0]
admin = { address = "127.0.0.1:0" }
[[listener]]
name = "in"
address = "127.0.0.1:0"
[[service]]
name = "origin"
endpoints = ["127.0.0.1:$origin_port"]
[[route]]
service = "origin"
timeout = "$2"
TOML
    mv "$1.new" "$1"
}

# proxy NAME FILE: starts ringmesh; sets proxy_pid, url and admin.
proxy() {
    $bin/ringmesh run --config "$2" 2> "$scratch/$1.log" > /dev/null &
    proxy_pid=$!
    until grep -q ' ready' "$scratch/$1.log"; do
        kill -0 $proxy_pid 2> /dev/null || { cat "$scratch/$1.log"; exit 1; }
        sleep 0.02
    done
    url=http://$(grep ' listening ' "$scratch/$1.log" | grep -oE 'address=[0-9.:]+' | head -1 | cut -d= -f2)
    admin=http://$(grep ' admin ' "$scratch/$1.log" | grep -oE 'address=[0-9.:]+' | head -1 | cut -d= -f2)
}

# report NAME HELD JSON: one line for eyes, one for the record.
report() {
    printf '%-34s %-6s %s\n' "$1" "$([ "$2" = 1 ] && echo held || echo BROKE)" "$(jq -r 'to_entries | map("\(.key)=\(.value)") | join("  ")' <<< "$3")"
    jq -c --arg trial "$1" --argjson held "$2" '{trial: $trial, held: ($held == 1)} + .' <<< "$3" >> "$out/trials.jsonl"
    [ "$2" = 1 ] || failed=1
}

stop() { kill "$@" 2> /dev/null || true; wait "$@" 2> /dev/null || true; }

# --- 100 reloads under load ---
origin reloads
config "$scratch/reloads.toml" 30s
proxy reloads "$scratch/reloads.toml"
$bin/loadtest client "$url/size/1024" --rate 2000 --duration 20s --cpus 1 --json "$scratch/reloads.json" > /dev/null 2>&1 &
client=$!
for n in $(seq 100); do
    config "$scratch/reloads.toml" "$((30 + n % 50))s"
    kill -HUP $proxy_pid
    sleep 0.15
done
wait $client || true
generation=$(curl -s "$admin/shards?format=json" | jq '[.. | .generation? // empty] | max')
result=$(jq --argjson generation "${generation:-0}" '{requests, failed, failures: (.failures | tostring), generation: $generation}' "$scratch/reloads.json")
# The file watch and the signal may find the same change together, so that there are at most 100 and nearly as many.
report "100 reloads, 2 000 requests/s" "$(jq 'if .failed == 0 and .generation >= 50 then 1 else 0 end' <<< "$result")" "$result"
stop $proxy_pid $origin_pid

# --- SIGTERM under load ---
origin sigterm
config "$scratch/sigterm.toml" 30s
proxy sigterm "$scratch/sigterm.toml"
$bin/loadtest client "$url/delay/2ms/size/1024" --duration 4s --cpus 1 --json "$scratch/sigterm.json" > /dev/null 2>&1 &
client=$!
sleep 2
kill -TERM $proxy_pid
code=0
wait $proxy_pid || code=$?
wait $client || true
# Where the proxy listened nobody does any more, so that whoever connects afterwards is refused: that is not a request.
result=$(jq --argjson code $code '{requests, answered: (.requests - .failed), lost: (.failed - (.failures.connect // 0)), exit_code: $code}' "$scratch/sigterm.json")
report "SIGTERM, 64 busy connections" "$(jq 'if .lost == 0 and .exit_code == 0 then 1 else 0 end' <<< "$result")" "$result"
stop $origin_pid

# --- an upstream that closes idle connections faster than the proxy does ---
origin idle --idle-close 100ms
config "$scratch/idle.toml" 30s
proxy idle "$scratch/idle.toml"
for method in GET POST; do
    for rate in 8 9 10 11 12 20 50; do
        $bin/loadtest client "$url/size/1024" --method $method --rate $rate --connections 4 --duration 6s --cpus 1 \
            --json "$scratch/idle.$method.$rate.json" > /dev/null 2>&1 || true
    done
    result=$(jq -s '{requests: (map(.requests) | add), failed: (map(.failed) | add)}' "$scratch"/idle.$method.*.json)
    report "upstream closes after 100 ms, $method" "$(jq 'if .failed == 0 then 1 else 0 end' <<< "$result")" "$result"
done
stop $proxy_pid $origin_pid

# --- 10 000 services with 10 endpoints each, 10 000 routes ---
origin services
{
    printf 'shards = [0]\nadmin = { address = "127.0.0.1:0" }\n[[listener]]\nname = "in"\naddress = "127.0.0.1:0"\n'
    for n in $(seq 0 9999); do
        if [ "$n" -lt 10 ]; then
            endpoints="\"127.0.0.1:$origin_port\""
        else
            endpoints=$(for e in $(seq 10); do printf '"127.%d.%d.%d:80", ' $((1 + n / 250)) $((n % 250)) "$e"; done)
        fi
        printf '[[service]]\nname = "s%d"\nendpoints = [%s]\n[[route]]\nhosts = ["s%d.example"]\nservice = "s%d"\n' "$n" "$endpoints" "$n" "$n"
    done
} > "$scratch/services.toml"
began=$(date +%s%N)
$bin/ringmesh check "$scratch/services.toml" > /dev/null
checked=$(date +%s%N)
proxy services "$scratch/services.toml"
started=$(date +%s%N)
for n in $(seq 0 9); do
    $bin/loadtest client "$url/size/1024" --header "host: s$n.example" --requests 500 --cpus 1 > /dev/null 2>&1 || failed=1
done
resident=$(awk '/VmRSS/ {print $2}' /proc/$proxy_pid/status)
peak=$(awk '/VmHWM/ {print $2}' /proc/$proxy_pid/status)
result=$(jq -n --argjson check $(((checked - began) / 1000000)) --argjson start $(((started - checked) / 1000000)) \
    --argjson resident "$resident" --argjson peak "$peak" \
    '{check_ms: $check, start_ms: $start, resident_kib: $resident, peak_kib: $peak}')
report "10 000 services, 10 000 routes" "$(jq 'if .check_ms <= 2000 and .start_ms <= 2000 and .resident_kib <= 102400 then 1 else 0 end' <<< "$result")" "$result"
stop $proxy_pid $origin_pid

# --- more than there is memory for ---
# 6 000 callers at a time, whose answers take seconds: each holds buffers for as long as that, three times the ceiling in all.
origin memory --slow 20000
config "$scratch/memory.toml" 30s
printf '[overload]\nmemory_max = "64MiB"\n' >> "$scratch/memory.toml"
proxy memory "$scratch/memory.toml"
$bin/loadtest client "$url/size/100KiB" --connections 6000 --duration 12s --timeout 20s --cpus 1 --json "$scratch/memory.json" > /dev/null 2>&1 &
client=$!
asked=0 unanswered=0
while kill -0 $client 2> /dev/null; do
    asked=$((asked + 1))
    curl -sf --max-time 1 -o /dev/null "$admin/live" || unanswered=$((unanswered + 1))
    sleep 0.1
done
wait $client || true
peak=$(awk '/VmHWM/ {print $2}' /proc/$proxy_pid/status)
closed=$(curl -s --retry 3 --retry-all-errors "$admin/metrics" | awk '/^ringmesh_memory_(refused|closed|shed)/ {sum += $2} END {print sum + 0}')
after=000 waits=0
until after=$(curl -s -o /dev/null -w '%{http_code}' "$url/size/1024") && [ "$after" = 200 ] || [ $waits = 50 ]; do
    waits=$((waits + 1))
    sleep 0.2
done
result=$(jq --argjson peak "$peak" --argjson closed "$closed" --argjson asked $asked --argjson unanswered $unanswered --argjson after "$after" --argjson waits $waits \
    '{requests, failed, refused_or_closed: $closed, peak_kib: $peak, live_asked: $asked, live_unanswered: $unanswered, status_after: $after, served_after_s: ($waits / 5)}' "$scratch/memory.json")
# Within a tenth of the ceiling, and somebody was turned away, or it was not what it is meant to be.
report "three times its ceiling on memory" "$(jq 'if .peak_kib <= 72090 and .refused_or_closed > 0 and .live_unanswered == 0 and .status_after == 200 then 1 else 0 end' <<< "$result")" "$result"
stop $proxy_pid $origin_pid

echo "raw results: $out/trials.jsonl"
exit $failed
