//! `top`: a screen of the machine that refreshes itself.

use super::jobs::{draw_open, incoming_bytes};
use super::prelude::*;
use crate::monitor::baseline::Totals;
use crate::monitor::machine::{ControllerState, reason};
use crate::monitor::mux::{Console, GUESTS, REDRAW};
use crate::monitor::units::Time;
use stage2::scale::scaled;

/// Erases the screen.
const CLEAR: &str = "\x1b[2J";
/// Moves the cursor to the top left.
const HOME: &str = "\x1b[H";
/// Erases the rest of the line, and of the screen.
const LINE_END: &str = "\x1b[K\n";
const REST: &str = "\x1b[J";
/// Characters of a bar.
const BAR: u64 = 40;

/// Shows the machine until a key is pressed.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    if session.style.is_json {
        usage!(session, "top is a screen; watch 2 stats --json repeats a report");
    }
    let machine = session.machine;
    machine.set_screen(true);
    let result = show(session, arguments.number(0).unwrap_or(2));
    machine.set_screen(false);
    result
}

/// Draws the screen until a key is pressed.
fn show(session: &mut Session<'_>, seconds: u64) -> Done {
    session.write_str(CLEAR)?;
    let mut earlier = [Totals::default(); GUESTS];
    let mut earlier_ns = 0;
    loop {
        let now_ns = session.io().now_ns();
        let machine = session.machine;
        // A screen must not be drawn over another console's lines.
        if machine.console(Console::MONITOR).is_none_or(|console| console.is_front) {
            write!(session, "{HOME}Ballast, up {}, any key quits{LINE_END}{LINE_END}", Time(now_ns))?;
            draw_controllers(session, machine)?;
            draw_guests(session, machine, &mut earlier, now_ns.saturating_sub(earlier_ns))?;
            if let Some(migration) = machine.migration() {
                draw_open(session, machine, migration, LINE_END)?;
            }
            session.write_str(REST)?;
            earlier_ns = now_ns;
        }
        let deadline = now_ns.saturating_add(seconds * 1_000_000_000);
        match session.io().read(Some(deadline)) {
            None => {}
            Some(REDRAW) => session.write_str(CLEAR)?,
            Some(_) => {
                session.write_str("\n")?;
                return Ok(());
            }
        }
    }
}

/// Draws a bar for each controller: `#` guests, `=` Ballast, reserved or claimed, `>` moving in, `.` free.
fn draw_controllers(out: &mut dyn Write, machine: &dyn Machine) -> fmt::Result {
    let jobs = machine.migration();
    for (id, controller) in machine.controllers() {
        let incoming = jobs.map_or(0, |jobs| incoming_bytes(jobs, id));
        let total = controller.total_bytes.max(1);
        let share = |bytes: u64| scaled(bytes, BAR, total);
        let of_guests = share(controller.guest_bytes);
        let taken = share(controller.total_bytes.saturating_sub(controller.free_bytes)).max(of_guests);
        let coming = taken + share(incoming.min(controller.free_bytes));
        write!(out, "{:8.8} [", controller.name)?;
        for at in 0..BAR {
            let place = if at < of_guests {
                '#'
            } else if at < taken {
                '='
            } else if at < coming {
                '>'
            } else {
                '.'
            };
            out.write_char(place)?;
        }
        let note = match controller.state() {
            ControllerState::Open => "",
            ControllerState::Closed => " closed",
            ControllerState::Evacuated => " evacuated",
        };
        write!(out, "] {} of {} free{note}{LINE_END}", Size(controller.free_bytes), Size(total))?;
    }
    write!(out, "{:8} [# guests  = Ballast, reserved, claimed  > moving in  . free]{LINE_END}{LINE_END}", "")
}

fn draw_guests(
    out: &mut dyn Write,
    machine: &dyn Machine,
    earlier: &mut [Totals; GUESTS],
    time_ns: u64,
) -> fmt::Result {
    let milliseconds = (time_ns / 1_000_000).max(1);
    write!(
        out,
        "{:16} {:9} {:>9} {:>10} {:>10} {:>8}  UP{LINE_END}",
        "GUEST", "STATE", "MEMORY", "EXITS/s", "INJECT/s", "EL2"
    )?;
    for (at, guest) in machine.guests() {
        let totals = Totals::of(machine, at);
        let since = earlier.get(at).map_or(totals, |earlier| totals.since(earlier));
        if let Some(earlier) = earlier.get_mut(at) {
            *earlier = totals;
        }
        let per_second = |count: u64| count.saturating_mul(1000) / milliseconds;
        // Nanoseconds by the millisecond are millionths: per mille by 1000.
        let permille = since.el2_ns / milliseconds / 1000;
        let memory = reason(format_args!("{}", Size(guest.resident_bytes)));
        write!(
            out,
            "{:16.16} {:9} {:>9} {:>10} {:>10} {:>6}.{}%  {}{LINE_END}",
            guest.name,
            guest.state.name(),
            memory,
            per_second(since.exit_count()),
            per_second(since.injected_count),
            permille / 10,
            permille % 10,
            Time(guest.uptime_ns),
        )?;
    }
    Ok(())
}
