use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::super::smccc::{Call as Smccc, decode as decode_call};
use super::*;

/// Four vCPUs, two clusters of two, and RAM from 1 to 1.5 GiB.
struct Board;

impl Platform for Board {
    fn vcpu_count(&self) -> usize {
        4
    }

    fn mpidr(&self, vcpu: usize) -> u64 {
        // Bit 31 is RES1 in MPIDR_EL1.
        1 << 31 | [0x000, 0x001, 0x100, 0x1_0000_0101][vcpu]
    }

    fn is_ram(&self, ipa: Ipa) -> bool {
        (0x4000_0000..0x6000_0000).contains(&ipa.get())
    }
}

fn call(power: &Power<4>, caller: usize, registers: [u64; 4]) -> Action {
    match decode_call(registers) {
        Smccc::Psci(call) => answer(call, caller, power, &Board),
        other => panic!("{other:?}"),
    }
}

fn status(registers: [u64; 4]) -> i32 {
    match call(&Power::new(), 0, registers) {
        Action::Return(status) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn version_and_features() {
    assert_eq!(status([0x8400_0000, 0, 0, 0]), 0x1_0001);
    for id in [
        0x8000_0000u64,
        0x8400_0000,
        0x8400_0001,
        0xc400_0001,
        0x8400_0002,
        0x8400_0003,
        0xc400_0003,
        0x8400_0004,
        0xc400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000a,
        0x8400_0012,
        0xc400_0012,
    ] {
        assert_eq!(status([0x8400_000a, id, 0, 0]), SUCCESS, "{id:#x}");
    }
    for id in [
        0x8400_0005u64,
        0x8400_0007,
        0x8400_000c,
        0x8400_000e,
        0xc400_000e,
        0x8400_0010,
        0x8400_0015,
        0xc400_0015,
        0xc400_0002,
        0xc400_0008,
        0x8400_0020,
        0x8000_0001,
        0xffff_ffff,
        0,
    ] {
        assert_eq!(status([0x8400_000a, id, 0, 0]), NOT_SUPPORTED, "{id:#x}");
    }
    assert_eq!(status([0x8400_0006, 0, 0, 0]), 2);
}

#[test]
fn calls_outside_psci_are_unknown() {
    for id in [0x8400_0005u64, 0x8400_0007, 0x8400_000b, 0xc400_0009, 0xc400_0000, 0x8401_0000] {
        assert_eq!(decode_call([id, 0, 0, 0]), Smccc::Unknown, "{id:#x}");
    }
}

#[test]
fn a_vcpu_turns_on_once() {
    let power = Power::new();
    let on = [0xc400_0003, 0x100, 0x4008_0000, 0x1_2345_6789];
    assert_eq!(call(&power, 0, on), Action::TurnOn { vcpu: 2 });
    assert_eq!(call(&power, 0, on), Action::Return(ON_PENDING));
    assert_eq!(call(&power, 0, [0xc400_0004, 0x100, 0, 0]), Action::Return(2));
    let start = power.take_start(2).unwrap();
    assert_eq!((start.entry.get(), start.context), (0x4008_0000, 0x1_2345_6789));
    assert_eq!(power.take_start(2), None);
    assert_eq!(call(&power, 0, on), Action::Return(ALREADY_ON));
    assert_eq!(call(&power, 0, [0xc400_0004, 0x100, 0, 0]), Action::Return(0));
    assert_eq!(call(&power, 2, [0x8400_0002, 0, 0, 0]), Action::TurnOff { is_last: true });
    assert_eq!(call(&power, 0, [0xc400_0004, 0x100, 0, 0]), Action::Return(1));
    assert_eq!(call(&power, 0, on), Action::TurnOn { vcpu: 2 });
}

#[test]
fn arguments_of_32_bit_calls_are_cut() {
    let power = Power::new();
    let on = [0x8400_0003, 0xffff_ffff_0000_0001, 0xffff_ffff_4008_0000, 0xffff_ffff_0000_0007];
    assert_eq!(call(&power, 0, on), Action::TurnOn { vcpu: 1 });
    assert_eq!(power.take_start(1).unwrap().context, 7);
    // As a 64-bit call, the argument does not name a vCPU.
    assert_eq!(status([0xc400_0003, on[1], on[2], on[3]]), INVALID_PARAMETERS);
}

#[test]
fn hostile_arguments_get_errors() {
    let entry = 0x4008_0000;
    for target in [2, 0x101, 1 << 31, 1 << 24, 1 << 40, u64::MAX, 0x1_0000_0100] {
        assert_eq!(status([0xc400_0003, target, entry, 0]), INVALID_PARAMETERS, "{target:#x}");
    }
    for entry in [0, 0x3fff_fffc, 0x6000_0000, 0x4008_0001, 0x4008_0002, 1 << 48, u64::MAX] {
        assert_eq!(status([0xc400_0003, 1, entry, 0]), INVALID_ADDRESS, "{entry:#x}");
    }
}

#[test]
fn suspend_waits() {
    let power = Power::new();
    assert_eq!(call(&power, 0, [0x8400_0001, 0, 0, 0]), Action::Suspend);
    assert_eq!(call(&power, 0, [0xc400_0001, 0x0101_0000, 0x4000_0000, 0]), Action::Suspend);
    assert_eq!(status([0xc400_0001, 0x0101_0000, 0x1000, 0]), INVALID_ADDRESS);
    assert_eq!(status([0xc400_0001, 0x4000_0000, 0, 0]), INVALID_PARAMETERS);
}

#[test]
fn affinity_info_covers_levels() {
    let power = Power::new();
    let info = |target, level| call(&power, 0, [0xc400_0004, target, level, 0]);
    power.turn_on(1, Start { entry: Ipa::new_truncate(0x4000_0000), context: 0 }).unwrap();
    assert_eq!(info(0, 0), Action::Return(1));
    assert_eq!(info(0, 1), Action::Return(2));
    power.take_start(1);
    assert_eq!(info(0, 1), Action::Return(0));
    assert_eq!(info(0x100, 1), Action::Return(1));
    assert_eq!(info(0x100, 2), Action::Return(0));
    assert_eq!(info(0x1_0000_0000, 3), Action::Return(1));
    assert_eq!(info(0x2_0000_0000, 3), Action::Return(INVALID_PARAMETERS));
    assert_eq!(info(0, 4), Action::Return(INVALID_PARAMETERS));
    assert_eq!(info(u64::MAX, 3), Action::Return(INVALID_PARAMETERS));
}

#[test]
fn the_system_goes_off_and_resets() {
    let power = Power::new();
    assert_eq!(call(&power, 0, [0x8400_0008, 0, 0, 0]), Action::PowerOff);
    assert_eq!(call(&power, 0, [0x8400_0009, 0, 0, 0]), Action::Reset);
    assert_eq!(call(&power, 0, [0xc400_0012, 0, 0, 0]), Action::Reset);
    assert_eq!(status([0xc400_0012, 0x8000_0000, 0, 0]), INVALID_PARAMETERS);
}

#[test]
fn one_of_many_callers_wins_and_its_start_is_not_mixed() {
    const ROUNDS: usize = 200;
    let power = Power::<4>::new();
    let won = AtomicUsize::new(0);
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for caller in 1..=3u64 {
            let (power, won, taken) = (&power, &won, &taken);
            scope.spawn(move || {
                while taken.load(Ordering::Relaxed) < ROUNDS {
                    let start = Start { entry: Ipa::new_truncate(caller << 12), context: caller };
                    if power.turn_on(3, start).is_ok() {
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::yield_now();
                }
            });
        }
        while taken.load(Ordering::Relaxed) < ROUNDS {
            if let Some(start) = power.take_start(3) {
                assert_eq!(start.entry.get(), start.context << 12);
                assert_eq!(power.state(3), State::On);
                taken.fetch_add(1, Ordering::Relaxed);
                power.turn_off(3);
            }
            std::thread::yield_now();
        }
    });
    let pending = usize::from(power.state(3) != State::Off);
    assert_eq!(won.load(Ordering::Relaxed), ROUNDS + pending);
}

proptest! {
    /// No register contents of a caller cause a panic, and only checked starts reach a vCPU.
    #[test]
    fn any_call_is_survived(calls in prop::collection::vec((0..4usize, any::<[u64; 4]>(), 0..0x20u64), 0..50)) {
        let power = Power::<4>::new();
        for (caller, mut registers, function) in calls {
            registers[0] = registers[0] & 0xffff_ffff_4000_0000 | 0x8400_0000 | function;
            if let Smccc::Psci(psci) = decode_call(registers)
                && let Action::TurnOn { vcpu } = answer(psci, caller, &power, &Board)
            {
                let start = power.take_start(vcpu).unwrap();
                prop_assert!(Board.is_ram(start.entry));
            }
        }
    }
}
