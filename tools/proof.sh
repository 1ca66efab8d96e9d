#!/bin/sh
# Proofs of the memory logic that take minutes, and so are no part of `make test`.
#
#   tools/proof.sh miri [FILTER]   stage2's unit tests under Miri, without those that only repeat much work. Needs
#                                  rustup; installs the nightly toolchain's miri. All of them take hours; with a
#                                  filter such as frame:: or dmb:: it is minutes.
#   tools/proof.sh loom [FILTER]   what CPUs share, in every interleaving that loom finds
set -eu
cd "$(dirname "$0")/.."
what=${1:-}
[ $# -eq 0 ] || shift
case $what in
miri)
    rustup toolchain install nightly --profile minimal --component miri,rust-src --no-self-update
    # Snapshots are files, and insta must not ask Cargo where they lie: Miri starts no process.
    INSTA_WORKSPACE_ROOT=$PWD INSTA_UPDATE=no MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --package stage2 --lib -- "$@"
    ;;
loom)
    RUSTFLAGS='--cfg loom' LOOM_LOG=0 tools/cargo test --package stage2 --target-dir target/loom --release \
        --test loom -- "$@"
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
