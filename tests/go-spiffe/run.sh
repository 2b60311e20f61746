#!/usr/bin/env bash
# go-spiffe and ringmesh as peers: go-spiffe gets its identity from `ringmesh ca serve`, calls a strict listener by HTTP/1.1
# and HTTP/2, and is called as a service of the mesh. Needs Go and its module proxy, which `cargo test` shall not: run it
# by hand or from CI. Uses target/debug/ringmesh, or the binary named as the first argument.
set -euo pipefail
cd "$(dirname "$0")"
ringmesh=$(realpath "${1:-../../target/debug/ringmesh}")
source ../peers.sh

go build -o "$folder/peer" .
export SPIFFE_ENDPOINT_SOCKET=unix://$folder/workload.sock
cat >"$folder/workloads.toml" <<TOML
socket = "$folder/workload.sock"
state = "$folder/ca"
trust_domain = "mesh.local"
[[workload]]
id = "spiffe://mesh.local/go"
executable = "$folder/peer"
[[workload]]
id = "spiffe://mesh.local/sidecar"
executable = "$ringmesh"
TOML
"$ringmesh" ca serve --config "$folder/workloads.toml" 2>"$folder/ca.log" &
children+=($!)
await "$folder/ca.log" 's/.*\(serving the workload api\).*/\1/p' >/dev/null

"$folder/peer" server spiffe://mesh.local/sidecar >"$folder/server.out" 2>"$folder/server.log" &
children+=($!)
server=$(await "$folder/server.out" 's/^\(127.*\)/\1/p')
cat >"$folder/sidecar.toml" <<TOML
shards = 1
[admin]
address = "127.0.0.1:0"
[identity]
source = "workload-api"
[[listener]]
name = "in"
address = "127.0.0.1:0"
tls = "strict"
[[listener]]
name = "out"
address = "127.0.0.1:0"
[[service]]
name = "go"
endpoints = ["$server"]
tls = "mesh"
identities = ["spiffe://mesh.local/go"]
[[route]]
service = "go"
TOML
NO_COLOR=1 "$ringmesh" run --config "$folder/sidecar.toml" 2>"$folder/sidecar.log" &
children+=($!)
await "$folder/sidecar.log" 's/.* \(ready\)$/\1/p' >/dev/null
in=$(await "$folder/sidecar.log" 's/.* listener=in address=\([^ ]*\).*/\1/p')
out=$(await "$folder/sidecar.log" 's/.* listener=out address=\([^ ]*\).*/\1/p')

said=$(curl -sS --noproxy '*' --max-time 10 "http://$out/")
[[ $said == "peer spiffe://mesh.local/sidecar <nil> by HTTP/2.0 cert " ]] || fail "as a service: $said"
said=$("$folder/peer" client "$in" spiffe://mesh.local/sidecar 2>&1) || fail "as a caller: $said"
for protocol in HTTP/1.1 HTTP/2.0; do
  line=$(grep "^$protocol 200 peer spiffe://mesh.local/sidecar" <<<"$said") || fail "as a caller: $said"
  [[ $line == *"By=spiffe://mesh.local/sidecar;"*"URI=spiffe://mesh.local/go"* ]] || fail "the caller is not told of: $line"
done
if said=$("$folder/peer" client "$in" spiffe://mesh.local/somebody 2>&1); then fail "any server is believed: $said"; fi
echo "go-spiffe: all good"
