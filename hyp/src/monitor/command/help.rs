//! `help`.

use super::prelude::*;
use crate::monitor::report::write_wrapped;
use crate::monitor::session::Command;

/// Lists the commands, or explains one.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    if let Some(name) = arguments.word(0) {
        let command = session.find(name)?;
        return explain(session, command);
    }
    let commands = session.commands;
    session.report("help", |report, _| {
        report.list("commands", "", commands.0.iter(), |table, command| {
            table.row(&[
                ("name=COMMAND", Text(command.name)),
                ("usage", Show(&command.usage())),
                ("summary=WHAT IT DOES", Text(command.summary)),
                ("example", Text(command.example)),
            ])
        })?;
        report.say(format_args!(
            "\nhelp COMMAND explains one, with its arguments and an example.\n\
             Ctrl-] ? lists the keys that switch consoles."
        ))
    })
}

/// Explains one command.
fn explain(session: &mut Session<'_>, command: &Command) -> Done {
    let (usage, details) = (command.usage(), command.details);
    let text = from_fn(|f| {
        write!(f, "{usage}\n  ")?;
        write_wrapped(f, 2, command.summary)?;
        if !details.is_empty() {
            f.write_str("  ")?;
            write_wrapped(f, 2, details)?;
        }
        write!(f, "  Example: {}", command.example)
    });
    let cells = [
        ("name", Text(command.name)),
        ("usage", Show(&usage)),
        ("summary", Text(command.summary)),
        ("details", Text(details)),
        ("example", Text(command.example)),
    ];
    session.done("help", format_args!("{text}"), &cells)
}
