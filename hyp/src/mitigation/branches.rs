//! Branch prediction: the mitigation in the vectors, on entry to EL2 from a guest.

use core::fmt;

use super::{Answers, Policy, Registers, cores, field};
use crate::device::smccc::Workaround;

/// The mitigation of branch-target and branch history injection on entry to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branches {
    /// None needed: the core is not affected, or its hardware separates contexts.
    NotNeeded,
    /// A loop with this number of iterations, which overwrites the branch history.
    Loop(u8),
    /// CLRBHB, which clears the branch history (FEAT_CLRBHB).
    ClearInstruction,
    /// SMCCC_ARCH_WORKAROUND_1 or SMCCC_ARCH_WORKAROUND_3: firmware invalidates the predictor.
    Firmware(Workaround),
    /// None, although the core is affected: its firmware has no call.
    NoFirmware,
    /// None, although the core may be affected: it is not listed.
    Unlisted,
    /// None: turned off by the operator.
    Off,
}

impl Branches {
    /// Chooses the mitigation of a CPU.
    pub(super) fn choose(registers: &Registers, answers: &Answers, policy: Policy) -> Self {
        match (policy, Self::needed(registers, answers)) {
            (Policy::Forced(forced), _) => forced,
            (Policy::Off, needed) if needed != Self::NotNeeded => Self::Off,
            (_, needed) => needed,
        }
    }

    /// Returns the mitigation that a CPU needs, regardless of the policy.
    ///
    /// Without CSV2, a guest can train branch targets of EL2, and only firmware can invalidate them. On every core that needs
    /// this, both calls invalidate the whole predictor, including the branch history. With CSV2, only the history is exposed,
    /// unless hardware separates it (FEAT_CSV2_3) or clears it on exceptions to EL2 (FEAT_ECBHB).
    fn needed(registers: &Registers, answers: &Answers) -> Self {
        let core = registers.core();
        let csv2 = field(registers.pfr0, 56);
        if csv2 >= 3 || cores::NOT_AFFECTED.contains(&core) {
            return Self::NotNeeded;
        }
        if csv2 == 0 {
            match (answers.of(Workaround::BranchHistory), answers.of(Workaround::BranchPredictor)) {
                (0, _) => return Self::Firmware(Workaround::BranchHistory),
                (_, 0) => return Self::Firmware(Workaround::BranchPredictor),
                // According to firmware, target injection does not affect this core.
                (_, 1..) => {}
                _ => return Self::NoFirmware,
            }
        }
        if field(registers.mmfr1, 60) != 0 || cores::HISTORY_NOT_AFFECTED.contains(&core) {
            return Self::NotNeeded;
        }
        if field(registers.isar2, 28) != 0 {
            return Self::ClearInstruction;
        }
        match (cores::loop_count(core), answers.of(Workaround::BranchHistory)) {
            (Some(count), _) => Self::Loop(count),
            (None, 0) => Self::Firmware(Workaround::BranchHistory),
            // A CPU that needs no call (answer 1) may still need a loop.
            (None, _) => Self::Unlisted,
        }
    }

    /// Returns a name for reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not needed",
            Self::Loop(_) => "loop",
            Self::ClearInstruction => "clrbhb",
            Self::Firmware(_) => "firmware",
            Self::NoFirmware | Self::Unlisted => "vulnerable",
            Self::Off => "off",
        }
    }

    /// Returns the number of iterations if the mitigation is a loop.
    pub(crate) const fn loop_count(self) -> Option<u8> {
        match self {
            Self::Loop(count) => Some(count),
            _ => None,
        }
    }

    /// Returns the reason why an affected core has no mitigation; `None` if it has one or the operator turned it off.
    pub(crate) const fn gap(self) -> Option<&'static str> {
        match self {
            Self::NoFirmware => Some("its firmware has neither SMCCC_ARCH_WORKAROUND_1 nor 3"),
            Self::Unlisted => {
                Some("it is not on Arm's lists, and its firmware has no SMCCC_ARCH_WORKAROUND_3")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Branches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop(count) => write!(f, "loop of {count}"),
            Self::Firmware(Workaround::BranchPredictor) => f.write_str("firmware, WORKAROUND_1"),
            Self::Firmware(_) => f.write_str("firmware, WORKAROUND_3"),
            _ => f.write_str(self.name()),
        }
    }
}
