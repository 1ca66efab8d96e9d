#!/bin/sh
# Checks of the memory logic that take too long for `make test`.
#
#   tools/proof.sh miri [FILTER]   Runs stage2's unit tests under Miri: first the allocator's tests with Miri's borrow
#                                  checks, then, in two processes, all tests without these checks, which take most of the
#                                  time and find little in a crate that forbids unsafe code. Needs rustup; installs miri
#                                  of the nightly toolchain. Prints how many tests passed and how many were ignored, and
#                                  fails if a test fails or does not run within MIRI_SECONDS (7200); all tests take hours.
#                                  With a filter: runs only matching tests, with borrow checks.
#   tools/proof.sh loom [FILTER]   Tests data that CPUs share, in every interleaving that loom finds
set -eu
cd "$(dirname "$0")/.."
what=${1:-}
[ $# -eq 0 ] || shift

# slice LOG ARGUMENT…: runs part of the tests, and writes their output to LOG and the exit status to LOG.status.
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
    # insta must not ask Cargo for the path of snapshots, since Miri cannot start processes.
    export INSTA_WORKSPACE_ROOT="$PWD" INSTA_UPDATE=no
    # Tests leak memory that must be static. The library's checks of unsafe preconditions repeat Miri's and are slow.
    # By default, 8 of 10 weak compare-exchanges fail spuriously, which makes tests with locks too slow.
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
    echo "proof: Miri: of $all tests, $passed passed, $failed failed, $ignored were ignored, $left did not finish in time"
    is_good=true
    for log in "$logs"/?; do
        status=$(cat "$log.status")
        case $status in
        0) continue ;;
        124) echo "proof: out of time after: $(grep '^test ' "$log" | tail -n 1)" ;;
        *) sed '/^test .* ok$/d' "$log" ;;
        esac
        is_good=false
    done
    $is_good
    ;;
loom)
    export RUSTFLAGS='--cfg loom' LOOM_LOG=0
    tools/cargo test --package stage2 --target-dir target/loom --release --test loom -- "$@"
    # Unit tests, since an integration test would need the image's binary, which cannot be linked on a PC.
    tools/cargo test --package hyp --target-dir target/loom --release --lib -- "interleavings::$*"
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
