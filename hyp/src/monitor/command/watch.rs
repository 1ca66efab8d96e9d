//! `watch`.

use super::prelude::*;
use crate::monitor::grammar::Words;
use crate::monitor::mux::REDRAW;

/// Clears the screen.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Repeats a command until a key is pressed.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let (Some(seconds), Some(line)) = (arguments.number(0), arguments.word(1)) else { return Ok(()) };
    let (style, commands) = (session.style, session.commands);
    let words = Words::split(line, &|name| commands.takes_line(name), &mut session.state.why)?;
    let name = words.name().unwrap_or("");
    if commands.takes_line(name) {
        usage!(session, "watch cannot repeat {name}");
    }
    session.find(name)?;
    loop {
        if !style.is_json && !words.style.is_json {
            writeln!(session, "{CLEAR}Every {seconds} s: {line} (any key quits)\n")?;
        }
        session.nested(style).run(line).map_err(|failure| match failure {
            // The usage of `watch` would not help.
            Failure::Usage => Failure::Refused,
            other => other,
        })?;
        let io = session.io();
        let deadline = io.now_ns().saturating_add(seconds * 1_000_000_000);
        loop {
            match io.read(Some(deadline)) {
                None => break,
                // The multiplexer asks for a redraw after a message: not a key.
                Some(REDRAW) => {}
                Some(_) => return Ok(()),
            }
        }
    }
}
