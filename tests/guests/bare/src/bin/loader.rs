//! A boot loader that leaves EL2 in the worst state that the boot protocol allows: everything that it does not guarantee is on,
//! trapped, pending or wrong. It jumps to the image 2 MiB after its own start, with the device tree in x0.
//!
//! The test makes the file: this program, and the image at 2 MiB.

#![no_std]
#![no_main]

core::arch::global_asm!(
    r#"
    .section .head, "ax"
    b       _start
    .long   0
    .quad   0
    .quad   0x400000                // with the other image
    .quad   0xa
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

    .section .text.start, "ax"
    .global _start
_start:
    mov     x19, x0
    adrp    x20, __image_header
    add     x20, x20, #0x200, lsl #12
    mov     x0, #-1
    mov     x1, #0x5a5a0000
    msr     daifset, #8
    msr     daifclr, #7
    // All traps to EL2. HPMN is kept: values above the number of counters are UNPREDICTABLE.
    msr     hstr_el2, x0
    mrs     x2, mdcr_el2
    and     x2, x2, #0x1f
    orr     x2, x2, #0xfe0
    msr     mdcr_el2, x2
    msr     cptr_el2, x0
    msr     cnthctl_el2, xzr
    msr     S3_4_C12_C9_5, xzr      // ICC_SRE_EL2
    // Translation, identity and time of guests and of EL2.
    msr     vttbr_el2, x1
    msr     vtcr_el2, x0
    msr     vpidr_el2, x1
    msr     vmpidr_el2, x1
    msr     cntvoff_el2, x1
    msr     ttbr0_el2, x1
    msr     tcr_el2, xzr
    msr     mair_el2, xzr
    msr     vbar_el2, x1
    msr     tpidr_el2, x1
    msr     cntfrq_el0, xzr
    // Timers that have fired long ago; single-stepping and breakpoints at EL2 (MDCR_EL2.TDE).
    .irp timer, cnthp, cntp, cntv
    .ifc \timer, cnthp
    msr     cnthp_cval_el2, xzr
    msr     cnthp_ctl_el2, x0
    .else
    msr     \timer\()_cval_el0, xzr
    mov     x2, #1
    msr     \timer\()_ctl_el0, x2
    .endif
    .endr
    msr     oslar_el1, xzr
    mov     x2, #0xa001             // MDE, KDE, SS
    msr     mdscr_el1, x2
    // The registers of EL1.
    msr     sctlr_el1, x0
    msr     vbar_el1, x1
    msr     cpacr_el1, x0
    // The wrong stack pointer, with an invalid address.
    msr     spsel, #0
    mov     sp, x1
    // All of HCR_EL2's first word, and with FEAT_VHE the host's translation regime.
    mov     x2, #0xffffffff
    mrs     x3, id_aa64mmfr1_el1
    tst     x3, #0xf00
    b.eq    1f
    orr     x2, x2, #(1 << 34)
1:  msr     hcr_el2, x2
    // Big-endian data, and nothing writable is executed.
    mov     x2, #0x0830
    movk    x2, #0x32cd, lsl #16
    msr     sctlr_el2, x2
    isb
    mov     x0, x19
    br      x20
    "#
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
