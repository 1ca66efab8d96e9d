//! Exceptions that EL2 injects into EL1 (Arm ARM, "Exceptions").

use crate::arch::features;
use crate::device::exception::{self, Features};
use crate::guest::{self, StopReason, cpu, stop_current};
use aarch64_cpu::registers::{
    ELR_EL1, ELR_EL2, ESR_EL1, FAR_EL1, Readable, SCTLR_EL1, SPSR_EL1, SPSR_EL2, VBAR_EL1, Writeable,
};

const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
const EC_INSTRUCTION_ABORT_SAME: u64 = 0x21;
const EC_DATA_ABORT_LOWER: u64 = 0x24;
const EC_DATA_ABORT_SAME: u64 = 0x25;
/// ESR_ELx.IL: the instruction is 32 bits long, or the exception has no length.
const IL: u64 = 1 << 25;
/// Synchronous external abort, not on a translation table walk.
const EXTERNAL_ABORT: u64 = 0x10;
/// Synchronous external abort on a translation table walk; the level is added.
const EXTERNAL_ABORT_ON_WALK: u64 = 0x14;

/// Returns true if the exception came from EL0.
fn is_from_el0() -> bool {
    exception::is_from_el0(SPSR_EL2.get())
}

/// Logs an access of a guest to an address without device or RAM.
fn note(what: &str) {
    if let Some(vcpu) = cpu::current().vcpu() {
        guest::note(vcpu, [(what, super::stage2_fault::faulting_ipa()), ("at", ELR_EL2.get())]);
    }
}

/// Injects a synchronous exception with syndrome `esr`: the guest continues at its vector.
fn synchronous(esr: u64) {
    let (spsr, elr) = (SPSR_EL2.get(), ELR_EL2.get());
    let vector = VBAR_EL1.get() + exception::vector_offset(spsr);
    if esr >> 26 == EC_INSTRUCTION_ABORT_SAME && elr == vector {
        // The same fetch would abort forever.
        if let Some(vcpu) = cpu::current().vcpu() {
            stop_current(vcpu, StopReason::NoVector { vector });
        }
        return;
    }
    ESR_EL1.set(esr);
    ELR_EL1.set(elr);
    SPSR_EL1.set(spsr);
    let cpu = Features { has_pan: features::has_pan(), has_tags: features::has_mte() };
    SPSR_EL2.set(exception::entered(spsr, SCTLR_EL1.get(), cpu));
    ELR_EL2.set(vector);
}

/// Injects an exception for an instruction that the guest does not have; `esr` is EL2's.
#[cold]
pub(crate) fn undefined(esr: u64) {
    synchronous(exception::undefined(esr, features::has_identification_syndrome()));
}

/// Injects a synchronous external abort, like hardware's, for a data access to an address without device or RAM. `esr` is
/// EL2's syndrome of the data abort, `far` the virtual address.
#[cold]
pub(crate) fn data_abort(esr: u64, far: u64) {
    let class = if is_from_el0() { EC_DATA_ABORT_LOWER } else { EC_DATA_ABORT_SAME };
    let write = esr & 1 << 6;
    note(if write == 0 { "abort: read of" } else { "abort: write to" });
    FAR_EL1.set(far);
    synchronous(class << 26 | IL | write | status(esr));
}

/// Injects a synchronous external abort for an instruction fetch, like [`data_abort`].
#[cold]
pub(crate) fn instruction_abort(esr: u64, far: u64) {
    let class = if is_from_el0() { EC_INSTRUCTION_ABORT_LOWER } else { EC_INSTRUCTION_ABORT_SAME };
    note("abort: fetch from");
    FAR_EL1.set(far);
    synchronous(class << 26 | IL | status(esr));
}

/// Returns the fault status for EL1. For a fault on a walk of the guest's own tables (S1PTW), EL2's syndrome has the level of
/// stage 2, not of the walk: level 3 is the most likely.
fn status(esr: u64) -> u64 {
    if esr & 1 << 7 != 0 { EXTERNAL_ABORT_ON_WALK | 3 } else { EXTERNAL_ABORT }
}
