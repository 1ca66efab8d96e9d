//! Exceptions that EL2 gives to EL1 (Arm ARM D1.3.1, "entering an exception level").

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

/// Says that nothing answers a guest's access.
fn note(what: &str) {
    if let Some(vcpu) = cpu::current().vcpu() {
        guest::note(vcpu, [(what, super::stage2_fault::faulting_ipa()), ("at", ELR_EL2.get())]);
    }
}

/// The guest's next instruction is the one at its vector for synchronous exceptions.
fn synchronous(esr: u64) {
    let (spsr, elr) = (SPSR_EL2.get(), ELR_EL2.get());
    let vector = VBAR_EL1.get() + exception::vector_offset(spsr);
    if esr >> 26 == EC_INSTRUCTION_ABORT_SAME && elr == vector {
        // The same fetch would abort for ever.
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

/// Reports an instruction that does not exist for the guest; `esr` is EL2's.
#[cold]
pub(crate) fn undefined(esr: u64) {
    synchronous(exception::undefined(esr, features::has_identification_syndrome()));
}

/// Nothing answers at the address: what hardware reports as a synchronous external abort. `esr` is EL2's, of a
/// data abort, `far` the virtual address.
#[cold]
pub(crate) fn data_abort(esr: u64, far: u64) {
    let class = if is_from_el0() { EC_DATA_ABORT_LOWER } else { EC_DATA_ABORT_SAME };
    let write = esr & 1 << 6;
    note(if write == 0 { "abort: read of" } else { "abort: write to" });
    FAR_EL1.set(far);
    synchronous(class << 26 | IL | write | status(esr));
}

/// Reports an instruction fetch from an address where nothing answers, as [`data_abort`] does for data.
#[cold]
pub(crate) fn instruction_abort(esr: u64, far: u64) {
    let class = if is_from_el0() { EC_INSTRUCTION_ABORT_LOWER } else { EC_INSTRUCTION_ABORT_SAME };
    note("abort: fetch from");
    FAR_EL1.set(far);
    synchronous(class << 26 | IL | status(esr));
}

/// The fault status for EL1: on a walk of the guest's own tables (S1PTW), the walk's level is not known to EL2,
/// which sees the level of stage 2; level 3 is where most walks read last.
fn status(esr: u64) -> u64 {
    if esr & 1 << 7 != 0 { EXTERNAL_ABORT_ON_WALK | 3 } else { EXTERNAL_ABORT }
}
