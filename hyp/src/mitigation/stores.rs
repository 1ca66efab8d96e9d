//! Speculative store bypass.
//!
//! On cores with PSTATE.SSBS, hardware does everything: the bit is part of the guest's state, and an exception to EL2 sets it
//! from SCTLR_EL2.DSSBS, which is 0. On other cores, firmware turns bypassing off (SMCCC_ARCH_WORKAROUND_2), and a guest may
//! allow it while its vCPU runs. The vCPU owns its CPU, which keeps the vCPU's choice ([`StoreBypass`]): if bypassing is
//! allowed, EL2 turns it off when it is entered, and on before it returns. Otherwise it makes no calls.

use core::cell::Cell;

use super::{Answers, Registers, cores, field};
use crate::device::smccc::{Firmware, Workaround};

/// The mitigation of speculative store bypass on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    /// None needed: the core is not affected, or firmware has turned bypassing off permanently.
    NotNeeded,
    /// PSTATE.SSBS (FEAT_SSBS).
    Ssbs,
    /// SMCCC_ARCH_WORKAROUND_2.
    Firmware,
    /// None, although the core may be affected.
    Vulnerable,
}

impl Stores {
    /// Chooses the mitigation of a CPU.
    pub(super) fn choose(registers: &Registers, answers: &Answers) -> Self {
        if cores::NOT_AFFECTED.contains(&registers.core()) {
            return Self::NotNeeded;
        }
        if field(registers.pfr1, 4) != 0 {
            return Self::Ssbs;
        }
        match answers.of(Workaround::StoreBypass { enable: 0 }) {
            0 => Self::Firmware,
            // NOT_REQUIRED, or not needed on this CPU (DEN 0028, SMCCC_ARCH_WORKAROUND_2).
            -2 | 1.. => Self::NotNeeded,
            _ => Self::Vulnerable,
        }
    }

    /// Returns a name for reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not needed",
            Self::Ssbs => "ssbs",
            Self::Firmware => "firmware",
            Self::Vulnerable => "vulnerable",
        }
    }
}

/// The state of SMCCC_ARCH_WORKAROUND_2 on one CPU, and the choice of the vCPU that owns the CPU. Used only on that CPU.
#[derive(Debug, Default)]
pub(crate) struct StoreBypass {
    /// True if the vCPU has chosen to allow bypassing while it runs.
    is_wanted: Cell<bool>,
    /// True if bypassing is allowed at the moment.
    is_allowed: Cell<bool>,
}

impl StoreBypass {
    /// Creates the state of a CPU that has come up: firmware leaves bypassing off.
    pub(crate) const fn new() -> Self {
        Self { is_wanted: Cell::new(false), is_allowed: Cell::new(false) }
    }

    /// Sets the vCPU's choice, which [`leave`](Self::leave) applies.
    pub(crate) fn choose(&self, is_mitigated: bool) {
        self.is_wanted.set(!is_mitigated);
    }

    /// Returns true if the vCPU runs with bypassing allowed, which each entry to EL2 must then turn off.
    #[inline(always)]
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.get()
    }

    /// Turns bypassing off. Called first on entry to EL2.
    pub(crate) fn enter(&self, firmware: &impl Firmware) {
        self.set(false, firmware);
    }

    /// Applies the vCPU's choice. Called last before the vCPU runs again.
    #[inline(always)]
    pub(crate) fn leave(&self, firmware: &impl Firmware) {
        if self.is_wanted.get() != self.is_allowed.get() {
            self.set(self.is_wanted.get(), firmware);
        }
    }

    /// Resets the choice: a vCPU starts with the mitigation on, as after a reset of its CPU.
    pub(crate) fn reset(&self, firmware: &impl Firmware) {
        self.is_wanted.set(false);
        self.set(false, firmware);
    }

    /// Calls firmware if the state changes.
    fn set(&self, is_allowed: bool, firmware: &impl Firmware) {
        if self.is_allowed.replace(is_allowed) != is_allowed {
            let workaround = Workaround::StoreBypass { enable: u32::from(!is_allowed) };
            let _ = firmware.call(workaround.id(), u32::from(!is_allowed));
        }
    }
}
