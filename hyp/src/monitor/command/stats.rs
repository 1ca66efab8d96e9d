//! `stats`.

use super::prelude::*;
use crate::monitor::baseline::Totals;
use crate::monitor::report::Cell;
use crate::observe::counters::{EXITS, Exit};
use stage2::scale::scaled;

/// The keys of the counts of exits, by [`Exit`].
const EXIT_KEYS: [&str; EXITS] = [
    "exit_hypercall_count",
    "exit_sysreg_count",
    "exit_sgi_count",
    "exit_gicd_count",
    "exit_gicr_count",
    "exit_uart_count",
    "exit_pci_count",
    "exit_fault_count",
    "exit_abort_count",
    "exit_interrupt_count",
    "exit_wait_count",
    "exit_other_count",
];

/// Shows or resets the counters.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let now_ns = session.io().now_ns();
    match arguments.get(0) {
        Some(Argument::Guest(guest)) => one(session, guest, now_ns),
        Some(Argument::Word("migration")) => super::moved::run(session),
        Some(Argument::Word("claims")) => super::claims::counters(session),
        Some(_) => {
            let machine = session.machine;
            session.state.baseline.take(machine, now_ns);
            session.done("stats", format_args!("Counters reset."), &[])
        }
        None => all(session, now_ns),
    }
}

/// Shows a line for each guest. JSON counts since boot, text since the last reset.
fn all(session: &mut Session<'_>, now_ns: u64) -> Done {
    let baseline = session.state.baseline.clone();
    let shown_ns = now_ns.saturating_sub(baseline.time_ns);
    let is_json = session.style.is_json;
    session.report("stats", |report, machine| {
        report.fields(&[("=Counted over", Nanoseconds(shown_ns)), ("uptime_ns", Nanoseconds(now_ns))])?;
        report.list("guests", "There are no guests.", machine.guests(), |table, (at, guest)| {
            let totals = if is_json { Totals::of(machine, at) } else { baseline.since(machine, at) };
            let exit = |exit: Exit| Count(totals.exits[exit as usize]);
            let head = [
                ("name=GUEST", Text(guest.name)),
                ("exit_count=EXITS", Count(totals.exit_count())),
                ("=PER SECOND", Count(per_second(totals.exit_count(), shown_ns))),
                ("=HYPERCALLS", exit(Exit::Hypercall)),
                ("=FAULTS", exit(Exit::Fault)),
                ("injected_count=INJECTED", Count(totals.injected_count)),
                ("device_interrupt_count", Count(totals.device_count)),
                ("el2_ns=TIME AT EL2", Nanoseconds(totals.el2_ns)),
            ];
            let exits = EXIT_KEYS.into_iter().zip(totals.exits.map(Count));
            table.row(&head.into_iter().chain(exits).collect::<heapless::Vec<Cell<'_>, { 8 + EXITS }>>())
        })
    })
}

/// Shows one guest's exits by reason.
fn one(session: &mut Session<'_>, guest: usize, now_ns: u64) -> Done {
    let baseline = session.state.baseline.clone();
    let is_json = session.style.is_json;
    let shown_ns = now_ns.saturating_sub(if is_json { 0 } else { baseline.time_ns });
    session.report("stats", |report, machine| {
        let totals = if is_json { Totals::of(machine, guest) } else { baseline.since(machine, guest) };
        report.fields(&[
            ("name=Guest", Text(machine.guest(guest).map_or("", |guest| guest.name))),
            ("=Counted over", Nanoseconds(shown_ns)),
            ("uptime_ns", Nanoseconds(now_ns)),
            ("exit_count=Exits", Count(totals.exit_count())),
            ("injected_count=Interrupts", Count(totals.injected_count)),
            ("device_interrupt_count=  of devices", Count(totals.device_count)),
            ("el2_ns=Time at EL2", Nanoseconds(totals.el2_ns)),
            ("=  of one CPU", Permille(permille(totals.el2_ns, shown_ns))),
        ])?;
        report.list("exits", "", Exit::ALL.iter().zip(totals.exits), |table, (exit, count)| {
            table.row(&[
                ("reason=EXITS", Text(exit.name())),
                ("count=COUNT", Count(count)),
                ("per_second=PER SECOND", Count(per_second(count, shown_ns))),
                ("share_permille=SHARE", Permille(permille(count, totals.exit_count()))),
            ])
        })
    })
}

/// Divides `count` by a time, which counts as a second at least.
fn per_second(count: u64, time_ns: u64) -> u64 {
    // In milliseconds, counts up to 2^54 do not overflow.
    let milliseconds = (time_ns / 1_000_000).max(1000);
    count.saturating_mul(1000) / milliseconds
}

fn permille(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { scaled(part, 1000, whole) }
}
