//! System registers by name, with the barriers that they need.

/// Reads a system register by its name or as `S<op0>_<op1>_C<n>_C<m>_<op2>`.
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: these programs own their whole machine; a register that is undefined raises an exception, which the
        // library's vectors report or catch.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register and synchronises the context.
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: as for `mrs!`; what the write means for memory safety is the affair of the caller's module.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) };
    }};
}

/// Executes instructions without operands that do not access Rust's memory.
#[macro_export]
macro_rules! instruction {
    ($($text:literal),+) => {
        // SAFETY: no operand, no memory of Rust's; exceptions go to the library's vectors.
        unsafe { core::arch::asm!($($text),+, options(nostack)) }
    };
}

/// Masks IRQ and FIQ while `work` runs.
pub fn with_interrupts_masked<R>(work: impl FnOnce() -> R) -> R {
    let daif = mrs!("daif");
    instruction!("msr daifset, #3");
    let result = work();
    msr!("daif", daif);
    result
}

/// Unmasks IRQ and FIQ.
pub fn unmask_interrupts() {
    instruction!("msr daifclr, #3", "isb");
}

/// Masks IRQ and FIQ.
pub fn mask_interrupts() {
    instruction!("msr daifset, #3", "isb");
}

/// Returns the affinity fields of this CPU's `MPIDR_EL1`, Aff3 in bits 39:32.
#[must_use]
pub fn affinity() -> u64 {
    mrs!("mpidr_el1") & 0xff_00ff_ffff
}
