#!/bin/sh
# Proofs of the memory logic that take minutes, and so are no part of `make test`.
#
#   tools/proof.sh miri [FILTER]   stage2's unit tests under Miri: undefined behaviour, and what is never initialised.
#                                  Needs rustup; installs the nightly toolchain's miri.
#   tools/proof.sh loom [FILTER]   what CPUs share, in every interleaving that loom finds
set -eu
cd "$(dirname "$0")/.."
what=${1:-}
shift || true
case $what in
miri)
    rustup toolchain install nightly --profile minimal --component miri,rust-src --no-self-update
    # Snapshots and regressions of proptest are files.
    MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --package stage2 --lib -- "$@"
    ;;
loom)
    RUSTFLAGS='--cfg loom' LOOM_LOG=0 tools/cargo test --package stage2 --target-dir target/loom --release \
        --test loom -- "$@"
    ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
