//! Access to device registers by one plain load or store of the named width, which an abort's syndrome describes.

use core::arch::asm;

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $load:literal, $store:literal, $width:literal) => {
        #[doc = concat!("Reads ", $width, " at `address`.")]
        #[must_use]
        pub fn $read(address: usize) -> $type {
            let value: $type;
            // SAFETY: callers name device registers, which are no memory of Rust's; a bad address raises an abort.
            unsafe { asm!($load, v = out(reg) value, a = in(reg) address, options(nostack)) };
            value
        }

        #[doc = concat!("Writes ", $width, " at `address`.")]
        pub fn $write(address: usize, value: $type) {
            // SAFETY: as for the read.
            unsafe { asm!($store, v = in(reg) value, a = in(reg) address, options(nostack)) };
        }
    };
}

access!(read8, write8, u32, "ldrb {v:w}, [{a}]", "strb {v:w}, [{a}]", "a byte");
access!(read16, write16, u32, "ldrh {v:w}, [{a}]", "strh {v:w}, [{a}]", "a halfword");
access!(read32, write32, u32, "ldr {v:w}, [{a}]", "str {v:w}, [{a}]", "a word");
access!(read64, write64, u64, "ldr {v:x}, [{a}]", "str {v:x}, [{a}]", "a doubleword");
