//! Errata of CPUs that EL2 works around while it runs, by MIDR_EL1. Pure, so that a PC tries them; `arch::errata` keeps what
//! this machine needs. `hyp/ERRATA.md` lists all that Linux, Xen and TF-A know of these cores, and why the others are not here.
//!
//! Ranges of revisions are those of Arm's Software Developers Errata Notices, as Linux and TF-A have them.

use core::fmt;

/// A set of workarounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workarounds(u8);

impl Workarounds {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// A broadcast TLBI and its DSB may complete before accesses by the invalidated translation do: another TLBI and DSB
    /// follow ([`crate::translation::complete`]). One such CPU is enough for all CPUs to need it.
    pub const REPEAT_TLBI: Self = Self(1 << 0);
    /// An AT that is executed speculatively at EL2 may put translations into the TLB that mix one guest's stage 1 with
    /// another's stage 2: stage 1 is closed while stage 2 is exchanged ([`crate::translation`]).
    pub const CLOSE_STAGE_1: Self = Self(1 << 1);
    /// A load across pages may report a stage 2 fault although it faults at stage 1, which comes first.
    pub const CHECK_STAGE_1: Self = Self(1 << 2);
    /// Exclusive accesses beside loads of device memory may deadlock. EL2's own loads are acquiring ones, which do not; a
    /// guest's are its own affair, and nothing at EL2 can keep it from trying.
    pub const GUEST_DEADLOCK: Self = Self(1 << 3);

    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::REPEAT_TLBI, Self::CLOSE_STAGE_1, Self::CHECK_STAGE_1, Self::GUEST_DEADLOCK];

    /// Returns the set that [`Self::bits`] gave.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns the set as a number.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Returns true if a data abort from a guest that reports a fault of stage 2 may be one of stage 1 instead: with
    /// [`Self::CHECK_STAGE_1`], any load's (ESR_EL2.ISS.WnR, bit 6) that is not of a stage 1 walk (S1PTW, bit 7).
    #[inline(always)]
    pub const fn doubt_abort(self, esr: u64) -> bool {
        self.has(Self::CHECK_STAGE_1) && esr & (1 << 6 | 1 << 7) == 0
    }

    /// Returns true if all of `other` are in the set.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Text for the log: what one workaround does.
impl fmt::Display for Workarounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::REPEAT_TLBI => "each TLB invalidation is completed twice",
            Self::CLOSE_STAGE_1 => "no stage 1 walks while stage 2 is exchanged",
            Self::CHECK_STAGE_1 => "stage 1 is checked before a stage 2 fault is believed",
            Self::GUEST_DEADLOCK => {
                "a guest without the workaround can deadlock the CPU: run only guests that are trusted"
            }
            _ => "",
        })
    }
}

/// Implementer and part number, where MIDR_EL1 has them.
const MODEL: u64 = 0xff00_fff0;
const CORTEX_A53: u64 = 0x4100_d030;
const CORTEX_A55: u64 = 0x4100_d050;
const CORTEX_A57: u64 = 0x4100_d070;
const CORTEX_A72: u64 = 0x4100_d080;
const CORTEX_A76: u64 = 0x4100_d0b0;
const NEOVERSE_N1: u64 = 0x4100_d0c0;
const NEOVERSE_N2: u64 = 0x4100_d490;
const BRAHMA_B53: u64 = 0x4200_1000;
/// The last revision of a core in which an erratum is open: any.
const ANY: u8 = 0xff;

/// An erratum of a core, present from r0p0 on.
#[derive(Clone, Copy, Debug)]
struct Erratum {
    number: u32,
    model: u32,
    /// The last revision that has it, as variant and revision, four bits each.
    last: u8,
    workaround: Workarounds,
}

const fn erratum(number: u32, model: u64, last: u8, workaround: Workarounds) -> Erratum {
    Erratum { number, model: model as u32, last, workaround }
}

/// Sorted by workaround, then by number.
const ERRATA: [Erratum; 15] = [
    erratum(1_286_807, CORTEX_A76, 0x30, Workarounds::REPEAT_TLBI),
    // The same instructions serve.
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
    // Broadcom publishes no list; its core derives from Cortex-A53.
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
pub fn needed(midr: u64) -> Workarounds {
    let bits = ERRATA.iter().filter(|erratum| erratum.is_in(midr)).map(|erratum| erratum.workaround.0);
    Workarounds(bits.fold(0, |all, bits| all | bits))
}

/// The numbers of the errata for which some of the CPUs with these MIDR_EL1 need one workaround, for the log.
#[derive(Clone, Debug)]
pub struct Numbers<I> {
    /// The workaround.
    pub workaround: Workarounds,
    /// MIDR_EL1 of all CPUs.
    pub midrs: I,
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

    /// MIDR_EL1 of r`variant`p`revision`, with the architecture field that all these cores have.
    fn midr(model: u64, variant: u64, revision: u64) -> u64 {
        model | variant << 20 | 0xf << 16 | revision
    }

    fn set(workarounds: &[W]) -> W {
        W::from_bits(workarounds.iter().fold(0, |bits, one| bits | one.bits()))
    }

    #[test]
    fn each_core_needs_what_its_errata_notice_says() {
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
    fn other_cores_and_makers_need_nothing() {
        // Cortex-A35, Neoverse V1, QEMU's `max`; Cortex-A57's and Brahma-B53's part numbers by another implementer.
        for model in [0x4100_d040, 0x4100_d400, 0x0000_0510, 0x5100_d070, 0x4100_1000, 0] {
            assert_eq!(needed(midr(model, 0, 0)), W::NONE, "{model:#x}");
        }
    }

    #[test]
    fn only_loads_on_affected_machines_are_doubted() {
        let affected = set(&[W::CHECK_STAGE_1, W::CLOSE_STAGE_1]);
        // Translation faults at level 3: of a load with its register, of one without; of a store, of stage 1 walks.
        for (esr, is_doubted) in
            [(0x93c0_0007, true), (0x9200_0007, true), (0x93c0_0047, false), (0x9200_0087, false)]
        {
            assert_eq!(affected.doubt_abort(esr), is_doubted, "{esr:#x}");
            assert!(!W::CLOSE_STAGE_1.doubt_abort(esr));
        }
    }

    #[test]
    fn numbers_are_named_once_for_all_cpus() {
        let cpus = [midr(CORTEX_A55, 1, 0), midr(CORTEX_A76, 1, 0), midr(NEOVERSE_N1, 3, 1)];
        let text =
            |workaround, midrs: &[u64]| Numbers { workaround, midrs: midrs.iter().copied() }.to_string();
        assert_eq!(text(W::REPEAT_TLBI, &cpus), "1286807, 1542419, 2441007, 4193800");
        assert_eq!(text(W::REPEAT_TLBI, &cpus[2..]), "1542419, 4193800");
        assert_eq!(text(W::CLOSE_STAGE_1, &cpus), "1165522, 1530923");
        assert_eq!(text(W::CHECK_STAGE_1, &cpus), "");
    }

    #[test]
    fn the_table_is_sorted_and_says_what_is_done() {
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

    /// Erratum 832075: nothing on a PC executes these loads, and an emulator does not tell them from others.
    #[test]
    fn device_registers_are_read_by_load_acquire_alone() {
        let accesses = include_str!("arch/device.rs");
        let loads: Vec<&str> =
            accesses.split("load!(").skip(1).filter_map(|rest| rest.split('"').nth(1)).collect();
        assert_eq!(loads.len(), 4);
        assert!(loads.iter().all(|text| text.starts_with("ldar")), "{loads:?}");
        // Devices are read there and nowhere else.
        each_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |path, source| {
            let is_this = path.ends_with("errata.rs") && !path.ends_with("arch/errata.rs");
            assert!(is_this || !source.contains("read_volatile"), "{}", path.display());
        });
    }

    /// The page that tells of all errata and the table here name the same.
    #[test]
    fn the_page_names_every_erratum_of_the_table() {
        let page = include_str!("../ERRATA.md");
        for erratum in ERRATA {
            assert!(page.contains(&erratum.number.to_string()), "{}", erratum.number);
        }
    }
}
