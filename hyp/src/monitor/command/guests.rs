//! `guests`, `start`, `stop`, `reset`.

use core::fmt;

use super::super::grammar::{Arguments, Failure};
use super::super::machine::{GuestState, Machine, Reason};
use super::super::report::Value;
use super::super::session::Session;
use super::super::units::Size;

/// Lists the guests.
pub(super) fn list(session: &mut Session<'_>, _: &Arguments<'_>) -> Result<(), Failure> {
    let columns = "console=#|name=NAME|state=STATE|=vCPUs ON|vcpu_count=|vcpu_on_count=|cpus=CPUs|=MEMORY|memory_bytes=|resident_bytes=|start_count=|uptime_ns=UP|reason=REASON";
    session.report("guests", |report, machine| {
        report.table("guests", columns, "There are no guests.", &mut |table| {
            for (at, guest) in (0..machine.guest_count()).filter_map(|at| Some((at, machine.guest(at)?))) {
                let vcpus = fmt::from_fn(|f| write!(f, "{} of {}", guest.vcpu_on_count, guest.vcpu_count));
                let part = fmt::from_fn(|f| {
                    write!(f, "{} of {}", Size(guest.resident_bytes), Size(guest.memory_bytes))
                });
                table.row(&[
                    if guest.state == GuestState::Refused {
                        Value::None
                    } else {
                        Value::Count(at as u64 + 1)
                    },
                    Value::Text(guest.name),
                    Value::Text(guest.state.name()),
                    Value::Show(&vcpus),
                    Value::Count(guest.vcpu_count as u64),
                    Value::Count(guest.vcpu_on_count as u64),
                    Value::Numbers(&guest.cpus),
                    match guest.resident_bytes == guest.memory_bytes {
                        true => Value::Bytes(guest.memory_bytes),
                        false => Value::Show(&part),
                    },
                    Value::Bytes(guest.memory_bytes),
                    Value::Bytes(guest.resident_bytes),
                    Value::Count(guest.start_count),
                    if guest.uptime_ns == 0 { Value::None } else { Value::Nanoseconds(guest.uptime_ns) },
                    if guest.reason.is_empty() { Value::None } else { Value::Text(&guest.reason) },
                ])?;
            }
            Ok(())
        })
    })?;
    Ok(())
}

/// Starts a guest.
pub(super) fn start(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    act(session, arguments, "start", "is starting", |machine, guest| machine.start(guest))
}

/// Stops a guest.
pub(super) fn stop(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    act(session, arguments, "stop", "is stopping", |machine, guest| machine.stop(guest))
}

/// Resets a guest.
pub(super) fn reset(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Result<(), Failure> {
    act(session, arguments, "reset", "starts afresh", |machine, guest| machine.reset(guest))
}

fn act(
    session: &mut Session<'_>,
    arguments: &Arguments<'_>,
    name: &str,
    outcome: &str,
    action: fn(&dyn Machine, usize) -> Result<(), Reason>,
) -> Result<(), Failure> {
    let machine = session.machine;
    let at = arguments.guest(0).unwrap_or(usize::MAX);
    let Some(guest) = machine.guest(at) else {
        return Err(session.refuse(format_args!("the guest is gone")));
    };
    action(machine, at).map_err(|why| session.refuse(format_args!("{why}")))?;
    session.done(name, format_args!("{} {outcome}.", guest.name), "guest=", &[Value::Text(guest.name)])
}
