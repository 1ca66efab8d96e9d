//! `log`.

use core::fmt::Write;

use super::super::grammar::{Argument, Arguments, Failure};
use super::super::report::Value;
use super::super::session::Session;
use crate::log::{Entry, Level};

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
        let columns = "time_ns=|cpu=|level=|text=";
        session.report("log", |report, _| {
            report.table("lines", columns, "", &mut |table| {
                while let Some(entry) = next() {
                    table.row(&[
                        Value::Nanoseconds(entry.stamp().time_ns),
                        Value::Count(entry.stamp().cpu.into()),
                        Value::Text(entry.level().name()),
                        Value::Text(entry.text()),
                    ])?;
                }
                Ok(())
            })
        })?;
        return Ok(());
    }
    while let Some(entry) = next() {
        writeln!(session, "{entry}")?;
    }
    if reader.lost_count() != 0 {
        writeln!(session, "({} older lines are lost)", reader.lost_count())?;
    }
    Ok(())
}
