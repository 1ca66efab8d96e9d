//! Interrupt translation services. Ballast uses no LPIs, and stops an ITS that a loader has left running.
//!
//! A running ITS, and a redistributor with LPIs enabled, read and write tables in RAM that Ballast gives to others.

use crate::arch::mmio::Registers;
use core::ptr::NonNull;

const CTLR: usize = 0x0000;
const CTLR_ENABLED: u32 = 1 << 0;
const CTLR_QUIESCENT: u32 = 1 << 31;

/// Bytes of an ITS's registers that Ballast uses.
pub(crate) const ITS_SIZE: u64 = 0x1_0000;

/// Stops the ITS at `base` (IHI 0069H, GITS_CTLR). Returns true if it was enabled, and `None` if it does not
/// stop.
///
/// # Safety
///
/// [`ITS_SIZE`] bytes at `base` are an ITS's control registers, mapped while this runs, and nobody else uses them.
pub(crate) unsafe fn stop(base: NonNull<u8>) -> Option<bool> {
    // SAFETY: as the caller says.
    let registers = unsafe { Registers::new(base, ITS_SIZE as usize) };
    let control = registers.read32(CTLR);
    registers.write32(CTLR, control & !CTLR_ENABLED);
    super::wait_for(|| registers.read32(CTLR) & CTLR_QUIESCENT != 0).then_some(control & CTLR_ENABLED != 0)
}
