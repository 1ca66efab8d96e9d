//! The exception vectors of EL2 and the world switch.
//!
//! While a guest runs, SP_EL2 is the top of its CPU's stack and TPIDR_EL2 points at its `guest::cpu::PerCpu`. EL2 itself
//! runs with all exceptions masked, so ELR_EL2, SPSR_EL2, ESR_EL2, FAR_EL2 and HPFAR_EL2 stay valid from entry to ERET;
//! only general-purpose registers are saved. EL2 is compiled without floating point, whose registers stay the guest's.
//!
//! - **sync**: PSCI_VERSION and SMCCC_VERSION by HVC are answered from registers alone. All else saves all registers in a
//!   [`Frame`] and calls a handler: the two frequent classes, device accesses and system registers, have functions of their
//!   own, the rest goes to `exit::sync`.
//! - **irq**: saves the registers that a Rust function may change (AAPCS64: x0 to x18, x30) and calls `exit::irq`, which does
//!   not need the guest's registers.
//! - Exceptions from EL2 itself are fatal.
//!
//! There are three tables. While events are traced, CPUs use the second, whose entries go through `exit::traced_sync` and
//! `exit::traced_irq`: tracing costs the paths of the first table nothing.
//!
//! CPUs whose branch predictor a guest can train against EL2 (`crate::mitigation`) use the third, the *hardened* one. Its
//! entries clear the predictor as the CPU's [`Hardening`] says, and continue at the code of the first table; or through
//! `exit::hardened`, if events are traced or the vCPU runs with store bypassing allowed. No indirect branch and no return
//! precedes the barrier at the end of the mitigation. The conditional branches before it may be mispredicted, but all their
//! paths end at that barrier, beyond which nothing is executed speculatively.

use crate::arch::cpu::{self, Core};
use crate::arch::frame::Frame;
use crate::arch::hardening::Hardening;
use crate::observe::trace;
use core::arch::global_asm;

const FRAME_SIZE: usize = size_of::<Frame>();
const _: () = assert!(FRAME_SIZE == 256 && Frame::SP == 248);

/// ESR_EL2 of `HVC #0` from AArch64: EC 0x16, IL, and the immediate (Arm ARM, ESR_EL2). Other immediates are not calls
/// under the SMC Calling Convention (DEN 0028, "SMC and HVC immediate value").
const HVC64_0: u64 = 0x16 << 26 | 1 << 25;
/// Data abort from a lower exception level.
const EC_DATA_ABORT: u64 = 0x24;
/// Trapped MSR, MRS or system instruction.
const EC_SYSTEM_REGISTER: u64 = 0x18;

global_asm!(
    r#"
    .macro save_volatile
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    .endm

    .macro save_all
    save_volatile
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    .endm

    .macro restore_volatile
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    .endm

    // The barriers stop straight-line speculation past ERET.
    .macro return_to_guest
    eret
    dsb     nsh
    isb
    .endm

    .macro fatal_entry kind
    .balign 0x80
    msr     sp_el0, x0
    mov     x0, #\kind
    b       fatal_exception
    .endm

    // Current EL with SP_EL0, then with SP_ELx.
    .macro fatal_entries
    fatal_entry 0
    fatal_entry 1
    fatal_entry 2
    fatal_entry 3
    fatal_entry 4
    fatal_entry 5
    fatal_entry 6
    fatal_entry 7
    .endm

    // Counts a hypercall; x0 and x1 are saved.
    .macro count_hypercall
    mrs     x1, tpidr_el2
    ldr     x0, [x1, #{hypercalls}]
    add     x0, x0, #1
    str     x0, [x1, #{hypercalls}]
    .endm

    // Saves x0 and x1 and clears the branch predictor of the guest's training; then branches to `slow` if this CPU's
    // `Hardening` says so. Takes 22 of the 32 instructions of an entry.
    .macro harden slow
    stp     x0, x1, [sp, #-{frame}]!
    mrs     x1, tpidr_el2
    ldrb    w0, [x1, #{loop_count}]
    cbz     w0, 2f
1:  b       3f
3:  subs    w0, w0, #1
    b.ne    1b
2:  hint    #22                         // CLRBHB; a NOP on CPUs without it
    ldr     w0, [x1, #{call}]
    cbz     w0, 6f
    // Firmware may change x0 to x3 (DEN 0028, 1.1 and later); its calls exist from 1.1 on.
    stp     x2, x3, [sp, #16]
    ldrb    w2, [x1, #{is_hvc}]
    cbnz    w2, 4f
    smc     #0
    b       5f
4:  hvc     #0
5:  ldp     x2, x3, [sp, #16]
    mrs     x1, tpidr_el2
6:  dsb     nsh
    isb
    ldrb    w0, [x1, #{is_slow}]
    cbnz    w0, \slow
    .endm

    .section .text.vectors, "ax"
    .balign 0x800
    .global vectors
vectors:
    fatal_entries

    // Lower EL, AArch64: sync, irq, fiq, serror.
    .balign 0x80
    stp     x0, x1, [sp, #-{frame}]!
guest_exception:
    mrs     x1, esr_el2
    mov     x0, #{hvc64}
    cmp     x0, x1
    b.ne    guest_sync
    // A hypercall with immediate 0. The two version queries are constants.
    ldr     w0, [sp]
    mov     w1, #0x84000000             // PSCI_VERSION (DEN 0022)
    cmp     w0, w1
    b.ne    1f
    count_hypercall
    mov     w0, #1
    movk    w0, #1, lsl #16             // 1.1
2:  ldr     x1, [sp, #8]
    add     sp, sp, #{frame}
    return_to_guest
1:  eor     w1, w1, #0x04000000         // SMCCC_VERSION 0x8000_0000 (DEN 0028)
    cmp     w0, w1
    b.ne    guest_hypercall
    count_hypercall
    mov     w0, #2
    movk    w0, #1, lsl #16             // 1.2
    b       2b

    .balign 0x80
guest_irq:
    stp     x0, x1, [sp, #-{frame}]!
guest_interrupt:
    save_volatile
    stp     x18, x30, [sp, #144]
    bl      {irq}
    restore_volatile
    ldp     x18, x30, [sp, #144]
    ldp     x0, x1, [sp], #{frame}
    return_to_guest

    .balign 0x80
    b       guest_fiq
    .balign 0x80
    b       guest_serror

    // Lower EL, AArch32: EL0 only, EL1 is AArch64.
    .balign 0x80
    stp     x0, x1, [sp, #-{frame}]!
    mrs     x1, esr_el2
    b       guest_sync
    .balign 0x80
    b       guest_irq
    .balign 0x80
    b       guest_fiq
    .balign 0x80
    b       guest_serror

    .balign 0x800
    .global traced_vectors
traced_vectors:
    fatal_entries
    .rept 2                             // AArch64, AArch32
    .balign 0x80
    stp     x0, x1, [sp, #-{frame}]!
    mrs     x1, esr_el2
    b       traced_sync
    .balign 0x80
    b       traced_irq
    .balign 0x80
    b       guest_fiq
    .balign 0x80
    b       guest_serror
    .endr

    .balign 0x800
    .global hardened_vectors
hardened_vectors:
    fatal_entries
    .rept 2                             // AArch64, AArch32
    .balign 0x80
    harden  7f
    b       guest_exception
7:  mrs     x1, esr_el2
    b       hardened_sync
    .balign 0x80
    harden  7f
    b       guest_interrupt
7:  b       hardened_irq
    .balign 0x80
    harden  7f
7:  mov     x1, #-1                     // FIQ, as in guest_fiq
    b       hardened_sync
    .balign 0x80
    harden  7f
7:  mov     x1, #-2                     // SError, as in guest_serror
    b       hardened_sync
    .endr

    // x0 and x1 are saved, x1 = ESR_EL2 or a mark for FIQ and SError.
hardened_sync:
    save_all
    mov     x0, sp
    bl      {hardened_sync}
    b       resume_guest

    // x0 and x1 are saved.
hardened_irq:
    save_all
    bl      {hardened_irq}
    b       resume_guest

traced_sync:
    save_all
    mov     x0, sp
    bl      {traced_sync}
    b       resume_guest

traced_irq:
    stp     x0, x1, [sp, #-{frame}]!
    save_all
    bl      {traced_irq}
    b       resume_guest

guest_fiq:
    stp     x0, x1, [sp, #-{frame}]!
    mov     x1, #-1
    b       guest_sync

guest_serror:
    stp     x0, x1, [sp, #-{frame}]!
    mov     x1, #-2
    b       guest_sync

guest_hypercall:
    mrs     x1, esr_el2
    // x0 and x1 are saved, x1 = ESR_EL2 or a mark for FIQ and SError.
guest_sync:
    save_all
    mov     x0, sp
    lsr     x2, x1, #26
    cmp     x2, #{system_register}      // SGIs first
    b.eq    2f
    cmp     x2, #{data_abort}
    b.eq    1f
    bl      {sync}
    .global resume_guest
resume_guest:
    restore_volatile
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp], #{frame}
    return_to_guest

1:  bl      {on_data_abort}
    b       3f
2:  bl      {on_system_register}
    // x0 is not 0 if the handler set a register that Rust functions preserve: the frame has to be reloaded.
3:  cbnz    x0, resume_guest
    restore_volatile
    ldp     x18, x19, [sp, #144]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp], #{frame}
    return_to_guest

    // x0 = number of the vector, SP_EL0 = the interrupted x0. The stack may be the cause: the first CPU that arrives here
    // takes the fatal stack, all others stop.
fatal_exception:
    // `debug_channel` writes registers that a CPU may lack: an UNDEFINED instruction there is skipped. FAR_EL2 is UNKNOWN
    // after an exception with EC 0, so it may hold x1.
    cmp     x0, #4
    b.ne    5f
    mrs     x0, esr_el2
    lsr     x0, x0, #26
    cbnz    x0, 4f
    msr     far_el2, x1
    mrs     x0, elr_el2
    adrp    x1, debug_channel_start
    add     x1, x1, :lo12:debug_channel_start
    sub     x1, x0, x1
    cmp     x1, #(debug_channel_end - debug_channel_start)
    mrs     x1, far_el2
    b.hs    4f
    add     x0, x0, #4
    msr     elr_el2, x0
    mrs     x0, sp_el0
    eret
    dsb     nsh
    isb
4:  mov     x0, #4
5:  msr     tpidr_el1, x1
    msr     far_el1, x2
    msr     elr_el1, x3
    adrp    x1, {owner}
    add     x1, x1, :lo12:{owner}
1:  ldaxr   w2, [x1]
    cbnz    w2, 3f
    mov     w2, #1
    stxr    w3, w2, [x1]
    cbnz    w3, 1b
2:  mov     x1, sp
    adrp    x2, {stack}
    add     x2, x2, :lo12:{stack}
    add     x2, x2, #{stack_size}
    mov     sp, x2
    sub     sp, sp, #{frame}
    str     x1, [sp, #248]
    mrs     x2, sp_el0
    mrs     x1, tpidr_el1
    stp     x2, x1, [sp]
    mrs     x2, far_el1
    mrs     x3, elr_el1
    save_all
    mov     x1, sp
    bl      {fatal}
3:  wfe
    b       3b

    // Abandons this CPU's stack and calls x1(x2) on an empty stack with top x0.
    .global abandon
abandon:
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x2
    br      x1
    "#,
    frame = const FRAME_SIZE,
    hvc64 = const HVC64_0,
    data_abort = const EC_DATA_ABORT,
    system_register = const EC_SYSTEM_REGISTER,
    on_data_abort = sym crate::exit::data_abort,
    on_system_register = sym crate::exit::system_register,
    irq = sym crate::exit::irq,
    sync = sym crate::exit::sync,
    loop_count = const Core::HARDENING + Hardening::LOOP_COUNT,
    call = const Core::HARDENING + Hardening::CALL,
    is_hvc = const Core::HARDENING + Hardening::IS_HVC,
    is_slow = const Core::HARDENING + Hardening::IS_SLOW,
    hardened_sync = sym crate::exit::hardened_sync,
    hardened_irq = sym crate::exit::hardened_irq,
    traced_sync = sym crate::exit::traced_sync,
    traced_irq = sym crate::exit::traced_irq,
    hypercalls = const Core::HYPERCALLS,
    fatal = sym crate::exit::fatal::exception,
    owner = sym crate::exit::fatal::OWNER,
    stack = sym crate::exit::fatal::STACK,
    stack_size = const crate::exit::fatal::STACK_SIZE,
);

unsafe extern "C" {
    static vectors: u8;
    static traced_vectors: u8;
    static hardened_vectors: u8;
    fn resume_guest() -> !;
    fn abandon(stack_top: u64, function: extern "C" fn(u64) -> !, argument: u64) -> !;
}

/// Installs the vectors that this CPU's mitigations and the recording of events need.
pub(crate) fn install() {
    use aarch64_cpu::registers::{VBAR_EL2, Writeable};
    let table = if cpu::current().hardening.prepare() {
        &raw const hardened_vectors
    } else if trace::is_recording() {
        &raw const traced_vectors
    } else {
        &raw const vectors
    };
    VBAR_EL2.set(table.addr() as u64);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// Abandons this CPU's stack and continues in `function`.
///
/// # Safety
///
/// `stack_top` is the top of this CPU's own stack, and nothing on it has to be dropped (such as a lock's guard).
pub(crate) unsafe fn restart(stack_top: u64, function: extern "C" fn(u64) -> !, argument: u64) -> ! {
    // SAFETY: as the caller says.
    unsafe { abandon(stack_top, function, argument) }
}

/// Enters the guest with registers `frame`; ELR_EL2, SPSR_EL2 and EL1's registers are set.
///
/// # Safety
///
/// `stack_top` is the top of this CPU's stack, which is abandoned; nothing on it has to be dropped.
pub(crate) unsafe fn enter_guest(stack_top: u64, frame: &Frame) -> ! {
    let destination = (stack_top - FRAME_SIZE as u64) as *mut Frame;
    // SAFETY: the stack is this CPU's. The caller's own stack frame may lie at its top: so the registers are copied first,
    // and the stack pointer is moved in the block that does not return.
    unsafe {
        let copy = frame.clone();
        core::arch::asm!(
            "mov x9, #{bytes}",
            // The source lies below the destination or apart from it, so copy from the end.
            "2: sub x9, x9, #8",
            "ldr x12, [x10, x9]",
            "str x12, [x11, x9]",
            "cbnz x9, 2b",
            "mov sp, x11",
            "b {resume}",
            bytes = const FRAME_SIZE,
            in("x10") &raw const copy,
            in("x11") destination,
            resume = sym resume_guest,
            options(noreturn)
        )
    }
}
