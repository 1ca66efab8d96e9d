//! Accesses to device registers, for all of EL2.
//!
//! Loads are load-acquire (LDAR). On Cortex-A57 r0p0 to r1p2, a plain load of Device memory between exclusive accesses, such
//! as those of locks, may deadlock (erratum 832075). No such load is on a frequent path of guests.

use safe_mmio::{MmioOps, set_mmio_ops};

macro_rules! load {
    ($type:ty, $text:literal, $address:expr) => {{
        let value: $type;
        // SAFETY: as the caller says.
        unsafe {
            core::arch::asm!($text, out(reg) value, in(reg) $address, options(nostack, preserves_flags, readonly));
        }
        value
    }};
}

/// Reads a register of 8 bits.
///
/// # Safety
///
/// `address` is that of a mapped register.
pub(crate) unsafe fn read8(address: *const u8) -> u8 {
    load!(u8, "ldarb {0:w}, [{1}]", address)
}

/// Reads a register of 16 bits.
///
/// # Safety
///
/// `address` is that of a mapped, aligned register.
pub(crate) unsafe fn read16(address: *const u16) -> u16 {
    load!(u16, "ldarh {0:w}, [{1}]", address)
}

/// Reads a register of 32 bits.
///
/// # Safety
///
/// `address` is that of a mapped, aligned register.
pub(crate) unsafe fn read32(address: *const u32) -> u32 {
    load!(u32, "ldar {0:w}, [{1}]", address)
}

/// Reads a register of 64 bits.
///
/// # Safety
///
/// `address` is that of a mapped, aligned register.
pub(crate) unsafe fn read64(address: *const u64) -> u64 {
    load!(u64, "ldar {0:x}, [{1}]", address)
}

/// Accesses of the PL011 driver library.
struct Library;

impl MmioOps for Library {
    unsafe fn read_u8(address: *const u8) -> u8 {
        // SAFETY: as the caller says.
        unsafe { read8(address) }
    }

    unsafe fn read_u16(address: *const u16) -> u16 {
        // SAFETY: as the caller says.
        unsafe { read16(address) }
    }

    unsafe fn read_u32(address: *const u32) -> u32 {
        // SAFETY: as the caller says.
        unsafe { read32(address) }
    }

    unsafe fn read_u64(address: *const u64) -> u64 {
        // SAFETY: as the caller says.
        unsafe { read64(address) }
    }

    unsafe fn write_u8(address: *mut u8, value: u8) {
        // SAFETY: as the caller says.
        unsafe { address.write_volatile(value) }
    }

    unsafe fn write_u16(address: *mut u16, value: u16) {
        // SAFETY: as the caller says.
        unsafe { address.write_volatile(value) }
    }

    unsafe fn write_u32(address: *mut u32, value: u32) {
        // SAFETY: as the caller says.
        unsafe { address.write_volatile(value) }
    }

    unsafe fn write_u64(address: *mut u64, value: u64) {
        // SAFETY: as the caller says.
        unsafe { address.write_volatile(value) }
    }
}

set_mmio_ops!(Library);
