/* From the first instruction to Rust: image header, EL2 to EL1 where a machine starts there, self-relocation,
 * BSS, a stack. Also the way in for secondary CPUs, and what answers at EL2 on a bare machine. */

.section .head, "ax"
    b       _start                  /* code0 of the arm64 Image header */
    .word   0
    .quad   0                       /* text_offset: from a 2 MiB boundary */
    .quad   __image_size
    .quad   0xa                     /* little-endian, 4 KiB pages, anywhere in memory */
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0

.section .text.start, "ax"
.global _start
_start:
    mov     x19, x0                 /* the device tree */
    mrs     x20, CurrentEL
    cmp     x20, #(2 << 2)
    b.ne    0f
    bl      el2_leave
0:  bl      el1_sane
    /* The image is linked at 0, so that the address of its header is the load offset. */
    adrp    x1, __image_header
    adrp    x2, __rela_start
    add     x2, x2, :lo12:__rela_start
    adrp    x3, __rela_end
    add     x3, x3, :lo12:__rela_end
1:  cmp     x2, x3
    b.hs    2f
    ldp     x4, x5, [x2], #16       /* offset, type */
    ldr     x6, [x2], #8            /* addend */
    cmp     w5, #1027               /* R_AARCH64_RELATIVE, the only kind after this link */
    b.ne    halt
    add     x6, x6, x1
    str     x6, [x4, x1]
    b       1b
2:  adrp    x2, __bss_start
    add     x2, x2, :lo12:__bss_start
    adrp    x3, __image_end
3:  cmp     x2, x3
    b.hs    4f
    stp     xzr, xzr, [x2], #16
    b       3b
4:  adrp    x2, BOOT_STACKS
    add     x2, x2, :lo12:BOOT_STACKS
    mov     x3, #{stack_size}
    add     sp, x2, x3
    mov     x0, x19
    lsr     x1, x20, #2             /* the exception level that the machine started at */
    mov     x29, xzr
    mov     x30, xzr
    bl      {start}
halt:
    wfi
    b       halt

/* x0: this CPU's record, which begins with its stack and the first CPU's MMU registers. */
.global secondary_start
secondary_start:
    mov     x19, x0
    mrs     x20, CurrentEL
    cmp     x20, #(2 << 2)
    b.ne    0f
    bl      el2_leave
0:  bl      el1_sane
    ldp     x1, x2, [x19]           /* stack, SCTLR_EL1 */
    ldp     x3, x4, [x19, #16]      /* TTBR0_EL1, TCR_EL1 */
    ldr     x5, [x19, #32]          /* MAIR_EL1 */
    mov     sp, x1
    msr     mair_el1, x5
    msr     tcr_el1, x4
    msr     ttbr0_el1, x3
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x2
    isb
    mov     x0, x19
    mov     x29, xzr
    mov     x30, xzr
    bl      {secondary}
    b       halt

/* Initialises EL1: interrupts masked, MMU and caches off, FP/SIMD enabled, the library's vectors. */
el1_sane:
    msr     daifset, #0xf
    msr     spsel, #1
    mov     x9, #0x0800             /* SCTLR_EL1: RES1 bits alone (Arm ARM, SCTLR_EL1) */
    movk    x9, #0x30d0, lsl #16
    msr     sctlr_el1, x9
    mov     x9, #(3 << 20)          /* CPACR_EL1.FPEN */
    msr     cpacr_el1, x9
    adrp    x9, exception_vectors
    add     x9, x9, :lo12:exception_vectors
    msr     vbar_el1, x9
    isb
    ret

/* A machine without a hypervisor may start at EL2: install a vector table there and continue at EL1. */
el2_leave:
    mov     x9, #(1 << 31)          /* HCR_EL2.RW, and where they exist APK, API, EnSCXT and ATA */
    orr     x9, x9, #(3 << 40)
    orr     x9, x9, #(1 << 53)
    orr     x9, x9, #(1 << 56)
    msr     hcr_el2, x9
    mov     x9, #0x0830             /* SCTLR_EL2: RES1 bits alone */
    movk    x9, #0x30c5, lsl #16
    msr     sctlr_el2, x9
    mov     x9, #0x22ff             /* CPTR_EL2: nothing trapped; bit 12 traps SME, and is RES1 without it */
    mrs     x10, id_aa64pfr1_el1
    ubfx    x10, x10, #24, #4
    cbnz    x10, 6f
    orr     x9, x9, #(1 << 12)
6:  msr     cptr_el2, x9
    msr     hstr_el2, xzr
    mov     x9, #3                  /* CNTHCTL_EL2: EL1 reads the physical counter and timer */
    msr     cnthctl_el2, x9
    msr     cntvoff_el2, xzr
    msr     vttbr_el2, xzr
    mrs     x9, midr_el1
    msr     vpidr_el2, x9
    mrs     x9, mpidr_el1
    msr     vmpidr_el2, x9
    mov     x9, #0xf
    msr     S3_4_C12_C9_5, x9       /* ICC_SRE_EL2: system registers here and at EL1 */
    isb
    msr     S3_4_C12_C11_0, xzr     /* ICH_HCR_EL2 */
    adrp    x9, el2_vectors
    add     x9, x9, :lo12:el2_vectors
    msr     vbar_el2, x9
    mov     x9, #0x3c5              /* EL1h, all masked */
    msr     spsr_el2, x9
    msr     elr_el2, x30
    isb
    eret

/* EL2 answers only PSCI_VERSION, with a minimum of instructions: the baseline of the hypercall benchmark. */
.balign 2048
el2_vectors:
    .rept 8
    b       halt
    .balign 128
    .endr
    mov     w1, #0x84000000         /* synchronous, from EL1: SMCCC lets x1 to x3 change */
    cmp     w0, w1
    b.ne    5f
    mov     w0, #0x00010001
    eret
5:  mrs     x1, esr_el2
    lsr     x1, x1, #26
    cmp     x1, #0x16               /* HVC; no other exception is expected */
    b.ne    halt
    mov     x0, #-1
    eret
    .balign 128
    .rept 7
    b       halt
    .balign 128
    .endr
