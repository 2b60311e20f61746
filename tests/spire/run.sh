#!/usr/bin/env bash
# SPIRE and ringmesh as peers: two proxies get their identities from a SPIRE agent, call each other under load while SPIRE
# renews leaves every few seconds and replaces its root, and one of them loses its registration. No request may fail.
#
#   tests/spire/run.sh [RINGMESH] [LOADTEST]     default: target/debug/ringmesh and target/debug/loadtest
#
# Needs spire-server and spire-agent on the PATH, or in target/peers/spire, where `tests/spire/install.sh` builds them.
# Uses 127.0.0.1 and a temporary folder only, and stops all that it started.
set -euo pipefail
cd "$(dirname "$0")"
ringmesh=$(realpath "${1:-../../target/debug/ringmesh}")
loadtest=$(realpath "${2:-../../target/debug/loadtest}")
PATH=$PATH:$(realpath -m ../../target/peers/spire)
for program in spire-server spire-agent; do
  command -v "$program" >/dev/null || { echo "no $program: tests/spire/install.sh builds it"; exit 2; }
done
source ../peers.sh

# --- SPIRE ---

# SPIRE takes no port 0.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
port=$(free_port)
cat >"$folder/server.conf" <<CONF
server {
  bind_address = "127.0.0.1"
  bind_port = "$port"
  socket_path = "$folder/server.sock"
  trust_domain = "mesh.local"
  data_dir = "$folder"
  log_level = "INFO"
  ca_ttl = "1h"
  default_x509_svid_ttl = "20s"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "$folder/store.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
CONF
cat >"$folder/agent.conf" <<CONF
agent {
  data_dir = "$folder/agent"
  server_address = "127.0.0.1"
  server_port = "$port"
  socket_path = "$folder/agent.sock"
  trust_bundle_path = "$folder/root.pem"
  trust_domain = "mesh.local"
  log_level = "INFO"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
}
CONF
server() {
  spire-server "$@" -socketPath "$folder/server.sock"
}
spire-server run -config "$folder/server.conf" >"$folder/server.log" 2>&1 &
children+=($!)
eventually "SPIRE's server is up" server healthcheck
server bundle show -format pem >"$folder/root.pem"
token=$(server token generate -spiffeID spiffe://mesh.local/node | sed -n 's/^Token: //p')
spire-agent run -config "$folder/agent.conf" -joinToken "$token" >"$folder/agent.log" 2>&1 &
children+=($!)
eventually "SPIRE's agent is up" spire-agent healthcheck -socketPath "$folder/agent.sock"

# register NAME SELECTOR: prints the number of the entry.
register() {
  server entry create -parentID spiffe://mesh.local/node -spiffeID "spiffe://mesh.local/$1" -selector "$2" |
    sed -n 's/^Entry ID *: //p'
}

# --- two proxies ---

cat >"$folder/far.toml" <<TOML
shards = 1
authorization_default = "deny"
[admin]
address = "127.0.0.1:0"
[identity]
source = "workload-api"
socket = "unix://$folder/agent.sock"
id = "spiffe://mesh.local/far"
[[listener]]
name = "in"
address = "127.0.0.1:0"
tls = "strict"
[[authorization]]
name = "near"
action = "allow"
from = ["spiffe://mesh.local/near"]
[[route]]
respond = { status = 200, body = "from far" }
TOML
# proxy NAME: starts it; sets `admin` and `pid`.
proxy() {
  NO_COLOR=1 "$ringmesh" run --config "$folder/$1.toml" 2>"$folder/$1.log" &
  pid=$!
  children+=("$pid")
  admin=$(await "$folder/$1.log" 's/.* admin .*address=\([^ ]*\).*/\1/p')
}

# Nobody is registered yet: it waits, says what to do, and takes what comes.
proxy far
far_admin=$admin
await "$folder/far.log" '/started, but not ready.*register this process/p' >/dev/null
if curl -sSf --noproxy '*' "http://$far_admin/ready" 2>/dev/null; then fail "far is ready without an identity"; fi
register far "unix:path:$ringmesh" >/dev/null
near_entry=$(register near "unix:path:$ringmesh")
await "$folder/far.log" '/identity in use id=spiffe:\/\/mesh.local\/far /p' >/dev/null
curl -sSf --noproxy '*' "http://$far_admin/ready" >/dev/null || fail "far is not ready with its identity"
far=$(await "$folder/far.log" 's/.* listener=in address=\([^ ]*\).*/\1/p')

cat >"$folder/near.toml" <<TOML
shards = 1
[admin]
address = "127.0.0.1:0"
[identity]
source = "workload-api"
socket = "unix://$folder/agent.sock"
id = "spiffe://mesh.local/near"
[[listener]]
name = "out"
address = "127.0.0.1:0"
[[service]]
name = "far"
endpoints = ["$far"]
tls = "mesh"
identities = ["spiffe://mesh.local/far"]
[[route]]
service = "far"
TOML
proxy near
near_admin=$admin
await "$folder/near.log" '/identity in use id=spiffe:\/\/mesh.local\/near /p' >/dev/null
out=$(await "$folder/near.log" 's/.* listener=out address=\([^ ]*\).*/\1/p')
said=$(curl -sS --noproxy '*' --max-time 10 "http://$out/")
[[ $said == "from far" ]] || fail "by way of near: $said"
if curl -sSk --noproxy '*' --max-time 10 "https://$far/" >/dev/null 2>&1; then fail "far answers who has no certificate"; fi
echo "identities of SPIRE: taken, of several the one that was named; mTLS between the two"

# --- SPIRE renews and replaces under load ---

metric() {
  curl -sS --noproxy '*' --max-time 10 "http://$1/metrics" | grep "^$2" | head -n 1 | sed 's/.* //'
}
# later ADMIN THAN: whether the leaf that is presented ends later than that.
later() {
  local now
  now=$(metric "$1" 'ringmesh_certificate_expiry_seconds{role="leaf"')
  python3 -c 'import sys; sys.exit(not float(sys.argv[1]) > float(sys.argv[2]))' "$now" "$2"
}
"$loadtest" client "http://$out/" --no-check --rate 200 --connections 8 --duration 10m >"$folder/load.log" 2>&1 &
load=$!
children+=("$load")
for round in 1 2; do
  before=$(metric "$far_admin" 'ringmesh_certificate_expiry_seconds{role="leaf"')
  eventually "leaf $round is renewed" later "$far_admin" "$before"
done
echo "leaves of 20 s: renewed twice under load"

x509() {
  server localauthority x509 "$@" -output json
}
# authority WHICH FIELD: of what `show` and `prepare` print, the number of one authority.
authority() {
  python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]]["authority_id"])' "$1"
}
roots() {
  [[ $(curl -sS --noproxy '*' --max-time 10 "http://$1/metrics" | grep -c '^ringmesh_certificate_expiry_seconds{role="root"') == "$2" ]]
}
old=$(x509 show | authority active)
new=$(x509 prepare | authority prepared_authority)
for who in "$far_admin" "$near_admin"; do eventually "both roots are trusted" roots "$who" 2; done
x509 activate -authorityID "$new" >/dev/null
x509 taint -authorityID "$old" >/dev/null
for round in 1 2; do
  for who in "$far_admin" "$near_admin"; do
    before=$(metric "$who" 'ringmesh_certificate_expiry_seconds{role="leaf"')
    eventually "leaves of the new root are there" later "$who" "$before"
  done
done
x509 revoke -authorityID "$old" >/dev/null
for who in "$far_admin" "$near_admin"; do eventually "the old root is gone" roots "$who" 1; done
echo "the root: replaced and the old one revoked under load"

kill -INT "$load"
wait "$load" || fail "requests failed: $(cat "$folder/load.log")"
cat "$folder/load.log"

# --- who is no longer registered ---

server entry delete -entryID "$near_entry" >/dev/null
await "$folder/near.log" '/does not give spiffe:\/\/mesh.local\/near, but spiffe:\/\/mesh.local\/far/p' >/dev/null
echo "who lost its registration is told so by name"
echo "SPIRE: all good"
