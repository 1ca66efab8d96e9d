//! `log`.

use super::prelude::*;
use crate::monitor::mux::{Base64, Sequence};
use crate::observe::log::{Entry, Level};

/// Shows the log.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let least = match arguments.get(0) {
        Some(Argument::Level(level)) => level,
        _ => Level::Debug,
    };
    let ring = session.machine.log();
    // Lines logged meanwhile are left for the next time, so that the command ends.
    let end = ring.written_count();
    let mut reader = ring.reader();
    let mut next =
        || core::iter::from_fn(|| reader.next_before(ring, end)).find(|entry: &Entry| entry.level() <= least);
    if session.style.is_json {
        return session.report("log", |report, _| {
            report.table("lines", "", &mut |table| {
                while let Some(entry) = next() {
                    let base64 = entry.frame().map(Base64);
                    let text = if base64.is_some() { Nothing } else { Text(entry.text()) };
                    table.row(&[
                        ("time_ns", Nanoseconds(entry.stamp().time_ns)),
                        ("cpu", Count(entry.stamp().cpu.into())),
                        ("level", Text(entry.level().name())),
                        ("text", text),
                        ("frame", base64.as_ref().map_or(Nothing, |base64| Show(base64))),
                    ])?;
                }
                Ok(())
            })
        });
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
        writeln!(session, "({frame_count} lines are frames: ballast console --elf FILE decodes them)")?;
    }
    if reader.lost_count() != 0 {
        writeln!(session, "({} older lines are lost)", reader.lost_count())?;
    }
    Ok(())
}
