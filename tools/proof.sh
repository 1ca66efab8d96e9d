#!/bin/sh
# Proofs of the memory logic that take minutes, and so are no part of `make test`.
#
#   tools/proof.sh miri [FILTER]   stage2's unit tests under Miri, without those that only repeat much work. Needs
#                                  rustup; installs the nightly toolchain's miri. All of them take hours: without a
#                                  filter, a quarter of an hour of them (MIRI_SECONDS=900), module by module, and then
#                                  the names of the modules that there was no time for.
#   tools/proof.sh loom [FILTER]   what CPUs share, in every interleaving that loom finds
set -eu
cd "$(dirname "$0")/.."
what=${1:-}
[ $# -eq 0 ] || shift
case $what in
miri)
    rustup toolchain install nightly --profile minimal --component miri,rust-src --no-self-update
    # Snapshots are files, and insta must not ask Cargo where they lie: Miri starts no process.
    export INSTA_WORKSPACE_ROOT="$PWD" INSTA_UPDATE=no MIRIFLAGS=-Zmiri-disable-isolation
    test="cargo +nightly miri test --quiet --package stage2 --lib"
    if [ $# -gt 0 ]; then
        exec $test -- "$@"
    fi
    $test --no-run
    end=$(($(date +%s) + ${MIRI_SECONDS:-900}))
    left_out=
    for module in addr range name owner controller placement pageblock frame map memory::tests::at_hand dmb pool \
        memory::tests::zones memory::tests::retire memory::tests::reshape memory huge table claim migrate; do
        left=$((end - $(date +%s)))
        status=124
        if [ $left -gt 0 ]; then
            echo "proof: $module"
            status=0
            # shellcheck disable=SC2086 # a list of words
            timeout $left $test -- "$module::" || status=$?
        fi
        case $status in
        0) ;;
        124) left_out="$left_out $module" ;;
        *) exit $status ;;
        esac
    done
    echo "proof: Miri found nothing; no time for all of:${left_out:- nothing}"
    ;;
loom)
    RUSTFLAGS='--cfg loom' LOOM_LOG=0 tools/cargo test --package stage2 --target-dir target/loom --release \
        --test loom -- "$@"
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
