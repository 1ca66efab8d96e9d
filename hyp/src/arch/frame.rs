//! The registers of a guest that EL2 saves while it handles an exception.

use core::mem::offset_of;

/// A guest's general-purpose registers, on EL2's stack while a trap is handled.
#[derive(Clone)]
#[repr(C, align(16))]
pub(crate) struct Frame {
    /// x0 to x30.
    pub(crate) x: [u64; 31],
    /// The interrupted stack pointer, of an exception from EL2 itself.
    sp: u64,
}

/// What a handler returns to the vectors: not 0 where one of x19 to x29 was changed in the frame.
pub(crate) type Reload = u64;

/// The frame is as it was, but for registers that are read back in any case.
pub(crate) const KEEP: Reload = 0;

impl Frame {
    /// Offset of the interrupted stack pointer.
    pub(crate) const SP: usize = offset_of!(Self, sp);

    /// Registers all zero but x0.
    pub(crate) const fn new(x0: u64) -> Self {
        let mut x = [0; 31];
        x[0] = x0;
        Self { x, sp: 0 }
    }

    /// EL2's interrupted stack pointer.
    pub(crate) const fn sp(&self) -> u64 {
        self.sp
    }

    /// Register `index` as instructions name it: 31 reads as zero.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> u64 {
        if index < 31 { self.x[index] } else { 0 }
    }

    /// Sets register `index`; 31 ignores it. Returns whether the vectors have to read it back though a Rust function
    /// preserves it.
    #[inline(always)]
    pub(crate) fn set(&mut self, index: usize, value: u64) -> Reload {
        if index < 31 {
            self.x[index] = value;
        }
        index as u64 / 19
    }
}

/// What the assembly passes in place of ESR_EL2 for an FIQ from a guest.
pub(crate) const MARK_FIQ: u64 = u64::MAX;
/// What the assembly passes in place of ESR_EL2 for an SError from a guest.
pub(crate) const MARK_SERROR: u64 = u64::MAX - 1;
