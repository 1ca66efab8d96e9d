//! `help`.

use core::fmt::Write;

use super::super::grammar::{Arguments, Command, Failure, nearest};
use super::super::report::{Value, write_wrapped};
use super::super::session::Session;
use super::{COMMANDS, find};

/// Lists the commands, or explains one.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    match arguments.word(0) {
        Some(name) => {
            let command = find(name).ok_or_else(|| unknown(session, name))?;
            explain(session, command)
        }
        None => list(session),
    }
}

/// There is no such command.
pub(in super::super) fn unknown(session: &mut Session<'_>, name: &str) -> Failure {
    if ["exit", "quit", "logout"].contains(&name) {
        return session.usage(format_args!(
            "the monitor has no end; Ctrl-] 1 shows the first guest, Ctrl-] ? the keys"
        ));
    }
    match nearest(name, COMMANDS.iter().map(|command| command.name)) {
        Some(near) => session.usage(format_args!("'{name:.32}' is no command; did you mean {near}?")),
        None => session.usage(format_args!("'{name:.32}' is no command; help lists them")),
    }
}

fn list(session: &mut Session<'_>) -> Result<(), Failure> {
    let columns = "name=COMMAND|usage=|summary=WHAT IT DOES|example=";
    session.report("help", |report, _| {
        report.table("commands", columns, "", &mut |table| {
            COMMANDS.iter().try_for_each(|command| {
                table.row(&[
                    Value::Text(command.name),
                    Value::Show(&command.usage()),
                    Value::Text(command.summary),
                    Value::Text(command.example),
                ])
            })
        })
    })?;
    if !session.style.is_json {
        session.write_str(
            "\nhelp COMMAND explains one, with its arguments and an example.\n\
             Ctrl-] ? lists the keys that switch consoles.\n",
        )?;
    }
    Ok(())
}

/// Explains one command.
pub(in super::super) fn explain(session: &mut Session<'_>, command: &Command) -> Result<(), Failure> {
    if session.style.is_json {
        let usage = command.usage();
        return session.report("help", |report, _| {
            let values = [
                Value::Text(command.name),
                Value::Show(&usage),
                Value::Text(command.summary),
                Value::Text(command.details),
                Value::Text(command.example),
            ];
            report.fields("name=|usage=|summary=|details=|example=", &values)
        });
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
