//! What guests trap on. The vectors read the syndrome, once, and call the functions here with it.

mod abort;
mod hypercall;
mod inject;
mod interrupt;
mod system_register;

use super::cpu;
use super::vectors::{Frame, MARK_FIQ, MARK_SERROR};
use crate::guest::StopReason;
use aarch64_cpu::registers::{ELR_EL2, Readable, Writeable};

pub(super) use abort::data_abort;
pub(super) use interrupt::irq;
pub(crate) use interrupt::{kick, poll};
pub(super) use system_register::system_register;

/// ESR_ELx.EC (Arm ARM D24.2.40).
const EC_HVC64: u64 = 0x16;
const EC_SMC64: u64 = 0x17;
const EC_INSTRUCTION_ABORT: u64 = 0x20;

/// Goes past the instruction that trapped.
#[inline(always)]
fn skip_instruction() {
    ELR_EL2.set(ELR_EL2.get() + 4);
}

/// A synchronous exception from a guest other than those with functions of their own, an SError or an FIQ.
pub(super) extern "C" fn sync(frame: &mut Frame, esr: u64) {
    match esr >> 26 {
        EC_HVC64 => hypercall::hvc(frame, esr),
        EC_SMC64 => hypercall::smc(frame, esr),
        EC_INSTRUCTION_ABORT => abort::instruction(esr),
        _ if esr == MARK_SERROR => serror(),
        // Group 0 is not used at EL2: an FIQ is nothing that Ballast asked for.
        _ if esr == MARK_FIQ => {}
        // WFE and WFI run untrapped; floating point, SVE and pointer authentication too where the guest has them.
        // Whatever else traps is something that its identification registers do not show.
        _ => inject::undefined(),
    }
}

/// An SError while a guest ran: hardware reports an error that nobody here can attribute or mend. The guest that
/// ran ends.
#[cold]
fn serror() {
    if let Some(vcpu) = cpu::current().vcpu() {
        crate::guest::stop_current(vcpu, StopReason::SystemError);
    }
}
