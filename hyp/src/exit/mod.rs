//! Exceptions: the vectors, the handlers that they call with the syndrome, the idle loop, and fatal errors.
//!
//! An exception from a guest arrives in `vectors`, which calls one of four functions:
//!
//! | function | exceptions |
//! |---|---|
//! | [`data_abort`] (`abort`) | accesses to virtual devices and, by `stage2_fault`, to RAM whose unit is in flight |
//! | [`system_register`] | trapped system registers and system instructions |
//! | [`sync`] | HVC and SMC (`hypercall`), WFI (`wfi`), all other synchronous exceptions, SErrors and FIQs |
//! | [`irq`] (`interrupt`) | physical interrupts |
//!
//! A handler returns, and the vectors resume the guest; or it leaves the guest, and the CPU continues in `idle`. If a guest
//! uses a feature that it does not have, `inject` raises an exception in the guest. `traced` and `hardened` are variants of
//! the entry: they record events, or handle mitigations against speculation, before they call the same handlers. An
//! exception from EL2 itself is a fatal error (`fatal`).

pub(crate) mod abort;
#[allow(unsafe_code)]
pub(crate) mod fatal;
pub(crate) mod hardened;
pub(crate) mod hypercall;
#[allow(unsafe_code)]
pub(crate) mod idle;
pub(crate) mod inject;
pub(crate) mod interrupt;
pub(crate) mod stage2_fault;
pub(crate) mod system_register;
pub(crate) mod traced;
#[allow(unsafe_code)]
pub(crate) mod vectors;
pub(crate) mod wfi;

use crate::arch::frame::{Frame, MARK_FIQ, MARK_SERROR};
use crate::arch::{self, timer};
use crate::device::instruction::{self, State};
use crate::guest::StopReason;
use crate::guest::cpu::{self, PerCpu};
use crate::observe::counters::Exit;
use aarch64_cpu::registers::{ELR_EL2, Readable, SCTLR_EL1, SPSR_EL2, Writeable};

pub(crate) use abort::data_abort;
pub(crate) use hardened::{hardened_irq, hardened_sync};
pub(crate) use interrupt::irq;
pub(crate) use system_register::system_register;
pub(crate) use traced::{traced_irq, traced_sync};

/// Registers this room's entries for the rooms below. Called before any CPU idles.
pub(crate) fn init() {
    arch::cpu::set_entries(idle::enter, interrupt::poll);
}

/// ESR_ELx.EC (Arm ARM, ESR_EL2).
const EC_WAIT: u64 = 0x01;
const EC_HVC64: u64 = 0x16;
const EC_SMC64: u64 = 0x17;
const EC_INSTRUCTION_ABORT: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;
const EC_SYSTEM_REGISTER: u64 = 0x18;

/// Returns true if [`skip_plain_instruction`] can complete the instruction that trapped.
#[inline(always)]
fn is_plain() -> bool {
    instruction::is_plain(SPSR_EL2.get())
}

/// Returns true if [`skip_plain_instruction`] can complete the instruction of AArch64 that trapped.
#[inline(always)]
fn is_plain_aarch64() -> bool {
    instruction::is_plain_aarch64(SPSR_EL2.get())
}

/// Completes the instruction that trapped, in a [plain](is_plain) state.
#[inline(always)]
fn skip_plain_instruction() {
    ELR_EL2.set(ELR_EL2.get() + 4);
}

/// Completes the instruction that trapped with the syndrome `esr`: the guest continues after it.
fn skip_instruction(esr: u64) {
    let next = state().completed(esr);
    ELR_EL2.set(next.elr);
    SPSR_EL2.set(next.spsr);
}

/// Returns the guest's state when it trapped.
fn state() -> State {
    State { elr: ELR_EL2.get(), spsr: SPSR_EL2.get() }
}

/// Returns true if the guest's data accesses were big-endian when it trapped.
fn is_big_endian() -> bool {
    instruction::is_big_endian(SPSR_EL2.get(), SCTLR_EL1.get())
}

/// Runs `work`, off the fast path, and counts the exit and its time. If `work` does not return, only the exit is counted.
#[inline(always)]
fn counted<T>(cpu: &PerCpu, exit: Exit, work: impl FnOnce() -> T) -> T {
    cpu.counters.count_exit(exit);
    let start = timer::now_early();
    let result = work();
    cpu.counters.add_el2(timer::now_early().wrapping_sub(start));
    result
}

/// Returns the reason of a synchronous exception, as far as the syndrome tells it.
const fn reason(esr: u64) -> Exit {
    match esr >> 26 {
        EC_HVC64 | EC_SMC64 => Exit::Hypercall,
        EC_SYSTEM_REGISTER => system_register::reason(esr),
        EC_WAIT => Exit::Wait,
        EC_INSTRUCTION_ABORT => Exit::Abort,
        _ => Exit::Other,
    }
}

/// Handles a synchronous exception from a guest, except those with functions of their own, an SError or an FIQ.
pub(crate) extern "C" fn sync(frame: &mut Frame, esr: u64) {
    let cpu = cpu::current();
    match reason(esr) {
        exit if !state().passes_condition(esr) => counted(cpu, exit, || skip_instruction(esr)),
        // The guest is waiting: the time at EL2 is not counted.
        Exit::Wait => {
            cpu.counters.count_exit(Exit::Wait);
            wfi::wait(frame, esr);
        }
        Exit::Abort => {
            let exit = abort::reason(cpu.vcpu(), stage2_fault::faulting_ipa());
            counted(cpu, exit, || handle(frame, esr));
        }
        exit => {
            counted(cpu, exit, || handle(frame, esr));
            // The call may have changed whether loads may bypass stores.
            cpu.hardening.leave();
        }
    }
}

fn handle(frame: &mut Frame, esr: u64) {
    match esr >> 26 {
        EC_HVC64 => hypercall::hvc(frame, esr),
        EC_SMC64 => hypercall::smc(frame, esr),
        EC_INSTRUCTION_ABORT => abort::instruction(esr),
        _ if esr == MARK_SERROR => serror(),
        // EL2 does not use group 0: an FIQ is spurious.
        _ if esr == MARK_FIQ => {}
        // WFE does not trap, nor do floating point, SVE and pointer authentication if the guest has them. The identification
        // registers hide all else that traps.
        _ => inject::undefined(esr),
    }
}

/// Stops the guest that ran at an SError: hardware reports an error that EL2 can neither attribute nor repair.
#[cold]
fn serror() {
    if let Some(vcpu) = cpu::current().vcpu() {
        crate::guest::stop_current(vcpu, StopReason::SystemError);
    }
}
