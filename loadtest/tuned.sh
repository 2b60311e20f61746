#!/usr/bin/env bash
# Builds ringmesh for those who hand binaries out: compiled twice, the second time with a profile of what the first one did under
# load (profile-guided optimization). What `cargo build --release` gives is the same program, and costs more CPU for each request.
#
#   loadtest/tuned.sh             the binary: target/tuned/ringmesh
#
# The load is that of `loadtest compare`: each dialect in and out, plain and encrypted, short and long bodies, all policies, new
# connections. Takes about half an hour on two CPUs. Uses loopback only. A profile holds for one compiler and is made anew each time.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
work=$root/target/profile
mkdir -p "$work" target/tuned
rm -rf "$work/raw" "$work/loads"

say() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

# Of the very compiler: others read other formats.
[ -x "$profdata" ] || rustup component add llvm-tools
[ -x "$profdata" ] || { echo "tuned: no $profdata: rustup component add llvm-tools"; exit 2; }

# With --target, flags are not those of build scripts as well.
say "1 of 4: with counters"
RUSTFLAGS="-Cprofile-generate=$work/raw" cargo build --locked --release --target "$host" --target-dir target/profiled --bin ringmesh
cargo build --locked --release --bin loadtest

say "2 of 4: loads"
target/release/loadtest compare --peers ringmesh --ringmesh "target/profiled/$host/release/ringmesh" --rounds 1 --seconds 3 \
    --case a,e,policies,h2,h2h1,tls,handshake,mesh --out "$work/loads"

say "3 of 4: the profile"
"$profdata" merge -o "$work/ringmesh.profdata" "$work/raw"
"$profdata" show "$work/ringmesh.profdata" | sed 's/^/   /'

say "4 of 4: by the profile"
RUSTFLAGS="-Cprofile-use=$work/ringmesh.profdata" cargo build --locked --release --target "$host" --target-dir target/profiled-use --bin ringmesh
cp "target/profiled-use/$host/release/ringmesh" target/tuned/ringmesh
say "target/tuned/ringmesh"
target/tuned/ringmesh --version
