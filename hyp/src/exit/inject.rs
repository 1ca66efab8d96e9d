//! Exceptions that EL2 gives to EL1 (Arm ARM D1.3.1, "entering an exception level").

use crate::guest::{self, StopReason, cpu, stop_current};
use aarch64_cpu::registers::{
    ELR_EL1, ELR_EL2, ESR_EL1, FAR_EL1, Readable, SCTLR_EL1, SPSR_EL1, SPSR_EL2, VBAR_EL1, Writeable,
};

const EC_UNKNOWN: u64 = 0;
const EC_INSTRUCTION_ABORT_LOWER: u64 = 0x20;
const EC_INSTRUCTION_ABORT_SAME: u64 = 0x21;
const EC_DATA_ABORT_LOWER: u64 = 0x24;
const EC_DATA_ABORT_SAME: u64 = 0x25;
/// ESR_ELx.IL: the instruction is 32 bits long, or the exception has no length.
const IL: u64 = 1 << 25;
/// Synchronous external abort, not on a translation table walk.
const EXTERNAL_ABORT: u64 = 0x10;
/// The same on a walk; the level is added.
const EXTERNAL_ABORT_ON_WALK: u64 = 0x14;

/// SPSR_ELx (Arm ARM C5.2.19).
const SPSR_AARCH32: u64 = 1 << 4;
const SPSR_MODE: u64 = 0xf;
const SPSR_EL1H: u64 = 5;
const SPSR_DAIF: u64 = 0xf << 6;
const SPSR_SSBS: u64 = 1 << 12;
const SPSR_PAN: u64 = 1 << 22;
const SPSR_DIT: u64 = 1 << 24;
/// Tag checks are off, as an exception leaves it on CPUs with allocation tags.
const SPSR_TCO: u64 = 1 << 25;
const SPSR_NZCV: u64 = 0xf << 28;
/// SCTLR_EL1.SPAN: PAN is left alone on an exception. DSSBS: the value of SSBS on an exception.
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;

/// Whether the exception came from EL0.
fn is_from_el0() -> bool {
    let spsr = SPSR_EL2.get();
    spsr & SPSR_AARCH32 != 0 || spsr & SPSR_MODE == 0
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
    let offset = match spsr & (SPSR_AARCH32 | SPSR_MODE) {
        mode if mode & SPSR_AARCH32 != 0 => 0x600,
        0 => 0x400,
        4 => 0x000,
        _ => 0x200,
    };
    let vector = VBAR_EL1.get() + offset;
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
    let sctlr = SCTLR_EL1.get();
    let mut new = SPSR_EL1H | SPSR_DAIF | spsr & (SPSR_NZCV | SPSR_DIT | SPSR_PAN);
    if sctlr & SCTLR_SPAN == 0 && crate::arch::features::has_pan() {
        new |= SPSR_PAN;
    }
    if crate::arch::features::has_mte() {
        new |= SPSR_TCO;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= SPSR_SSBS;
    }
    SPSR_EL2.set(new);
    ELR_EL2.set(vector);
}

/// The instruction does not exist for the guest.
#[cold]
pub(crate) fn undefined() {
    synchronous(EC_UNKNOWN << 26 | IL);
}

/// Reports a trapped read of an identification register that does not exist for the guest, with EL2's syndrome: FEAT_IDST,
/// which gives such reads a class of their own.
#[cold]
pub(crate) fn undefined_identification(esr: u64) {
    if crate::arch::features::has_identification_syndrome() {
        synchronous(esr & 0xffff_ffff);
    } else {
        undefined();
    }
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

/// The same for an instruction fetch.
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
