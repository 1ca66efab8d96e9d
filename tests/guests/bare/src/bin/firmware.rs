//! Firmware at EL3 of QEMU's `virt` board, for tests of Ballast's firmware calls: PSCI's CPU_ON, the SMC Calling Convention 1.2
//! and its mitigations of speculative execution. It is not a guest: QEMU starts it (`-bios`) on all CPUs.
//!
//! It enters EL2 at [`ENTRY`] and prints these lines on the board's secure UART, the second serial line:
//! - `cpu N stores E`: SMCCC_ARCH_WORKAROUND_2 on CPU N, with E = 0 for W1 = 0, else 1;
//! - `cpu N history`, `cpu N targets`: the first SMCCC_ARCH_WORKAROUND_3 or 1 on CPU N. Later calls are not printed.
//!
//! SMCCC_ARCH_FEATURES returns 0 for all three: available and needed. Calls change x0 to x3, as the convention allows, and PSCI
//! calls also x4 to x17, as version 1.0 of the convention allows. Any other exception stops the CPU, with the line `cpu N lost`.

#![no_std]
#![no_main]

/// Entry point of CPU 0 at EL2: code that the test loads there.
const ENTRY: u64 = 0x4010_0000;
/// Secure RAM, 64 bytes for each CPU: entry point and context of CPU_ON, and flags for calls of workarounds 3 and 1.
const RECORDS: u64 = 0x0e00_0000;
/// The secure PL011.
const UART: u64 = 0x0904_0000;
/// GICD_CTLR; DS, bit 6, gives the whole interrupt controller to the non-secure side.
const GICD_CTLR: u64 = 0x0800_0000;
/// SCR_EL3: NS, RES1, HCE, RW, ST, APK, API (Arm ARM, SCR_EL3).
const SCR: u64 = 1 | 3 << 4 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 16 | 1 << 17;
/// CPTR_EL3.EZ: SVE does not trap.
const CPTR: u64 = 1 << 8;
/// SPSR_EL3: EL2h, exceptions masked.
const SPSR: u64 = 0x3c9;

core::arch::global_asm!(
    r#"
.section .text.start, "ax"
.global _start
_start:
    adr     x0, firmware_vectors
    msr     vbar_el3, x0
    ldr     x0, ={scr}
    msr     scr_el3, x0
    mov     x0, #{cptr}
    msr     cptr_el3, x0
    msr     mdcr_el3, xzr
    mov     x0, #0xf                    // SRE and lower levels' use of it
    msr     S3_6_C12_C12_5, x0          // ICC_SRE_EL3
    isb
    mov     x0, #{spsr}
    msr     spsr_el3, x0
    mrs     x4, mpidr_el1
    ands    x4, x4, #0xff
    ldr     x5, ={records}
    add     x5, x5, x4, lsl #6
    b.ne    2f
    ldr     x1, ={gicd}
    mov     w2, #(1 << 6)
    str     w2, [x1]
    ldr     x1, ={uart}
    mov     w2, #0x301                  // UARTCR: enabled, both ways
    str     w2, [x1, #0x30]
    ldr     x1, ={entry}
    mov     x0, xzr
    b       3f
2:  wfe                                 // until CPU_ON
    ldr     x1, [x5]
    cbz     x1, 2b
    ldr     x0, [x5, #8]
3:  msr     elr_el3, x1
    isb
    eret

/* Prints the string at \label; changes x0, x2, x3. */
.macro print label
    adr     x2, \label
    ldr     x3, ={uart}
1:  ldrb    w0, [x2], #1
    cbz     w0, 2f
    str     w0, [x3]
    b       1b
2:
.endm
/* Prints "cpu N "; changes x0, x2, x3. */
.macro print_cpu
    print   text_cpu
    mrs     x0, mpidr_el1
    and     w0, w0, #7
    add     w0, w0, #'0'
    str     w0, [x3]
    mov     w0, #0x20
    str     w0, [x3]
.endm
/* x2 = this CPU's record; changes x3. */
.macro record
    mrs     x3, mpidr_el1
    and     x3, x3, #0xff
    ldr     x2, ={records}
    add     x2, x2, x3, lsl #6
.endm

.balign 0x800
firmware_vectors:
.rept 8
    .balign 0x80
    b       lost
.endr
    .balign 0x80                        // lower level, AArch64
    msr     tpidr_el3, x2
    mrs     x2, esr_el3
    lsr     x2, x2, #26
    cmp     x2, #0x17                   // SMC
    b.ne    lost
    b       call
.rept 7
    .balign 0x80
    b       lost
.endr

lost:
    print_cpu
    print   text_lost
3:  wfe
    b       3b

call:
    ldr     w2, =0x80003fff             // SMCCC_ARCH_WORKAROUND_3
    cmp     w0, w2
    b.eq    history
    ldr     w2, =0x80008000             // SMCCC_ARCH_WORKAROUND_1
    cmp     w0, w2
    b.eq    targets
    ldr     w2, =0x80007fff             // SMCCC_ARCH_WORKAROUND_2
    cmp     w0, w2
    b.eq    stores
    ldr     w2, =0x84000000             // PSCI_VERSION
    cmp     w0, w2
    b.eq    psci_version
    ldr     w2, =0x80000000             // SMCCC_VERSION
    cmp     w0, w2
    b.eq    smccc_version
    ldr     w2, =0x8400000a             // PSCI_FEATURES
    cmp     w0, w2
    b.eq    features
    ldr     w2, =0x80000001             // SMCCC_ARCH_FEATURES
    cmp     w0, w2
    b.eq    arch_features
    ldr     w2, =0xc4000003             // CPU_ON
    cmp     w0, w2
    mrs     x2, tpidr_el3
    b.eq    cpu_on
refuse:
    mov     w3, #-1
answer:
    mov     w0, w3
done:
    mov     x1, #0x0bad
    mov     x2, #0x0bad
    mov     x3, #0x0bad
    eret

psci_version:
    ldr     w3, =0x10001                // 1.1
answer_psci:
.irp n, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17
    mov     x\n, #0x0bad
.endr
    b       answer
smccc_version:
    ldr     w3, =0x10002                // 1.2
    b       answer

features:
    ldr     w2, =0x80000000             // of SMCCC_VERSION
    cmp     w1, w2
    mov     w3, #-1
    b.ne    answer_psci
    mov     w3, wzr
    b       answer_psci

arch_features:
    mov     w3, wzr
    ldr     w2, =0x80003fff
    cmp     w1, w2
    b.eq    answer
    ldr     w2, =0x80008000
    cmp     w1, w2
    b.eq    answer
    ldr     w2, =0x80007fff
    cmp     w1, w2
    b.eq    answer
    b       refuse

/* x1 = MPIDR, x2 = entry, x3 = context. There are eight CPUs at most, all of one cluster. */
cpu_on:
    cmp     x1, #8
    b.hs    1f
    ldr     x0, ={records}
    add     x0, x0, x1, lsl #6
    str     x3, [x0, #8]
    dsb     sy
    str     x2, [x0]
    dsb     sy
    sev
    mov     w3, wzr
    b       answer_psci
1:  mov     w3, #-2                     // INVALID_PARAMETERS
    b       answer_psci

history:
    record
    ldrb    w3, [x2, #16]
    cbnz    w3, done
    mov     w3, #1
    strb    w3, [x2, #16]
    print_cpu
    print   text_history
    b       done

targets:
    record
    ldrb    w3, [x2, #17]
    cbnz    w3, done
    mov     w3, #1
    strb    w3, [x2, #17]
    print_cpu
    print   text_targets
    b       done

stores:
    print_cpu
    print   text_stores
    cmp     w1, #0
    cset    w0, ne
    add     w0, w0, #'0'
    str     w0, [x3]
    mov     w0, #0xa
    str     w0, [x3]
    b       done

text_cpu:       .asciz "cpu "
text_history:   .asciz "history\n"
text_targets:   .asciz "targets\n"
text_stores:    .asciz "stores "
text_lost:      .asciz "lost\n"
.balign 8
.ltorg
"#,
    scr = const SCR,
    cptr = const CPTR,
    spsr = const SPSR,
    records = const RECORDS,
    gicd = const GICD_CTLR,
    uart = const UART,
    entry = const ENTRY,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
