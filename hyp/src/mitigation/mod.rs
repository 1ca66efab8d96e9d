//! Mitigations of speculative execution: the choice for one CPU, from its registers and its firmware.
//!
//! A guest shares the predictors of its CPU with EL2, which allows two kinds of attack on EL2:
//! - *branch target injection* (Spectre-v2, CVE-2017-5715) and *branch history injection* (Spectre-BHB, CVE-2022-23960): a
//!   guest trains the branch predictor to steer speculation at EL2. The vectors for exceptions from guests clear the
//!   predictor ([`Branches`]).
//! - *speculative store bypass* (CVE-2018-3639): a load speculates past an older store to its address ([`Stores`]).
//!
//! The properties of cores are from Arm: "Speculative Processor Vulnerability", and the whitepaper "Spectre-BHB: Speculative
//! Target Reuse Attacks", which has the iteration counts in [`cores`]. Firmware calls are those of the SMC Calling Convention
//! (DEN 0028, SMCCC_ARCH_WORKAROUND_1 to 3). Firmware answers for the CPU that asks, so each CPU asks once.

mod branches;
mod cores;
mod stores;

pub(crate) use branches::Branches;
pub(crate) use stores::{StoreBypass, Stores};

use crate::device::smccc::{
    Firmware, NOT_SUPPORTED, SMCCC_ARCH_FEATURES, SMCCC_VERSION, VERSION_1_1, Workaround,
};

/// PSCI_FEATURES (DEN 0022).
const PSCI_FEATURES: crate::device::smccc::FunctionId = crate::device::smccc::FunctionId::new(0x8400_000a);

/// The operator's choice: `mitigations=` on Ballast's command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Policy {
    /// `auto`: the mitigation that each core needs.
    #[default]
    Auto,
    /// `off`: no mitigations.
    Off,
    /// `loop:N` or `clrbhb`: this mitigation on entry to EL2, on every core; for cores that [`cores`] does not list.
    Forced(Branches),
}

impl Policy {
    /// Parses the value of `mitigations=`. Returns `None` for an invalid one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            "clrbhb" => Some(Self::Forced(Branches::ClearInstruction)),
            _ => match text.strip_prefix("loop:")?.parse() {
                Ok(0) | Err(_) => None,
                Ok(count) => Some(Self::Forced(Branches::Loop(count))),
            },
        }
    }
}

/// The registers of a CPU on which the choice depends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    /// MIDR_EL1.
    pub(crate) midr: u64,
    /// ID_AA64PFR0_EL1, for CSV2 (bits 59:56).
    pub(crate) pfr0: u64,
    /// ID_AA64PFR1_EL1, for SSBS (bits 7:4).
    pub(crate) pfr1: u64,
    /// ID_AA64ISAR2_EL1, for CLRBHB (bits 31:28).
    pub(crate) isar2: u64,
    /// ID_AA64MMFR1_EL1, for ECBHB (bits 63:60).
    pub(crate) mmfr1: u64,
}

impl Registers {
    /// Returns the core: implementer and part number of MIDR_EL1, as `0xII_PPP`.
    const fn core(&self) -> u32 {
        (self.midr >> 24 << 12 & 0xff000 | self.midr >> 4 & 0xfff) as u32
    }
}

/// Returns the four-bit field at bit `shift` of an identification register.
const fn field(value: u64, shift: u32) -> u64 {
    value >> shift & 15
}

/// The answers of firmware to SMCCC_ARCH_FEATURES on one CPU, for each mitigation.
///
/// Values: negative if no CPU may make the call, 0 if this CPU needs it, 1 if calls are allowed but this CPU does not
/// need them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    workarounds: [i32; 3],
}

impl Answers {
    /// No mitigations: no firmware, or firmware before version 1.1 of the convention.
    pub(crate) const NONE: Self = Self { workarounds: [NOT_SUPPORTED; 3] };

    /// Asks firmware on this CPU. `psci` is the version of its PSCI.
    ///
    /// Before SMCCC_VERSION may be called, PSCI_FEATURES must report it, which exists from PSCI 1.0. SMCCC_ARCH_FEATURES exists
    /// from version 1.1 of the convention.
    pub(crate) fn ask(psci: (u16, u16), firmware: &impl Firmware) -> Self {
        if psci.0 < 1
            || firmware.call(PSCI_FEATURES, SMCCC_VERSION.get()) < 0
            || firmware.call(SMCCC_VERSION, 0) < VERSION_1_1
        {
            return Self::NONE;
        }
        let all =
            [Workaround::BranchPredictor, Workaround::StoreBypass { enable: 0 }, Workaround::BranchHistory];
        Self { workarounds: all.map(|workaround| firmware.call(SMCCC_ARCH_FEATURES, workaround.id().get())) }
    }

    /// Returns the answer for `workaround`.
    pub(crate) const fn of(&self, workaround: Workaround) -> i32 {
        match workaround {
            Workaround::BranchPredictor => self.workarounds[0],
            Workaround::StoreBypass { .. } => self.workarounds[1],
            Workaround::BranchHistory => self.workarounds[2],
        }
    }
}

/// The mitigations of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Mitigation of attacks on branch prediction, in the vectors.
    pub(crate) branches: Branches,
    /// Mitigation of speculative store bypass.
    pub(crate) stores: Stores,
    answers: Answers,
    policy: Policy,
}

impl Choice {
    /// Chooses the mitigations of a CPU with `registers` whose firmware gives `answers`.
    pub(crate) fn new(registers: &Registers, answers: Answers, policy: Policy) -> Self {
        Self {
            branches: Branches::choose(registers, &answers, policy),
            stores: Stores::choose(registers, &answers),
            answers,
            policy,
        }
    }

    /// Returns true if EL2 itself runs with store bypassing allowed, because the operator turned mitigations off. The guest's
    /// choice still applies to the guest.
    pub(crate) const fn allows_store_bypass(&self) -> bool {
        matches!(self.policy, Policy::Off)
    }

    /// Returns a name for reports.
    pub(crate) fn stores_name(&self) -> &'static str {
        match self.stores {
            Stores::Ssbs | Stores::Firmware if self.allows_store_bypass() => "off",
            stores => stores.name(),
        }
    }

    /// Answers SMCCC_ARCH_FEATURES for `workaround` from a guest on this CPU.
    pub(crate) const fn feature(&self, workaround: Workaround) -> i32 {
        self.answers.of(workaround)
    }

    /// Performs a guest's call of `workaround`. Returns the status for X0. [`StoreBypass::leave`] applies a change of `stores`.
    pub(crate) fn apply(
        &self,
        workaround: Workaround,
        stores: &StoreBypass,
        firmware: &impl Firmware,
    ) -> i32 {
        if self.feature(workaround) < 0 {
            return NOT_SUPPORTED;
        }
        match workaround {
            Workaround::StoreBypass { enable } if self.stores == Stores::Firmware => {
                stores.choose(enable != 0)
            }
            // No effect on a CPU that does not need the call (SMCCC_ARCH_WORKAROUND_2).
            Workaround::StoreBypass { .. } => {}
            // The vectors have just made this call, or one that includes it.
            Workaround::BranchPredictor | Workaround::BranchHistory
                if matches!(self.branches, Branches::Firmware(made)
                    if made == workaround || made == Workaround::BranchHistory) => {}
            Workaround::BranchPredictor | Workaround::BranchHistory => {
                let _ = firmware.call(workaround.id(), 0);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests;
