//! `help`.

use core::fmt::Write;

use super::super::grammar::{Arguments, Command, Failure, nearest};
use super::super::machine::reason;
use super::super::report::{Value, column, write_wrapped};
use super::super::session::Session;
use super::{COMMANDS, find};

/// Lists the commands, or explains one.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    match arguments.word(0) {
        Some(name) => explain(session, find(name).ok_or_else(|| unknown(name))?),
        None => list(session),
    }
}

/// There is no such command.
pub(in super::super) fn unknown(name: &str) -> Failure {
    Failure::Usage(match nearest(name, COMMANDS.iter().map(|command| command.name)) {
        Some(near) => reason(format_args!("'{name:.32}' is no command; did you mean {near}?")),
        None => reason(format_args!("'{name:.32}' is no command; help lists them")),
    })
}

fn list(session: &mut Session<'_>) -> Result<(), Failure> {
    let columns = [
        column("name", ""),
        column("usage", "COMMAND"),
        column("summary", "WHAT IT DOES"),
        column("example", ""),
    ];
    session.report("help", |report, _| {
        report.table("commands", &columns, "", &mut |row| {
            COMMANDS.iter().try_for_each(|command| {
                row(&[
                    Value::Text(command.name),
                    Value::Show(&command.usage()),
                    Value::Text(command.summary),
                    Value::Text(command.example),
                ])
            })
        })
    })?;
    if !session.style.is_json {
        session.write_str("\nhelp COMMAND explains one. Ctrl-] ? lists the keys that switch consoles.\n")?;
    }
    Ok(())
}

/// Explains one command.
pub(in super::super) fn explain(session: &mut Session<'_>, command: &Command) -> Result<(), Failure> {
    if session.style.is_json {
        let fields = [
            (column("name", ""), Value::Text(command.name)),
            (column("usage", ""), Value::Show(&command.usage())),
            (column("summary", ""), Value::Text(command.summary)),
            (column("details", ""), Value::Text(command.details)),
            (column("example", ""), Value::Text(command.example)),
        ];
        session.report("help", |report, _| report.fields(&fields))?;
        return Ok(());
    }
    write!(session, "{}\n  ", command.usage())?;
    write_wrapped(session, 2, command.summary)?;
    if !command.details.is_empty() {
        session.write_str("  ")?;
        write_wrapped(session, 2, command.details)?;
    }
    writeln!(session, "  Example: {}", command.example)?;
    Ok(())
}
