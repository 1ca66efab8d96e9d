//! The EL2 image. All code is in the library; `arch::boot` has the entry.
#![cfg_attr(target_os = "none", no_std, no_main)]

use hyp as _;

/// Exists because Cargo builds a package's programs for its integration tests, on the PC too.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("ballast is an EL2 image: build it with `make image`");
}
