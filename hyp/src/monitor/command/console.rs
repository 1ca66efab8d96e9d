//! `console`.

use super::prelude::*;
use crate::monitor::mux::{Console, RING_SIZE, View};

/// The largest limit of a console.
const MAX_LIMIT: u64 = RING_SIZE as u64;

/// Lists the consoles, brings one to front, or limits one.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let machine = session.machine;
    match (arguments.get(0), arguments.word(1), arguments.number(2)) {
        (None, ..) => list(session),
        (Some(Argument::Console(console)), Some(_), Some(bytes)) => limit(session, console, bytes),
        (Some(Argument::Console(_)), Some(_), None) => Err(session.usage(format_args!("missing SIZE"))),
        (Some(Argument::Console(console)), None, _) => {
            let name = machine.console(console).map_or("", |status| status.name);
            session.done("console", format_args!("Switching to {name}."), &[("console", Text(name))])?;
            machine.show_console(console);
            Ok(())
        }
        (Some(_), Some(_), _) => Err(session.usage(format_args!("limit needs the name of one console"))),
        (Some(_), None, _) => {
            let view = if arguments.word(0) == Some("all") { View::All } else { View::Front };
            let name = view.name();
            machine.set_view(view);
            session.done("console", format_args!("Showing: {name}."), &[("view", Text(name))])
        }
    }
}

fn list(session: &mut Session<'_>) -> Done {
    let machine = session.machine;
    let consoles = Console::all().filter_map(|console| Some((console, machine.console(console)?)));
    session.list("console", "consoles", "There are no consoles.", consoles, |table, (console, status)| {
        let key = from_fn(|f| match console.guest_index() {
            None => f.write_str("Ctrl-] m"),
            Some(index) => write!(f, "Ctrl-] {}", index + 1),
        });
        table.row(&[
            ("key=KEY", Show(&key)),
            ("name=NAME", Text(status.name)),
            ("is_front=FRONT", Flag(status.is_front)),
            ("kept_bytes=KEPT", Bytes(status.kept as u64)),
            ("limit_bytes=LIMIT", Bytes(status.limit as u64)),
            ("lost_bytes=LOST", Bytes(status.lost_count)),
            ("input_lost_bytes=INPUT LOST", Bytes(status.input_lost_count)),
        ])
    })
}

fn limit(session: &mut Session<'_>, console: Console, bytes: u64) -> Done {
    if bytes > MAX_LIMIT {
        let most = Size(MAX_LIMIT);
        refuse!(session, "limit too large: at most {most} of a console's output are kept");
    }
    let machine = session.machine;
    machine.limit_console(console, bytes as usize);
    let Some(status) = machine.console(console) else { return Ok(()) };
    let limit = status.limit as u64;
    let text = format_args!("Keeping the last {} of {}.", Size(limit), status.name);
    session.done("console", text, &[("console", Text(status.name)), ("limit_bytes", Bytes(limit))])
}
