//! `watch`.

use core::fmt::Write;

use super::super::grammar::{Arguments, Failure, Words};
use super::super::mux::REDRAW;
use super::super::session::Session;
use super::super::shell;
use super::{find, takes_line, unknown};

/// Clears the screen.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Repeats a command until a key is pressed.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let (Some(seconds), Some(line)) = (arguments.number(0), arguments.word(1)) else { return Ok(()) };
    let style = session.style;
    let words = Words::split(line, takes_line, &mut session.state.why)?;
    let name = words.name().unwrap_or("");
    if takes_line(name) {
        return Err(session.usage(format_args!("{name} cannot be watched")));
    }
    find(name).ok_or_else(|| unknown(session, name))?;
    loop {
        if !style.is_json && !words.style.is_json {
            writeln!(session, "{CLEAR}Every {seconds} s: {line} (any key ends)\n")?;
        }
        let mut nested = session.nested(style);
        // The usage of `watch` would be no help then.
        shell::execute(&mut nested, line).map_err(|failure| match failure {
            Failure::Usage => Failure::Refused,
            other => other,
        })?;
        let io = session.io();
        let deadline = io.now_ns().saturating_add(seconds * 1_000_000_000);
        loop {
            match io.read(Some(deadline)) {
                None => break,
                // The line was disturbed by a message: nothing that was typed.
                Some(REDRAW) => {}
                Some(_) => return Ok(()),
            }
        }
    }
}
