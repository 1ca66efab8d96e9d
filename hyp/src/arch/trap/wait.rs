//! WFI of a vCPU, trapped while memory is migrated: its time is used.

use super::skip_instruction;
use crate::arch::cpu;
use crate::guest::migration;

/// ISS.TI (Arm ARM D24.2.40): bit 0 tells WFE and WFET from WFI and WFIT.
const IS_EVENT: u64 = 1;

/// A trapped WFI. Where migration has no use for the time, it does not trap again for a while, and the guest executes it.
pub(super) fn wait(esr: u64) {
    if esr & IS_EVENT != 0 || migration::use_wait(cpu::current()) {
        skip_instruction(esr);
    }
}
