//! `cost`: what Ballast's own watching costs on this machine.

use super::super::grammar::{Arguments, Failure};
use super::super::report::Value;
use super::super::session::Session;

/// Measures lines of the log and events of the trace.
pub(super) fn run(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let machine = session.machine;
    let costs = machine.costs().map_err(|why| session.refuse(format_args!("{why}")))?;
    session.report("cost", |report, _| {
        report.table("costs", "what=WHAT|picoseconds=|=EACH", "", &mut |table| {
            for cost in &costs {
                let each = Value::Nanoseconds((cost.picoseconds + 500) / 1000);
                table.row(&[Value::Text(cost.what), Value::Count(cost.picoseconds), each])?;
            }
            Ok(())
        })
    })
}
