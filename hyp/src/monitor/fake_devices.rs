//! Devices of two guests for tests: one that works, one that was cut off, and two of a guest that is off.

use super::devices::{Device, DeviceState, Devices, Fault, Interrupt, Origin, Smmu, Stream, Window};
use super::machine::{Reason, reason};

/// alpha's disk and network, which share an interrupt; beta's NVMe and Ethernet, of which the latter has no SMMU.
#[derive(Default)]
pub(super) struct FakeDevices {
    /// The finding of `check`, if there is one.
    pub(super) damage: Option<Reason>,
}

impl Devices for FakeDevices {
    fn device(&self, guest: usize, device: usize) -> Option<Device<'_>> {
        let function = |device, id, class| Origin::Function {
            segment: 0,
            rid: u16::from(guest as u8 * 2 + device) << 3,
            device,
            id,
            class,
        };
        let line = |intid, host_intid, is_edge, count| Interrupt { intid, host_intid, is_edge, count };
        let stream = Stream { smmu: 0, id: (guest as u32 * 2 + device as u32 + 1) << 3 };
        let works = Device {
            origin: function(1, (0x1af4, 0x1042), 0x01_0000),
            streams: vec![stream],
            interrupts: vec![line(64, 36, false, 2)],
            state: DeviceState::Attached,
            reason: Reason::new(),
            fault_count: 0,
            last_fault: None,
        };
        let off =
            Device { state: DeviceState::Off, interrupts: vec![line(64, 38, false, 0)], ..works.clone() };
        Some(match (guest, device) {
            (0, 0) => works,
            (0, 1) => Device {
                origin: function(2, (0x1af4, 0x1041), 0x02_0000),
                state: DeviceState::Failed,
                reason: reason(format_args!("64 faults within 100 ms")),
                fault_count: 66,
                last_fault: Some(Fault {
                    time_ns: 59_000_123_000,
                    stream,
                    address: 0x4800_1000,
                    is_write: true,
                    reason: "F_TRANSLATION",
                }),
                ..works
            },
            (1, 0) => Device { origin: function(1, (0x1b36, 0x0010), 0x01_0802), ..off },
            (1, 1) => Device {
                origin: Origin::Platform { path: "/axi/ethernet@ff0e0000", compatible: "cdns,zynqmp-gem" },
                streams: vec![],
                interrupts: vec![line(65, 95, false, 0), line(66, 96, true, 0)],
                ..off
            },
            _ => return None,
        })
    }

    fn window(&self, guest: usize) -> Option<Window> {
        let pa = *[0x4800_0000, 0x9000_0000].get(guest)?;
        Some(Window { ipa: 0x4400_0000, pa, bytes: 2 << 20 })
    }

    fn smmu(&self, smmu: usize) -> Option<Smmu> {
        (smmu == 0).then(|| Smmu {
            base: 0x905_0000,
            stage: 2,
            stream_count: 1,
            memory_bytes: 84 << 12,
            event_count: 66,
            error_count: 0,
            failure: Reason::new(),
        })
    }

    fn check(&self) -> Result<(), Reason> {
        self.damage.clone().map_or(Ok(()), Err)
    }
}
