//! The channel to an external debugger, whose registers not every CPU lets EL2 write.
//!
//! Firmware can trap them to EL3 and then report them as UNDEFINED (MDCR_EL3.TDCC), and QEMU before 8.1 does not implement
//! those of the OS lock. A guest cannot use a register either that EL2 cannot write, so an instruction that is UNDEFINED here is
//! skipped: the vectors know the range (`exit::vectors`, `fatal_exception`).

core::arch::global_asm!(
    r#"
    .section .text.debug_channel, "ax"
    .balign 4
    .global debug_channel_start
debug_channel_start:
    msr     osdtrrx_el1, xzr
    msr     osdtrtx_el1, xzr
    msr     oseccr_el1, xzr
    msr     mdccint_el1, xzr
    .global debug_channel_end
debug_channel_end:
    ret
    .text
"#
);

unsafe extern "C" {
    fn debug_channel_start();
}

/// Clears OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1 and MDCCINT_EL1, as far as they are implemented. The OS lock is set.
pub(crate) fn clear() {
    // SAFETY: writes registers of a guest that does not run; follows the calling convention. SP_EL0, which the vectors change
    // when they skip an instruction, is a guest's and is reset too.
    unsafe { debug_channel_start() };
}
