//! `guests`, `start`, `stop`, `reset`.

use super::prelude::*;
use crate::monitor::machine::{GuestState, Reason};

/// Lists the guests.
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Done {
    let machine = session.machine;
    session.list("guests", "guests", "There are no guests.", machine.guests(), |table, (at, guest)| {
        let is_refused = guest.state == GuestState::Refused;
        let (present, all) = (guest.resident_bytes, guest.memory_bytes);
        let part = from_fn(|f| write!(f, "{} of {}", Size(present), Size(all)));
        table.row(&[
            ("console=#", if is_refused { Nothing } else { Count(at as u64 + 1) }),
            ("name=NAME", Text(guest.name)),
            ("state=STATE", Text(guest.state.name())),
            ("=vCPUs ON", Show(&format_args!("{} of {}", guest.vcpu_on_count, guest.vcpu_count))),
            ("vcpu_count", Count(guest.vcpu_count as u64)),
            ("vcpu_on_count", Count(guest.vcpu_on_count as u64)),
            ("cpus=CPUs", Numbers(&guest.cpus)),
            ("=MEMORY", if present == all { Bytes(all) } else { Show(&part) }),
            ("memory_bytes", Bytes(all)),
            ("resident_bytes", Bytes(present)),
            ("start_count", Count(guest.start_count)),
            ("uptime_ns=UP", Nanoseconds(guest.uptime_ns).or_nothing()),
            ("reason=REASON", Text(&guest.reason).or_nothing()),
        ])
    })
}

/// Starts a guest.
pub(super) fn start(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    act(session, arguments, "start", "is starting", |machine, guest| machine.start(guest))
}

/// Stops a guest.
pub(super) fn stop(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    act(session, arguments, "stop", "is stopping", |machine, guest| machine.stop(guest))
}

/// Resets a guest.
pub(super) fn reset(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    act(session, arguments, "reset", "is being reset", |machine, guest| machine.reset(guest))
}

fn act(
    session: &mut Session<'_>,
    arguments: &Arguments<'_>,
    name: &str,
    outcome: &str,
    action: fn(&dyn Machine, usize) -> Result<(), Reason>,
) -> Done {
    let machine = session.machine;
    let at = arguments.guest(0).unwrap_or(usize::MAX);
    let Some(guest) = machine.guest(at) else {
        refuse!(session, "the guest no longer exists");
    };
    action(machine, at).map_err(|why| session.refuse(format_args!("{why}")))?;
    session.done(name, format_args!("{} {outcome}.", guest.name), &[("guest", Text(guest.name))])
}
