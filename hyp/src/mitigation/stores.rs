//! Speculative store bypass.
//!
//! Where the core has PSTATE.SSBS, hardware does everything: the bit is part of a guest's state, and an exception to EL2
//! sets it from SCTLR_EL2.DSSBS, which is 0. Other cores turn bypassing off by firmware (SMCCC_ARCH_WORKAROUND_2), and a
//! guest may ask for it to be on while its vCPU runs. The CPU is the vCPU's own, so its choice is kept there
//! ([`StoreBypass`]): EL2 turns bypassing off when it is entered and on again before it leaves. A CPU whose vCPU does not
//! ask makes no call.

use core::cell::Cell;

use super::{Answers, Registers, cores, field};
use crate::device::smccc::{Firmware, Workaround};

/// What there is on a CPU against speculative store bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// Nothing is needed: the core is not affected, or firmware has turned bypassing off for good.
    NotNeeded,
    /// PSTATE.SSBS (FEAT_SSBS).
    Ssbs,
    /// SMCCC_ARCH_WORKAROUND_2.
    Firmware,
    /// The core may be affected, and nothing helps.
    Vulnerable,
}

impl Stores {
    /// Chooses for a CPU.
    pub(super) fn choose(registers: &Registers, answers: &Answers) -> Self {
        if cores::NOT_AFFECTED.contains(&registers.core()) {
            return Self::NotNeeded;
        }
        if field(registers.pfr1, 4) != 0 {
            return Self::Ssbs;
        }
        match answers.of(Workaround::StoreBypass { enable: 0 }) {
            0 => Self::Firmware,
            // NOT_REQUIRED; or this CPU does not need it (DEN 0028, 7.6).
            -2 | 1.. => Self::NotNeeded,
            _ => Self::Vulnerable,
        }
    }

    /// A word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not needed",
            Self::Ssbs => "ssbs",
            Self::Firmware => "firmware",
            Self::Vulnerable => "vulnerable",
        }
    }
}

/// The state of SMCCC_ARCH_WORKAROUND_2 on one CPU, and the choice of the vCPU that owns it. Used by that CPU alone.
#[derive(Debug, Default)]
pub struct StoreBypass {
    /// The vCPU asked for bypassing to be allowed while it runs.
    is_wanted: Cell<bool>,
    /// Firmware allows it now.
    is_allowed: Cell<bool>,
}

impl StoreBypass {
    /// State after a CPU has come up: bypassing is off, as firmware leaves it (DEN 0028, 7.6).
    pub const fn new() -> Self {
        Self { is_wanted: Cell::new(false), is_allowed: Cell::new(false) }
    }

    /// Keeps the vCPU's choice, which [`leave`](Self::leave) makes true.
    pub fn choose(&self, is_mitigated: bool) {
        self.is_wanted.set(!is_mitigated);
    }

    /// Whether the vCPU runs with bypassing allowed, so that each entry to EL2 has to turn it off.
    #[inline(always)]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.get()
    }

    /// Turns bypassing off, first of all on entry to EL2.
    pub fn enter(&self, firmware: &impl Firmware) {
        self.set(false, firmware);
    }

    /// Turns bypassing on if the vCPU wants it, last of all before it runs again.
    #[inline(always)]
    pub fn leave(&self, firmware: &impl Firmware) {
        if self.is_wanted.get() != self.is_allowed.get() {
            self.set(self.is_wanted.get(), firmware);
        }
    }

    /// Forgets the choice: a vCPU starts, as after a reset of its CPU, with the mitigation on.
    pub fn reset(&self, firmware: &impl Firmware) {
        self.is_wanted.set(false);
        self.set(false, firmware);
    }

    /// Calls firmware if its state is another.
    fn set(&self, is_allowed: bool, firmware: &impl Firmware) {
        if self.is_allowed.replace(is_allowed) != is_allowed {
            let workaround = Workaround::StoreBypass { enable: u32::from(!is_allowed) };
            let _ = firmware.call(workaround.id(), u32::from(!is_allowed));
        }
    }
}
