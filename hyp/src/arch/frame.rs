//! The registers of a guest that EL2 saves while it handles an exception.

use core::mem::offset_of;

/// A guest's general-purpose registers, on EL2's stack while a trap is handled.
#[derive(Clone)]
#[repr(C, align(16))]
pub(crate) struct Frame {
    /// x0 to x30.
    pub(crate) x: [u64; 31],
    /// The interrupted stack pointer, for an exception from EL2 itself.
    sp: u64,
}

/// A handler's result for the vectors: not 0 if it changed one of x19 to x29 in the frame.
pub(crate) type Reload = u64;

/// No register was changed but those that the vectors read back in any case.
pub(crate) const KEEP: Reload = 0;

impl Frame {
    /// Offset of the interrupted stack pointer.
    pub(crate) const SP: usize = offset_of!(Self, sp);

    /// Makes a frame of zeroes but for x0.
    pub(crate) const fn new(x0: u64) -> Self {
        let mut x = [0; 31];
        x[0] = x0;
        Self { x, sp: 0 }
    }

    /// Returns EL2's interrupted stack pointer.
    pub(crate) const fn sp(&self) -> u64 {
        self.sp
    }

    /// Returns register `index` as instructions name it: 31 reads as zero.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> u64 {
        if index < 31 { self.x[index] } else { 0 }
    }

    /// Sets register `index`; writes to 31 are ignored. Returns not 0 if the vectors have to read the register back although
    /// Rust functions preserve it.
    #[inline(always)]
    pub(crate) fn set(&mut self, index: usize, value: u64) -> Reload {
        if index < 31 {
            self.x[index] = value;
        }
        index as u64 / 19
    }
}

/// The value that the vectors pass in place of ESR_EL2 for an FIQ from a guest.
pub(crate) const MARK_FIQ: u64 = u64::MAX;
/// The value that the vectors pass in place of ESR_EL2 for an SError from a guest.
pub(crate) const MARK_SERROR: u64 = u64::MAX - 1;
