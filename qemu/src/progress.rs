//! Runs long programs: shows how far they are and writes what they say to a log.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write, stdout};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::error::{AtPath, Error, Result};
use crate::process;

/// Number of a failed program's last lines that its error shows.
const LAST_LINES: usize = 15;

/// Runs `command` without input. Writes its output and error output to the file `log`, and shows `what` with the share
/// that `read` finds in each line: parts done and parts in all, or nothing.
///
/// # Errors
/// The program is missing or fails. The error includes its last lines.
pub(crate) fn watch(
    command: &mut Command,
    what: &str,
    log: &Path,
    mut read: impl FnMut(&str) -> Option<(usize, usize)>,
) -> Result<()> {
    let (output, input) = std::io::pipe().at(log)?;
    let again = input.try_clone().at(log)?;
    let mut written = File::create(log).at(log)?;
    let child = command.stdin(Stdio::null()).stdout(input).stderr(again).spawn();
    let mut child = child.map_err(|source| process::start_error(command, source))?;
    // The command holds the pipe's other end; without this, the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut display = Display::new(what);
    let mut last = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.at(log)?;
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(written, "{line}").at(log)?;
        if let Some((done, all)) = read(&line) {
            display.show(done, all);
        }
        last.push(line);
        if last.len() > LAST_LINES {
            last.remove(0);
        }
    }
    let status = child.wait().at(log)?;
    display.end(status.success());
    if status.success() {
        return Ok(());
    }
    let said = format!("{}\nall that it said: {}", last.join("\n"), log.display());
    let program = command.get_program().to_string_lossy().into_owned();
    Err(Error::Program { program, status, said })
}

/// A line on the screen that shows how far a program is.
struct Display<'a> {
    what: &'a str,
    started: Instant,
    /// The percentage that is shown.
    shown: Option<usize>,
    is_terminal: bool,
}

impl<'a> Display<'a> {
    /// Percentage between two lines of a log that is not a terminal.
    const STEP: usize = 20;

    fn new(what: &'a str) -> Self {
        let is_terminal = stdout().is_terminal();
        print!("{what} …{}", if is_terminal { "" } else { "\n" });
        let _ = stdout().flush();
        Self { what, started: Instant::now(), shown: None, is_terminal }
    }

    fn show(&mut self, done: usize, all: usize) {
        let percentage = percentage(done, all);
        let is_due = self.shown.is_none_or(|shown| match self.is_terminal {
            true => percentage != shown,
            false => percentage >= shown + Self::STEP,
        });
        if !is_due {
            return;
        }
        self.shown = Some(percentage);
        let seconds = self.started.elapsed().as_secs();
        let (start, end) = if self.is_terminal { ("\r", "") } else { ("", "\n") };
        print!("{start}{}: {percentage} % after {seconds} s {end}", self.what);
        // Errors do not matter: the screen is gone.
        let _ = stdout().flush();
    }

    fn end(&self, has_succeeded: bool) {
        let end = if has_succeeded { "done" } else { "failed" };
        let start = if self.is_terminal { "\r" } else { "" };
        println!("{start}{}: {end} after {} s      ", self.what, self.started.elapsed().as_secs());
    }
}

fn percentage(done: usize, all: usize) -> usize {
    (done * 100).checked_div(all).unwrap_or(0).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_error_output_reach_the_log_and_the_reader() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2"]);
        watch(&mut command, "test", &log, |line| {
            lines.push(line.to_owned());
            None
        })
        .unwrap();
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_failure_shows_the_last_lines_and_names_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; exit 3"]);
        let said = watch(&mut command, "test", &log, |_| None).unwrap_err().to_string();
        assert!(
            said.contains("exit status: 3\n86\n87") && said.contains("\n100\nall that it said: "),
            "{said}"
        );
    }

    #[test]
    fn a_share_is_a_percentage() {
        assert_eq!(
            [percentage(0, 0), percentage(1, 3), percentage(3, 3), percentage(9, 3)],
            [0, 33, 100, 100]
        );
    }
}
