//! EL0: runs code until its first synchronous exception, in AArch64 or AArch32.

use crate::exception::{Caught, Frame};
use crate::smp;

core::arch::global_asm!(
    r#"
/* x0: what to run with; the same is filled when EL0 has raised an exception. */
.global lower_enter
lower_enter:
    stp     x29, x30, [sp, #-112]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    str     x0, [sp, #96]
    ldp     x1, x2, [x0, #64]           /* where, and with which state */
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x0, x1, [x0]
    isb
    eret
/* The exception's handler returns here. */
.global lower_leave
lower_leave:
    ldr     x16, [sp, #96]
    stp     x0, x1, [x16]
    stp     x2, x3, [x16, #16]
    stp     x4, x5, [x16, #32]
    stp     x6, x7, [x16, #48]
    ldp     x19, x20, [sp, #80]
    ldp     x21, x22, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #32]
    ldp     x27, x28, [sp, #16]
    ldp     x29, x30, [sp], #112
    ret
"#
);

unsafe extern "C" {
    fn lower_enter(registers: *mut Registers);
    fn lower_leave();
}

/// Processor states of EL0 with interrupts masked.
pub mod state {
    /// AArch64.
    pub const AARCH64: u64 = 0x3c0;
    /// AArch32, A32 instructions.
    pub const ARM: u64 = 0x1d0;
    /// AArch32, T32 instructions.
    pub const THUMB: u64 = ARM | 1 << 5;
    /// AArch32: data accesses are big-endian.
    pub const BIG_ENDIAN: u64 = 1 << 9;
    /// The flag Z.
    pub const ZERO: u64 = 1 << 30;
}

/// x0 to x7 of EL0, its program counter and processor state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// x0 to x7, in AArch32 r0 to r7.
    pub x: [u64; 8],
    /// First instruction; afterwards, the return address of the exception.
    pub pc: u64,
    /// Processor state.
    pub state: u64,
}

/// Runs EL0 until it raises an exception. The code must be mapped for EL0 (`mmu::USER`).
pub fn run(registers: &mut Registers) -> Caught {
    let record = smp::record();
    // SAFETY: EL0 reaches what this guest maps for it and no more; `lower_enter` keeps what a call keeps.
    unsafe { lower_enter(registers) };
    let caught = record.last_caught();
    registers.pc = caught.elr;
    caught
}

/// Makes the exception of EL0 return to the caller of [`run`].
pub(crate) fn leave(frame: &mut Frame) {
    frame.elr = lower_leave as *const () as u64;
    frame.spsr = 0x3c5;
}
