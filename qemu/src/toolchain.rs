//! Cargo, for what runs on the bare machine.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::place;

/// The target of Ballast and of the bare-metal guests.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Set by `tools/cargo` where Rust's own libraries for [`TARGET`] must be built from their source.
const BUILD_STD: &str = "BALLAST_BUILD_STD";

/// The Cargo that runs this program, or the one that is found.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(place::root());
    command
}

/// `cargo build --release` for [`TARGET`], of the workspace of `manifest`.
pub fn build_for_target(manifest: &Path) -> Command {
    let mut command = cargo();
    command.args(["build", "--release", "--target", TARGET, "--manifest-path"]).arg(manifest);
    with_libraries(&mut command);
    command
}

/// Adds to a `cargo build` for [`TARGET`], or to what passes its arguments on to one, what builds Rust's own
/// libraries, where they are not there.
pub fn with_libraries(command: &mut Command) {
    if std::env::var_os(BUILD_STD).is_some_and(|value| !value.is_empty()) {
        command.args(["-Z", "build-std=core,alloc,compiler_builtins"]).env("RUSTC_BOOTSTRAP", "1");
    }
}
