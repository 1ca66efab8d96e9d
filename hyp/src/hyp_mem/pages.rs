//! Ballast's own frames, from NORMAL, mapped at their linear address.

pub(crate) use super::memory::{MEMORY, free};
use super::{memory, mmu};
use crate::arch::cache;
use core::ptr::NonNull;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_SIZE, Pa};
use stage2::owner::Owner;
use stage2::phys::alloc::AllocError;
use stage2::phys::frame::Contents;

/// Error of an allocation for Ballast itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnError {
    /// No frames are free.
    Memory(AllocError),
    /// The frames cannot be mapped.
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

/// Allocates `1 << order` contiguous frames for `owner`, zeroed and mapped.
pub(crate) fn allocate(order: u8, owner: Owner) -> Result<Frame, OwnError> {
    let (frame, contents) = memory::take(order, owner).map_err(OwnError::Memory)?;
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

/// Types of which zeroes are a valid value.
///
/// # Safety
///
/// Zeroes are a valid value, and the type need not be dropped.
pub(crate) unsafe trait Zeroed: Sync + 'static {}

// SAFETY: atomic words alone; a ring of zeroes is an empty one.
unsafe impl Zeroed for crate::observe::trace::Ring {}

/// Allocates a `T` of zeroes, forever.
pub(crate) fn allocate_zeroed<T: Zeroed>() -> Result<&'static T, OwnError> {
    const { assert!(align_of::<T>() <= FRAME_SIZE as usize) };
    let frames = (size_of::<T>() as u64).div_ceil(FRAME_SIZE).next_power_of_two();
    let frame = allocate(frames.trailing_zeros() as u8, Owner::Hypervisor)?;
    // SAFETY: just allocated, large enough, zeroed, mapped, known to nobody else, and never freed.
    Ok(unsafe { address(frame).cast::<T>().as_ref() })
}

/// Copies `bytes`, at most 1 MiB, into frames of Ballast's own, forever.
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

/// Returns EL2's address of a frame of [`allocate`].
#[inline(always)]
pub(crate) fn address(frame: Frame) -> NonNull<u8> {
    mmu::linear(frame.pa())
}
