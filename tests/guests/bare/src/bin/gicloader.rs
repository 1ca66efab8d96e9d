//! A boot loader for QEMU's `virt` board that hands over the machine in a bad state, at EL2.
//!
//! It leaves the ITS running, LPIs enabled at the redistributors of four CPUs, and on CPU 0 an SGI of the highest priority
//! acknowledged and never ended. Then it jumps to QEMU's code at the start of RAM, which starts the kernel.
//!
//! It does not use the library, and can be loaded at any address and entered at its first byte (`gicloader.bin`).

#![no_std]
#![no_main]

core::arch::global_asm!(
    r#"
.section .text.start, "ax"
.global _start
_start:
    ldr     x1, =0x080a0000             /* redistributors, 128 KiB each */
    ldr     x2, =0x5000000d             /* GICR_PROPBASER: 14 bits of INTID */
    ldr     x3, =0x4000000050010000     /* GICR_PENDBASER: PTZ */
    mov     x4, #4
1:  str     x2, [x1, #0x70]
    str     x3, [x1, #0x78]
    mov     w5, #1
    str     w5, [x1]                    /* GICR_CTLR.EnableLPIs */
    add     x1, x1, #0x20000
    add     x3, x3, #0x10000
    subs    x4, x4, #1
    b.ne    1b
    ldr     x1, =0x08080000
    str     w5, [x1]                    /* GITS_CTLR.Enabled */

    mov     x1, #0xf
    msr     S3_4_C12_C9_5, x1           /* ICC_SRE_EL2 */
    isb
    ldr     x1, =0x08000000
    mov     w2, #0x13
    str     w2, [x1]                    /* GICD_CTLR: ARE, both groups */
    ldr     x1, =0x080a0000
    str     wzr, [x1, #0x14]            /* GICR_WAKER: awake */
    ldr     x1, =0x080b0000
    mov     w2, #-1
    str     w2, [x1, #0x80]             /* GICR_IGROUPR0 */
    str     wzr, [x1, #0x400]           /* GICR_IPRIORITYR0: SGIs 0 to 3 are the most urgent */
    mov     w2, #(1 << 3)
    str     w2, [x1, #0x100]            /* GICR_ISENABLER0 */
    dsb     sy
    mov     x2, #0xff
    msr     S3_0_C4_C6_0, x2            /* ICC_PMR_EL1 */
    mov     x2, #1
    msr     S3_0_C12_C12_7, x2          /* ICC_IGRPEN1_EL1 */
    isb
    ldr     x2, =0x03000001
    msr     S3_0_C12_C11_5, x2          /* ICC_SGI1R_EL1: SGI 3 to CPU 0 */
    isb
2:  mrs     x2, S3_0_C12_C12_0          /* ICC_IAR1_EL1 */
    cmp     x2, #3
    b.ne    2b
    ldr     x1, =0x40000000
    br      x1
    .ltorg
"#
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
