//! An SMMU's registers and memory on the real machine: mapped registers, frames of Ballast's own, the counter.

use super::pages;
use crate::arch::mmio::Registers;
use crate::arch::{cache, timer};
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::addr::{Frame, Pa};
use stage2::owner::Owner;
use stage2::phys::frame::Contents;

impl crate::smmu::Registers for Registers {
    fn read32(&self, offset: usize) -> u32 {
        Registers::read32(*self, offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        Registers::write32(*self, offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        Registers::write64(*self, offset, value);
    }
}

/// Frames of Ballast's own, which only an SMMU's driver and its SMMU access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames(());

impl Frames {
    /// Gives access to frames by their physical address.
    ///
    /// # Safety
    ///
    /// The driver reads and writes only frames that it allocated here and did not free.
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }

    /// Returns a pointer to the word at `pa`. The SMMU accesses words while the driver does: both by single 64-bit accesses.
    fn pointer(pa: u64) -> *mut u64 {
        debug_assert!(pa.is_multiple_of(8));
        super::mmu::linear(Pa::new_truncate(pa)).as_ptr().cast()
    }
}

impl crate::smmu::Memory for Frames {
    fn allocate(&self, order: u8) -> Option<u64> {
        pages::allocate(order, Owner::Hypervisor).ok().map(|frame| frame.pa().get())
    }

    fn free(&self, pa: u64, order: u8) {
        pages::free(Frame::containing(Pa::new_truncate(pa)), order, Owner::Hypervisor, Contents::Dirty);
    }

    fn read64(&self, pa: u64) -> u64 {
        // SAFETY: an aligned word of a mapped frame, as `new` demands.
        unsafe { AtomicU64::from_ptr(Self::pointer(pa)) }.load(Ordering::Relaxed)
    }

    fn write64(&self, pa: u64, value: u64) {
        // SAFETY: an aligned word of a mapped frame, as `new` demands; nobody holds a reference into it.
        unsafe { AtomicU64::from_ptr(Self::pointer(pa)) }.store(value, Ordering::Relaxed);
    }

    fn clean_invalidate(&self, pa: u64, size: u64) {
        // SAFETY: mapped, as `new` demands.
        unsafe { cache::clean_invalidate(Self::pointer(pa).addr(), size as usize) };
    }

    fn barrier(&self) {
        cache::synchronize_system();
    }

    fn now_ns(&self) -> u64 {
        timer::nanoseconds()
    }
}
