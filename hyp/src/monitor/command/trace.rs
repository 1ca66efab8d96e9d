//! `trace`.

use super::prelude::*;
use crate::monitor::units::Seconds;
use crate::observe::trace;
use crate::observe::trace::Event;

/// The number of events shown by default.
const SHOWN: u64 = 40;
/// Most CPUs whose traces are merged.
const CPUS: usize = 32;

/// The choice of events.
struct Filter<'a> {
    guest: Option<usize>,
    kind: Option<&'a str>,
}

impl Filter<'_> {
    fn admits(&self, event: &Event) -> bool {
        self.guest.is_none_or(|guest| guest == usize::from(event.guest))
            && self.kind.is_none_or(|kind| kind == event.kind.name())
    }
}

/// Shows the trace, or turns it on and off.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let word = arguments.word(0);
    if let Some("on" | "off") = word {
        let is_on = word == Some("on");
        let machine = session.machine;
        machine.set_tracing(is_on).map_err(|why| session.refuse(format_args!("{why}")))?;
        let text = if is_on { "Recording." } else { "Not recording." };
        return session.done("trace", format_args!("{text}"), &[("is_recording", Flag(is_on))]);
    }
    let guest = match arguments.get(0) {
        Some(Argument::Guest(guest)) => Some(guest),
        _ => None,
    };
    let filter = Filter { guest, kind: word };
    let shown = arguments.number(1).unwrap_or(SHOWN);
    let machine = session.machine;
    let is_recording = machine.is_tracing();
    if is_recording {
        machine.pause_tracing(true);
    }
    let result = show(session, &filter, shown, is_recording);
    if is_recording {
        machine.pause_tracing(false);
    }
    result
}

fn show(session: &mut Session<'_>, filter: &Filter<'_>, shown: u64, is_recording: bool) -> Done {
    session.report("trace", |report, machine| {
        let ends: [u64; CPUS] =
            core::array::from_fn(|cpu| machine.trace(cpu).map_or(0, trace::Ring::recorded_count));
        let mut count = 0;
        each_event(machine, &ends, filter, &mut |_, _| {
            count += 1;
            Ok(())
        })?;
        let has_recorded = ends.iter().any(|end| *end > 0);
        let skipped = u64::saturating_sub(count, shown);
        report.fields(&[("is_recording", Flag(is_recording))])?;
        let none = match (has_recorded, is_recording) {
            (true, _) => "No such event is kept: each CPU keeps only its last ones.",
            (false, true) => "Nothing was recorded yet.",
            (false, false) => "Nothing was recorded: trace on starts recording.",
        };
        report.table("events", none, &mut |table| {
            let mut at = 0;
            each_event(machine, &ends, filter, &mut |cpu, event| {
                at += 1;
                if at <= skipped {
                    return Ok(());
                }
                let time_ns = machine.nanoseconds(event.ticks);
                let guest = machine.guest(event.guest.into());
                table.row(&[
                    ("time_ns", Nanoseconds(time_ns)),
                    ("=TIME", Show(&Seconds(time_ns))),
                    ("cpu=CPU", Count(cpu as u64)),
                    ("guest=GUEST", guest.as_ref().map_or(Nothing, |guest| Text(guest.name))),
                    ("vcpu=vCPU", Count(event.vcpu.into())),
                    ("kind", Text(event.kind.name())),
                    ("detail", Address(event.detail)),
                    ("place", Address(event.place)),
                    ("event=EVENT", Show(event)),
                ])
            })
        })
    })
}

/// Calls `take` with the events of all CPUs that were recorded before `ends`, in order of time.
fn each_event(
    machine: &dyn Machine,
    ends: &[u64; CPUS],
    filter: &Filter<'_>,
    take: &mut dyn FnMut(usize, &Event) -> fmt::Result,
) -> fmt::Result {
    let mut next: [u64; CPUS] = core::array::from_fn(|cpu| machine.trace(cpu).map_or(0, trace::Ring::oldest));
    // Each turn takes one event of one CPU: as many turns as the rings hold.
    loop {
        let mut first: Option<(usize, Event)> = None;
        for (cpu, (next, end)) in next.iter_mut().zip(ends).enumerate() {
            while *next < *end {
                match machine.trace(cpu).and_then(|ring| ring.event(*next)) {
                    Some(event) if filter.admits(&event) => {
                        if first.is_none_or(|(_, first)| event.ticks < first.ticks) {
                            first = Some((cpu, event));
                        }
                        break;
                    }
                    // The event is filtered out, or was overwritten meanwhile.
                    _ => *next += 1,
                }
            }
        }
        let Some((cpu, event)) = first else { return Ok(()) };
        take(cpu, &event)?;
        if let Some(next) = next.get_mut(cpu) {
            *next += 1;
        }
    }
}
