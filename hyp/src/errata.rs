//! CPU errata that EL2 works around at run time, by MIDR_EL1. Pure, so that a PC can test the table; `arch::errata` has the
//! workarounds of this machine. `hyp/ERRATA.md` lists all errata of these cores that Linux, Xen and TF-A know, with the reasons
//! why the others need nothing here.
//!
//! The ranges of revisions are from Arm's Software Developers Errata Notices, as in Linux and TF-A.

use core::fmt;

/// A set of workarounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Workarounds(u8);

impl Workarounds {
    /// No workarounds.
    pub(crate) const NONE: Self = Self(0);
    /// A broadcast TLBI and its DSB may complete before accesses by the invalidated translation do. Another TLBI and DSB follow
    /// ([`crate::translation::complete`]), on all CPUs if one of them is affected.
    pub(crate) const REPEAT_TLBI: Self = Self(1 << 0);
    /// A speculative AT at EL2 may fill the TLB with translations that mix one guest's stage 1 with another's stage 2. Stage 1
    /// is closed while stage 2 changes ([`crate::translation`]).
    pub(crate) const CLOSE_STAGE_1: Self = Self(1 << 1);
    /// A load across pages may report a stage 2 fault although it faults at stage 1, which has priority.
    pub(crate) const CHECK_STAGE_1: Self = Self(1 << 2);
    /// Exclusive accesses may deadlock with loads of Device memory. EL2 uses load-acquire, which does not deadlock. It cannot
    /// prevent a guest from using other loads.
    pub(crate) const GUEST_DEADLOCK: Self = Self(1 << 3);

    /// All workarounds.
    pub(crate) const ALL: [Self; 4] =
        [Self::REPEAT_TLBI, Self::CLOSE_STAGE_1, Self::CHECK_STAGE_1, Self::GUEST_DEADLOCK];

    /// Converts the number that [`Self::bits`] returned to the set.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns the set as a number.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// Returns true if a stage 2 fault in a data abort from a guest may be a stage 1 fault instead: with
    /// [`Self::CHECK_STAGE_1`], a load (ESR_EL2.ISS.WnR, bit 6) that was not a stage 1 walk (S1PTW, bit 7).
    #[inline(always)]
    pub(crate) const fn doubt_abort(self, esr: u64) -> bool {
        self.has(Self::CHECK_STAGE_1) && esr & (1 << 6 | 1 << 7) == 0
    }

    /// Returns true if the set contains all workarounds of `other`.
    #[inline(always)]
    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Describes one workaround, for the log.
impl fmt::Display for Workarounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::REPEAT_TLBI => "each TLB invalidation is completed twice",
            Self::CLOSE_STAGE_1 => "no stage 1 walks while stage 2 changes",
            Self::CHECK_STAGE_1 => "stage 1 is checked before a stage 2 fault is handled",
            Self::GUEST_DEADLOCK => {
                "a guest without the workaround can deadlock the CPU: run only trusted guests"
            }
            _ => "",
        })
    }
}

/// Mask of the implementer and the part number in MIDR_EL1.
const MODEL: u64 = 0xff00_fff0;
const CORTEX_A53: u64 = 0x4100_d030;
const CORTEX_A55: u64 = 0x4100_d050;
const CORTEX_A57: u64 = 0x4100_d070;
const CORTEX_A72: u64 = 0x4100_d080;
const CORTEX_A76: u64 = 0x4100_d0b0;
const NEOVERSE_N1: u64 = 0x4100_d0c0;
const NEOVERSE_N2: u64 = 0x4100_d490;
const BRAHMA_B53: u64 = 0x4200_1000;
/// No revision of the core has a fix.
const ANY: u8 = 0xff;

/// An erratum of a core, present since r0p0.
#[derive(Clone, Copy, Debug)]
struct Erratum {
    number: u32,
    model: u32,
    /// Last affected revision: variant and revision, four bits each.
    last: u8,
    workaround: Workarounds,
}

const fn erratum(number: u32, model: u64, last: u8, workaround: Workarounds) -> Erratum {
    Erratum { number, model: model as u32, last, workaround }
}

/// Sorted by workaround, then by number.
const ERRATA: [Erratum; 15] = [
    erratum(1_286_807, CORTEX_A76, 0x30, Workarounds::REPEAT_TLBI),
    // The instructions of this workaround also fix this one.
    erratum(1_542_419, NEOVERSE_N1, 0x40, Workarounds::REPEAT_TLBI),
    erratum(2_441_007, CORTEX_A55, ANY, Workarounds::REPEAT_TLBI),
    erratum(4_193_789, NEOVERSE_N2, ANY, Workarounds::REPEAT_TLBI),
    erratum(4_193_800, CORTEX_A76, ANY, Workarounds::REPEAT_TLBI),
    erratum(4_193_800, NEOVERSE_N1, ANY, Workarounds::REPEAT_TLBI),
    erratum(1_165_522, CORTEX_A76, 0x20, Workarounds::CLOSE_STAGE_1),
    erratum(1_165_522, NEOVERSE_N1, 0x20, Workarounds::CLOSE_STAGE_1),
    erratum(1_319_367, CORTEX_A72, ANY, Workarounds::CLOSE_STAGE_1),
    erratum(1_319_537, CORTEX_A57, ANY, Workarounds::CLOSE_STAGE_1),
    erratum(1_530_923, CORTEX_A55, 0x20, Workarounds::CLOSE_STAGE_1),
    erratum(1_530_924, CORTEX_A53, ANY, Workarounds::CLOSE_STAGE_1),
    // Broadcom publishes no errata; its core derives from Cortex-A53.
    erratum(1_530_924, BRAHMA_B53, ANY, Workarounds::CLOSE_STAGE_1),
    erratum(834_220, CORTEX_A57, 0x12, Workarounds::CHECK_STAGE_1),
    erratum(832_075, CORTEX_A57, 0x12, Workarounds::GUEST_DEADLOCK),
];

impl Erratum {
    fn is_in(&self, midr: u64) -> bool {
        let revision = (midr >> 16 & 0xf0 | midr & 0xf) as u8;
        midr & MODEL == u64::from(self.model) && revision <= self.last
    }
}

/// Returns the workarounds that the CPU with this MIDR_EL1 needs.
pub(crate) fn needed(midr: u64) -> Workarounds {
    let bits = ERRATA.iter().filter(|erratum| erratum.is_in(midr)).map(|erratum| erratum.workaround.0);
    Workarounds(bits.fold(0, |all, bits| all | bits))
}

/// The numbers of the errata for which some of these CPUs need a workaround, for the log.
#[derive(Clone, Debug)]
pub(crate) struct Numbers<I> {
    /// Workaround.
    pub(crate) workaround: Workarounds,
    /// MIDR_EL1 of all CPUs.
    pub(crate) midrs: I,
}

impl<I: Iterator<Item = u64> + Clone> fmt::Display for Numbers<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = 0;
        for erratum in ERRATA.iter().filter(|erratum| erratum.workaround == self.workaround) {
            if erratum.number != last && self.midrs.clone().any(|midr| erratum.is_in(midr)) {
                write!(f, "{}{}", if last == 0 { "" } else { ", " }, erratum.number)?;
                last = erratum.number;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Workarounds as W;
    use std::path::Path;

    /// Returns MIDR_EL1 of r`variant`p`revision`, with the architecture field of all these cores.
    fn midr(model: u64, variant: u64, revision: u64) -> u64 {
        model | variant << 20 | 0xf << 16 | revision
    }

    fn set(workarounds: &[W]) -> W {
        W::from_bits(workarounds.iter().fold(0, |bits, one| bits | one.bits()))
    }

    #[test]
    fn each_core_gets_the_workarounds_of_its_errata_notice() {
        let at = |model, revision: (u64, u64)| needed(midr(model, revision.0, revision.1));
        for revision in [(0, 0), (0, 2), (0, 4)] {
            assert_eq!(at(CORTEX_A53, revision), W::CLOSE_STAGE_1);
        }
        assert_eq!(at(BRAHMA_B53, (0, 0)), W::CLOSE_STAGE_1);
        assert_eq!(at(CORTEX_A55, (0, 0)), set(&[W::REPEAT_TLBI, W::CLOSE_STAGE_1]));
        assert_eq!(at(CORTEX_A55, (2, 0)), set(&[W::REPEAT_TLBI, W::CLOSE_STAGE_1]));
        assert_eq!(at(CORTEX_A55, (2, 1)), W::REPEAT_TLBI);
        for revision in [(0, 0), (1, 1), (1, 2)] {
            let all = set(&[W::CLOSE_STAGE_1, W::CHECK_STAGE_1, W::GUEST_DEADLOCK]);
            assert_eq!(at(CORTEX_A57, revision), all);
        }
        assert_eq!(at(CORTEX_A57, (1, 3)), W::CLOSE_STAGE_1);
        assert_eq!(at(CORTEX_A72, (0, 0)), W::CLOSE_STAGE_1);
        assert_eq!(at(CORTEX_A72, (1, 0)), W::CLOSE_STAGE_1);
        for model in [CORTEX_A76, NEOVERSE_N1] {
            assert_eq!(at(model, (0, 0)), set(&[W::REPEAT_TLBI, W::CLOSE_STAGE_1]));
            assert_eq!(at(model, (2, 0)), set(&[W::REPEAT_TLBI, W::CLOSE_STAGE_1]));
            assert_eq!(at(model, (3, 0)), W::REPEAT_TLBI);
            assert_eq!(at(model, (4, 1)), W::REPEAT_TLBI);
        }
        assert_eq!(at(NEOVERSE_N2, (0, 0)), W::REPEAT_TLBI);
        assert_eq!(at(NEOVERSE_N2, (0, 3)), W::REPEAT_TLBI);
    }

    #[test]
    fn other_cores_and_implementers_need_nothing() {
        // Cortex-A35, Neoverse V1, QEMU's `max`; Cortex-A57's and Brahma-B53's part numbers by another implementer.
        for model in [0x4100_d040, 0x4100_d400, 0x0000_0510, 0x5100_d070, 0x4100_1000, 0] {
            assert_eq!(needed(midr(model, 0, 0)), W::NONE, "{model:#x}");
        }
    }

    #[test]
    fn only_loads_on_affected_machines_are_checked() {
        let affected = set(&[W::CHECK_STAGE_1, W::CLOSE_STAGE_1]);
        // Translation faults at level 3: a load with and without a syndrome, a store, a stage 1 walk.
        for (esr, is_doubted) in
            [(0x93c0_0007, true), (0x9200_0007, true), (0x93c0_0047, false), (0x9200_0087, false)]
        {
            assert_eq!(affected.doubt_abort(esr), is_doubted, "{esr:#x}");
            assert!(!W::CLOSE_STAGE_1.doubt_abort(esr));
        }
    }

    #[test]
    fn each_number_is_listed_once_for_all_cpus() {
        let cpus = [midr(CORTEX_A55, 1, 0), midr(CORTEX_A76, 1, 0), midr(NEOVERSE_N1, 3, 1)];
        let text =
            |workaround, midrs: &[u64]| Numbers { workaround, midrs: midrs.iter().copied() }.to_string();
        assert_eq!(text(W::REPEAT_TLBI, &cpus), "1286807, 1542419, 2441007, 4193800");
        assert_eq!(text(W::REPEAT_TLBI, &cpus[2..]), "1542419, 4193800");
        assert_eq!(text(W::CLOSE_STAGE_1, &cpus), "1165522, 1530923");
        assert_eq!(text(W::CHECK_STAGE_1, &cpus), "");
    }

    #[test]
    fn the_table_is_sorted_and_each_workaround_has_a_description() {
        let place = |erratum: &Erratum| {
            let index = W::ALL.iter().position(|&one| one == erratum.workaround).unwrap();
            (index, erratum.number)
        };
        assert!(ERRATA.windows(2).all(|pair| place(&pair[0]) <= place(&pair[1])));
        assert!(W::ALL.iter().all(|workaround| !workaround.to_string().is_empty()));
        assert!(ERRATA.iter().all(|erratum| u64::from(erratum.model) & !MODEL == 0));
    }

    /// Calls `see` with each source file of this crate.
    fn each_source(folder: &Path, see: &mut impl FnMut(&Path, &str)) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                each_source(&path, see);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                see(&path, &std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// Erratum 832075. The loads do not run on a PC, and an emulator treats all loads alike.
    #[test]
    fn device_registers_are_read_by_load_acquire_alone() {
        let accesses = include_str!("arch/device.rs");
        let loads: Vec<&str> =
            accesses.split("load!(").skip(1).filter_map(|rest| rest.split('"').nth(1)).collect();
        assert_eq!(loads.len(), 4);
        assert!(loads.iter().all(|text| text.starts_with("ldar")), "{loads:?}");
        // No other file reads devices.
        each_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |path, source| {
            let is_this = path.ends_with("errata.rs") && !path.ends_with("arch/errata.rs");
            assert!(is_this || !source.contains("read_volatile"), "{}", path.display());
        });
    }

    /// hyp/ERRATA.md describes all errata of the table.
    #[test]
    fn the_page_names_every_erratum_of_the_table() {
        let page = include_str!("../ERRATA.md");
        for erratum in ERRATA {
            assert!(page.contains(&erratum.number.to_string()), "{}", erratum.number);
        }
    }
}
