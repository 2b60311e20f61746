#!/usr/bin/env bash
# github.com/envoyproxy/ratelimit, whole, counts for two ringmeshes: what one lets pass the other does not; its fields reach the
# caller; while it is gone the limit says what becomes of requests. Needs Go and its module proxy, which `cargo test` shall not: run it
# by hand or from CI. Uses target/debug/ringmesh, or the binary named as the first argument.
set -euo pipefail
cd "$(dirname "$0")"
ringmesh=$(realpath "${1:-../../target/debug/ringmesh}")
source ../peers.sh

go build -o "$folder/ratelimit" .
mkdir -p "$folder/runtime/limits/config"
cat >"$folder/runtime/limits/config/shop.yaml" <<YAML
domain: shop
descriptors:
  - key: tenant
    rate_limit: { unit: day, requests_per_unit: 5 }
  - key: generic_key
    value: dear
    rate_limit: { unit: hour, requests_per_unit: 10 }
YAML
"$folder/ratelimit" "$folder/limits.sock" "$folder/runtime" >"$folder/ratelimit.log" 2>&1 &
service=$!
children+=("$service")
eventually "the service listens" test -S "$folder/limits.sock"

# A ringmesh of that name.
proxy() {
  cat >"$folder/$1.toml" <<TOML
shards = 1
[admin]
address = "127.0.0.1:0"
[[listener]]
name = "in"
address = "127.0.0.1:0"
[[service]]
name = "limits"
endpoints = ["unix:$folder/limits.sock"]
protocol = "http2"
[[route]]
name = "all"
respond = { status = 200 }
[[route]]
name = "dear"
path_prefix = "/dear"
respond = { status = 200 }
[[rate_limit]]
name = "per-tenant"
service = "limits"
domain = "shop"
by = [{ header = "x-tenant", key = "tenant" }]
timeout = "5s"
[[rate_limit]]
name = "dear"
service = "limits"
domain = "shop"
by = [{ value = "dear" }]
hits = 4
timeout = "5s"
on_failure = "refuse"
routes = ["dear"]
TOML
  NO_COLOR=1 "$ringmesh" run --config "$folder/$1.toml" 2>"$folder/$1.log" &
  children+=($!)
  await "$folder/$1.log" 's/.* \(ready\)$/\1/p' >/dev/null
  await "$folder/$1.log" 's/.* listener=in address=\([^ ]*\).*/\1/p'
}
proxy first >"$folder/first.address"
proxy second >"$folder/second.address"
first=$(<"$folder/first.address") second=$(<"$folder/second.address")

# Statuses of so many requests, alternately by both, with these options of curl.
statuses() {
  local count=$1 path=$2 n
  shift 2
  for ((n = 0; n < count; n++)); do
    if ((n % 2)); then address=$second; else address=$first; fi
    curl -sS --noproxy '*' --max-time 10 -o /dev/null -w '%{http_code} ' "$@" "http://$address$path"
  done
}

said=$(statuses 7 / -H 'x-tenant: a')
[[ $said == "200 200 200 200 200 429 429 " ]] || fail "of one tenant: $said"
said=$(statuses 7 / --http2-prior-knowledge -H 'x-tenant: b')
[[ $said == "200 200 200 200 200 429 429 " ]] || fail "of another, by HTTP/2: $said"
said=$(statuses 7 /)
[[ $said == "200 200 200 200 200 200 200 " ]] || fail "of nobody: $said"
# Ten in an hour, four at a time.
said=$(statuses 4 /dear)
[[ $said == "200 200 429 429 " ]] || fail "of what is dear: $said"

refused=$(curl -sS --noproxy '*' --max-time 10 -D - -o /dev/null -H 'x-tenant: a' "http://$first/" | tr -d '\r')
for line in 'ratelimit-policy: "per-tenant";q=5;w=86400' 'ratelimit: "per-tenant";r=0;t=[0-9]+' 'retry-after: [0-9]+' \
  'x-envoy-ratelimited: true' 'ratelimit-remaining: 0' 'x-ringmesh-failure: quota.downstream.rate_limited'; do
  grep -qiE "^$line\$" <<<"$refused" || fail "no line '$line' in: $refused"
done

kill "$service"
wait "$service" 2>/dev/null || true
said=$(statuses 2 / -H 'x-tenant: a')
[[ $said == "200 200 " ]] || fail "while nobody counts: $said"
said=$(statuses 2 /dear)
[[ $said == "500 500 " ]] || fail "of what is dear, while nobody counts: $said"
echo "envoyproxy/ratelimit: all good"
