//! The host's memory, from which all frames are allocated. Below EL2's mappings.

use stage2::addr::Frame;
use stage2::owner::Owner;
use stage2::phys::alloc::{AllocError, Memory, MemoryKind, Request};
use stage2::phys::frame::Contents;
use stage2::phys::placement::Placement;

/// All of the host's memory.
pub(crate) static MEMORY: Memory<'static> = Memory::new();

/// Allocates `1 << order` contiguous frames for `owner`, neither zeroed nor mapped.
pub(super) fn take(order: u8, owner: Owner) -> Result<(Frame, Contents), AllocError> {
    let request =
        Request { order, kind: MemoryKind::Unmovable, owner, placement: Placement::Any, mapping: None };
    let allocation = MEMORY.allocate(&request)?;
    Ok((allocation.frame, allocation.contents))
}

/// Frees frames.
pub(crate) fn free(frame: Frame, order: u8, owner: Owner, contents: Contents) {
    if let Err(error) = MEMORY.free(frame, order, owner, contents) {
        // A bookkeeping error of Ballast itself: the frame is lost.
        crate::observe::log::error!("{}: {}", frame.pa(), error);
    }
}
