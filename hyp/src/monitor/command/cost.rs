//! `cost`: the time that logging and tracing take on this machine.

use super::prelude::*;

/// Measures lines of the log and events of the trace.
pub(super) fn run(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let machine = session.machine;
    let costs = machine.costs().map_err(|why| session.refuse(format_args!("{why}")))?;
    session.list("cost", "costs", "", costs.iter(), |table, cost| {
        table.row(&[
            ("what=WHAT", Text(cost.what)),
            ("picoseconds", Count(cost.picoseconds)),
            ("=EACH", Nanoseconds((cost.picoseconds + 500) / 1000)),
        ])
    })
}
