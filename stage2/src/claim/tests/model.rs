//! Random sequences of claims, releases, starts, stops, writes and steps, compared with a model of the claimed frames.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::machine::{BASE, MIB, Machine, PoolAt, guest_id, pa};
use super::*;

#[derive(Clone, Debug)]
enum Action {
    Claim { frames: u64, align: u8 },
    ClaimAt { start: u64, frames: u64 },
    Release { which: usize, cut: u64 },
    Steps(u16),
    Cancel,
    Stop,
    Start(bool),
    Write(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1u64..2600, 0u8..10).prop_map(|(frames, align)| Action::Claim { frames, align }),
        2 => (0u64..4096, 1u64..1500).prop_map(|(start, frames)| Action::ClaimAt { start, frames }),
        4 => (0usize..8, 0u64..700).prop_map(|(which, cut)| Action::Release { which, cut }),
        6 => (1u16..300).prop_map(Action::Steps),
        1 => Just(Action::Cancel),
        1 => Just(Action::Stop),
        1 => any::<bool>().prop_map(Action::Start),
        3 => (0u64..5120).prop_map(Action::Write),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 24 }, ..ProptestConfig::default() })]

    #[test]
    fn claims_agree_with_a_model(actions in proptest::collection::vec(action(), 1..40)) {
        let pools = [PoolAt("video", 0, 16 * MIB, 16 * MIB, NodeKind::BlockPool)];
        let mut machine = Machine::new(&[40 * MIB, 32 * MIB], &pools);
        // When there is nothing else to do, units that claims demoted are coalesced.
        machine.is_idle.set(true);
        let guest = machine.add_guest();
        prop_assert!(machine.add_ram(guest, BASE, 20 * MIB, 9, Placement::Any));
        let (pool, start) = (machine.pool("video"), machine.pool_range(machine.pool("video")).start());
        let before = machine.picture();
        // The model: claimed frames, from the ranges that were granted and released.
        let mut claimed = BTreeSet::new();
        let mut open: Vec<ClaimId> = Vec::new();
        let mut ranges: Vec<FrameRange> = Vec::new();
        let mut size = 20 * MIB;
        let settle = |machine: &Machine, open: &mut Vec<ClaimId>, claimed: &mut BTreeSet<u64>,
                      ranges: &mut Vec<FrameRange>| {
            open.retain(|id| {
                let report = machine.claims.report(OPERATOR, *id).unwrap();
                if !report.state.is_over() {
                    return true;
                }
                match (report.kind, report.state) {
                    (Kind::Claim, State::Granted) => {
                        assert_eq!(report.range.frames(), report.wish.frames());
                        assert!(machine.is_zero(report.range));
                        for number in report.range.start()..report.range.end() {
                            assert!(claimed.insert(number), "{number:#x} is claimed twice");
                        }
                        ranges.push(report.range);
                    }
                    (Kind::Release, State::Released) => {
                        for number in report.range.start()..report.range.end() {
                            assert!(claimed.remove(&number), "{number:#x} was not claimed");
                        }
                    }
                    _ => {}
                }
                false
            });
        };
        for action in actions {
            let submitted = match action {
                Action::Claim { frames, align } => {
                    let wish = Wish::Sized { frames, align: 1 << align };
                    machine.claims.claim(&machine, OPERATOR, pool, wish).ok()
                }
                Action::ClaimAt { start: from, frames } => {
                    let end = (from + frames).min(4096);
                    let range = FrameRange::from_numbers(start + from, start + end).unwrap();
                    machine.claims.claim(&machine, OPERATOR, pool, Wish::Exactly(range)).ok()
                }
                Action::Release { which, cut } => ranges.get(which).copied().and_then(|range| {
                    let from = (range.start() + cut).min(range.end() - 1);
                    let part = FrameRange::from_numbers(from, range.end()).unwrap();
                    machine.claims.release(&machine, OPERATOR, pool, part).ok()
                }),
                Action::Steps(count) => {
                    (0..count).for_each(|_| _ = machine.step());
                    None
                }
                Action::Cancel => {
                    if let Some(id) = open.last() {
                        let _ = machine.claims.cancel(&machine, OPERATOR, *id);
                    }
                    None
                }
                Action::Stop => {
                    machine.remove_ram(guest_id(0));
                    size = 0;
                    None
                }
                Action::Start(in_pages) if size == 0 => {
                    let order = if in_pages { 0 } else { 9 };
                    machine.add_ram(guest_id(0), BASE, 20 * MIB, order, Placement::Any);
                    size = machine.regions(guest_id(0)).iter().map(|region| region.size).sum();
                    None
                }
                Action::Start(_) => None,
                Action::Write(page) => {
                    if page * 4096 < size {
                        machine.touch(guest_id(0), BASE + page * 4096);
                    }
                    None
                }
            };
            open.extend(submitted);
            settle(&machine, &mut open, &mut claimed, &mut ranges);
            ranges.retain(|range| range.frames() > 0);
        }
        machine.run();
        settle(&machine, &mut open, &mut claimed, &mut ranges);
        prop_assert!(open.is_empty());
        machine.check();
        prop_assert!(machine.is_open());
        let frames = machine.memory().resident_everywhere(crate::owner::Owner::Pool(pool));
        prop_assert_eq!(frames, claimed.len() as u64);
        // After everything is released, the state is as before.
        while let Some(first) = claimed.pop_first() {
            let mut end = first + 1;
            while claimed.remove(&end) {
                end += 1;
            }
            let range = FrameRange::from_numbers(first, end).unwrap();
            prop_assert_eq!(machine.release(OPERATOR, pool, range).state, State::Released);
        }
        machine.remove_ram(guest_id(0));
        prop_assert!(machine.add_ram(guest_id(0), BASE, 20 * MIB, 9, Placement::Any), "{}", pa(BASE));
        prop_assert_eq!(machine.picture(), before);
    }
}
