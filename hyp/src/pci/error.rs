//! Errors of PCI functions.

use core::fmt;

use super::config::Rid;

/// A function's fault, and what it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    /// The function.
    pub(crate) rid: Rid,
    /// The fault.
    pub(crate) fault: Fault,
}

/// A reason to refuse a function, or to take it out of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing answers.
    Absent,
    /// A header type other than 0, by its value.
    HeaderType(u8),
    /// A bus that no bridge with windows and bus numbers leads to.
    Unreachable(u8),
    /// A bridge on the way that is not a root port, and its Device/Port Type if it has one.
    NotBehindRootPort { bridge: Rid, kind: Option<u8> },
    /// A capability at an offset that no capability may have.
    CapabilityOffset { at: u16 },
    /// A list of capabilities that comes back to `at`, or is longer than any function's.
    CapabilityLoop { at: u16 },
    /// Enhanced Allocation, at an offset.
    EnhancedAllocation { at: u16 },
    /// A BAR register with a type that does not exist there.
    BarType { register: u16, value: u32 },
    /// A BAR whose writable bits are no size.
    BarSize { register: u16, mask: u64 },
    /// A BAR that fits nowhere in the windows of the host.
    BarSpace { register: u16, size: u64 },
    /// A BAR that fits nowhere in the guest's PCI memory.
    GuestSpace { register: u16, size: u64, window: u64 },
    /// A BAR that does not keep the value that was written.
    BarWrite { register: u16, written: u32, read: u32 },
    /// A virtio structure outside its BAR.
    VirtioStructure { at: u16, bar: u8, offset: u32 },
    /// A function that does not answer after a reset.
    NotReady { way: &'static str, milliseconds: u32 },
    /// A bit of COMMAND that does not change.
    Command { written: u16, read: u16 },
    /// Requests that are still outstanding after a reset.
    Pending { register: u16, value: u16 },
    /// A virtio device whose status does not become 0.
    VirtioStatus { value: u8, milliseconds: u32 },
}

impl Fault {
    /// Makes the error of `rid`.
    pub(super) const fn of(self, rid: Rid) -> Error {
        Error { rid, fault: self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PCI function {}: ", self.rid)?;
        match self.fault {
            Fault::Absent => write!(f, "does not exist: vendor ID reads 0xffff"),
            Fault::HeaderType(value) => write!(
                f,
                "header type {value:#x}: only type 0 can be assigned, not {}",
                match value {
                    1 => "a bridge",
                    2 => "a CardBus bridge",
                    _ => "a reserved type",
                }
            ),
            Fault::Unreachable(bus) => write!(
                f,
                "no bridge has secondary bus {bus:#04x}: firmware must set bus numbers and memory windows of root ports"
            ),
            Fault::NotBehindRootPort { bridge, kind: Some(kind) } => write!(
                f,
                "is behind bridge {bridge} with Device/Port Type {kind}: only root ports (4) keep requests apart"
            ),
            Fault::NotBehindRootPort { bridge, kind: None } => {
                write!(f, "is behind bridge {bridge}, which is not PCI Express: it replaces the requester ID")
            }
            Fault::CapabilityOffset { at } => {
                write!(
                    f,
                    "capability pointer {at:#x}: capabilities lie from 0x40 or 0x100 on, at multiples of 4"
                )
            }
            Fault::CapabilityLoop { at } => {
                write!(f, "the list of capabilities does not end: {at:#x} comes again, or is one too many")
            }
            Fault::EnhancedAllocation { at } => write!(
                f,
                "has Enhanced Allocation (capability 0x14 at {at:#x}): Ballast must be able to place BARs"
            ),
            Fault::BarType { register, value } => {
                write!(
                    f,
                    "BAR at {register:#x} reads {value:#x}: its type is reserved, or has no room for 64 bits"
                )
            }
            Fault::BarSize { register, mask } => {
                write!(f, "BAR at {register:#x} has writable bits {mask:#x}: a size must be a power of two")
            }
            Fault::BarSpace { register, size } => write!(
                f,
                "BAR at {register:#x}, {size:#x} bytes: no free space in the memory windows of its bridge"
            ),
            Fault::GuestSpace { register, size, window } => write!(
                f,
                "BAR at {register:#x}, {size:#x} bytes: a guest's BARs must fit {window:#x} bytes of PCI memory"
            ),
            Fault::BarWrite { register, written, read } => {
                write!(f, "BAR at {register:#x} reads {read:#x} after {written:#x} was written")
            }
            Fault::VirtioStructure { at, bar, offset } => write!(
                f,
                "virtio common configuration (capability at {at:#x}) names BAR {bar}, offset {offset:#x}: not inside a memory BAR"
            ),
            Fault::NotReady { way, milliseconds } => {
                write!(f, "vendor ID reads 0xffff {milliseconds} ms after {way}")
            }
            Fault::Command { written, read } => {
                write!(
                    f,
                    "COMMAND reads {read:#06x} after {written:#06x} was written: bus master must be off"
                )
            }
            Fault::Pending { register, value } => write!(
                f,
                "status at {register:#x} reads {value:#06x} after a reset: no transaction may be pending"
            ),
            Fault::VirtioStatus { value, milliseconds } => write!(
                f,
                "virtio device_status reads {value:#04x} {milliseconds} ms after the reset: it must become 0"
            ),
        }
    }
}
