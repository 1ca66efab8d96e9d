//! `devices`: assigned devices, their interrupts, faults and DMA windows, and the SMMUs.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use stage2::addr::{Frame, Pa};

use super::prelude::*;
use crate::monitor::devices::{Assigned, Bdf, Origin};
use crate::monitor::report::Report;
use crate::monitor::units::Seconds;

/// Lists the devices of one guest or of all.
pub(super) fn run(session: &mut Session<'_>, arguments: &Arguments<'_>) -> Done {
    let guest = arguments.guest(0);
    let assigned = session.machine.assigned(guest);
    session.report("devices", |report, machine| {
        devices(report, &assigned, "No devices are assigned.")?;
        windows(report, machine, guest)?;
        let lines = assigned.iter().flat_map(|(guest, device)| {
            device.interrupts.iter().map(move |line| (guest, &device.origin, line))
        });
        report.list("interrupts", "", lines, |table, (guest, origin, line)| {
            table.row(&[
                ("guest=GUEST", Text(guest)),
                ("device=DEVICE", Show(&origin.name())),
                ("intid=INTID", Count(line.intid.into())),
                ("host_intid=HOST INTID", Count(line.host_intid.into())),
                ("trigger=TRIGGER", Text(if line.is_edge { "edge" } else { "level" })),
                ("count=INTERRUPTS", Count(line.count)),
            ])
        })?;
        let faults = assigned.iter().filter_map(|(guest, device)| Some((guest, device, device.last_fault?)));
        report.list("faults", "", faults, |table, (guest, device, fault)| {
            table.row(&[
                ("guest=GUEST", Text(guest)),
                ("device=DEVICE", Show(&device.origin.name())),
                ("time_ns", Nanoseconds(fault.time_ns)),
                ("=LAST FAULT", Show(&Seconds(fault.time_ns))),
                ("stream=STREAM", Show(&fault.stream)),
                ("access=ACCESS", Text(if fault.is_write { "write" } else { "read" })),
                ("address=ADDRESS", Address(fault.address)),
                ("event=EVENT", Text(fault.reason)),
            ])
        })?;
        report.list("smmus", "", machine.smmus().enumerate(), |table, (at, smmu)| {
            table.row(&[
                ("smmu=SMMU", Count(at as u64)),
                ("base=BASE", Address(smmu.base)),
                ("stage=STAGE", Count(smmu.stage.into())),
                ("stream_count=STREAMS", Count(smmu.stream_count)),
                ("memory_bytes=MEMORY", Bytes(smmu.memory_bytes)),
                ("event_count=EVENTS", Count(smmu.event_count)),
                ("error_count=ERRORS", Count(smmu.error_count)),
                ("state=STATE", Text(smmu.state())),
                ("reason=REASON", Text(&smmu.failure).or_nothing()),
            ])
        })
    })
}

/// Adds a table of devices.
pub(super) fn devices(report: &mut Report<'_>, assigned: &[Assigned<'_>], none: &str) -> fmt::Result {
    report.list("devices", none, assigned.iter(), |table, (guest, device)| {
        let is_isolated = !device.streams.is_empty();
        let streams: Vec<String> = device.streams.iter().map(ToString::to_string).collect();
        let streams: Vec<&str> = streams.iter().map(String::as_str).collect();
        let state = from_fn(|f| {
            f.write_str(device.state.name())?;
            f.write_str(if device.reason.is_empty() { "" } else { ": " })?;
            f.write_str(&device.reason)?;
            f.write_str(if is_isolated { "" } else { "; no SMMU: not isolated" })
        });
        let short = from_fn(|f| match device.origin {
            Origin::Function { segment: 0, rid, .. } => write!(f, "{}", Bdf(rid)),
            Origin::Function { .. } => write!(f, "{}", device.origin.host_name()),
            Origin::Platform { .. } => f.write_str("-"),
        });
        table.row(&[
            ("guest=GUEST", Text(guest)),
            ("device=DEVICE", Show(&device.origin.name())),
            ("host", Show(&device.origin.host_name())),
            ("=HOST", Show(&short)),
            ("kind=KIND", Show(&device.origin.kind())),
            ("streams=STREAMS", Words(&streams)),
            ("is_isolated", Flag(is_isolated)),
            ("interrupt_count", Count(device.interrupts.iter().map(|line| line.count).sum())),
            ("fault_count=FAULTS", Count(device.fault_count)),
            ("state", Text(device.state.name())),
            ("reason", Text(&device.reason).or_nothing()),
            ("=STATE", Show(&state)),
        ])
    })
}

/// Adds a table of DMA windows.
pub(super) fn windows(report: &mut Report<'_>, machine: &dyn Machine, guest: Option<usize>) -> fmt::Result {
    let guests = machine.guests().filter(|(at, _)| guest.is_none_or(|guest| guest == *at));
    let windows = guests.filter_map(|(at, guest)| Some((guest.name, machine.devices()?.window(at)?)));
    report.list("windows", "", windows, |table, (guest, window)| {
        let frame = Pa::try_new(window.pa).map(Frame::containing);
        let info = frame.and_then(|frame| machine.memory()?.frame_info(frame));
        table.row(&[
            ("guest=GUEST", Text(guest)),
            ("ipa=DMA WINDOW", Address(window.ipa)),
            ("size_bytes=SIZE", Bytes(window.bytes)),
            ("base=BACKED BY", Address(window.pa)),
            (
                "controller=CONTROLLER",
                info.map_or(Nothing, |info| Text(machine.controller_name(info.controller))),
            ),
        ])
    })
}
