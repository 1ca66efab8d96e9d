//! `log`.

use core::fmt::Write;

use super::super::grammar::{Argument, Arguments, Failure};
use super::super::mux::{Base64, Sequence};
use super::super::report::Value;
use super::super::session::Session;
use crate::observe::log::{Entry, Level};

/// Shows the log.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let least = match arguments.get(0) {
        Some(Argument::Level(level)) => level,
        _ => Level::Debug,
    };
    let ring = session.machine.log();
    // What is logged meanwhile is for the next time: the command ends.
    let end = ring.written_count();
    let mut reader = ring.reader();
    let mut next =
        || core::iter::from_fn(|| reader.next_before(ring, end)).find(|entry: &Entry| entry.level() <= least);
    if session.style.is_json {
        let columns = "time_ns=|cpu=|level=|text=|frame=";
        session.report("log", |report, _| {
            report.table("lines", columns, "", &mut |table| {
                while let Some(entry) = next() {
                    let base64 = entry.frame().map(Base64);
                    table.row(&[
                        Value::Nanoseconds(entry.stamp().time_ns),
                        Value::Count(entry.stamp().cpu.into()),
                        Value::Text(entry.level().name()),
                        if base64.is_some() { Value::None } else { Value::Text(entry.text()) },
                        base64.as_ref().map_or(Value::None, |base64| Value::Show(base64)),
                    ])?;
                }
                Ok(())
            })
        })?;
        return Ok(());
    }
    let mut frame_count = 0;
    while let Some(entry) = next() {
        match entry.frame() {
            Some(frame) => {
                frame_count += 1;
                write!(session, "{}", Sequence(frame))?;
            }
            None => writeln!(session, "{entry}")?,
        }
    }
    if frame_count != 0 {
        writeln!(session, "({frame_count} lines are frames: ballast console --elf FILE shows them)")?;
    }
    if reader.lost_count() != 0 {
        writeln!(session, "({} older lines are lost)", reader.lost_count())?;
    }
    Ok(())
}
