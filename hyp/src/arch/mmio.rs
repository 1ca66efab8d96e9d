//! Registers of a device, by byte offset.

use crate::arch::device::{read8, read16, read32, read64};
use core::ptr::NonNull;

/// A device's registers, mapped for as long as Ballast runs.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: registers are reached by single volatile accesses; the devices themselves order these.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    /// Makes registers of `size` bytes at `base`.
    ///
    /// # Safety
    ///
    /// `size` bytes at `base` are mapped as device memory and hold registers forever.
    pub(crate) const unsafe fn new(base: NonNull<u8>, size: usize) -> Self {
        Self { base, size }
    }

    /// Returns the `size` bytes at `offset`, or `None` if they are not all inside.
    pub(crate) fn part(self, offset: usize, size: usize) -> Option<Self> {
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.size);
        // SAFETY: within the mapping.
        fits.then(|| Self { base: unsafe { self.base.add(offset) }, size })
    }

    pub(crate) fn size(self) -> usize {
        self.size
    }

    #[inline(always)]
    fn pointer<T>(self, offset: usize) -> *mut T {
        // Nobody but Ballast chooses an offset that fails: ranges that the host's tree gives are checked for their size before
        // they are mapped, and guests' offsets into configuration space for their width and limit (`pci::VirtualConfig`).
        assert!(offset + size_of::<T>() <= self.size && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    #[inline(always)]
    pub(crate) fn read32(self, offset: usize) -> u32 {
        // SAFETY: a mapped, aligned register.
        unsafe { read32(self.pointer(offset)) }
    }

    pub(crate) fn write32(self, offset: usize, value: u32) {
        // SAFETY: a mapped, aligned register.
        unsafe { self.pointer::<u32>(offset).write_volatile(value) }
    }

    pub(crate) fn read64(self, offset: usize) -> u64 {
        // SAFETY: a mapped, aligned register.
        unsafe { read64(self.pointer(offset)) }
    }

    pub(crate) fn write64(self, offset: usize, value: u64) {
        // SAFETY: a mapped, aligned register.
        unsafe { self.pointer::<u64>(offset).write_volatile(value) }
    }

    pub(crate) fn read8(self, offset: usize) -> u8 {
        // SAFETY: a mapped register.
        unsafe { read8(self.pointer(offset)) }
    }

    pub(crate) fn read16(self, offset: usize) -> u16 {
        // SAFETY: a mapped, aligned register.
        unsafe { read16(self.pointer(offset)) }
    }

    pub(crate) fn write16(self, offset: usize, value: u16) {
        // SAFETY: a mapped, aligned register.
        unsafe { self.pointer::<u16>(offset).write_volatile(value) }
    }

    pub(crate) fn write8(self, offset: usize, value: u8) {
        // SAFETY: a mapped register of bytes.
        unsafe { self.pointer::<u8>(offset).write_volatile(value) }
    }
}
