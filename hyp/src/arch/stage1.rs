//! A guest's stage 1 translation on this CPU: its registers, and addresses looked up by it.

use super::errata;
use super::sysreg::write;
use crate::translation;

/// Registers of stage 1 translation, which trap while memory is migrated (HCR_EL2.TVM).
#[derive(Clone, Copy)]
pub(crate) enum Register {
    Sctlr,
    Ttbr0,
    Ttbr1,
    Tcr,
    Afsr0,
    Afsr1,
    Esr,
    Far,
    Mair,
    Amair,
    ContextId,
}

impl Register {
    /// Writes the register for the guest.
    pub(crate) fn write(self, value: u64) {
        match self {
            Self::Sctlr => write!(guest "sctlr_el1", value),
            Self::Ttbr0 => write!(guest "ttbr0_el1", value),
            Self::Ttbr1 => write!(guest "ttbr1_el1", value),
            Self::Tcr => write!(guest "tcr_el1", value),
            Self::Afsr0 => write!(guest "afsr0_el1", value),
            Self::Afsr1 => write!(guest "afsr1_el1", value),
            Self::Esr => write!(guest "esr_el1", value),
            Self::Far => write!(guest "far_el1", value),
            Self::Mair => write!(guest "mair_el1", value),
            Self::Amair => write!(guest "amair_el1", value),
            Self::ContextId => write!(guest "contextidr_el1", value),
        }
    }
}

/// Returns the page of IPA behind `address` if EL1 may read it by the guest's own tables (AT S1E1R).
pub(crate) fn page(address: u64) -> Option<u64> {
    translation::look_up(&errata::This, || {
        // SAFETY: an address translation changes PAR_EL1 alone, which `look_up` restores.
        unsafe { core::arch::asm!("at s1e1r, {}", in(reg) address, options(nostack, preserves_flags)) }
    })
}

/// Returns the page of IPA behind `address` if EL0 may read it by the guest's own tables (AT S1E0R).
pub(crate) fn page_at_el0(address: u64) -> Option<u64> {
    translation::look_up(&errata::This, || {
        // SAFETY: an address translation changes PAR_EL1 alone, which `look_up` restores.
        unsafe { core::arch::asm!("at s1e0r, {}", in(reg) address, options(nostack, preserves_flags)) }
    })
}
