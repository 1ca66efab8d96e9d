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

/// Writes a system register by assembler name or `S<op0>_<op1>_C<n>_C<m>_<op2>`. Its class, which comes first, says why
/// the write is sound.
macro_rules! write {
    (guest $name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: state of EL1 and EL0, or what they read. EL2 neither translates, branches nor computes by it: its
        // regime is its own (HCR_EL2.E2H is clear).
        unsafe { $crate::arch::sysreg::write_unchecked!($name, value) }
    }};
    (trap $name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: says which instructions of EL1 and EL0 trap, or labels memory accesses for resource partitioning. EL2's
        // own instructions do the same as before.
        unsafe { $crate::arch::sysreg::write_unchecked!($name, value) }
    }};
    (vector $name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the length of vectors. EL2 is compiled without them, and keeps a guest's only after this is set.
        unsafe { $crate::arch::sysreg::write_unchecked!($name, value) }
    }};
    (interrupt $name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: state of the GIC's CPU interface. It decides which interrupts EL2 and the guest see; EL2 runs with
        // interrupts masked and takes them by reading a register.
        unsafe { $crate::arch::sysreg::write_unchecked!($name, value) }
    }};
    (timer $name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the time of an interrupt, which EL2 takes by reading a register.
        unsafe { $crate::arch::sysreg::write_unchecked!($name, value) }
    }};
}

/// Writes a system register. The caller states in an `unsafe` block why that is sound.
macro_rules! write_unchecked {
    ($name:literal, $value:ident) => {
        core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nostack, preserves_flags))
    };
}

/// Executes an instruction that takes no operand: a barrier, a hint, TLB maintenance of the whole regime.
macro_rules! instruction {
    ($text:literal) => {
        // SAFETY: a barrier, a hint or maintenance; it orders memory accesses and drops cached translations.
        unsafe { core::arch::asm!($text, options(nostack, preserves_flags)) }
    };
}

pub(crate) use instruction;
pub(crate) use read;
pub(crate) use write;
pub(crate) use write_unchecked;
