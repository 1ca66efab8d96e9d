//! A claim is granted whenever a range of its pool can be emptied: compared with a search that tries every range.

use proptest::prelude::*;

use super::machine::{BASE, GIB, MIB, Machine, PoolAt, controller, guest_id};
use super::*;
use crate::addr::FRAME_SIZE;
use crate::controller::{ControllerId, ControllerSet};
use crate::migrate::{Frames, Mobility, Region};
use crate::owner::Owner;
use crate::phys::alloc::Occupant;
use crate::phys::frame::State as FrameState;
use crate::phys::placement::{ControllerList, Strictness};

/// Returns a machine whose controller 0 has 24 MiB, of which 16 MiB are a pool, and other controllers of these sizes.
fn with_pool(others: &[u64]) -> Machine {
    let sizes: Vec<u64> = std::iter::once(24 * MIB).chain(others.iter().copied()).collect();
    Machine::new(&sizes, &[PoolAt("video", 0, 8 * MIB, 16 * MIB, NodeKind::BlockPool)])
}

/// Gives `guest` RAM with a placement that migration keeps. Returns whether there was enough.
fn place(machine: &mut Machine, guest: u8, size: u64, order: u8, placement: Placement) -> bool {
    let guest = guest_id(guest);
    let index = machine.regions(guest).len() as u64;
    let is_whole = machine.add_ram(guest, BASE + index * GIB, size, order, placement);
    machine.regions(guest).last_mut().unwrap().placement = placement;
    is_whole
}

fn strict(numbers: &[u8]) -> Placement {
    let numbers: Vec<ControllerId> = numbers.iter().map(|number| controller(*number)).collect();
    Placement::Listed(ControllerList::new(&numbers), Strictness::Strict)
}

#[test]
fn a_range_that_can_be_emptied_is_found_where_a_cheaper_one_cannot() {
    let mut machine = with_pool(&[64 * MIB]);
    (0..3).for_each(|_| _ = machine.add_guest());
    let pool = machine.pool("video");
    // Half of the pool goes to a guest that must lie there, half to one that prefers it. Nothing else is free there.
    assert!(place(&mut machine, 0, 8 * MIB, 9, strict(&[0])));
    assert!(place(&mut machine, 1, 8 * MIB, 9, Placement::prefer(controller(0))));
    assert!(!place(&mut machine, 2, 24 * MIB, 0, strict(&[0])), "nothing is left");
    assert!(
        machine
            .pool_range(pool)
            .contains(machine.frame_at(guest_id(0), crate::addr::Ipa::try_new(BASE).unwrap()).unwrap())
    );
    let report = machine.claim(OPERATOR, pool, Wish::of_size(8 * MIB));
    assert_eq!(report.state, State::Granted, "{}", report.blocker);
    assert_eq!(report.moved.bytes(), 8 * MIB, "nothing else moved");
}

#[test]
fn tenants_that_may_go_anywhere_leave_room_for_others() {
    for order in [0, 9] {
        let mut machine = with_pool(&[64 * MIB]);
        (0..3).for_each(|_| _ = machine.add_guest());
        let pool = machine.pool("video");
        // The guest that may go anywhere comes first, and prefers controller 0, which has room for one of them.
        assert!(place(&mut machine, 1, 8 * MIB, order, Placement::prefer(controller(0))));
        assert!(place(&mut machine, 0, 8 * MIB, order, strict(&[0])));
        let report = machine.claim(OPERATOR, pool, Wish::of_size(16 * MIB));
        assert_eq!((report.state, report.tries.len()), (State::Granted, 1), "{}", report.blocker);
        assert_eq!(report.moved.bytes(), 16 * MIB);
    }
}

#[test]
fn the_blocker_is_a_frame_that_the_cause_concerns() {
    let pools = [PoolAt("video", 0, 16 * MIB, 16 * MIB, NodeKind::BlockPool)];
    let mut machine = Machine::new(&[64 * MIB, 64 * MIB], &pools);
    let pool = machine.pool("video");
    for _ in 0..2 {
        let guest = machine.add_guest();
        assert!(machine.add_ram(guest, BASE, 8 * MIB, 9, Placement::Any));
    }
    let is_of = |machine: &Machine, number: u8, frame| {
        let owner = machine.memory().occupants(FrameRange::try_new(frame, 1).unwrap()).next().unwrap().owner;
        owner == Some(Owner::Guest(guest_id(number)))
    };
    let last = machine.pool_range(pool).first().checked_add(4095).unwrap();
    assert!(is_of(&machine, 0, machine.pool_range(pool).first()) && is_of(&machine, 1, last));
    machine.regions(guest_id(1))[0].mobility = Mobility::OptedOut;
    // The first guest's frames stay too, for another reason: there is no frame to move them to.
    machine.ground.fails.set(Some((machine::FailingStep::Allocate, 0)));
    machine.ground.is_stubborn.set(true);
    let report = machine.claim(OPERATOR, pool, Wish::Exactly(machine.pool_range(pool)));
    machine.ground.fails.set(None);
    assert_eq!(report.state, State::Failed);
    let number = u8::from(report.blocker.cause == Cause::OptedOut);
    assert!(is_of(&machine, number, report.blocker.frame), "{}", report.blocker);
    // The first guest's frames are not barred for the reason of the second guest's.
    let report = machine.claim(OPERATOR, pool, Wish::of_size(8 * MIB));
    assert_eq!(report.state, State::Granted, "{}", report.blocker);
}

/// Guest of a random machine.
#[derive(Clone, Debug)]
struct Tenant {
    size: u64,
    order: u8,
    placement: u8,
    /// Set if its RAM lies behind controller 0 at first, whatever its placement says.
    is_moved: bool,
    is_fixed: bool,
    /// Distance between pages that are given back.
    holes: u64,
}

fn tenant() -> impl Strategy<Value = Tenant> {
    (1u64..13, any::<bool>(), 0u8..8, proptest::bool::weighted(0.2), proptest::bool::weighted(0.15), 2u64..40)
        .prop_map(|(size, is_small, placement, is_moved, is_fixed, holes)| Tenant {
            size: size * MIB,
            order: if is_small { 0 } else { 9 },
            placement,
            is_moved,
            is_fixed,
            holes,
        })
}

fn placement(number: u8) -> Placement {
    match number {
        0 => strict(&[0]),
        1 => strict(&[0, 1]),
        2 => strict(&[0, 2]),
        3 => strict(&[1]),
        4 => Placement::prefer(controller(0)),
        5 => Placement::prefer(controller(2)),
        6 => strict(&[2]),
        _ => Placement::Any,
    }
}

/// Counts of frames before each frame of a pool, to examine a range in constant time.
struct Pool {
    start: u64,
    free: Vec<u64>,
    fixed: Vec<u64>,
    /// Counts of tenants by the controllers that they may move to.
    kinds: Vec<(ControllerSet, Vec<u64>)>,
    /// Free frames behind each controller, and of all.
    free_behind: [u64; 3],
    all_free: u64,
}

impl Pool {
    /// Examines every frame of the pool `range`.
    fn of(machine: &Machine, regions: &[Region], range: FrameRange) -> Self {
        let frames = range.frames() as usize;
        let mut free = vec![1; frames];
        let mut fixed = vec![0; frames];
        let mut kinds: Vec<(ControllerSet, Vec<u64>)> = Vec::new();
        for occupant in machine.memory().occupants(range) {
            for number in occupant.frame.number().max(range.start())..occupant.end().min(range.end()) {
                let at = (number - range.start()) as usize;
                free[at] = 0;
                match allowed(regions, &occupant, number) {
                    None => fixed[at] = 1,
                    Some(kind) => {
                        let known = kinds.iter().position(|(known, _)| *known == kind);
                        let index = known.unwrap_or_else(|| {
                            kinds.push((kind, vec![0; frames]));
                            kinds.len() - 1
                        });
                        kinds[index].1[at] = 1;
                    }
                }
            }
        }
        let free_in = |placement: &Placement| Frames::free_frames(machine.memory(), placement);
        Self {
            start: range.start(),
            free: sums(free),
            fixed: sums(fixed),
            kinds: kinds.into_iter().map(|(kind, counts)| (kind, sums(counts))).collect(),
            free_behind: [0, 1, 2].map(|number| free_in(&Placement::only(controller(number)))),
            all_free: free_in(&Placement::Any),
        }
    }

    /// Tests whether the tenants of `range` all have room elsewhere: a flow from kinds to controllers, found by augmenting
    /// paths.
    fn can_be_emptied(&self, range: FrameRange) -> bool {
        let count = |sums: &[u64], from: u64, to: u64| {
            sums[(to - self.start) as usize] - sums[(from - self.start) as usize]
        };
        let in_range = |sums: &[u64]| count(sums, range.start(), range.end());
        let free_in_touched = count(&self.free, range.start() & !511, range.end().next_multiple_of(512));
        if in_range(&self.fixed) > 0 {
            return false;
        }
        let mut free = self.free_behind;
        free[0] -= free_in_touched;
        // Frames of each kind, and how many of them go to each controller.
        let kinds = self.kinds.iter().map(|(kind, sums)| (*kind, in_range(sums), [0; 3]));
        let mut kinds: Vec<(ControllerSet, u64, [u64; 3])> = kinds.collect();
        if kinds.iter().map(|(_, need, _)| need).sum::<u64>() > self.all_free - free_in_touched {
            return false;
        }
        for at in 0..kinds.len() {
            let mut left = kinds[at].1;
            while left > 0 {
                let done = push(&mut kinds, &mut free, at, left, &mut [false; 3]);
                if done == 0 {
                    return false;
                }
                left -= done;
            }
        }
        true
    }
}

/// Returns the sums of all prefixes of `counts`.
fn sums(counts: Vec<u64>) -> Vec<u64> {
    let sum = |sum: &mut u64, count| {
        *sum += count;
        Some(*sum)
    };
    std::iter::once(0).chain(counts.into_iter().scan(0, sum)).collect()
}

/// Returns the controllers that the frame `number` of `occupant` may move to. `None` if it cannot move.
fn allowed(regions: &[Region], occupant: &Occupant, number: u64) -> Option<ControllerSet> {
    let (FrameState::Used, Some(Owner::Guest(guest)), Some(mapping)) =
        (occupant.state, occupant.owner, occupant.mapping)
    else {
        return None;
    };
    let at = mapping.ipa.get() + (number - occupant.frame.number()) * FRAME_SIZE;
    let region = regions[guest.index()];
    assert!((region.ipa.get()..region.ipa.get() + region.size).contains(&at));
    let allowed = (0..3).map(controller).filter(|number| region.placement.allows(*number));
    (region.mobility == Mobility::Movable).then(|| allowed.collect())
}

/// Places up to `most` frames of kind `at`, and moves frames of other kinds on to make room. Returns how many it placed.
fn push(
    kinds: &mut Vec<(ControllerSet, u64, [u64; 3])>,
    free: &mut [u64],
    at: usize,
    most: u64,
    seen: &mut [bool; 3],
) -> u64 {
    for to in 0..3 {
        if seen[to] || !kinds[at].0.contains(controller(to as u8)) {
            continue;
        }
        seen[to] = true;
        let mut done = free[to].min(most);
        if done == 0 {
            for other in 0..kinds.len() {
                let there = kinds[other].2[to];
                if other == at || there == 0 {
                    continue;
                }
                let moved = push(kinds, free, other, there.min(most), seen);
                kinds[other].2[to] -= moved;
                free[to] += moved;
                if moved > 0 {
                    done = moved;
                    break;
                }
            }
        }
        if done > 0 {
            free[to] -= done;
            kinds[at].2[to] += done;
            return done;
        }
    }
    0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 48 }, ..ProptestConfig::default() })]

    #[test]
    fn a_claim_is_granted_whenever_a_range_can_be_emptied(
        tenants in proptest::collection::vec(tenant(), 1..5),
        others in (0u64..16, 0u64..16),
        (frames, align) in prop_oneof![
            (1u64..512, 0u8..6),
            (1u64..9, 9u8..11).prop_map(|(blocks, align)| (blocks * 512, align)),
            (512u64..4096, 0u8..10),
        ],
        claimed in proptest::collection::vec((0u64..4096, 1u64..100), 0..3),
    ) {
        let mut machine = with_pool(&[2 * MIB * (1 + others.0), 2 * MIB * (1 + others.1)]);
        let pool = machine.pool("video");
        let mut regions = Vec::new();
        for (number, tenant) in tenants.iter().enumerate() {
            let guest = machine.add_guest();
            let wanted = placement(tenant.placement);
            let first = if tenant.is_moved { strict(&[0]) } else { wanted };
            place(&mut machine, number as u8, tenant.size, tenant.order, first);
            let region = &mut machine.regions(guest)[0];
            region.placement = wanted;
            if tenant.is_fixed {
                region.mobility = Mobility::OptedOut;
            }
            regions.push(*region);
            if tenant.order == 0 {
                for page in (0..region.size / FRAME_SIZE).step_by(tenant.holes as usize).collect::<Vec<_>>() {
                    let ipa = crate::addr::Ipa::try_new(BASE + page * FRAME_SIZE).unwrap();
                    if let Some(frame) = machine.frame_at(guest, ipa) {
                        machine.drop_page(guest, frame.number());
                    }
                }
            }
        }
        let start = machine.pool_range(pool).start();
        for (offset, count) in claimed {
            let range = FrameRange::from_numbers(start + offset, start + (offset + count).min(4096)).unwrap();
            machine.claim(OPERATOR, pool, Wish::Exactly(range));
        }
        let align = 1u64 << align;
        let pool_range = machine.pool_range(pool);
        let first = pool_range.start().next_multiple_of(align);
        let starts = (first..pool_range.end()).step_by(align as usize);
        let mut ranges = starts
            .filter_map(|start| FrameRange::from_numbers(start, start + frames))
            .filter(|range| pool_range.contains_range(*range));
        let model = Pool::of(&machine, &regions, pool_range);
        let found = ranges.find(|range| model.can_be_emptied(*range));
        let report = machine.claim(OPERATOR, pool, Wish::Sized { frames, align });
        if let Some(found) = found {
            prop_assert_eq!(report.state, State::Granted, "{} could be emptied: {} {:?}", found, report.blocker, report.tries);
        } else {
            prop_assert_eq!(report.state, State::Failed);
        }
    }
}
