//! Devices that are assigned to guests, their DMA windows, and the SMMUs, as the monitor sees them. The guest's room
//! implements [`Devices`] with the real machine, tests with a fake.

use alloc::vec::Vec;
use core::fmt;

use super::machine::{Machine, Reason};

/// Assigned devices and the SMMUs that isolate them. Guests are numbered as the monitor does.
pub trait Devices {
    /// Returns a device of a guest, in the order in which the guest's tree lists them: functions first.
    fn device(&self, guest: usize, device: usize) -> Option<Device<'_>>;
    /// Returns a guest's DMA window.
    fn window(&self, guest: usize) -> Option<Window>;
    /// Returns an SMMU, in the order of the host's tree.
    fn smmu(&self, smmu: usize) -> Option<Smmu>;
    /// Checks that the tables of all SMMUs match the assignments.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self) -> Result<(), Reason>;
}

/// A device that is assigned to a guest.
#[derive(Clone, Debug)]
pub struct Device<'a> {
    /// Its identity.
    pub origin: Origin<'a>,
    /// Its streams; none without an SMMU.
    pub streams: Vec<Stream>,
    /// Its interrupts.
    pub interrupts: Vec<Interrupt>,
    /// Its state.
    pub state: DeviceState,
    /// The reason why it failed; empty otherwise.
    pub reason: Reason,
    /// The number of its accesses that an SMMU denied, since boot.
    pub fault_count: u64,
    /// The last one.
    pub last_fault: Option<Fault>,
}

/// The identity of a device: a PCI function or a node of the host's tree.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// A PCI function.
    Function {
        /// The number of the host bridge.
        segment: u16,
        /// The host's requester ID: bus, device and function.
        rid: u16,
        /// The device's number on the guest's bus.
        device: u8,
        /// The vendor ID and the device ID.
        id: (u16, u16),
        /// The class code: base class, subclass, programming interface.
        class: u32,
    },
    /// A platform device.
    Platform {
        /// Its path in the host's tree.
        path: &'a str,
        /// The first string of its `compatible`.
        compatible: &'a str,
    },
}

/// A stream: the StreamID of an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The SMMU's number.
    pub smmu: u8,
    /// The StreamID.
    pub id: u32,
}

/// A physical interrupt that is passed to a guest. Devices of one guest may share it.
#[derive(Clone, Copy, Debug)]
pub struct Interrupt {
    /// The guest's INTID.
    pub intid: u32,
    /// The host's INTID.
    pub host_intid: u32,
    /// True if it is edge-triggered.
    pub is_edge: bool,
    /// The number of times that it was passed to the guest, since boot.
    pub count: u64,
}

/// The state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Its guest is off: its streams abort, its interrupts are masked.
    Off,
    /// Its guest uses it.
    Attached,
    /// Cut off until its guest starts again: its streams abort.
    Failed,
}

impl DeviceState {
    /// Returns the state's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Attached => "attached",
            Self::Failed => "failed",
        }
    }
}

/// An access of a device that an SMMU denied.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its time since boot.
    pub time_ns: u64,
    /// Its stream.
    pub stream: Stream,
    /// The address that the device used.
    pub address: u64,
    /// True for a write.
    pub is_write: bool,
    /// The name of the SMMU's event.
    pub reason: &'static str,
}

/// The part of a guest's RAM that its devices can access.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Its guest address.
    pub ipa: u64,
    /// Its physical address.
    pub pa: u64,
    /// Its size.
    pub bytes: u64,
}

/// An SMMU.
#[derive(Clone, Debug)]
pub struct Smmu {
    /// The physical address of its registers.
    pub base: u64,
    /// The stage of translation in use, 1 or 2.
    pub stage: u8,
    /// The number of streams that are attached.
    pub stream_count: u64,
    /// The size of its tables and queues.
    pub memory_bytes: u64,
    /// The number of events since boot: denied accesses of devices.
    pub event_count: u64,
    /// The number of global errors and of commands that timed out, since boot.
    pub error_count: u64,
    /// The reason why it failed; empty otherwise.
    pub failure: Reason,
}

impl Smmu {
    /// Returns the name of its state.
    pub fn state(&self) -> &'static str {
        if self.failure.is_empty() { "working" } else { "failed" }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", self.smmu, self.id)
    }
}

/// Bus, device and function of a requester ID.
pub struct Bdf(pub u16);

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 0x1f, self.0 & 7)
    }
}

impl Origin<'_> {
    /// Returns the device's name in the guest: `00:01.0`, or its node's name.
    pub fn name(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self {
            Self::Function { device, .. } => write!(f, "{}", Bdf(u16::from(*device) << 3)),
            Self::Platform { path, .. } => f.write_str(path.rsplit('/').next().unwrap_or(path)),
        })
    }

    /// Returns the device's name on the host: `0000:00:01.0`, or its path.
    pub fn host_name(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self {
            Self::Function { segment, rid, .. } => write!(f, "{segment:04x}:{}", Bdf(*rid)),
            Self::Platform { path, .. } => f.write_str(path),
        })
    }

    /// Returns the kind of device: its name, or its class code or `compatible`.
    pub fn kind(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match *self {
            Self::Platform { compatible, .. } => f.write_str(compatible),
            Self::Function { id: (VIRTIO, id), .. } if virtio(id).is_some() => {
                write!(f, "virtio-{}", virtio(id).unwrap_or(""))
            }
            Self::Function { class, .. } => match CLASSES.iter().find(|(code, _)| *code == class >> 8) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "class {class:06x}"),
            },
        })
    }
}

/// The vendor ID of virtio devices.
const VIRTIO: u16 = 0x1af4;

/// Base class and subclass of common devices (PCI Code and ID Assignment Specification).
const CLASSES: [(u32, &str); 7] = [
    (0x0100, "SCSI"),
    (0x0106, "SATA"),
    (0x0107, "SAS"),
    (0x0108, "NVMe"),
    (0x0200, "Ethernet"),
    (0x0300, "VGA"),
    (0x0c03, "USB"),
];

/// Returns the name of a virtio device by its device ID (Virtual I/O Device, "PCI Device Discovery" and "Device Types").
const fn virtio(id: u16) -> Option<&'static str> {
    Some(match id {
        0x1000 | 0x1041 => "net",
        0x1001 | 0x1042 => "blk",
        0x1003 | 0x1043 => "console",
        0x1005 | 0x1044 => "rng",
        0x1004 | 0x1048 => "scsi",
        0x1009 | 0x1049 => "9p",
        0x1050 => "gpu",
        0x1052 => "input",
        0x1053 => "vsock",
        0x105a => "fs",
        _ => return None,
    })
}

/// A device, with the name of its guest.
pub type Assigned<'a> = (&'a str, Device<'a>);

impl dyn Machine + '_ {
    /// Returns the assigned devices, of one guest or of all.
    pub fn assigned(&self, guest: Option<usize>) -> Vec<Assigned<'_>> {
        let Some(devices) = self.devices() else { return Vec::new() };
        let guests = self.guests().filter(|(at, _)| guest.is_none_or(|guest| guest == *at));
        let of = |at| (0..).map_while(move |device| devices.device(at, device));
        guests.flat_map(|(at, guest)| of(at).map(move |device| (guest.name, device))).collect()
    }

    /// Iterates over the SMMUs.
    pub fn smmus(&self) -> impl Iterator<Item = Smmu> + Clone {
        let devices = self.devices();
        (0..).map_while(move |smmu| devices?.smmu(smmu))
    }

    /// Counts the physical interrupts that were passed to a guest. Shared ones count once.
    pub fn device_interrupt_count(&self, guest: usize) -> u64 {
        let assigned = self.assigned(Some(guest));
        let lines = || assigned.iter().flat_map(|(_, device)| &device.interrupts);
        let is_first = |at: usize, line: &Interrupt| lines().take(at).all(|other| other.intid != line.intid);
        let once = lines().enumerate().filter(|(at, line)| is_first(*at, line));
        once.fold(0, |sum, (_, line)| sum.wrapping_add(line.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (id, class, kind) in [
            ((0x1af4, 0x1042), 0x01_0000, "virtio-blk"),
            ((0x1af4, 0x1000), 0x02_0000, "virtio-net"),
            ((0x1b36, 0x0010), 0x01_0802, "NVMe"),
            ((0x8086, 0x10d3), 0x02_0000, "Ethernet"),
            ((0x1af4, 0x1110), 0x05_0000, "class 050000"),
        ] {
            let origin = Origin::Function { segment: 1, rid: 0x1f3, device: 4, id, class };
            let names =
                [origin.name().to_string(), origin.host_name().to_string(), origin.kind().to_string()];
            assert_eq!(names, ["00:04.0", "0001:01:1e.3", kind]);
        }
        let origin = Origin::Platform { path: "/soc/ethernet@ff0e0000", compatible: "cdns,gem" };
        let names = [origin.name().to_string(), origin.host_name().to_string(), origin.kind().to_string()];
        assert_eq!(names, ["ethernet@ff0e0000", "/soc/ethernet@ff0e0000", "cdns,gem"]);
    }
}
