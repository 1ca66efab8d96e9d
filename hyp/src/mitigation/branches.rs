//! Branch prediction: what the vectors do on entry to EL2 from a guest.

use core::fmt;

use super::{Answers, Policy, Registers, cores, field};
use crate::device::smccc::Workaround;

/// The mitigation of branch-target and branch history injection on entry to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branches {
    /// None is needed: the core is not affected, or its hardware keeps contexts apart.
    NotNeeded,
    /// A loop of so many iterations, which overwrites the branch history.
    Loop(u8),
    /// CLRBHB, which clears the branch history (FEAT_CLRBHB).
    ClearInstruction,
    /// SMCCC_ARCH_WORKAROUND_1 or SMCCC_ARCH_WORKAROUND_3: firmware invalidates the predictor.
    Firmware(Workaround),
    /// None, though the core is affected: its firmware offers no call.
    NoFirmware,
    /// None, though the core may be affected: no list says what it needs.
    Unlisted,
    /// None: the operator turned it off.
    Off,
}

impl Branches {
    /// Chooses for a CPU.
    pub(super) fn choose(registers: &Registers, answers: &Answers, policy: Policy) -> Self {
        match (policy, Self::needed(registers, answers)) {
            (Policy::Forced(forced), _) => forced,
            (Policy::Off, needed) if needed != Self::NotNeeded => Self::Off,
            (_, needed) => needed,
        }
    }

    /// Chooses for a CPU, whatever the operator says.
    ///
    /// A core that lacks CSV2 takes branch targets from a guest's training; only firmware can invalidate them. It drops
    /// the branch history too: on every core that needs it, both calls invalidate the whole predictor. With CSV2, history
    /// alone is left, unless hardware keeps it apart (FEAT_CSV2_3) or clears it on exceptions to EL2 (FEAT_ECBHB).
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
                // Firmware knows that this core is not affected by the injection of targets.
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
            // That this CPU needs no call (1) does not say that it needs no loop.
            (None, _) => Self::Unlisted,
        }
    }

    /// A word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotNeeded => "not needed",
            Self::Loop(_) => "loop",
            Self::ClearInstruction => "clrbhb",
            Self::Firmware(_) => "firmware",
            Self::NoFirmware | Self::Unlisted => "vulnerable",
            Self::Off => "off",
        }
    }

    /// The iterations of the loop, if that is what it is.
    pub const fn loop_count(self) -> Option<u8> {
        match self {
            Self::Loop(count) => Some(count),
            _ => None,
        }
    }

    /// The reason why an affected core stays without a mitigation that the operator would want.
    pub const fn gap(self) -> Option<&'static str> {
        match self {
            Self::NoFirmware => Some("its firmware offers neither SMCCC_ARCH_WORKAROUND_1 nor 3"),
            Self::Unlisted => {
                Some("it is not on Arm's lists, and its firmware offers no SMCCC_ARCH_WORKAROUND_3")
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
