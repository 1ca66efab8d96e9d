//! Data and instruction cache maintenance by address (Arm ARM, "A64 Cache maintenance instructions").
//!
//! A guest starts with its caches off, and may turn them off again. So EL2's cached writes for it must reach the point of
//! coherency, and no stale line may hide the guest's own writes to memory.

use super::errata;
use super::sysreg::{instruction, read};

/// Returns the bytes of the smallest data cache line (CTR_EL0.DminLine, in words).
pub(crate) fn line_size() -> usize {
    4 << (read!("ctr_el0") >> 16 & 0xf)
}

/// Cleans and invalidates `size` bytes at `address` to the point of coherency (DC CIVAC). The caller ends with
/// [`complete`], or another DSB.
///
/// # Safety
///
/// The bytes are mapped.
pub(crate) unsafe fn clean_invalidate(address: usize, size: usize) {
    let line = line_size();
    let mut at = address & !(line - 1);
    while at < address + size {
        // SAFETY: mapped, as the caller says; maintenance does not change contents.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += line;
    }
}

/// Cleans and invalidates `value` to the point of coherency, as [`clean_invalidate`] does.
pub(crate) fn clean_invalidate_value<T: ?Sized>(value: &T) {
    // SAFETY: a reference leads to mapped memory.
    unsafe { clean_invalidate(core::ptr::from_ref(value).addr(), size_of_val(value)) };
}

/// Completes cache maintenance on all CPUs, and invalidates their instruction caches, which may hold code of a frame's
/// former owner (IC IALLUIS).
pub(crate) fn complete() {
    instruction!("dsb ish");
    instruction!("ic ialluis");
    // Erratum 1542419 of Neoverse N1 needs more.
    errata::complete_invalidations();
    instruction!("isb");
}

/// Completes memory accesses and cache maintenance for all observers, devices too (DSB SY).
pub(crate) fn synchronize_system() {
    instruction!("dsb sy");
}

/// Returns the bytes that one DC ZVA clears, or `None` if DC ZVA is prohibited (DCZID_EL0).
fn zero_block() -> Option<usize> {
    let dczid = read!("dczid_el0");
    (dczid & 1 << 4 == 0).then(|| 4 << (dczid & 0xf))
}

/// Number of DC ZVA in an iteration of [`zero`].
const ZERO_UNROLLED: usize = 16;

/// Clears `size` bytes at `address`, both multiples of 4 KiB, of Normal memory.
///
/// # Safety
///
/// The memory is mapped writable, `size` is not 0, and nobody holds a reference into it.
pub(crate) unsafe fn zero(address: usize, size: usize) {
    match zero_block() {
        Some(block) if block <= 4096 / ZERO_UNROLLED => {
            // SAFETY: within the range that the caller gives, not empty; what an iteration clears divides 4 KiB.
            unsafe {
                core::arch::asm!(
                    "2:",
                    ".rept 16",
                    "dc zva, {at}",
                    "add {at}, {at}, {block}",
                    ".endr",
                    "cmp {at}, {end}",
                    "b.lo 2b",
                    at = inout(reg) address => _,
                    block = in(reg) block,
                    end = in(reg) address + size,
                    options(nostack)
                );
            }
        }
        // SAFETY: as the caller says.
        _ => unsafe { core::ptr::write_bytes(address as *mut u8, 0, size) },
    }
}
