#!/bin/sh
# Installs missing packages that are needed to build and run Ballast on Debian 12 and 13.
#
#   tools/setup.sh [lint] [bench] [debian]   `lint` adds packages for `make lint`, `bench` for `make bench`, `debian` for
#                                            `make run GUESTS=debian`
#
# Prints packages before it installs them. Writes the choice of Rust to target/toolchain, which tools/cargo reads.
set -eu

cd "$(dirname "$0")/.."
TARGET=aarch64-unknown-none-softfloat
OLDEST_RUST=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

die() {
    echo "setup: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# is_new_enough RUSTC: tests whether RUSTC runs and is at least OLDEST_RUST.
is_new_enough() {
    version=$("$1" --version 2>/dev/null | cut -d ' ' -f 2)
    [ -n "$version" ] && printf '%s\n%s\n' "$OLDEST_RUST" "$version" | sort -C -V
}

# has_target RUSTC: tests whether RUSTC has Rust's libraries for TARGET.
has_target() {
    sysroot=$("$1" --print sysroot 2>/dev/null) && [ -d "$sysroot/lib/rustlib/$TARGET/lib" ]
}

# Tests whether Debian's Rust is complete: with the source of Rust's libraries, to build them for TARGET.
is_debian_rust_complete() {
    [ -x /usr/bin/cargo ] || has cargo || return 1
    is_new_enough /usr/bin/rustc && [ -e /usr/lib/rustlib/src/rust/library/Cargo.lock ] && has ld.lld
}

# remember LINE…: writes target/toolchain, which tools/cargo sources, unless it has these lines.
remember() {
    mkdir -p target
    printf '%s\n' "$@" >target/toolchain.new
    if cmp -s target/toolchain.new target/toolchain; then
        rm target/toolchain.new
    else
        mv target/toolchain.new target/toolchain
    fi
}

# Prints missing packages, by the program or file that each provides.
missing_packages() {
    has qemu-system-aarch64 || echo qemu-system-arm
    has dtc || echo device-tree-compiler
    has cpio || echo cpio
    has xz || echo xz-utils
    has cc || echo gcc libc6-dev
    has setpriv || echo util-linux
    # The tests of guest-dts install dt-validate into a virtual environment.
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3 python3-venv
    # Kernels of Debian 13 need its keys, which early releases of Debian 12 lack.
    { [ -e "$KEYRING" ] && ls /usr/share/keyrings/debian-archive-trixie-* >/dev/null 2>&1; } ||
        echo debian-archive-keyring
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

# apt_get ARGUMENT…: runs apt-get as root.
apt_get() {
    root=
    [ "$(id -u)" = 0 ] || root=sudo
    $root env DEBIAN_FRONTEND=noninteractive apt-get -q "$@"
}

# install_packages PACKAGE…: installs Debian packages.
install_packages() {
    echo "setup: installing Debian packages:" "$@"
    [ "$(id -u)" = 0 ] || has sudo || die "needs root or sudo; run as root: apt-get install $*"
    apt_get update || die "apt-get update failed"
    # --no-remove: only the user may remove conflicting packages.
    set -- -y --no-install-recommends --no-remove install "$@"
    apt_get "$@" || from_backports "$@" || die "apt-get failed: $*"
}

# from_backports ARGUMENT…: runs apt-get with this suite's backports in addition to the machine's own sources.
#
# An installed package from backports, such as qemu-utils, conflicts with the suite's version of related packages. The
# machine's configuration does not change: lists and sources are copies under target/.
from_backports() {
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    lists=$PWD/target/backports
    # shellcheck disable=SC2016 # apt-get's own expression
    mirror=$(apt-get indextargets --format '$(SITE)' "Codename: $suite" "Created-By: Packages" | head -n 1)
    [ -n "$suite" ] && [ -n "$mirror" ] || return 1
    echo "setup: the packages conflict with installed ones; trying $suite-backports"
    mkdir -p "$lists/sources" "$lists/lists/partial"
    find /etc/apt/sources.list.d \( -name '*.list' -o -name '*.sources' \) -exec cp -t "$lists/sources" {} +
    echo "deb [signed-by=$KEYRING] $mirror $suite-backports main" >"$lists/sources/ballast.list"
    sources="Dir::Etc::SourceParts=$lists/sources"
    state="Dir::State::Lists=$lists/lists"
    apt_get -o "$sources" -o "$state" update &&
        apt_get -o "$sources" -o "$state" -t "$suite-backports" "$@"
}

# by_rustup: installs a new enough toolchain and TARGET with rustup. Fails if rustup's server is unreachable.
by_rustup() {
    has rustup || return 1
    if ! is_new_enough rustc; then
        echo "setup: installing the stable toolchain with rustup (Rust $OLDEST_RUST or newer is required)"
        rustup toolchain install stable --profile minimal || return 1
        export RUSTUP_TOOLCHAIN=stable
        is_new_enough rustc || return 1
    fi
    if ! has_target rustc; then
        echo "setup: installing the target $TARGET with rustup"
        rustup target add "$TARGET" || return 1
    fi
    has_target rustc
}

# by_debian: installs Debian's Rust and the source of its libraries.
by_debian() {
    is_debian_rust_complete && return
    for package in rustup rustc; do
        if dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
            die "Debian's package $package conflicts with rustc-web, which is required (Rust $OLDEST_RUST or newer with" \
                "the source of its libraries). Run: apt-get remove $package; or: rustup target add $TARGET"
        fi
    done
    packages="rustc-web rust-web-src lld"
    has cargo || packages="$packages cargo-web"
    # shellcheck disable=SC2086 # a list of words
    install_packages $packages
    is_debian_rust_complete || die "Debian's rustc-web is older than Rust $OLDEST_RUST. Run apt-get upgrade, or use rustup"
}

set_up_packages() {
    packages=$(missing_packages)
    # shellcheck disable=SC2086 # a list of words
    [ -z "$packages" ] || install_packages $packages
}

set_up_rust() {
    # A shell that was started before rustup was installed does not have rustup's folder in its PATH.
    if ! has cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    if has cargo && is_new_enough rustc && has_target rustc || by_rustup; then
        remember "PATH='$PATH'" "export PATH" ${RUSTUP_TOOLCHAIN:+"export RUSTUP_TOOLCHAIN='$RUSTUP_TOOLCHAIN'"}
    else
        by_debian
        remember "PATH='$PATH'" "export PATH" "export RUSTC=/usr/bin/rustc" "export BALLAST_BUILD_STD=1" \
            "export CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER=ld.lld"
    fi
}

# Installs packages for `make lint`.
set_up_lint() {
    packages=
    has shellcheck || packages=shellcheck
    if ! cargo clippy --version >/dev/null 2>&1 || ! cargo fmt --version >/dev/null 2>&1; then
        if has rustup && rustup component add clippy rustfmt; then
            :
        else
            packages="$packages rust-web-clippy rustfmt-web"
        fi
    fi
    # shellcheck disable=SC2086 # a list of words
    [ -z "$packages" ] || install_packages $packages
}

# Installs valgrind, with which `make bench` counts the allocator's instructions.
set_up_bench() {
    has valgrind || install_packages valgrind
}

# Tests whether programs for arm64 can run below another root: on this CPU, or in an emulator without shared libraries.
has_arm64() {
    [ "$(uname -m)" = aarch64 ] || has qemu-aarch64-static ||
        { has qemu-aarch64 && ! ldd "$(command -v qemu-aarch64)" 2>/dev/null | grep -q 'libc\.so'; }
}

# Installs the programs that build the disk of `make run GUESTS=debian`.
set_up_debian() {
    packages=
    has mmdebstrap || packages="mmdebstrap"
    has fakeroot || packages="$packages fakeroot"
    has mkfs.ext4 || [ -x /sbin/mkfs.ext4 ] || packages="$packages e2fsprogs"
    # mmdebstrap maps users with newuidmap, unless root calls it.
    [ "$(id -u)" = 0 ] || has newuidmap || packages="$packages uidmap"
    # Programs for arm64 run in an emulator while their packages are set up.
    has_arm64 || packages="$packages qemu-user-static"
    # shellcheck disable=SC2086 # a list of words
    [ -z "$packages" ] || install_packages $packages
    if [ "$(id -u)" != 0 ] && ! grep -q "^$(id -un):" /etc/subuid 2>/dev/null; then
        die "mmdebstrap needs a range of user IDs for $(id -un). Run as root: usermod --add-subuids 100000-165535" \
            "--add-subgids 100000-165535 $(id -un)"
    fi
}

set_up_packages
set_up_rust
for extra in "$@"; do
    case $extra in
    lint) set_up_lint ;;
    bench) set_up_bench ;;
    debian) set_up_debian ;;
    *) die "unknown argument: $extra" ;;
    esac
done
