//! `stats`.

use super::super::grammar::{Argument, Arguments, Failure};
use super::super::report::Value;
use super::super::session::Session;
use crate::monitor::baseline::Totals;
use crate::observe::counters::{EXITS, Exit};
use stage2::scale::scaled;

/// Shows or resets the counters.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    let now_ns = session.io().now_ns();
    match arguments.get(0) {
        Some(Argument::Guest(guest)) => one(session, guest, now_ns),
        Some(Argument::Word("migration")) => super::moved::run(session),
        Some(Argument::Word("claims")) => super::claims::counters(session),
        Some(_) => {
            let machine = session.machine;
            session.state.baseline.take(machine, now_ns);
            session.done("stats", format_args!("Counting from now on."), "", &[])
        }
        None => all(session, now_ns),
    }
}

/// A line for each guest. JSON has what was counted since boot; text, what was since the last reset.
fn all(session: &mut Session<'_>, now_ns: u64) -> Result<(), Failure> {
    let baseline = session.state.baseline.clone();
    let shown_ns = now_ns.saturating_sub(baseline.time_ns);
    let is_json = session.style.is_json;
    let columns = "name=GUEST|exit_count=EXITS|=PER SECOND|=HYPERCALLS|=FAULTS|injected_count=INJECTED|\
                   el2_ns=IN EL2|exit_hypercall_count=|exit_sysreg_count=|exit_sgi_count=|exit_gicd_count=|\
                   exit_gicr_count=|exit_uart_count=|exit_fault_count=|exit_abort_count=|\
                   exit_interrupt_count=|exit_wait_count=|exit_other_count=";
    session.report("stats", |report, machine| {
        let times = [Value::Nanoseconds(shown_ns), Value::Nanoseconds(now_ns)];
        report.fields("=Counted for|uptime_ns=", &times)?;
        report.table("guests", columns, "There are no guests.", &mut |table| {
            for (at, guest) in (0..machine.guest_count()).filter_map(|at| Some((at, machine.guest(at)?))) {
                let totals = if is_json { Totals::of(machine, at) } else { baseline.since(machine, at) };
                let exit = |exit: Exit| Value::Count(totals.exits[exit as usize]);
                let head = [
                    Value::Text(guest.name),
                    Value::Count(totals.exit_count()),
                    Value::Count(per_second(totals.exit_count(), shown_ns)),
                    exit(Exit::Hypercall),
                    exit(Exit::Fault),
                    Value::Count(totals.injected_count),
                    Value::Nanoseconds(totals.el2_ns),
                ];
                let mut values = [Value::None; 7 + EXITS];
                let exits = totals.exits.iter().map(|&count| Value::Count(count));
                for (place, value) in values.iter_mut().zip(head.into_iter().chain(exits)) {
                    *place = value;
                }
                table.row(&values)?;
            }
            Ok(())
        })
    })
}

/// One guest's exits by reason.
fn one(session: &mut Session<'_>, guest: usize, now_ns: u64) -> Result<(), Failure> {
    let baseline = session.state.baseline.clone();
    let is_json = session.style.is_json;
    let shown_ns = now_ns.saturating_sub(if is_json { 0 } else { baseline.time_ns });
    session.report("stats", |report, machine| {
        let totals = if is_json { Totals::of(machine, guest) } else { baseline.since(machine, guest) };
        let name = machine.guest(guest).map_or("", |guest| guest.name);
        report.fields(
            "name=Guest|=Counted for|uptime_ns=|exit_count=Exits|injected_count=Interrupts|el2_ns=In EL2|\
             =  of one CPU",
            &[
                Value::Text(name),
                Value::Nanoseconds(shown_ns),
                Value::Nanoseconds(now_ns),
                Value::Count(totals.exit_count()),
                Value::Count(totals.injected_count),
                Value::Nanoseconds(totals.el2_ns),
                Value::Permille(permille(totals.el2_ns, shown_ns)),
            ],
        )?;
        let columns = "reason=EXITS|count=COUNT|per_second=PER SECOND|share_permille=SHARE";
        report.table("exits", columns, "", &mut |table| {
            for (exit, count) in Exit::ALL.iter().zip(totals.exits) {
                table.row(&[
                    Value::Text(exit.name()),
                    Value::Count(count),
                    Value::Count(per_second(count, shown_ns)),
                    Value::Permille(permille(count, totals.exit_count())),
                ])?;
            }
            Ok(())
        })
    })
}

/// `count` in `time_ns`, by the second; less than a second counts as one.
fn per_second(count: u64, time_ns: u64) -> u64 {
    // Milliseconds: counts up to 2^54 do not overflow.
    let milliseconds = (time_ns / 1_000_000).max(1000);
    count.saturating_mul(1000) / milliseconds
}

fn permille(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { scaled(part, 1000, whole) }
}
