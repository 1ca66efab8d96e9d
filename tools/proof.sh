#!/bin/sh
# Proofs of the memory logic that take minutes, and so are no part of `make test`.
#
#   tools/proof.sh miri [FILTER]   stage2's unit tests under Miri, in two processes: first the allocator's tests with
#                                  Miri's borrow checks, then all tests without them, which are of little use to a crate
#                                  that forbids unsafe code and take most of the time. Needs rustup; installs the
#                                  nightly toolchain's miri. Says how many passed and how many are left out (`cargo` has
#                                  the reasons), and fails where one fails or there was no time for one: all of them
#                                  take hours (MIRI_SECONDS=7200). With a filter: those, with borrow checks.
#   tools/proof.sh loom [FILTER]   what CPUs share, in every interleaving that loom finds
set -eu
cd "$(dirname "$0")/.."
what=${1:-}
[ $# -eq 0 ] || shift

# Runs a slice of the tests, and writes what came of it to the file $1 and its status beside it.
slice() {
    log=$1
    shift
    status=0
    # shellcheck disable=SC2086 # a list of words
    timeout "${MIRI_SECONDS:-7200}" $test -- --test-threads=1 "$@" >"$log" 2>&1 || status=$?
    echo $status >"$log.status"
}

case $what in
miri)
    rustup toolchain install nightly --profile minimal --component miri,rust-src --no-self-update
    # Snapshots are files, and insta must not ask Cargo where they lie: Miri starts no process.
    export INSTA_WORKSPACE_ROOT="$PWD" INSTA_UPDATE=no
    # Tests leak memory that has to be static. The library's checks of unsafe preconditions are Miri's own, only slower.
    # A lock that fails for no reason one time in ten, not eight, is tried as often as it has to be.
    MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zub-checks=no"
    export MIRIFLAGS="$MIRIFLAGS -Zmiri-compare-exchange-weak-failure-rate=0.1"
    test="cargo +nightly miri test --package stage2 --lib"
    if [ $# -gt 0 ]; then
        exec $test -- "$@"
    fi
    $test --quiet --no-run
    logs=$(mktemp -d)
    trap 'rm -r "$logs"' EXIT
    quick="phys::alloc::tests::single_frames phys::alloc::tests::blocks phys::frame:: phys::pageblock:: owner::"
    # shellcheck disable=SC2086 # a list of words
    slice "$logs/1" $quick
    export MIRIFLAGS="$MIRIFLAGS -Zmiri-disable-stacked-borrows"
    slice "$logs/2" claim:: table:: phys::dmb:: &
    slice "$logs/3" --skip claim:: --skip table:: --skip phys::dmb:: &
    wait
    count() { cat "$logs"/? | grep -c "$1" || true; }
    all=$(sed -n 's/^running \([0-9]*\) tests*$/\1/p' "$logs"/? | awk '{ sum += $1 } END { print sum + 0 }')
    passed=$(count '^test .* ok$') ignored=$(count '^test .* ignored') failed=$(count '^test .* FAILED$')
    left=$((all - passed - ignored - failed))
    echo "proof: Miri: $passed of $all tests passed, $ignored are left out, $failed failed, no time for $left"
    is_good=true
    for log in "$logs"/?; do
        status=$(cat "$log.status")
        case $status in
        0) continue ;;
        124) echo "proof: no time to finish: $(grep '^test ' "$log" | tail -n 1)" ;;
        *) sed '/^test .* ok$/d' "$log" ;;
        esac
        is_good=false
    done
    $is_good
    ;;
loom)
    export RUSTFLAGS='--cfg loom' LOOM_LOG=0
    tools/cargo test --package stage2 --target-dir target/loom --release --test loom -- "$@"
    # Unit tests, since a test of its own would need the image's binary, which a PC cannot link.
    tools/cargo test --package hyp --target-dir target/loom --release --lib -- "interleavings::$*"
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
