//! Whenever some range of a pool can be emptied, a claim is granted: against a search that tries every range.

use proptest::prelude::*;

use super::machine::{BASE, GIB, MIB, Machine, PoolAt, controller, guest_id};
use super::*;
use crate::addr::FRAME_SIZE;
use crate::controller::{ControllerId, ControllerSet};
use crate::migrate::{Frames, Mobility};
use crate::owner::Owner;
use crate::phys::frame::State as FrameState;
use crate::phys::placement::{ControllerList, Strictness};

/// Controller 0 with 24 MiB, of which 16 MiB are a pool, and others.
fn with_pool(others: &[u64]) -> Machine {
    let sizes: Vec<u64> = std::iter::once(24 * MIB).chain(others.iter().copied()).collect();
    Machine::new(&sizes, &[PoolAt("video", 0, 8 * MIB, 16 * MIB, NodeKind::BlockPool)])
}

/// Gives `guest` RAM, of which the placement is kept from then on.
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
    // Half of the pool to a guest that lies strictly there, half to one that only prefers it, and no room besides.
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
    assert_eq!(report.moved.bytes(), 8 * MIB, "nothing moved in vain");
}

#[test]
fn those_that_may_go_anywhere_leave_room_for_those_that_may_not() {
    for order in [0, 9] {
        let mut machine = with_pool(&[64 * MIB]);
        (0..3).for_each(|_| _ = machine.add_guest());
        let pool = machine.pool("video");
        // The one that may go anywhere comes first, and likes it behind controller 0, where there is room for one alone.
        assert!(place(&mut machine, 1, 8 * MIB, order, Placement::prefer(controller(0))));
        assert!(place(&mut machine, 0, 8 * MIB, order, strict(&[0])));
        let report = machine.claim(OPERATOR, pool, Wish::of_size(16 * MIB));
        assert_eq!((report.state, report.tries.len()), (State::Granted, 1), "{}", report.blocker);
        assert_eq!(report.moved.bytes(), 16 * MIB);
    }
}

#[test]
fn the_frame_that_is_named_is_the_one_that_the_reason_is_about() {
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
    // Those of the first guest stay too, for another reason: there are no frames for them.
    machine.soil.fails.set(Some((machine::Step2Fail::Allocate, 0)));
    machine.soil.is_stubborn.set(true);
    let report = machine.claim(OPERATOR, pool, Wish::Exactly(machine.pool_range(pool)));
    machine.soil.fails.set(None);
    assert_eq!(report.state, State::Failed);
    let number = u8::from(report.blocker.cause == Cause::OptedOut);
    assert!(is_of(&machine, number, report.blocker.frame), "{}", report.blocker);
    // The first guest's frames are not barred for the second one's reason.
    let report = machine.claim(OPERATOR, pool, Wish::of_size(8 * MIB));
    assert_eq!(report.state, State::Granted, "{}", report.blocker);
}

/// One of the guests of a random machine.
#[derive(Clone, Debug)]
struct Tenant {
    size: u64,
    order: u8,
    placement: u8,
    /// Where its RAM lies at first: as its placement says, or anywhere.
    is_moved: bool,
    is_fixed: bool,
    /// Every so many of its pages are given back.
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

/// What stands on a frame of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Free,
    Fixed,
    Tenant(ControllerSet),
}

/// What stands on each frame of `range`.
fn look(machine: &Machine, regions: &[Vec<crate::migrate::Region>], range: FrameRange) -> Vec<What> {
    let mut frames = vec![What::Free; range.frames() as usize];
    for occupant in machine.memory().occupants(range) {
        for number in occupant.frame.number().max(range.start())..occupant.end().min(range.end()) {
            let what = match (occupant.state, occupant.owner, occupant.mapping) {
                (FrameState::Used, Some(Owner::Guest(guest)), Some(mapping)) => {
                    let at = mapping.ipa.get() + (number - occupant.frame.number()) * FRAME_SIZE;
                    let holds = |region: &&crate::migrate::Region| {
                        (region.ipa.get()..region.ipa.get() + region.size).contains(&at)
                    };
                    let region = regions[guest.index()].iter().find(holds).unwrap();
                    let allowed = (0..3).map(controller).filter(|number| region.placement.allows(*number));
                    if region.mobility == Mobility::Movable {
                        What::Tenant(allowed.collect())
                    } else {
                        What::Fixed
                    }
                }
                _ => What::Fixed,
            };
            frames[(number - range.start()) as usize] = what;
        }
    }
    frames
}

/// Whether the tenants of `range`, in a pool that starts at frame `start`, all have room elsewhere: a flow from frames to
/// controllers, found by augmenting paths.
fn can_be_emptied(machine: &Machine, pool: &[What], start: u64, range: FrameRange) -> bool {
    let part = |from: u64, to: u64| &pool[(from - start) as usize..(to - start) as usize];
    let touched = part(range.start() & !511, range.end().next_multiple_of(512));
    let free_in_touched = touched.iter().filter(|what| **what == What::Free).count() as u64;
    let free_in = |placement: &Placement| Frames::free_frames(machine.memory(), placement);
    let mut free: Vec<u64> = (0..3).map(|number| free_in(&Placement::only(controller(number)))).collect();
    free[0] -= free_in_touched;
    // Frames of each kind, and how many of them go to each controller.
    let mut kinds: Vec<(ControllerSet, u64, [u64; 3])> = Vec::new();
    for what in part(range.start(), range.end()) {
        match what {
            What::Free => {}
            What::Fixed => return false,
            What::Tenant(kind) => match kinds.iter_mut().find(|(known, ..)| known == kind) {
                Some((_, need, _)) => *need += 1,
                None => kinds.push((*kind, 1, [0; 3])),
            },
        }
    }
    if kinds.iter().map(|(_, need, _)| need).sum::<u64>() > free_in(&Placement::Any) - free_in_touched {
        return false;
    }
    // Takes frames of kind `at`, as many as fit, and makes room by moving those of others on.
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
            regions.push(vec![*region]);
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
        let pool_frames = look(&machine, &regions, pool_range);
        let found = ranges.find(|range| can_be_emptied(&machine, &pool_frames, pool_range.start(), *range));
        let report = machine.claim(OPERATOR, pool, Wish::Sized { frames, align });
        if let Some(found) = found {
            prop_assert_eq!(report.state, State::Granted, "{} could be emptied: {} {:?}", found, report.blocker, report.tries);
        } else {
            prop_assert_eq!(report.state, State::Failed);
        }
    }
}
