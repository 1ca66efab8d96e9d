//! System registers that `aarch64-cpu` has no name for, by their encoding.

/// Reads a system register by assembler name or `S<op0>_<op1>_C<n>_C<m>_<op2>`.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading this register changes nothing that Rust code relies on.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register by assembler name or `S<op0>_<op1>_C<n>_C<m>_<op2>`.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written by this macro belong to the guest's state or the interrupt controller;
        // none changes how EL2's own code or memory behaves.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
        }
    }};
}

/// An instruction that takes no operand: a barrier, a hint, TLB maintenance of the whole regime.
macro_rules! instruction {
    ($text:literal) => {
        // SAFETY: a barrier, a hint or maintenance; it orders memory accesses and drops cached translations.
        unsafe { core::arch::asm!($text, options(nostack, preserves_flags)) }
    };
}

pub(crate) use instruction;
pub(crate) use read;
pub(crate) use write;
