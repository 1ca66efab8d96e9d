//! Edges of ranges (P01): units that cross the first, the last or both edges, and pageblocks that cannot be isolated.

use super::machine::{BASE, GIB, MIB, Machine, PoolAt, controller, range_at};
use super::*;
use crate::cases::some;
use crate::owner::{GuestId, Owner};
use crate::phys::alloc::{MemoryKind, Request};

/// Returns a machine with a pool of 2 GiB, aligned to 1 GiB, that is filled by a guest's RAM in units of `order`.
fn gigantic(order: u8) -> (Machine, PoolId) {
    let pools = [PoolAt("video", 0, GIB, 2 * GIB, NodeKind::BlockPool)];
    let mut machine = Machine::new(&[4 * GIB, 3 * GIB], &pools);
    let guest = machine.add_guest();
    assert!(machine.add_ram(guest, BASE, 2 * GIB, order, Placement::only(controller(0))));
    let pool = machine.pool("video");
    (machine, pool)
}

/// Claims `range` in one call and releases it, and compares the machine with the state before.
fn claim_and_release(machine: &Machine, pool: PoolId, range: FrameRange) {
    let before = machine.picture();
    let report = machine.claim(OPERATOR, pool, Wish::Exactly(range));
    assert_eq!(report.state, State::Granted, "{range}: {}", report.blocker);
    assert_eq!(report.range, range);
    assert!(machine.is_open());
    assert_eq!(machine.release(OPERATOR, pool, range).state, State::Released);
    assert_eq!(machine.picture(), before, "{range}");
}

#[test]
fn p01_units_of_2_mib_straddle_each_edge() {
    let (machine, pool) = lent(9, 16 * MIB);
    let frames = |from: u64, to: u64| {
        let start = range_at(0, 16 * MIB, MIB).start();
        FrameRange::from_numbers(start + from, start + to).unwrap()
    };
    // Units cross the start, the end, both with blocks between, and both within a single block.
    for range in [frames(100, 1024), frames(512, 1500), frames(700, 2700), frames(1800, 1900)] {
        claim_and_release(&machine, pool, range);
    }
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p01_units_of_1_gib_straddle_each_edge() {
    // A unit of 1 GiB has to be demoted before a part of it can move. Each case starts with undemoted ones.
    let cases = [
        (GIB + 6 * MIB, GIB - 6 * MIB),
        (GIB, 8 * MIB),
        (2 * GIB - 4 * MIB, 8 * MIB),
        (GIB + 512 * MIB, 2 * MIB),
        (GIB + 512 * MIB + 4096, 8192),
    ];
    for (offset, size) in some(cases, 2) {
        let (machine, pool) = gigantic(18);
        claim_and_release(&machine, pool, range_at(0, offset, size));
    }
}

#[test]
fn p01_a_block_that_cannot_be_isolated_leaves_all_as_it_was() {
    // A frame of the first, an interior or the last pageblock is already claimed.
    for blocked in [16, 20, 22] {
        let (machine, pool) = lent(9, 16 * MIB);
        let taken = machine.granted(OPERATOR, pool, Wish::Exactly(range_at(0, blocked * MIB + MIB, 4096)));
        let before = machine.picture();
        let report = machine.claim(OPERATOR, pool, Wish::Exactly(range_at(0, 16 * MIB, 8 * MIB)));
        assert_eq!(report.state, State::Failed);
        assert_eq!(report.blocker, Blocker { frame: taken.first(), cause: Cause::Claimed });
        assert_eq!(report.moved.bytes(), 0, "nothing had moved yet");
        assert_eq!(machine.picture(), before);
    }
}

#[test]
fn p01_another_pools_frames_are_never_claimed() {
    let pools = [
        PoolAt("video", 0, 16 * MIB, 8 * MIB, NodeKind::BlockPool),
        PoolAt("camera", 0, 24 * MIB, 8 * MIB, NodeKind::BlockPool),
    ];
    let mut machine = Machine::new(&[64 * MIB], &pools);
    let guest = machine.add_guest();
    assert!(machine.add_ram(guest, BASE, 16 * MIB, 9, Placement::Any));
    let [video, camera] = ["video", "camera"].map(|name| machine.pool(name));
    let over = Wish::Exactly(range_at(0, 22 * MIB, 4 * MIB));
    for pool in [video, camera] {
        let refused = machine.claims.claim(&machine, OPERATOR, pool, over).unwrap_err();
        assert!(matches!(refused, RequestError::OutsidePool { .. }));
    }
    // Both pools can be claimed as a whole.
    machine.granted(OPERATOR, video, Wish::of_size(8 * MIB));
    machine.granted(OPERATOR, camera, Wish::of_size(8 * MIB));
}

#[test]
fn r4_what_cannot_move_never_gets_into_a_pool() {
    for kind in [NodeKind::BlockPool, NodeKind::Pool] {
        let machine = Machine::new(&[32 * MIB], &[PoolAt("video", 0, 16 * MIB, 16 * MIB, kind)]);
        let pool = machine.pool("video");
        let request = Request {
            order: 0,
            kind: MemoryKind::Unmovable,
            owner: Owner::Hypervisor,
            placement: Placement::Any,
            mapping: None,
        };
        let mut taken = 0;
        while let Ok(block) = machine.memory().allocate(&request) {
            assert!(!machine.pool_range(pool).contains(block.frame), "{kind:?}: {}", block.frame.pa());
            taken += 1;
        }
        assert_eq!(taken, 16 * MIB / 4096, "{kind:?}: all else is used before a request fails");
        machine.granted(OPERATOR, pool, Wish::of_size(16 * MIB));
    }
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p06_a_gigantic_unit_is_never_taken_out_of_an_isolated_range() {
    let (machine, pool) = gigantic(18);
    // 4 MiB at the end of a GiB are being claimed, so its first pageblock is not isolated but its last one is.
    let range = range_at(0, 2 * GIB - 4 * MIB, 4 * MIB);
    let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::Exactly(range)).unwrap();
    while machine.claims.report(OPERATOR, id).unwrap().state != State::Taking {
        assert!(machine.step());
    }
    let request = Request {
        order: 18,
        kind: MemoryKind::Movable,
        owner: Owner::Guest(GuestId::try_new(7).unwrap()),
        placement: Placement::Any,
        mapping: None,
    };
    while let Ok(block) = machine.memory().allocate(&request) {
        assert!(!FrameRange::try_new(block.frame, 1 << 18).unwrap().overlaps(range));
    }
    machine.run();
    assert_eq!(machine.claims.report(OPERATOR, id).unwrap().state, State::Granted);
}
