#!/bin/sh
# Checks formatting and lints of everything (the workspace on the PC, Ballast and the bare-metal guests for their target,
# scripts), and searches the image for instruction sequences that errata forbid (hyp/ERRATA.md).
set -eu
cd "$(dirname "$0")/.."
TARGET=aarch64-unknown-none-softfloat

if [ -n "$(sed -n 's/^export BALLAST_BUILD_STD=//p' target/toolchain)" ]; then
    # Debian's Rust has no libraries for the target. Building them from source is an unstable feature.
    export RUSTC_BOOTSTRAP=1
    build_std="-Z build-std=core,alloc,compiler_builtins"
else
    build_std=
fi

tools/cargo fmt --all --check
tools/cargo fmt --all --check --manifest-path tests/guests/Cargo.toml
tools/cargo clippy --workspace --all-targets -- -D warnings
# --all-targets skips the soak test, which is not a default target, so that `make test` does not run it.
tools/cargo clippy --package system-tests --test soak -- -D warnings
# shellcheck disable=SC2086 # build_std is a list of words
tools/cargo clippy --package hyp --bin ballast --target $TARGET $build_std -- -D warnings
# shellcheck disable=SC2086
tools/cargo clippy --manifest-path tests/guests/Cargo.toml --target-dir target/payloads --workspace --exclude pack \
    --target $TARGET $build_std -- -D warnings
# A doc summary opens with a verb or a noun phrase (CONTRIBUTING.md). Only the first line of a doc comment counts.
# shellcheck disable=SC2016 # $0 is awk's
git ls-files -z '*.rs' | xargs -0 awk '
    FNR == 1 { was_doc = 0 }
    {
        is_doc = $0 ~ /^[ \t]*\/\/[\/!]( |$)/
        if (is_doc && !was_doc && $0 ~ /\/\/[\/!] (What|How|Whether|Where|Who|Which|It|They|That|The same)($|[^A-Za-z])/) {
            print FILENAME ":" FNR ": " $0
            bad++
        }
        was_doc = is_doc
    }
    END {
        if (bad) {
            print "lint: a doc summary must open with a verb or a noun phrase: " bad " do not"
            exit 1
        }
    }'
shellcheck tools/cargo tools/*.sh .ci/run qemu/ramdisk/init qemu/ramdisk/root qemu/debian/emulate qemu/debian/image
tools/cargo run --quiet --package ballast-qemu -- errata
echo "lint: no errors"
