//! PCI-to-PCI bridges: bus numbers and windows as firmware has set them.

use core::ops::Range;

use super::capability::{self, EXPRESS};
use super::config::{Bus, HEADER_TYPE, ID, MULTI_FUNCTION, RegisterSpace, Rid};
use super::probe::{NO_VENDOR, interrupt_pin};

/// Secondary bus number.
const SECONDARY: u16 = 0x19;
/// Memory Base and Limit: address bits 31:20 in bits 15:4.
const MEMORY: u16 = 0x20;
/// Prefetchable Memory Base and Limit, and their upper halves.
const PREFETCHABLE: u16 = 0x24;
const PREFETCHABLE_UPPER_BASE: u16 = 0x28;
const PREFETCHABLE_UPPER_LIMIT: u16 = 0x2c;
/// Bit 0 of the prefetchable registers: 64 bits.
const IS_64: u16 = 1;
/// Device/Port Type of a root port (PCI Express Base Specification, "PCI Express Capabilities Register").
const ROOT_PORT: u8 = 4;
/// Device/Port Type of a switch's downstream port.
const DOWNSTREAM_PORT: u8 = 6;

/// A bridge to another bus.
#[derive(Clone, Debug)]
pub(super) struct Bridge {
    /// The bridge itself.
    pub(super) rid: Rid,
    /// The bus behind it.
    pub(super) secondary: u8,
    /// Addresses that it passes down; empty: none.
    pub(super) memory: Range<u64>,
    /// Prefetchable addresses that it passes down; empty: none.
    pub(super) prefetchable: Range<u64>,
    /// Device/Port Type, if the bridge is PCI Express.
    pub(super) kind: Option<u8>,
}

impl Bridge {
    /// Reads the bridge `rid`. One whose list of capabilities is broken counts as a conventional bridge.
    pub(super) fn read(rid: Rid, space: &impl RegisterSpace) -> Self {
        let capabilities = capability::standard(rid, space).unwrap_or_default();
        let express = capabilities.into_iter().find(|found| found.id == EXPRESS);
        let upper = |register: u16| match space.read16(PREFETCHABLE) & IS_64 {
            0 => 0,
            _ => u64::from(space.read32(register)) << 32,
        };
        Self {
            rid,
            secondary: space.read8(SECONDARY),
            memory: window(space, MEMORY, 0, 0),
            prefetchable: window(
                space,
                PREFETCHABLE,
                upper(PREFETCHABLE_UPPER_BASE),
                upper(PREFETCHABLE_UPPER_LIMIT),
            ),
            kind: express.map(|found| (space.read16(found.offset + 2) >> 4 & 0xf) as u8),
        }
    }

    /// Returns whether the bus behind is a link, on which there is device 0 only. Some devices answer to all numbers.
    pub(super) fn has_link(&self) -> bool {
        matches!(self.kind, Some(ROOT_PORT | DOWNSTREAM_PORT))
    }

    /// Returns whether all requests from behind go up under the requester ID of their function.
    pub(super) fn is_root_port(&self) -> bool {
        self.kind == Some(ROOT_PORT)
    }
}

/// Returns device and pin (1 for INTA) at which INTx of `rid` arrives on `first_bus`; pin 0: the function has no INTx.
/// Bridges swizzle the pins of devices behind them (PCI-to-PCI Bridge Architecture Specification, "Interrupt Support").
/// `None`: `rid` is absent, or no root port leads to its bus.
pub(crate) fn root_pin(bus: &impl Bus, first_bus: u8, rid: Rid) -> Option<(u8, u8)> {
    let space = bus.function(rid).filter(|space| space.read16(ID) != NO_VENDOR)?;
    let Some(pin) = interrupt_pin(&space) else { return Some((rid.device(), 0)) };
    if rid.bus() == first_bus {
        return Some((rid.device(), pin));
    }
    let ports = (0..=u8::MAX).map(|number| Rid::from_parts(first_bus, number >> 3, number & 7));
    let port = ports.into_iter().find(|&port| {
        bus.function(port).is_some_and(|space| {
            space.read16(ID) != NO_VENDOR
                && space.read8(HEADER_TYPE) & !MULTI_FUNCTION == 1
                && space.read8(SECONDARY) == rid.bus()
        })
    })?;
    Some((port.device(), (pin - 1 + rid.device()) % 4 + 1))
}

/// Reads the window whose base and limit are at `register`, with their upper halves.
fn window(space: &impl RegisterSpace, register: u16, upper_base: u64, upper_limit: u64) -> Range<u64> {
    let part = |register: u16| u64::from(space.read16(register) & 0xfff0) << 16;
    let base = upper_base | part(register);
    let end = (upper_limit | part(register + 2)).saturating_add(0x10_0000);
    // A base above the limit closes the window; registers after a reset show one at 0, which cannot be in use.
    if base == 0 || base >= end { 0..0 } else { base..end }
}
