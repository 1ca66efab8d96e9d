//! Cache maintenance by address.

use core::arch::asm;

fn line(shift: u32) -> usize {
    4 << ((crate::mrs!("ctr_el0") >> shift) & 0xf)
}

macro_rules! by_line {
    ($name:ident, $operation:literal, $barrier:literal, $shift:literal, $what:literal) => {
        #[doc = $what]
        pub fn $name(start: usize, length: usize) {
            let line = line($shift);
            let mut address = start & !(line - 1);
            while address < start + length {
                // SAFETY: maintenance by address never changes what a coherent reader sees.
                unsafe { asm!(concat!($operation, ", {}"), in(reg) address, options(nostack)) };
                address += line;
            }
            crate::instruction!($barrier);
        }
    };
}

by_line!(
    clean,
    "dc cvac",
    "dsb sy",
    16,
    "Cleans data to the point of coherency: observers without caches see it."
);
by_line!(
    clean_invalidate,
    "dc civac",
    "dsb sy",
    16,
    "Cleans and invalidates data to the point of coherency."
);
by_line!(
    clean_to_unification,
    "dc cvau",
    "dsb ish",
    16,
    "Cleans data so that instruction fetches can see it."
);
by_line!(invalidate_instructions, "ic ivau", "dsb ish", 0, "Invalidates fetched instructions on all CPUs.");

/// Makes new instructions visible to all CPUs (Arm ARM, "Concurrent modification and execution of instructions"). Other
/// CPUs also need an ISB.
pub fn publish_code(start: usize, length: usize) {
    clean_to_unification(start, length);
    invalidate_instructions(start, length);
    crate::instruction!("isb");
}
