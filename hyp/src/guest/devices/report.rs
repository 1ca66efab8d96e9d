//! Devices, DMA windows and SMMUs as the monitor sees them.

use super::device::{Device, Kind, State};
use super::smmus;
use crate::board::{self, Trigger};
use crate::guest::{self, Guest};
use crate::monitor::devices::{self, DeviceState, Fault, Interrupt, Origin, Smmu, Stream, Window};
use crate::monitor::machine::{Reason, reason};
use crate::smmu::{Stage, StreamState};
use guest_dts::guest_tree::platform::ASSIGNED_SPI_BASE;

/// The devices of the real machine.
pub(crate) struct Machine;

/// The devices of the real machine.
pub(crate) static REPORT: Machine = Machine;

fn guest(index: usize) -> Option<&'static Guest> {
    guest::all().nth(index)
}

impl devices::Devices for Machine {
    fn device(&self, guest: usize, device: usize) -> Option<devices::Device<'_>> {
        let guest = self::guest(guest)?;
        Some(describe(guest, guest.devices().devices.get(device)?))
    }

    fn window(&self, guest: usize) -> Option<Window> {
        let window = self::guest(guest)?.devices().window?;
        Some(Window { ipa: window.ipa, pa: window.pa, bytes: window.size })
    }

    fn smmu(&self, index: usize) -> Option<Smmu> {
        let entry = smmus::all().get(index)?;
        let mut smmu = Smmu {
            base: entry.base,
            stage: 0,
            stream_count: 0,
            memory_bytes: 0,
            event_count: 0,
            error_count: 0,
            failure: Reason::new(),
        };
        let driver = match &entry.driver {
            Ok(driver) => driver.lock(),
            Err(why) => {
                smmu.failure = reason(format_args!("{why}"));
                return Some(smmu);
            }
        };
        smmu.stage = match driver.stage() {
            Stage::One => 1,
            Stage::Two => 2,
        };
        smmu.stream_count = driver.streams().len() as u64;
        smmu.memory_bytes = driver.memory_bytes();
        smmu.event_count = driver.counters().events;
        smmu.error_count = driver.counters().errors;
        if let Some(failure) = driver.failure() {
            let streams = smmus::streams_of_failed(driver.is_closed());
            smmu.failure = reason(format_args!("{failure}; {streams}"));
        }
        Some(smmu)
    }

    fn check(&self) -> Result<(), Reason> {
        for (index, entry) in smmus::all().iter().enumerate() {
            if let Ok(driver) = &entry.driver {
                driver.lock().check().map_err(|error| reason(format_args!("SMMU {index}: {error}")))?;
            }
        }
        Ok(())
    }
}

/// Describes `device` of `guest`, with its interrupts, its state and its last fault.
fn describe<'d>(guest: &Guest, device: &'d Device) -> devices::Device<'d> {
    let mut report = devices::Device {
        origin: origin(device),
        streams: device.streams.iter().map(|stream| Stream { smmu: stream.smmu, id: stream.id }).collect(),
        interrupts: device.lines.iter().filter_map(|&line| interrupt(guest, line)).collect(),
        state: DeviceState::Off,
        reason: Reason::new(),
        fault_count: 0,
        last_fault: None,
    };
    match device.state() {
        State::Off => {}
        State::Attached => report.state = DeviceState::Attached,
        State::Failed(why) => {
            report.state = DeviceState::Failed;
            report.reason = reason(format_args!("{why}"));
        }
    }
    for stream in &device.streams {
        add_stream(&mut report, *stream);
    }
    report
}

fn origin(device: &Device) -> Origin<'_> {
    match &device.kind {
        Kind::Function(function) => Origin::Function {
            segment: function.assigned.bridge.into(),
            rid: function.assigned.rid,
            device: function.assigned.device,
            id: function.host.id(),
            class: function.host.class(),
        },
        Kind::Platform(platform) => {
            let compatible = platform.node.property("compatible");
            let first = compatible.and_then(|names| names.strings().next());
            Origin::Platform { path: &device.name, compatible: first.unwrap_or_default() }
        }
    }
}

/// Adds the state and the faults of a stream, if it is attached.
fn add_stream(report: &mut devices::Device<'_>, stream: board::Stream) {
    // An SMMU that cannot be used has no stream attached.
    let Ok(smmu) = smmus::lock(stream.smmu) else { return };
    let Some(attached) = smmu.streams().iter().find(|attached| attached.id == stream.id) else { return };
    if attached.state != StreamState::Translating && report.state == DeviceState::Attached {
        report.state = DeviceState::Failed;
        report.reason = match attached.state {
            StreamState::CutOff => reason(format_args!("too many faults: cut off")),
            _ => reason(format_args!("SMMU {} failed", stream.smmu)),
        };
    }
    report.fault_count += attached.event_count;
    if let Some(event) = attached.last_event {
        report.last_fault = Some(Fault {
            time_ns: event.time_ns,
            stream: Stream { smmu: stream.smmu, id: stream.id },
            address: event.address.unwrap_or(0),
            is_write: event.is_write,
            reason: event.name(),
        });
    }
}

fn interrupt(guest: &Guest, line: u8) -> Option<Interrupt> {
    let host = guest.devices().lines.get(usize::from(line))?;
    Some(Interrupt {
        intid: 32 + ASSIGNED_SPI_BASE + u32::from(line),
        host_intid: host.intid,
        is_edge: host.trigger == Trigger::Edge,
        count: guest.line_count(line.into()),
    })
}
