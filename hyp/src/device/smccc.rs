//! Calls by HVC and SMC from a guest: the SMC Calling Convention 1.2 (Arm DEN 0028).
//!
//! [`decode`] converts the guest's registers to a [`Call`]. [`FunctionId`] has the width of a call's arguments: those of a
//! 32-bit call are truncated to 32 bits, and its status is sign-extended to X0 ([`status`]), so that a caller sees -1 in both
//! W0 and X0.
//!
//! Available are SMCCC_VERSION, SMCCC_ARCH_FEATURES, the firmware's mitigations of speculative execution if the host's firmware
//! has them (`crate::mitigation`), PSCI ([`super::psci`]), and the vendor-specific hypervisor range with Ballast's UID.
//! Everything else is NOT_SUPPORTED.

pub(crate) use super::function_id::{FunctionId, NOT_SUPPORTED, Owner, SMCCC_VERSION, status};
use super::psci;

/// Result of SMCCC_VERSION: 1.2.
pub(crate) const VERSION: u32 = 0x1_0002;
/// First version with SMCCC_ARCH_FEATURES and the mitigations: 1.1.
pub(crate) const VERSION_1_1: i32 = 0x1_0001;
/// Ballast's UID in the vendor-specific hypervisor range: 63bc9d3a-0e5b-4c2e-9d57-0a86d1f4b17e.
pub(crate) const UID: [u8; 16] =
    [0x63, 0xbc, 0x9d, 0x3a, 0x0e, 0x5b, 0x4c, 0x2e, 0x9d, 0x57, 0x0a, 0x86, 0xd1, 0xf4, 0xb1, 0x7e];
/// Revision of the calls in the vendor-specific hypervisor range.
pub(crate) const REVISION: (u32, u32) = (1, 0);

/// SMCCC_ARCH_FEATURES.
pub(crate) const SMCCC_ARCH_FEATURES: FunctionId = FunctionId::new(0x8000_0001);
const SMCCC_ARCH_WORKAROUND_1: FunctionId = FunctionId::new(0x8000_8000);
const SMCCC_ARCH_WORKAROUND_2: FunctionId = FunctionId::new(0x8000_7fff);
const SMCCC_ARCH_WORKAROUND_3: FunctionId = FunctionId::new(0x8000_3fff);
const VENDOR_HYPERVISOR_UID: FunctionId = FunctionId::new(0x8600_ff01);
const VENDOR_HYPERVISOR_REVISION: FunctionId = FunctionId::new(0x8600_ff03);

/// A mitigation that firmware offers (SMCCC_ARCH_WORKAROUND_1 to 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workaround {
    /// SMCCC_ARCH_WORKAROUND_1: branch predictor, CVE-2017-5715.
    BranchPredictor,
    /// SMCCC_ARCH_WORKAROUND_2: speculative store bypass, CVE-2018-3639.
    StoreBypass {
        /// The caller's argument: any value except 0 turns the mitigation on.
        enable: u32,
    },
    /// SMCCC_ARCH_WORKAROUND_3: branch history, CVE-2017-5715 and CVE-2022-23960.
    BranchHistory,
}

impl Workaround {
    /// Returns the function identifier of the call.
    pub(crate) const fn id(self) -> FunctionId {
        match self {
            Self::BranchPredictor => SMCCC_ARCH_WORKAROUND_1,
            Self::StoreBypass { .. } => SMCCC_ARCH_WORKAROUND_2,
            Self::BranchHistory => SMCCC_ARCH_WORKAROUND_3,
        }
    }
}

/// A decoded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Return these values in X0 to X3.
    Answer([u64; 4]),
    /// SMCCC_ARCH_FEATURES: answered by [`arch_features`].
    ArchFeatures(FunctionId),
    /// A mitigation: applied by `mitigation::Choice::apply`.
    Workaround(Workaround),
    /// A PSCI call.
    Psci(psci::Call),
    /// A call in the vendor-specific hypervisor range, except UID and revision.
    Vendor(FunctionId),
    /// An unknown call: NOT_SUPPORTED.
    Unknown,
}

/// The host's firmware on the calling CPU.
pub(crate) trait Firmware {
    /// Calls the 32-bit function `id` with `argument` in W1. Returns W0.
    fn call(&self, id: FunctionId, argument: u32) -> i32;
}

/// Decodes the call in a guest's X0 to X3. The immediate of the HVC or SMC is 0.
pub(crate) fn decode(registers: [u64; 4]) -> Call {
    // Bits 63 to 32 of X0 are not part of the identifier.
    let id = FunctionId::new(registers[0] as u32);
    if !id.is_fast() {
        return Call::Unknown;
    }
    let [_, first, second, third] = registers;
    let arguments = [id.argument(first), id.argument(second), id.argument(third)];
    match id.owner() {
        Owner::Arch => decode_arch(id, arguments),
        Owner::StandardSecure => match psci::decode(id, arguments) {
            Some(call) => Call::Psci(call),
            None => Call::Unknown,
        },
        Owner::VendorHypervisor => decode_vendor(id),
        Owner::Other => Call::Unknown,
    }
}

fn decode_arch(id: FunctionId, arguments: [u64; 3]) -> Call {
    match id {
        SMCCC_VERSION => Call::Answer([VERSION.into(), 0, 0, 0]),
        SMCCC_ARCH_FEATURES => Call::ArchFeatures(FunctionId::new(arguments[0] as u32)),
        _ => match workaround(id, arguments[0] as u32) {
            Some(workaround) => Call::Workaround(workaround),
            None => Call::Unknown,
        },
    }
}

fn decode_vendor(id: FunctionId) -> Call {
    match id {
        VENDOR_HYPERVISOR_UID => Call::Answer(uid_registers()),
        VENDOR_HYPERVISOR_REVISION => Call::Answer([REVISION.0.into(), REVISION.1.into(), 0, 0]),
        _ => Call::Vendor(id),
    }
}

fn workaround(id: FunctionId, enable: u32) -> Option<Workaround> {
    match id {
        SMCCC_ARCH_WORKAROUND_1 => Some(Workaround::BranchPredictor),
        SMCCC_ARCH_WORKAROUND_2 => Some(Workaround::StoreBypass { enable }),
        SMCCC_ARCH_WORKAROUND_3 => Some(Workaround::BranchHistory),
        _ => None,
    }
}

/// Answers SMCCC_ARCH_FEATURES for `id`. `answer` returns the firmware's answer for a mitigation.
pub(crate) fn arch_features(id: FunctionId, answer: impl FnOnce(Workaround) -> i32) -> i32 {
    match id {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
        _ => workaround(id, 0).map_or(NOT_SUPPORTED, answer),
    }
}

/// Returns the UID as W0 to W3 of a UID call: bytes 0 to 3 in W0, the first one in its low bits.
const fn uid_registers() -> [u64; 4] {
    let mut words = [0; 4];
    let mut at = 0;
    while at < UID.len() {
        words[at / 4] |= (UID[at] as u64) << (8 * (at % 4));
        at += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(workaround: Workaround) -> i32 {
        match workaround {
            Workaround::BranchPredictor => 0,
            Workaround::StoreBypass { .. } => 1,
            Workaround::BranchHistory => NOT_SUPPORTED,
        }
    }

    #[test]
    fn the_version_is_that_of_the_convention() {
        assert_eq!(decode([0x8000_0000, 0, 0, 0]), Call::Answer([0x1_0002, 0, 0, 0]));
        assert_eq!(decode([0xdead_beef_8000_0000, 0, 0, 0]), Call::Answer([0x1_0002, 0, 0, 0]));
    }

    #[test]
    fn unknown_calls_are_unknown() {
        for id in [
            0x0000_0000, // yielding
            0x0000_0001,
            0x8000_0002, // SMCCC_ARCH_SOC_ID
            0xc000_0000, // SMCCC_VERSION has no 64-bit form
            0x8100_0000, // CPU service
            0x8300_0000, // OEM
            0x8400_0050, // TRNG
            0x8500_0020, // paravirtual time
            0xbf00_ff01, // trusted OS
            0xffff_ffff,
        ] {
            assert_eq!(decode([id, 0, 0, 0]), Call::Unknown, "{id:#x}");
        }
        assert_eq!(status(NOT_SUPPORTED), u64::MAX);
    }

    #[test]
    fn features_follow_the_firmware() {
        let ask = |id: u32| match decode([0x8000_0001, u64::from(id) | 0xff << 32, 0, 0]) {
            Call::ArchFeatures(id) => arch_features(id, patched),
            other => panic!("{other:?}"),
        };
        assert_eq!(ask(0x8000_0000), 0);
        assert_eq!(ask(0x8000_0001), 0);
        assert_eq!(ask(0x8000_8000), 0);
        assert_eq!(ask(0x8000_7fff), 1);
        assert_eq!(ask(0x8000_3fff), -1);
        assert_eq!(ask(0x8400_0000), -1);
    }

    #[test]
    fn mitigations_are_decoded() {
        assert_eq!(decode([0x8000_8000, 0, 0, 0]), Call::Workaround(Workaround::BranchPredictor));
        assert_eq!(
            decode([0x8000_7fff, 0x1_0000_0001, 0, 0]),
            Call::Workaround(Workaround::StoreBypass { enable: 1 })
        );
        assert_eq!(decode([0x8000_3fff, 0, 0, 0]), Call::Workaround(Workaround::BranchHistory));
        for workaround in [Workaround::BranchPredictor, Workaround::BranchHistory] {
            assert_eq!(decode([workaround.id().get().into(), 0, 0, 0]), Call::Workaround(workaround));
        }
    }

    #[test]
    fn the_hypervisor_identifies_itself() {
        let Call::Answer(words) = decode([0x8600_ff01, 0, 0, 0]) else { panic!() };
        assert_eq!(words, [0x3a9d_bc63, 0x2e4c_5b0e, 0x860a_579d, 0x7eb1_f4d1]);
        assert_eq!(decode([0x8600_ff03, 0, 0, 0]), Call::Answer([1, 0, 0, 0]));
        assert_eq!(decode([0xc600_0001, 0, 0, 0]), Call::Vendor(FunctionId::new(0xc600_0001)));
    }
}
