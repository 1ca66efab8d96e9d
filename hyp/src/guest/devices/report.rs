//! Devices, DMA windows and SMMUs as the monitor sees them.

use super::{Devices, State, smmus};
use crate::board::Trigger;
use crate::guest::{self, Guest};
use crate::monitor::devices::{
    Device, DeviceState, Devices as Report, Fault, Interrupt, Origin, Smmu, Stream, Window,
};
use crate::monitor::machine::{Reason, reason};
use crate::smmu::{Stage, StreamState};
use alloc::vec::Vec;
use guest_dts::guest_tree::platform::ASSIGNED_SPI_BASE;

/// The devices of the real machine.
pub(crate) struct Machine;

/// The devices of the real machine.
pub(crate) static REPORT: Machine = Machine;

fn guest(index: usize) -> Option<&'static Guest> {
    guest::all().nth(index)
}

impl Report for Machine {
    fn device(&self, guest: usize, device: usize) -> Option<Device<'_>> {
        let guest = self::guest(guest)?;
        guest.devices().describe(guest, device)
    }

    fn window(&self, guest: usize) -> Option<Window> {
        let window = self::guest(guest)?.devices().assignment().window?;
        Some(Window { ipa: window.ipa, pa: window.pa, bytes: window.size })
    }

    fn smmu(&self, smmu: usize) -> Option<Smmu> {
        let entry = smmus::all().get(smmu)?;
        let empty = Smmu {
            base: entry.base,
            stage: 0,
            stream_count: 0,
            memory_bytes: 0,
            event_count: 0,
            error_count: 0,
            failure: Reason::new(),
        };
        Some(match &entry.driver {
            Err(why) => Smmu { failure: reason(format_args!("{why}")), ..empty },
            Ok(driver) => {
                let driver = driver.lock();
                let counters = driver.counters();
                Smmu {
                    stage: match driver.stage() {
                        Stage::One => 1,
                        Stage::Two => 2,
                    },
                    stream_count: driver.streams().len() as u64,
                    memory_bytes: driver.memory_bytes(),
                    event_count: counters.events,
                    error_count: counters.errors,
                    failure: driver
                        .failure()
                        .map_or(Reason::new(), |failure| reason(format_args!("{failure}"))),
                    ..empty
                }
            }
        })
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

impl Devices {
    /// Describes device `index` of `guest`, functions first.
    fn describe(&self, guest: &Guest, index: usize) -> Option<Device<'_>> {
        let (origin, lines): (Origin<'_>, Vec<u8>) = match self.functions.get(index) {
            Some(function) => (
                Origin::Function {
                    segment: function.assigned.bridge.into(),
                    rid: function.assigned.rid,
                    device: function.assigned.device,
                    id: function.host.id(),
                    class: function.host.class(),
                },
                function.assigned.line.into_iter().collect(),
            ),
            None => {
                let device = self.assignment.devices.get(index - self.functions.len())?;
                let compatible = device.node.property("compatible").and_then(|list| list.strings().next());
                (
                    Origin::Platform {
                        path: self.paths.get(index - self.functions.len())?,
                        compatible: compatible.unwrap_or_default(),
                    },
                    device.lines.clone(),
                )
            }
        };
        let (streams, _) = self.streams_of(index);
        let mut device = Device {
            origin,
            streams: streams.iter().map(|stream| Stream { smmu: stream.smmu, id: stream.id }).collect(),
            interrupts: lines.iter().filter_map(|&line| self.interrupt(guest, line)).collect(),
            state: DeviceState::Off,
            reason: Reason::new(),
            fault_count: 0,
            last_fault: None,
        };
        match self.state.lock().get(index) {
            Some(State::Attached) => device.state = DeviceState::Attached,
            Some(State::Failed(why)) => {
                device.state = DeviceState::Failed;
                device.reason = reason(format_args!("{why}"));
            }
            _ => {}
        }
        for stream in streams {
            // An SMMU that cannot be used has no faults.
            let _ = smmus::with(stream.smmu, |smmu| {
                let Some(attached) = smmu.streams().iter().find(|attached| attached.id == stream.id) else {
                    return;
                };
                if attached.state != StreamState::Translating && device.state == DeviceState::Attached {
                    device.state = DeviceState::Failed;
                    device.reason = match attached.state {
                        StreamState::CutOff => reason(format_args!("too many faults: cut off")),
                        _ => reason(format_args!("SMMU {} failed", stream.smmu)),
                    };
                }
                device.fault_count += attached.event_count;
                if let Some(event) = attached.last_event {
                    device.last_fault = Some(Fault {
                        time_ns: event.time_ns,
                        stream: Stream { smmu: stream.smmu, id: stream.id },
                        address: event.address.unwrap_or(0),
                        is_write: event.is_write,
                        reason: event.name(),
                    });
                }
            });
        }
        Some(device)
    }

    fn interrupt(&self, guest: &Guest, line: u8) -> Option<Interrupt> {
        let host = self.assignment.lines.get(usize::from(line))?;
        Some(Interrupt {
            intid: 32 + ASSIGNED_SPI_BASE + u32::from(line),
            host_intid: host.intid,
            is_edge: host.trigger == Trigger::Edge,
            count: guest.line_count(line.into()),
        })
    }
}
