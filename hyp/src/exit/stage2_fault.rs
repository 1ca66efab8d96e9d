//! Stage 2 aborts on RAM: a unit is being moved, or its access flag is clear.

use crate::arch::stage1;
use crate::device::exception;
use crate::guest::{self, StopReason, cpu, migration};
use aarch64_cpu::registers::{FAR_EL2, HPFAR_EL2, Readable, SPSR_EL2};
use guest_dts::guest_tree::platform;
use stage2::addr::Ipa;
use stage2::migrate::{Fault, Verdict};

/// Kind of the access.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Data,
    Fetch,
}

/// Mask of the fault status without its level (Arm ARM, ESR_EL2).
const STATUS: u64 = 0x3c;
const TRANSLATION: u64 = 0x04;
const ACCESS_FLAG: u64 = 0x08;
const PERMISSION: u64 = 0x0c;
/// The fault occurred on a stage 1 walk.
const S1PTW: u64 = 1 << 7;

/// HPFAR_EL2.FIPA: bits 51:12 of the address from bit 4 on.
#[inline(always)]
fn faulting_page() -> u64 {
    (HPFAR_EL2.get() & 0xfff_ffff_fff0) << 8
}

/// Returns the address that stage 2 did not translate.
pub(crate) fn faulting_ipa() -> u64 {
    faulting_page() | FAR_EL2.get() & 0xfff
}

/// Handles an abort with syndrome `esr` at virtual address `far`. Returns false if migration did not cause it.
pub(crate) fn is_answered(esr: u64, far: u64, access: Access) -> bool {
    let is_walk = esr & S1PTW != 0;
    let page = match esr & STATUS {
        TRANSLATION | ACCESS_FLAG => faulting_page(),
        PERMISSION if is_walk => faulting_page(),
        // HPFAR_EL2 is not valid (Arm ARM, HPFAR_EL2).
        PERMISSION => match stage1::page(far) {
            Some(page) => page,
            // The guest's own translation has changed meanwhile, or lies in a unit in flight: it retries.
            None => return true,
        },
        _ => return false,
    };
    // A permission fault proves that a leaf was there. If the guest's own translation, looked up only now, leads somewhere
    // else, it has changed meanwhile, and the guest has to retry the access.
    let is_looked_up = esr & STATUS == PERMISSION && !is_walk;
    if page < platform::RAM_BASE {
        return is_looked_up;
    }
    let (Some(vcpu), Some(ipa)) = (cpu::current().vcpu(), Ipa::try_new(page)) else { return false };
    let fault = match esr & STATUS {
        PERMISSION if is_walk || access == Access::Data => Fault::Write,
        PERMISSION => Fault::Fetch,
        ACCESS_FLAG if migration::mark_accessed(vcpu.guest(), ipa) => return true,
        _ => Fault::Translation,
    };
    match migration::fault(vcpu.guest(), ipa, fault) {
        Verdict::Retry => true,
        // Nothing is mapped there: the retried access faults with a syndrome of its own.
        Verdict::NotOurs => is_looked_up && !migration::is_mapped(vcpu.guest(), ipa),
        Verdict::Stuck => guest::stop_current(vcpu, StopReason::UnitStuck { ipa: page }),
    }
}

/// Returns true if the load that aborted at `address` may be read by the guest's own tables, at its exception level.
#[cold]
pub(crate) fn is_readable(address: u64) -> bool {
    let is_el0 = exception::is_from_el0(SPSR_EL2.get());
    let page = if is_el0 { stage1::page_at_el0(address) } else { stage1::page(address) };
    page.is_some()
}
