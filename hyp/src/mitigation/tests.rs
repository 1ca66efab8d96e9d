use std::cell::RefCell;
use std::vec::Vec;

use super::*;
use crate::device::smccc::{self, Call, FunctionId};

const WORKAROUND_1: u32 = 0x8000_8000;
const WORKAROUND_2: u32 = 0x8000_7fff;
const WORKAROUND_3: u32 = 0x8000_3fff;

/// Firmware that records its calls. It has the version of the convention, and the answers to SMCCC_ARCH_FEATURES for the
/// workarounds 1, 2 and 3.
struct Recorder {
    version: i32,
    features: [i32; 3],
    calls: RefCell<Vec<(u32, u32)>>,
}

impl Recorder {
    fn new(features: [i32; 3]) -> Self {
        Self { version: 0x1_0002, features, calls: RefCell::default() }
    }

    /// Returns the calls since the last time.
    fn take(&self) -> Vec<(u32, u32)> {
        self.calls.take()
    }
}

impl Firmware for Recorder {
    fn call(&self, id: FunctionId, argument: u32) -> i32 {
        self.calls.borrow_mut().push((id.get(), argument));
        match (id.get(), argument) {
            (0x8400_000a, 0x8000_0000) if self.version >= 0x1_0001 => 0,
            (0x8000_0000, _) => self.version,
            (0x8000_0001, WORKAROUND_1) => self.features[0],
            (0x8000_0001, WORKAROUND_2) => self.features[1],
            (0x8000_0001, WORKAROUND_3) => self.features[2],
            (WORKAROUND_1 | WORKAROUND_2 | WORKAROUND_3, _) => 0,
            _ => NOT_SUPPORTED,
        }
    }
}

fn answers(features: [i32; 3]) -> Answers {
    Answers::ask((1, 1), &Recorder::new(features))
}

/// Returns the MIDR_EL1 of an Arm core: part, variant, revision.
const fn arm(part: u64, variant: u64, revision: u64) -> u64 {
    0x41 << 24 | variant << 20 | 0xf << 16 | part << 4 | revision
}

const NO: [i32; 3] = [-1; 3];

#[test]
fn each_core_gets_the_mitigation_that_arm_publishes() {
    let csv2 = |value: u64| value << 56;
    for (what, midr, pfr0, features, expected) in [
        ("A35", arm(0xd04, 0, 0), 0, NO, Branches::NotNeeded),
        ("A53", arm(0xd03, 0, 4), 0, NO, Branches::NotNeeded),
        ("A55", arm(0xd05, 1, 0), 0, NO, Branches::NotNeeded),
        ("Brahma-B53", 0x42 << 24 | 0xf << 16 | 0x100 << 4, 0, NO, Branches::NotNeeded),
        ("A510", arm(0xd46, 0, 0), csv2(1), NO, Branches::NotNeeded),
        ("A57, old firmware", arm(0xd07, 1, 3), 0, NO, Branches::NoFirmware),
        ("A57", arm(0xd07, 1, 3), 0, [0, -1, -1], Branches::Firmware(Workaround::BranchPredictor)),
        ("A57, new firmware", arm(0xd07, 1, 3), 0, [0, 0, 0], Branches::Firmware(Workaround::BranchHistory)),
        ("A72 r0p3, old firmware", arm(0xd08, 0, 3), 0, NO, Branches::NoFirmware),
        ("A72 r0p3", arm(0xd08, 0, 3), 0, [0, 0, 0], Branches::Firmware(Workaround::BranchHistory)),
        ("A72 r1p0", arm(0xd08, 1, 0), csv2(1), [1, 0, 1], Branches::Loop(8)),
        ("A73", arm(0xd09, 0, 2), 0, [0, 0, 0], Branches::Firmware(Workaround::BranchHistory)),
        ("A75 r3", arm(0xd0a, 3, 0), csv2(1), [1, 0, 0], Branches::Firmware(Workaround::BranchHistory)),
        ("A75 r3, old firmware", arm(0xd0a, 3, 0), csv2(1), NO, Branches::Unlisted),
        ("A76", arm(0xd0b, 3, 0), csv2(1), [1, 0, 1], Branches::Loop(24)),
        ("Neoverse-N1", arm(0xd0c, 3, 1), csv2(1), NO, Branches::Loop(24)),
        ("Neoverse-N2", arm(0xd49, 0, 0), csv2(2), NO, Branches::Loop(32)),
        ("Neoverse-V1", arm(0xd40, 1, 0), csv2(1), NO, Branches::Loop(32)),
        ("Neoverse-V2", arm(0xd4f, 0, 0), csv2(2), NO, Branches::Loop(132)),
        ("A720", arm(0xd81, 0, 0), csv2(2), NO, Branches::Loop(38)),
        ("Ampere-1", 0xc0 << 24 | 0xf << 16 | 0xac3 << 4, csv2(1), NO, Branches::Loop(11)),
        ("unknown, with CSV2_3", arm(0xfff, 0, 0), csv2(3), NO, Branches::NotNeeded),
        ("unknown, with CSV2", arm(0xfff, 0, 0), csv2(1), [1, 1, 1], Branches::Unlisted),
        (
            "unknown, firmware helps",
            arm(0xfff, 0, 0),
            0,
            [1, 1, 0],
            Branches::Firmware(Workaround::BranchHistory),
        ),
        ("unknown", arm(0xfff, 0, 0), 0, NO, Branches::NoFirmware),
    ] {
        let registers = Registers { midr, pfr0, ..Registers::default() };
        let choice = Choice::new(&registers, answers(features), Policy::Auto);
        assert_eq!(choice.branches, expected, "{what}");
        let is_gap = matches!(expected, Branches::NoFirmware | Branches::Unlisted);
        assert_eq!(expected.gap().is_some(), is_gap, "{what}");
        let off = Choice::new(&registers, answers(features), Policy::Off).branches;
        assert_eq!(off == Branches::NotNeeded, expected == Branches::NotNeeded, "{what}");
        assert!(matches!(off, Branches::NotNeeded | Branches::Off), "{what}");
    }
}

#[test]
fn hardware_that_clears_or_keeps_apart_history_spares_the_loop() {
    let n2 = Registers { midr: arm(0xd49, 0, 0), pfr0: 2 << 56, ..Registers::default() };
    let choose = |registers: Registers| Choice::new(&registers, answers(NO), Policy::Auto).branches;
    assert_eq!(choose(n2), Branches::Loop(32));
    assert_eq!(choose(Registers { isar2: 1 << 28, ..n2 }), Branches::ClearInstruction);
    assert_eq!(choose(Registers { isar2: 1 << 28, mmfr1: 1 << 60, ..n2 }), Branches::NotNeeded);
    assert_eq!(choose(Registers { pfr0: 3 << 56, ..n2 }), Branches::NotNeeded);
    // Neither protects a core whose branch targets a guest can train.
    let a57 = Registers { midr: arm(0xd07, 1, 0), isar2: 1 << 28, mmfr1: 1 << 60, ..Registers::default() };
    assert_eq!(choose(a57), Branches::NoFirmware);
}

#[test]
fn store_bypass_is_mitigated_by_the_means_of_the_core() {
    for (what, midr, pfr1, answer, expected) in [
        ("A53", arm(0xd03, 0, 4), 0, -1, Stores::NotNeeded),
        ("A72", arm(0xd08, 0, 3), 0, 0, Stores::Firmware),
        ("A72, old firmware", arm(0xd08, 0, 3), 0, -1, Stores::Vulnerable),
        ("A72, switched off for good", arm(0xd08, 0, 3), 0, -2, Stores::NotNeeded),
        ("not this core of the two", arm(0xd05, 0, 0), 0, 1, Stores::NotNeeded),
        ("A76 r0", arm(0xd0b, 0, 0), 0, 0, Stores::Firmware),
        ("Neoverse-N1", arm(0xd0c, 3, 1), 2 << 4, 0, Stores::Ssbs),
    ] {
        let registers = Registers { midr, pfr1, ..Registers::default() };
        let choice = Choice::new(&registers, answers([0, answer, 0]), Policy::Auto);
        assert_eq!(choice.stores, expected, "{what}");
    }
}

#[test]
fn the_operator_decides() {
    assert_eq!(Policy::parse("auto"), Some(Policy::Auto));
    assert_eq!(Policy::parse("off"), Some(Policy::Off));
    assert_eq!(Policy::parse("loop:24"), Some(Policy::Forced(Branches::Loop(24))));
    assert_eq!(Policy::parse("clrbhb"), Some(Policy::Forced(Branches::ClearInstruction)));
    for wrong in ["", "on", "Off", "loop", "loop:", "loop:0", "loop:256", "loop:-1"] {
        assert_eq!(Policy::parse(wrong), None, "{wrong}");
    }
    let a53 = Registers { midr: arm(0xd03, 0, 4), ..Registers::default() };
    let forced = Choice::new(&a53, Answers::NONE, Policy::Forced(Branches::Loop(8)));
    assert_eq!(forced.branches, Branches::Loop(8));
}

#[test]
fn firmware_is_asked_only_for_functions_that_it_reports() {
    let old = Recorder::new([0; 3]);
    assert_eq!(Answers::ask((0, 2), &old), Answers::NONE);
    assert_eq!(old.take(), []);

    // PSCI 1.0, version 1.0 of the convention: PSCI_FEATURES does not know SMCCC_VERSION.
    let before = Recorder { version: 0x1_0000, ..Recorder::new([0; 3]) };
    assert_eq!(Answers::ask((1, 0), &before), Answers::NONE);
    assert_eq!(before.take(), [(0x8400_000a, 0x8000_0000)]);

    let new = Recorder::new([0, 1, -1]);
    let found = Answers::ask((1, 1), &new);
    let asked = [WORKAROUND_1, WORKAROUND_2, WORKAROUND_3].map(|id| (0x8000_0001, id));
    assert_eq!(new.take(), [&[(0x8400_000a, 0x8000_0000), (0x8000_0000, 0)][..], &asked].concat());
    assert_eq!(found.of(Workaround::BranchPredictor), 0);
    assert_eq!(found.of(Workaround::StoreBypass { enable: 7 }), 1);
    assert_eq!(found.of(Workaround::BranchHistory), -1);
}

/// A CPU and its firmware. A guest calls with X0 and X1.
struct Cpu {
    choice: Choice,
    stores: StoreBypass,
    firmware: Recorder,
}

impl Cpu {
    fn new(registers: &Registers, features: [i32; 3], policy: Policy) -> Self {
        let firmware = Recorder::new(features);
        let choice = Choice::new(registers, Answers::ask((1, 1), &firmware), policy);
        firmware.take();
        Self { choice, stores: StoreBypass::new(), firmware }
    }

    /// Traps once. Returns the calls of firmware.
    fn trap(&self, x: Option<[u64; 2]>) -> (Option<i32>, Vec<(u32, u32)>) {
        if self.stores.is_wanted() && !self.choice.allows_store_bypass() {
            self.stores.enter(&self.firmware);
        }
        let status = x.map(|[x0, x1]| match smccc::decode([x0, x1, 0, 0]) {
            Call::Workaround(workaround) => self.choice.apply(workaround, &self.stores, &self.firmware),
            Call::ArchFeatures(id) => smccc::arch_features(id, |workaround| self.choice.feature(workaround)),
            other => panic!("{other:?}"),
        });
        self.stores.leave(&self.firmware);
        (status, self.firmware.take())
    }

    fn start(&self) -> Vec<(u32, u32)> {
        self.stores.reset(&self.firmware);
        self.stores.leave(&self.firmware);
        self.firmware.take()
    }
}

const OFF: (u32, u32) = (WORKAROUND_2, 0);
const ON: (u32, u32) = (WORKAROUND_2, 1);

#[test]
fn a_guest_switches_store_bypass_for_itself_and_el2_runs_mitigated() {
    let a72 = Registers { midr: arm(0xd08, 0, 3), ..Registers::default() };
    let cpu = Cpu::new(&a72, [0, 0, 0], Policy::Auto);
    let call = |enable: u64| Some([u64::from(WORKAROUND_2), enable]);
    assert_eq!(cpu.start(), []);
    assert_eq!(cpu.trap(None), (None, std::vec![]));
    // The mitigation is already on.
    assert_eq!(cpu.trap(call(1)), (Some(0), std::vec![]));
    assert_eq!(cpu.trap(call(0)), (Some(0), std::vec![OFF]));
    assert_eq!(cpu.trap(None), (None, std::vec![ON, OFF]));
    assert_eq!(cpu.trap(call(0)), (Some(0), std::vec![ON, OFF]));
    // Any number except zero enables it; the upper half of X1 is ignored.
    assert_eq!(cpu.trap(call(0x8000_0000)), (Some(0), std::vec![ON]));
    assert_eq!(cpu.trap(None), (None, std::vec![]));
    assert_eq!(cpu.trap(call(1 << 32)), (Some(0), std::vec![OFF]));
    // The guest is reset, with and without a trap before.
    assert_eq!(cpu.start(), [ON]);
    assert_eq!(cpu.trap(None), (None, std::vec![]));
}

#[test]
fn with_mitigations_off_a_guests_choice_is_called_through_once() {
    let a72 = Registers { midr: arm(0xd08, 0, 3), ..Registers::default() };
    let cpu = Cpu::new(&a72, [0, 0, 0], Policy::Off);
    assert_eq!(cpu.choice.stores_name(), "off");
    let call = |enable: u64| Some([u64::from(WORKAROUND_2), enable]);
    assert_eq!(cpu.trap(call(0)), (Some(0), std::vec![OFF]));
    assert_eq!(cpu.trap(None), (None, std::vec![]));
    assert_eq!(cpu.trap(call(1)), (Some(0), std::vec![ON]));
    assert_eq!(cpu.trap(call(0)), (Some(0), std::vec![OFF]));
    assert_eq!(cpu.start(), [ON]);
}

#[test]
fn a_call_that_firmware_forbids_or_does_not_need_is_not_made() {
    let a72 = Registers { midr: arm(0xd08, 1, 0), pfr0: 1 << 56, ..Registers::default() };
    for (answer, status) in [(-1, -1), (-2, -1), (1, 0)] {
        let cpu = Cpu::new(&a72, [-1, answer, -1], Policy::Auto);
        let features = Some([0x8000_0001, u64::from(WORKAROUND_2)]);
        assert_eq!(cpu.trap(features), (Some(answer), std::vec![]));
        assert_eq!(cpu.trap(Some([u64::from(WORKAROUND_2), 0])), (Some(status), std::vec![]));
        assert_eq!(cpu.trap(Some([u64::from(WORKAROUND_1), 0])), (Some(-1), std::vec![]));
    }
}

#[test]
fn calls_about_branches_are_forwarded_unless_the_vectors_have_made_them() {
    let a72 = |variant: u64, csv2: u64| Registers {
        midr: arm(0xd08, variant, 0),
        pfr0: csv2 << 56,
        ..Registers::default()
    };
    let call = |id: u32| Some([u64::from(id), 0]);
    let by_loop = Cpu::new(&a72(1, 1), [1, 0, 1], Policy::Auto);
    assert_eq!(by_loop.trap(call(WORKAROUND_1)), (Some(0), std::vec![(WORKAROUND_1, 0)]));
    assert_eq!(by_loop.trap(call(WORKAROUND_3)), (Some(0), std::vec![(WORKAROUND_3, 0)]));
    let by_third = Cpu::new(&a72(0, 0), [0, 0, 0], Policy::Auto);
    assert_eq!(by_third.trap(call(WORKAROUND_1)), (Some(0), std::vec![]));
    assert_eq!(by_third.trap(call(WORKAROUND_3)), (Some(0), std::vec![]));
    let by_first = Cpu::new(&a72(0, 0), [0, 0, -1], Policy::Auto);
    assert_eq!(by_first.trap(call(WORKAROUND_1)), (Some(0), std::vec![]));
    assert_eq!(by_first.trap(call(WORKAROUND_3)), (Some(-1), std::vec![]));
}
