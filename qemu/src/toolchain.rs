//! Cargo for bare-metal programs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, stderr};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::{place, process};

/// The target of Ballast and of the bare-metal guests.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Variable that `tools/cargo` sets if Rust's own libraries for [`TARGET`] must be built from source.
const BUILD_STD: &str = "BALLAST_BUILD_STD";

/// Returns a command for the Cargo that runs this program, or else the one on the path.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(place::root());
    command
}

/// Returns `cargo build --release` for [`TARGET`] in the workspace of `manifest`.
pub(crate) fn build_for_target(manifest: &Path) -> Command {
    let mut command = cargo();
    command.args(["build", "--release", "--target", TARGET, "--manifest-path"]).arg(manifest);
    with_libraries(&mut command);
    command
}

/// Adds the arguments that build Rust's own libraries, if they are missing, to a `cargo build` for [`TARGET`] or to a
/// program that passes its arguments on to one.
pub(crate) fn with_libraries(command: &mut Command) {
    if std::env::var_os(BUILD_STD).is_some_and(|value| !value.is_empty()) {
        command.args(["-Z", "build-std=core,alloc,compiler_builtins"]).env("RUSTC_BOOTSTRAP", "1");
    }
}

/// Runs a `cargo build` and shows the compiler's messages, except a warning with the text `expected`.
///
/// # Errors
/// Cargo is missing, or the build fails.
pub(crate) fn run_without_warning(command: &mut Command, expected: &str) -> Result<()> {
    let format = if stderr().is_terminal() { "json-diagnostic-rendered-ansi" } else { "json" };
    command.args(["--message-format", format]).stdout(Stdio::piped());
    let mut cargo = command.spawn().map_err(|source| process::start_error(command, source))?;
    for line in cargo.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        if let Some(text) = line.ok().and_then(|line| rendered(&line, expected)) {
            eprint!("{text}");
        }
    }
    let status = cargo.wait().map_err(|source| process::start_error(command, source))?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Program { program: process::describe(command), status, said: String::new() })
    }
}

/// Returns the text of the compiler's message in a line of Cargo's JSON, unless it is the message `expected`.
fn rendered(line: &str, expected: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let message = line.get("message").filter(|_| line["reason"] == "compiler-message")?;
    if message["message"] == expected {
        return None;
    }
    message["rendered"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_warning_is_hidden() {
        let line = |reason, text: &str| {
            let message = serde_json::json!({ "message": text, "rendered": format!("warning: {text}\n") });
            serde_json::json!({ "reason": reason, "message": message }).to_string()
        };
        assert_eq!(rendered(&line("compiler-message", "unknown feature"), "unknown feature"), None);
        let other = rendered(&line("compiler-message", "unused variable"), "unknown feature");
        assert_eq!(other.as_deref(), Some("warning: unused variable\n"));
        assert_eq!(rendered(&line("compiler-artifact", "unused variable"), "unknown feature"), None);
        assert_eq!(rendered("no JSON", "unknown feature"), None);
    }

    #[test]
    fn a_build_that_fails_is_an_error() {
        let mut command = Command::new("sh");
        // The appended options become arguments of the script.
        command.args(["-c", "exit 3"]);
        let error = run_without_warning(&mut command, "").unwrap_err().to_string();
        assert!(error.ends_with("exit status: 3"), "{error}");
    }
}
