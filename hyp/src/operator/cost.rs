//! Measurement of the cost of tracing and logging, by the machine's counter.

use crate::arch::{cpu, timer, trace};
use crate::monitor::machine::Cost;
use crate::observe::log;
use crate::observe::trace::Kind;
use core::hint::black_box;

/// Repetitions in a batch.
const ROUNDS: u64 = 64;
/// Lines that are logged in a batch; each may push the oldest out of the log.
const LINES: u64 = 8;

/// Measures the costs. Interrupts are masked at EL2, so nothing disturbs the measurement.
pub(crate) fn measure() -> heapless::Vec<Cost, 4> {
    let mut costs = heapless::Vec::new();
    let mut add = |what, rounds, work: &mut dyn FnMut(u64)| {
        let picoseconds = |ticks| timer::to_nanoseconds(ticks * 1000);
        let _ = costs.push(Cost::measure(what, rounds, timer::now, picoseconds, work));
    };
    let mut record = |round| trace::record(Kind::Life, 0xff, 0, black_box(round), 0);
    let was_recording = crate::observe::trace::is_recording();
    crate::observe::trace::set_recording(false);
    add("trace event, while it is off", ROUNDS, &mut record);
    crate::observe::trace::set_recording(true);
    add("trace event", ROUNDS, &mut record);
    crate::observe::trace::set_recording(was_recording);
    let what = match log::output() {
        log::Output::Frames => "line of the log, as a frame",
        _ => "line of the log, as text",
    };
    let first = log::ring().written_count();
    add(what, LINES, &mut |round| log::info!("measuring: line {}", round));
    log::ring().withdraw(first, cpu::current().index() as u16);
    add("line of the log that is not kept", ROUNDS, &mut |round| log::debug!("measuring: line {}", round));
    costs
}
