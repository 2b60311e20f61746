# Sourced by the scripts that run ringmesh with programs of others, once they stand in their own folder: a folder for what they write and
# children that end with the script, however it ends, and ways to wait for what those say.
folder=$(mktemp -d)
children=()
finish() {
  for child in "${children[@]}"; do
    kill "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap finish EXIT

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  tail -n 40 "$folder"/*.log >&2 || true
  exit 1
}

# eventually WHAT COMMAND...: until the command succeeds, within a minute.
eventually() {
  local what=$1
  shift
  for _ in {1..600}; do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  fail "waited in vain until $what"
}

# await FILE EXPRESSION: the first match of a sed expression in a file that is being written to, or will be.
await() {
  eventually "$1 says $2" sh -c "sed -n '$2' '$1' | grep -q ."
  sed -n "$2" "$1" | head -n 1
}
