//! Runs programs to completion.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

/// Formats a command line as it would be typed, for messages.
pub(crate) fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(shell_word));
    words.join(" ")
}

/// Runs `command` without input and returns its output.
///
/// # Errors
/// The program is missing or fails. The error includes its error output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source))?;
    if status.success() {
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&stderr).into_owned();
        Err(Error::Program { program: describe(command), status, said })
    }
}

/// Runs `command` without input and discards its output.
///
/// # Errors
/// As [`output`].
pub fn quietly(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

pub(crate) fn start_error(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn shell_word(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%^".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_as_typed() {
        let mut command = Command::new("qemu");
        command.args(["-M", "virt,gic-version=3", "-append", "it's quiet"]);
        assert_eq!(describe(&command), r"qemu -M virt,gic-version=3 -append 'it'\''s quiet'");
    }

    #[test]
    fn a_failure_includes_the_error_output() {
        let error = output(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh -c 'echo no >&2; exit 3': exit status: 3\nno");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = quietly(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/program: No such file"), "{error}");
    }
}
