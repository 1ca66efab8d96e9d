//! The shell: reads a line, does what it says, and so on.

use core::fmt::{self, Write};

use super::command::{self, takes_line};
use super::complete;
use super::editor::{Editor, Outcome};
use super::grammar::{Failure, Words, parse};
use super::machine::Machine;
use super::report::{Style, Value};
use super::session::{MonitorIo, Session, State, write_lines};

const PROMPT: &str = "ballast> ";

/// Runs the monitor for ever. Wants about 16 KiB of stack.
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
        let mut session = Session::new(io, machine, state, Style::default());
        run_line(&mut session, editor.line());
    }
}

/// Reads a line; `false` if it was given up.
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
                let _ = complete::complete(editor, machine, is_repeated, &mut Plain(io));
            }
            Ok(Outcome::Pending) | Err(_) => {}
        }
    }
}

/// Executes a line and says what went wrong.
fn run_line(session: &mut Session<'_>, line: &str) {
    // The operator who interrupts has seen enough: what cannot be said is not said.
    let _ = match execute(session, line) {
        Ok(()) => Ok(()),
        Err(failure) => report_failure(session, line, failure),
    };
}

/// Executes a line.
///
/// # Errors
/// Why it was not, or not wholly, executed.
pub(super) fn execute(session: &mut Session<'_>, line: &str) -> Result<(), Failure> {
    let words = Words::split(line, takes_line, &mut session.state.why).inspect_err(|_| {
        session.style.is_json |= line.split(' ').any(|word| word == "--json");
    })?;
    session.style.is_json |= words.style.is_json;
    session.style.is_exact |= words.style.is_exact;
    let Some(name) = words.name() else {
        return if words.wants_help { execute(session, "help") } else { Ok(()) };
    };
    let command = command::find(name).ok_or_else(|| command::unknown(session, name))?;
    if words.wants_help {
        return command::explain(session, command);
    }
    let arguments = parse(command, &words, session.machine, &mut session.state.why)?;
    (command.run)(session, &arguments)
}

fn report_failure(session: &mut Session<'_>, line: &str, failure: Failure) -> Result<(), Failure> {
    let mut session = session.nested(session.style);
    let why = session.state.why.clone();
    let mut text = why.as_str();
    if failure == Failure::Interrupted {
        text = "interrupted";
        session.write_str("\n")?;
    }
    if session.style.is_json {
        let values = [Value::Text(line.trim()), Value::Text(text)];
        return session.report("error", |report, _| report.fields("command=|error=", &values));
    }
    writeln!(session, "error: {text}")?;
    let name = line.split(' ').find(|word| !word.is_empty()).unwrap_or("");
    match command::find(name) {
        Some(command) if failure == Failure::Usage => writeln!(session, "usage: {}", command.usage())?,
        _ => {}
    }
    Ok(())
}

/// Writes what cannot be interrupted.
struct Plain<'a>(&'a mut dyn MonitorIo);

impl Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_lines(self.0, text);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
