//! Frames of Ballast's own, from NORMAL, mapped at their linear address; and the memory that all frames come from.

use super::mmu;
use crate::arch::cache;
use crate::hyp_mem::table_pool::Need;
use core::ptr::NonNull;
use spin::Mutex;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_SIZE, Pa};
use stage2::owner::Owner;
use stage2::phys::alloc::{AllocError, Kind, Memory, Request};
use stage2::phys::frame::Contents;
use stage2::phys::placement::Placement;

/// All of the host's memory.
pub(crate) static MEMORY: Memory<'static> = Memory::new();

/// Why Ballast got no frames for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnError {
    /// There are none.
    Memory(AllocError),
    /// They cannot be mapped.
    Map(mmu::MapError),
}

impl core::fmt::Display for OwnError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
        }
    }
}

/// Takes `1 << order` contiguous frames for `owner`, zeroed and mapped.
pub(crate) fn allocate(order: u8, owner: Owner) -> Result<Frame, OwnError> {
    let (frame, contents) = take(order, owner)?;
    let size = FRAME_SIZE << order;
    let mut at = frame.pa().get() & !(PAGEBLOCK_SIZE - 1);
    while at < frame.pa().get() + size {
        if let Err(error) = mmu::map_linear(Pa::new_truncate(at)) {
            free(frame, order, owner, contents);
            return Err(OwnError::Map(error));
        }
        at += PAGEBLOCK_SIZE;
    }
    if contents == Contents::Dirty {
        // SAFETY: just allocated and mapped; nobody else knows it.
        unsafe { cache::zero(address(frame).addr().get(), size as usize) };
    }
    Ok(frame)
}

/// Takes `1 << order` contiguous frames for `owner`, as they are.
fn take(order: u8, owner: Owner) -> Result<(Frame, Contents), OwnError> {
    let request = Request { order, kind: Kind::Unmovable, owner, placement: Placement::Any, mapping: None };
    let allocation = MEMORY.allocate(&request).map_err(OwnError::Memory)?;
    Ok((allocation.frame, allocation.contents))
}

/// Adds blocks of translation tables until as many are free as `need` says. Whether they are.
///
/// Lock: one CPU at a time does so, since there is a reserve for one block; memory's and EL2's tables' come after it.
pub(crate) fn add_tables(need: Need) -> bool {
    static ADDING: Mutex<()> = Mutex::new(());
    let _alone = ADDING.lock();
    loop {
        match mmu::has_tables(need) {
            // Another CPU added some meanwhile, perhaps.
            Some(true) => return true,
            Some(false) => {}
            None => return false,
        }
        let Ok((frame, contents)) = take(mmu::MORE_ORDER, Owner::Hypervisor) else { return false };
        if mmu::add_tables(frame.pa()).is_err() {
            free(frame, mmu::MORE_ORDER, Owner::Hypervisor, contents);
            return false;
        }
    }
}

/// Copies `bytes`, at most 1 MiB, into frames of Ballast's own, for ever.
pub(crate) fn keep(bytes: &[u8]) -> Result<&'static [u8], OwnError> {
    let frames = (bytes.len() as u64).div_ceil(FRAME_SIZE).max(1).next_power_of_two();
    let frame = allocate(frames.trailing_zeros() as u8, Owner::Hypervisor)?;
    let target = address(frame).as_ptr();
    // SAFETY: just allocated, as large as `bytes` at least, known to nobody else, and never freed.
    unsafe {
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        Ok(core::slice::from_raw_parts(target, bytes.len()))
    }
}

/// Gives frames back.
pub(crate) fn free(frame: Frame, order: u8, owner: Owner, contents: Contents) {
    if let Err(error) = MEMORY.free(frame, order, owner, contents) {
        // A bookkeeping error of Ballast's own: the frame stays out of use.
        crate::observe::log::error!("{}: {}", frame.pa(), error);
    }
}

/// Where EL2 sees a frame of [`allocate`].
#[inline(always)]
pub(crate) fn address(frame: Frame) -> NonNull<u8> {
    mmu::linear(frame.pa())
}
