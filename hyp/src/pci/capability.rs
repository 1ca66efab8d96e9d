//! The lists of capabilities. A function may be hostile: each list is walked at most once around.

use heapless::Vec;

use super::config::{
    CAPABILITIES, EXTENDED, HEADER_END, RegisterSpace, Rid, SPACE_SIZE, STATUS, STATUS_CAPABILITIES,
};
use super::error::{Error, Fault};

/// PCI Power Management.
pub(super) const POWER: u16 = 0x01;
/// Message signalled interrupts.
pub(super) const MSI: u16 = 0x05;
/// Vendor specific; all of virtio's.
pub(super) const VENDOR: u16 = 0x09;
/// PCI Express.
pub(super) const EXPRESS: u16 = 0x10;
/// MSI-X.
pub(super) const MSI_X: u16 = 0x11;
/// Advanced Features.
pub(super) const ADVANCED: u16 = 0x13;
/// Enhanced Allocation.
pub(super) const ENHANCED_ALLOCATION: u16 = 0x14;

/// Device Serial Number (extended).
pub(super) const SERIAL_NUMBER: u16 = 0x03;
/// Vendor specific (extended).
pub(super) const VENDOR_EXTENDED: u16 = 0x0b;
/// Address Translation Services (extended).
pub(super) const ATS: u16 = 0x0f;
/// Single Root I/O Virtualization (extended).
pub(super) const SR_IOV: u16 = 0x10;
/// Page Request Interface (extended).
pub(super) const PRI: u16 = 0x13;
/// Process Address Space ID (extended).
pub(super) const PASID: u16 = 0x1b;

/// The most capabilities that a list may have: as many as fit the first 256 bytes behind the header. No function needs as
/// many in the extended space.
pub(super) const LIMIT: usize = (EXTENDED - HEADER_END) as usize / 4;

/// One capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    /// The offset of its header.
    pub(super) offset: u16,
    /// The ID in its list.
    pub(super) id: u16,
}

/// A list of capabilities, in its order.
pub(super) type List = Vec<Capability, LIMIT>;

/// Reads a list from `first` on; `follow` yields a capability's ID and the next offset, 0 at the end.
fn walk(
    rid: Rid,
    first: u16,
    lowest: u16,
    end: u16,
    follow: impl Fn(u16) -> Option<(u16, u16)>,
) -> Result<List, Error> {
    let (mut list, mut at) = (List::new(), first);
    while at != 0 {
        if at < lowest || at >= end || !at.is_multiple_of(4) {
            return Err(Fault::CapabilityOffset { at }.of(rid));
        }
        let is_again = list.iter().any(|seen: &Capability| seen.offset == at);
        let Some((id, next)) = follow(at) else { break };
        if is_again || list.push(Capability { offset: at, id }).is_err() {
            return Err(Fault::CapabilityLoop { at }.of(rid));
        }
        at = next;
    }
    Ok(list)
}

/// Reads the capabilities in the first 256 bytes.
pub(super) fn standard(rid: Rid, space: &impl RegisterSpace) -> Result<List, Error> {
    if space.read16(STATUS) & STATUS_CAPABILITIES == 0 {
        return Ok(List::new());
    }
    // The two lowest bits of each pointer are reserved (PCI Local Bus Specification, "Capabilities List").
    let first = u16::from(space.read8(CAPABILITIES)) & !3;
    walk(rid, first, HEADER_END, EXTENDED, |at| {
        let header = space.read16(at);
        Some((header & 0xff, header >> 8 & !3))
    })
}

/// Reads the capabilities of the extended space; a conventional function has none.
pub(super) fn extended(rid: Rid, space: &impl RegisterSpace) -> Result<List, Error> {
    walk(rid, EXTENDED, EXTENDED, SPACE_SIZE, |at| {
        let header = space.read32(at);
        // An empty list is a header of zeros; a space of 256 bytes reads as all ones behind them.
        let is_present = header != 0 && header != u32::MAX;
        is_present.then_some((header as u16, (header >> 20) as u16 & !3))
    })
}
