//! Mitigations of speculative execution: the choice for one CPU, from its registers and its firmware.
//!
//! A guest shares its CPU's predictors with EL2. Two attacks on EL2 follow, each with a mitigation of its own:
//! - *branch-target injection* (Spectre-v2, CVE-2017-5715) and *branch history injection* (Spectre-BHB,
//!   CVE-2022-23960): a guest trains the predictor, and EL2 speculates where the guest likes. The vectors that a guest's
//!   exceptions come by make the predictor forget ([`Branches`]);
//! - *speculative store bypass* (CVE-2018-3639): a load speculates past an older store to its address ([`Stores`]).
//!
//! Facts about cores are Arm's ("Speculative Processor Vulnerability", and the whitepaper "Spectre-BHB: Speculative
//! Target Reuse Attacks", whose counts of iterations are in [`cores`]). Calls to firmware are those of the SMC Calling
//! Convention (DEN 0028, 7.5 to 7.7). What firmware answers is about the CPU that asks, so each asks for itself, once.

mod branches;
mod cores;
mod stores;

pub use branches::Branches;
pub use stores::{StoreBypass, Stores};

use crate::device::smccc::{
    Firmware, NOT_SUPPORTED, SMCCC_ARCH_FEATURES, SMCCC_VERSION, VERSION_1_1, Workaround,
};

/// PSCI_FEATURES (DEN 0022, 5.15).
const PSCI_FEATURES: crate::device::smccc::FunctionId = crate::device::smccc::FunctionId::new(0x8400_000a);

/// The operator's choice: `mitigations=` on Ballast's command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// `auto`: each core gets what it needs.
    #[default]
    Auto,
    /// `off`: EL2 protects itself from nothing.
    Off,
    /// `loop:N` or `clrbhb`: this one on entry to EL2, whatever the core; for cores that [`cores`] does not list.
    Forced(Branches),
}

impl Policy {
    /// Reads the value of `mitigations=`; `None` for anything that is not one.
    pub fn parse(text: &str) -> Option<Self> {
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

/// The registers of a CPU that say what it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// MIDR_EL1.
    pub midr: u64,
    /// ID_AA64PFR0_EL1, of which CSV2 (bits 59:56) matters.
    pub pfr0: u64,
    /// ID_AA64PFR1_EL1, of which SSBS (bits 7:4) matters.
    pub pfr1: u64,
    /// ID_AA64ISAR2_EL1, of which CLRBHB (bits 31:28) matters.
    pub isar2: u64,
    /// ID_AA64MMFR1_EL1, of which ECBHB (bits 63:60) matters.
    pub mmfr1: u64,
}

impl Registers {
    /// The core: implementer and part number of MIDR_EL1, as `0xII_PPP`.
    const fn core(&self) -> u32 {
        (self.midr >> 24 << 12 & 0xff000 | self.midr >> 4 & 0xfff) as u32
    }
}

/// The field of four bits of an identification register that begins at bit `shift`.
const fn field(value: u64, shift: u32) -> u64 {
    value >> shift & 15
}

/// What firmware answers to SMCCC_ARCH_FEATURES on one CPU, for each mitigation.
///
/// The values (DEN 0028, 7.5 to 7.7): negative, the call must not be made, on any CPU; 0, it may be, and this CPU needs
/// it; 1, it may be, and this CPU does not need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    workarounds: [i32; 3],
}

impl Answers {
    /// Firmware before version 1.1 of the convention, or none: no mitigation is there.
    pub const NONE: Self = Self { workarounds: [NOT_SUPPORTED; 3] };

    /// Asks the firmware of the CPU that this runs on. `psci` is the version of its PSCI.
    ///
    /// Nothing but PSCI is called before it is known to be there: SMCCC_VERSION is discovered by PSCI_FEATURES, which PSCI
    /// has from 1.0 on, and SMCCC_ARCH_FEATURES exists from version 1.1 of the convention on (DEN 0028, 7.2 and 7.3).
    pub fn ask(psci: (u16, u16), firmware: &impl Firmware) -> Self {
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

    /// The answer for `workaround`.
    pub const fn of(&self, workaround: Workaround) -> i32 {
        match workaround {
            Workaround::BranchPredictor => self.workarounds[0],
            Workaround::StoreBypass { .. } => self.workarounds[1],
            Workaround::BranchHistory => self.workarounds[2],
        }
    }
}

/// The mitigations of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What the vectors do about branch prediction.
    pub branches: Branches,
    /// What there is against speculative store bypass.
    pub stores: Stores,
    answers: Answers,
    policy: Policy,
}

impl Choice {
    /// Chooses for a CPU with `registers` whose firmware gives `answers`.
    pub fn new(registers: &Registers, answers: Answers, policy: Policy) -> Self {
        Self {
            branches: Branches::choose(registers, &answers, policy),
            stores: Stores::choose(registers, &answers),
            answers,
            policy,
        }
    }

    /// Whether EL2 itself runs with store bypassing allowed, because the operator turned mitigations off. A guest's own
    /// choice stands.
    pub const fn allows_store_bypass(&self) -> bool {
        matches!(self.policy, Policy::Off)
    }

    /// A word for reports on store bypass.
    pub fn stores_name(&self) -> &'static str {
        match self.stores {
            Stores::Ssbs | Stores::Firmware if self.allows_store_bypass() => "off",
            stores => stores.name(),
        }
    }

    /// Answers a guest's SMCCC_ARCH_FEATURES for `workaround`, on this CPU.
    pub const fn feature(&self, workaround: Workaround) -> i32 {
        self.answers.of(workaround)
    }

    /// Does what a guest asks for by `workaround`, as [`StoreBypass::leave`] completes. Returns the status for X0.
    pub fn apply(&self, workaround: Workaround, stores: &StoreBypass, firmware: &impl Firmware) -> i32 {
        if self.feature(workaround) < 0 {
            return NOT_SUPPORTED;
        }
        match workaround {
            Workaround::StoreBypass { enable } if self.stores == Stores::Firmware => {
                stores.choose(enable != 0)
            }
            // Without an effect on a CPU that does not need it (DEN 0028, 7.6).
            Workaround::StoreBypass { .. } => {}
            // The vectors have just made the call, or one that does no less.
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
