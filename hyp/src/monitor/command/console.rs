//! `console`.

use super::super::grammar::{Argument, Arguments, Failure};
use super::super::mux::{Console, GUESTS, View};
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::Size;
use super::MOST_KEPT;

/// Lists the consoles, brings one to front, or limits one.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let machine = session.machine;
    match (arguments.get(0), arguments.word(1), arguments.number(2)) {
        (None, ..) => list(session),
        (Some(Argument::Console(console)), Some(_), Some(bytes)) => limit(session, console, bytes),
        (Some(Argument::Console(_)), Some(_), None) => Err(session.usage(format_args!("SIZE is missing"))),
        (Some(Argument::Console(console)), None, _) => {
            let name = machine.console(console).map_or("", |status| status.name);
            session.done("console", format_args!("To {name}."), "console=", &[Value::Text(name)])?;
            machine.show_console(console);
            Ok(())
        }
        (Some(_), Some(_), _) => Err(session.usage(format_args!("limit applies to one console"))),
        (Some(_), None, _) => {
            let view = if arguments.word(0) == Some("all") { View::All } else { View::Front };
            let name = view.name();
            machine.set_view(view);
            session.done("console", format_args!("Showing: {name}."), "view=", &[Value::Text(name)])
        }
    }
}

fn list(session: &mut Session<'_>) -> Result<(), Failure> {
    let columns = "key=KEY|name=NAME|is_front=FRONT|kept_bytes=KEPT|limit_bytes=LIMIT|lost_bytes=LOST|input_lost_bytes=INPUT LOST";
    session.report("console", |report, machine| {
        report.table("consoles", columns, "There are no consoles.", &mut |table| {
            let guests = (0..GUESTS).filter_map(Console::guest);
            for console in core::iter::once(Console::MONITOR).chain(guests) {
                let Some(status) = machine.console(console) else { continue };
                let key = core::fmt::from_fn(|f| match console.guest_index() {
                    None => f.write_str("Ctrl-] m"),
                    Some(index) => write!(f, "Ctrl-] {}", index + 1),
                });
                table.row(&[
                    Value::Show(&key),
                    Value::Text(status.name),
                    Value::Flag(status.is_front),
                    Value::Bytes(status.kept as u64),
                    Value::Bytes(status.limit as u64),
                    Value::Bytes(status.lost_count),
                    Value::Bytes(status.input_lost_count),
                ])?;
            }
            Ok(())
        })
    })?;
    Ok(())
}

fn limit(session: &mut Session<'_>, console: Console, bytes: u64) -> Result<(), Failure> {
    if bytes > MOST_KEPT {
        let most = Size(MOST_KEPT);
        return Err(session.refuse(format_args!("at most {most} of a console are kept")));
    }
    let machine = session.machine;
    machine.limit_console(console, bytes as usize);
    let Some(status) = machine.console(console) else { return Ok(()) };
    let text = format_args!("Keeping the last {} of {}.", Size(status.limit as u64), status.name);
    let values = [Value::Text(status.name), Value::Bytes(status.limit as u64)];
    session.done("console", text, "console=|limit_bytes=", &values)
}
