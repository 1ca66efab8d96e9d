//! Properties of a driver that works with an SMMU that fails at random.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Attach(u32, bool, usize),
    Detach(u32),
    CutOff(u32),
    Make(bool),
    Drop(usize),
    Access(u32, u64, u16),
    Wait,
    Events,
    Errors(Vec<u8>),
    Hang(bool),
    NoMemory(u32),
    Global(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = || prop_oneof![0..4_u32, 0x1fe..0x202_u32, Just(0x400)];
    prop_oneof![
        8 => (stream(), any::<bool>(), 0..4_usize).prop_map(|(id, coherent, at)| Step::Attach(id, coherent, at)),
        6 => stream().prop_map(Step::Detach),
        2 => stream().prop_map(Step::CutOff),
        4 => any::<bool>().prop_map(Step::Make),
        3 => (0..4_usize).prop_map(Step::Drop),
        8 => (stream(), 0..8_u64, 1..300_u16).prop_map(|(id, at, count)| Step::Access(id, at, count)),
        2 => Just(Step::Wait),
        4 => Just(Step::Events),
        1 => proptest::collection::vec(0..4_u8, 1..6).prop_map(Step::Errors),
        1 => any::<bool>().prop_map(Step::Hang),
        1 => (0..4_u32).prop_map(Step::NoMemory),
        1 => (0..12_u32).prop_map(|bit| Step::Global(1 << bit)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn devices_reach_their_windows_alone_whatever_fails(
        kind in 0..10_usize,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let (fake, mut driver) = driver(kinds().nth(kind).unwrap());
        let mut windows: Vec<Option<(WindowId, Window)>> = Vec::new();
        let mut attached: BTreeMap<u32, (WindowId, Window)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Make(which) => {
                    let window = if which { WINDOW } else { OTHER };
                    if windows.len() < 4 && let Ok(id) = driver.make_window(window) {
                        windows.push(Some((id, window)));
                    }
                    fake.machine().faults.allocations = None;
                }
                Step::Drop(at) => {
                    if let Some(place) = windows.get_mut(at) && let Some((id, _)) = *place {
                        match driver.drop_window(id) {
                            Ok(()) => *place = None,
                            Err(Error::WindowInUse) => prop_assert!(attached.values().any(|entry| entry.0 == id)),
                            Err(error) => prop_assert!(matches!(error, Error::Failed(_)), "{error}"),
                        }
                    }
                    windows.retain(Option::is_some);
                }
                Step::Attach(id, coherent, at) => {
                    if let Some(&Some(window)) = windows.get(at) && driver.attach(id, coherent, window.0).is_ok() {
                        attached.insert(id, window);
                    }
                    fake.machine().faults.allocations = None;
                }
                Step::Detach(id) => {
                    if driver.detach(id).is_ok() {
                        attached.remove(&id);
                    }
                }
                Step::CutOff(id) => {
                    let _ = driver.cut_off(id);
                }
                Step::Access(id, at, count) => {
                    let address = OTHER.ipa + at * MIB;
                    let translated = attached.get(&id).map(|(_, window)| {
                        address.checked_sub(window.ipa).filter(|at| *at < window.size).map(|at| window.pa + at)
                    });
                    let state = driver.streams().iter().find(|stream| stream.id == id).map(|stream| stream.state);
                    for _ in 0..count {
                        let expected = match (state, translated) {
                            (Some(StreamState::Translating), Some(Some(pa))) => Outcome::Memory(pa),
                            (Some(StreamState::Unknown), _) => break,
                            _ => Outcome::Aborted,
                        };
                        prop_assert_eq!(fake.access(id, address, true), expected);
                    }
                }
                Step::Wait => fake.machine().now_ns += Limiter::PERIOD_NS,
                Step::Events => {
                    prop_assert!(driver.take_events(&mut |_| ()) <= 256);
                }
                Step::Errors(errors) => fake.machine().faults.errors = errors.into(),
                Step::Hang(is_sync) => {
                    let faults = &mut fake.machine().faults;
                    *if is_sync { &mut faults.hangs_sync } else { &mut faults.hangs_queue } = true;
                }
                Step::NoMemory(count) => fake.machine().faults.allocations = Some(count),
                Step::Global(bit) => {
                    *fake.machine().registers.entry(GERROR).or_default() ^= bit;
                    driver.take_errors();
                }
            }
            let bytes: u64 = fake.machine().allocated.values().map(|order| 4096 << order).sum();
            prop_assert_eq!(driver.memory_bytes(), bytes);
            match driver.failure() {
                None => prop_assert_eq!(driver.check(), Ok(())),
                Some(_) => prop_assert!(driver.is_closed()),
            }
        }
    }
}
