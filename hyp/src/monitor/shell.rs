//! The shell: reads a line, executes it, and starts again.

use core::fmt::{self, Write};

use super::command::COMMANDS;
use super::complete;
use super::editor::{Editor, Outcome};
use super::failure::{Done, Failure};
use super::machine::Machine;
use super::report::Value::Text;
use super::session::{MonitorIo, Session, State, write_lines};

const PROMPT: &str = "ballast> ";

/// Runs the monitor for ever. Needs about 16 KiB of stack.
pub fn run(io: &mut dyn MonitorIo, machine: &dyn Machine) -> ! {
    let (mut editor, mut state) = (Editor::new(PROMPT), State::new());
    loop {
        read_and_execute(io, machine, &mut editor, &mut state);
    }
}

/// Reads one line and executes it.
pub(super) fn read_and_execute(
    io: &mut dyn MonitorIo,
    machine: &dyn Machine,
    editor: &mut Editor,
    state: &mut State,
) {
    if read_line(io, machine, editor) {
        run_line(&mut Session::new(io, COMMANDS, machine, state), editor.line());
    }
}

/// Reads a line; returns `false` if the operator gave it up.
fn read_line(io: &mut dyn MonitorIo, machine: &dyn Machine, editor: &mut Editor) -> bool {
    // Writing to a console does not fail.
    let _ = editor.begin(&mut Plain(io));
    loop {
        let Some(byte) = io.read(None) else {
            io.pause();
            continue;
        };
        match editor.take(byte, &mut Plain(io)) {
            Ok(Outcome::Done) => return true,
            Ok(Outcome::Cancelled) => return false,
            Ok(Outcome::Complete { is_repeated }) => {
                let _ = complete::complete(editor, COMMANDS, machine, is_repeated, &mut Plain(io));
            }
            Ok(Outcome::Pending) | Err(_) => {}
        }
    }
}

/// Executes a line and reports its failure.
fn run_line(session: &mut Session<'_>, line: &str) {
    if let Err(failure) = session.run(line) {
        // An operator who presses Ctrl-C again does not want to see the error either.
        let _ = report_failure(session, line, failure);
    }
}

fn report_failure(session: &mut Session<'_>, line: &str, failure: Failure) -> Done {
    let mut session = session.nested(session.style);
    let why = session.state.why.clone();
    let mut text = why.as_str();
    if failure == Failure::Interrupted {
        text = "interrupted";
        session.write_str("\n")?;
    }
    if session.style.is_json {
        let cells = [("command", Text(line.trim())), ("error", Text(text))];
        return session.report("error", |report, _| report.fields(&cells));
    }
    writeln!(session, "error: {text}")?;
    let name = line.split(' ').find(|word| !word.is_empty()).unwrap_or("");
    if let Some(command) = COMMANDS.find(name).filter(|_| failure == Failure::Usage) {
        writeln!(session, "usage: {}", command.usage())?;
    }
    Ok(())
}

/// A console whose output cannot be interrupted.
struct Plain<'a>(&'a mut dyn MonitorIo);

impl Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_lines(self.0, text);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
