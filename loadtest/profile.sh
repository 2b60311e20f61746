#!/usr/bin/env bash
# Makes the profile that releases are built by (profile-guided optimization): loadtest/profile/ringmesh.profdata and, beside it, the
# compiler it is for. Commit both. To be run before a release, after changes of what requests pass through, and for a new compiler: a
# function that changed since has no profile, and costs what it costs without.
#
#   loadtest/profile.sh
#
# The load is that of `loadtest compare`: each dialect in and out, plain and encrypted, short and long bodies, all policies, new
# connections. Takes about half an hour on two CPUs. Uses loopback only.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
work=$root/target/profile
mkdir -p "$work" loadtest/profile
rm -rf "$work"/raw* "$work/loads"

say() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

# Of the very compiler: others read other formats.
[ -x "$profdata" ] || rustup component add llvm-tools
[ -x "$profdata" ] || { echo "profile: no $profdata: rustup component add llvm-tools"; exit 2; }

say "1 of 3: with counters"
RINGMESH_PROFILE=generate:$work/raw cargo build --locked --release --target-dir target/profiled --bin ringmesh
RINGMESH_PROFILE=off cargo build --locked --release --target-dir target/unprofiled --bin loadtest

say "2 of 3: loads"
# load PEER CASES NAME: counts in $work/raw-NAME.
load() {
    rm -rf "$work/raw" "$work/raw-$3"
    target/unprofiled/release/loadtest compare --peers "$1" --ringmesh target/profiled/release/ringmesh --rounds 1 --seconds 3 \
        --case "$2" --out "$work/loads"
    mv "$work/raw" "$work/raw-$3"
}
load ringmesh a,e,h2,h2h1,h1h2,tls,handshake,mesh plain
load policies policies policies

say "3 of 3: the profile"
# Sparse: a function that was never called is not in it, and is compiled as if there were none. What policies do counts for a
# twentieth: enough not to be put away as what never happens, too little to grow into the path of requests without any (with equal weights
# case a took 0.7 % more, the pair 0.5 %, and policies cost 6.0 % where it is 5.1 %).
"$profdata" merge --sparse --weighted-input=20,"$work/raw-plain" --weighted-input=1,"$work/raw-policies" -o "$work/ringmesh.profdata"
"$profdata" show "$work/ringmesh.profdata" | sed 's/^/   /'
cp "$work/ringmesh.profdata" loadtest/profile/ringmesh.profdata
rustc -V >loadtest/profile/rustc
ls -l loadtest/profile
