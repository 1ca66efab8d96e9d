//! Claims on the real allocator, tables and migration, in plain memory.

mod edges;
mod exhaustive;
mod faults;
mod machine;
mod model;
mod owners;
mod turns;
mod units;
mod waiting;

use self::machine::{BASE, MIB, Machine, PoolAt, range_at};
use super::*;
use crate::addr::PAGEBLOCK_FRAMES;
use crate::cases::some;
use crate::owner::PoolId;
use crate::phys::dmb::NodeKind;
use crate::phys::placement::Placement;
use crate::phys::pool::{BlockUse, Usage};
use crate::range::FrameRange;

const OPERATOR: Claimant = Claimant::Operator;

/// Returns a machine with two controllers of 64 MiB, a pool of 16 MiB in a block of the first, and a guest whose RAM, in
/// blocks of `order`, fills the pool first.
fn lent(order: u8, guest_bytes: u64) -> (Machine, PoolId) {
    let pools = [PoolAt("video", 0, 16 * MIB, 16 * MIB, NodeKind::BlockPool)];
    let mut machine = Machine::new(&[64 * MIB, 64 * MIB], &pools);
    let guest = machine.add_guest();
    assert!(machine.add_ram(guest, BASE, guest_bytes, order, Placement::Any));
    let pool = machine.pool("video");
    (machine, pool)
}

#[test]
fn an_idle_pool_is_lent_first_and_whole() {
    let (machine, pool) = lent(0, 16 * MIB);
    let usage = Usage::of(machine.memory(), machine.claims.pools().unwrap().get(pool).unwrap());
    assert_eq!((usage.lent, usage.free, usage.lent_per_cent()), (16 * MIB / 4096, 0, 100));
    assert_eq!(usage.claimable(), usage.frames, "all of it can be claimed");
    assert_eq!(usage.longest.frames(), usage.frames);
}

#[test]
fn p05_a_range_full_of_units_is_claimed_in_one_call() {
    for order in [0, 9] {
        let (machine, pool) = lent(order, 16 * MIB);
        let before = machine.picture();
        let report = machine.claim(OPERATOR, pool, Wish::of_size(16 * MIB));
        assert_eq!(report.state, State::Granted, "{}", report.blocker);
        assert_eq!((report.tries.len(), report.lent_per_cent), (1, 100));
        assert_eq!(report.moved.bytes(), 16 * MIB, "each tenant moved once: none to where another left");
        assert_eq!(report.range, machine.pool_range(pool));
        assert!(machine.is_zero(report.range));
        assert_eq!(machine.release(OPERATOR, pool, report.range).state, State::Released);
        assert_eq!(machine.picture(), before, "totals and types are as they were");
        let totals = machine.claims.statistics().totals();
        assert_eq!((totals.tried, totals.granted, totals.released, totals.failed), (1, 1, 1, 0));
        assert_eq!(machine.claims.statistics().high_claimed(pool), 16 * MIB / 4096);
        assert_eq!(machine.claims.statistics().high_lent(pool), 16 * MIB / 4096);
        assert_eq!(machine.claims.statistics().latency(1, 3).count, 1);
    }
}

#[test]
fn free_frames_are_chosen_before_tenants() {
    let (machine, pool) = lent(9, 10 * MIB);
    let report = machine.claim(OPERATOR, pool, Wish::of_size(6 * MIB));
    assert_eq!((report.state, report.moved.bytes()), (State::Granted, 0));
    // The rest of the pool has tenants.
    let report = machine.claim(OPERATOR, pool, Wish::of_size(2 * MIB));
    assert_eq!((report.state, report.moved.bytes()), (State::Granted, 2 * MIB));
}

#[test]
fn the_pageblock_with_the_fewest_tenants_is_chosen_wherever_it_lies() {
    for cheapest in 0..8 {
        let (machine, pool) = lent(0, 16 * MIB);
        let guest = machine::guest_id(0);
        // Each pageblock has some free frames: most of them the cheapest one, fewer with the distance from it.
        for pageblock in 0..8_u64 {
            let count = 40 - 4 * pageblock.abs_diff(cheapest);
            for page in 0..count {
                machine.drop_page(guest, machine.pool_range(pool).start() + pageblock * 512 + 7 + 11 * page);
            }
        }
        let report = machine.claim(OPERATOR, pool, Wish::of_size(2 * MIB));
        assert_eq!((report.state, report.tries[0].used), (State::Granted, 512 - 40));
        assert_eq!(report.range.start(), machine.pool_range(pool).start() + cheapest * 512);
    }
}

#[test]
fn every_size_from_a_frame_to_the_pool() {
    let (machine, pool) = lent(0, 16 * MIB);
    for bytes in [4096, 12288, 65536, MIB, 2 * MIB, 3 * MIB + 4096, 16 * MIB] {
        let wish = Wish::of_size(bytes);
        let range = machine.granted(OPERATOR, pool, wish);
        assert_eq!(range.bytes(), bytes);
        let Wish::Sized { align, .. } = wish else { unreachable!() };
        assert!(range.start().is_multiple_of(align));
        machine.fill(range);
        machine.release(OPERATOR, pool, range);
        assert!(machine.is_zero(range), "scrubbed");
        assert!(machine.is_open());
    }
}

#[test]
fn small_claims_share_a_pageblock_and_move_single_frames() {
    let (machine, pool) = lent(9, 16 * MIB);
    // A unit of 2 MiB is demoted in place: one frame moves, the rest stays.
    let first = machine.claim(OPERATOR, pool, Wish::of_size(4096));
    assert_eq!((first.state, first.moved.bytes()), (State::Granted, 4096));
    let second = machine.claim(OPERATOR, pool, Wish::of_size(4096));
    assert_eq!((second.state, second.moved.bytes()), (State::Granted, 4096));
    assert_eq!(second.range.start() / PAGEBLOCK_FRAMES, first.range.start() / PAGEBLOCK_FRAMES);
}

#[test]
fn parts_are_released() {
    let (machine, pool) = lent(9, 16 * MIB);
    let range = machine.granted(OPERATOR, pool, Wish::of_size(8 * MIB));
    let part =
        |from: u64, to: u64| FrameRange::from_numbers(range.start() + from, range.start() + to).unwrap();
    assert_eq!(machine.release(OPERATOR, pool, part(100, 700)).state, State::Released);
    // A range is not released twice, nor a range that is claimed in part.
    for wrong in [part(100, 700), part(0, 101), part(699, 800)] {
        let report = machine.release(OPERATOR, pool, wrong);
        assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::NotClaimed));
    }
    assert_eq!(machine.memory().resident_everywhere(crate::owner::Owner::Pool(pool)), 2048 - 600);
    assert_eq!(machine.release(OPERATOR, pool, part(0, 100)).state, State::Released);
    assert_eq!(machine.release(OPERATOR, pool, part(700, 2048)).state, State::Released);
    assert_eq!(machine.claims.owner(pool), None, "nobody's again");
}

#[test]
fn frames_given_back_are_counted_for_the_claim_that_had_them() {
    let (machine, pool) = lent(9, 16 * MIB);
    let returned = |claim: &Report| machine.claims.report(OPERATOR, claim.id).unwrap().returned;
    let first = machine.claim(OPERATOR, pool, Wish::of_size(4 * MIB));
    assert_eq!((first.range.frames(), returned(&first)), (1024, 0));
    let half = FrameRange::from_numbers(first.range.start(), first.range.start() + 512).unwrap();
    machine.release(OPERATOR, pool, half);
    assert_eq!(returned(&first), 512);
    // Another claim gets the same range, which is no longer counted for the first.
    let second = machine.claim(OPERATOR, pool, Wish::Exactly(half));
    machine.release(OPERATOR, pool, half);
    assert_eq!((returned(&first), returned(&second)), (512, 512));
    machine.claims.release_all(OPERATOR, pool).unwrap();
    machine.run();
    assert_eq!((returned(&first), returned(&second)), (1024, 512));
    let released = || machine.claims.statistics().totals().released;
    assert_eq!(released(), 3, "two ranges, and all the rest at once");
    machine.claims.release_all(OPERATOR, pool).unwrap();
    machine.run();
    assert_eq!(released(), 3, "there was nothing left");
}

#[test]
fn an_exact_range_is_claimed_or_refused_with_the_blocking_frame() {
    let (machine, pool) = lent(9, 16 * MIB);
    let range = range_at(0, 20 * MIB, 4 * MIB);
    assert_eq!(machine.granted(OPERATOR, pool, Wish::Exactly(range)), range);
    let before = machine.picture();
    let overlapping = range_at(0, 18 * MIB, 4 * MIB);
    let report = machine.claim(OPERATOR, pool, Wish::Exactly(overlapping));
    assert_eq!(report.state, State::Failed);
    assert_eq!(report.blocker, Blocker { frame: range.first(), cause: Cause::Claimed });
    assert_eq!(report.blocker.to_string(), "0x41400000: claimed already");
    assert_eq!(machine.picture(), before);
}

#[test]
fn without_room_elsewhere_nothing_moves_and_the_blocker_gives_the_shortage() {
    let pools = [PoolAt("video", 0, 16 * MIB, 16 * MIB, NodeKind::BlockPool)];
    let mut machine = Machine::new(&[32 * MIB], &pools);
    let guest = machine.add_guest();
    // The guest takes all but 2 MiB, which are in the pool.
    assert!(machine.add_ram(guest, BASE, 30 * MIB, 0, Placement::Any));
    let (before, pool) = (machine.picture(), machine.pool("video"));
    let usage = Usage::of(machine.memory(), machine.claims.pools().unwrap().get(pool).unwrap());
    assert_eq!((usage.free + usage.elsewhere, usage.stuck()), (512, usage.lent - usage.room()));
    let report = machine.claim(OPERATOR, pool, Wish::of_size(16 * MIB));
    assert_eq!(report.state, State::Failed);
    assert!(matches!(report.blocker.cause, Cause::NoFrame { missing: 1.. }), "{}", report.blocker);
    assert_eq!(report.moved.bytes(), 0);
    assert_eq!(machine.picture(), before);
    // The claimable size can be claimed.
    machine.granted(OPERATOR, pool, Wish::of_size(usage.claimable() * 4096));
}

#[test]
fn the_blocker_names_a_tenant_that_may_not_move() {
    let (mut machine, pool) = lent(9, 16 * MIB);
    let guest = machine::guest_id(0);
    machine.regions(guest)[0].mobility = crate::migrate::Mobility::OptedOut;
    let before = machine.picture();
    let report = machine.claim(OPERATOR, pool, Wish::of_size(2 * MIB));
    assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::OptedOut));
    // Every other range would fail too, and none is tried.
    assert_eq!((report.tries.len(), report.tries[0].blocker), (1, report.blocker));
    assert_eq!(report.blocker.frame, report.tries[0].range.first());
    assert_eq!(machine.picture(), before);
    assert_eq!(machine.claims.statistics().failed(Cause::OptedOut.index()), 1);
}

#[test]
fn a_cancelled_claim_undoes_what_it_did() {
    let (machine, pool) = lent(9, 16 * MIB);
    let before = machine.picture();
    let cases: Vec<u32> = some([0, 1, 3, 8, 20, 40, 70], 3).collect();
    for &steps in &cases {
        let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(16 * MIB)).unwrap();
        (0..steps).for_each(|_| _ = machine.step());
        machine.claims.cancel(&machine, OPERATOR, id).unwrap();
        machine.run();
        let report = machine.claims.report(OPERATOR, id).unwrap();
        assert_eq!(report.state, State::Cancelled, "after {steps} steps");
        machine.check();
        assert_eq!(machine.picture(), before, "after {steps} steps");
        assert_eq!(machine.claims.owner(pool), None, "after {steps} steps");
        assert_eq!(machine.claims.cancel(&machine, OPERATOR, id), Err(RequestError::IsOver(id)));
    }
    assert_eq!(machine.claims.statistics().totals().cancelled as usize, cases.len());
}

#[test]
fn claims_wait_for_each_other() {
    let (machine, pool) = lent(9, 16 * MIB);
    let claim = |bytes| machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(bytes)).unwrap();
    let (all, rest) = (claim(16 * MIB), claim(2 * MIB));
    machine.run();
    machine.check();
    assert_eq!(machine.claims.report(OPERATOR, all).unwrap().state, State::Granted);
    let late = machine.claims.report(OPERATOR, rest).unwrap();
    assert_eq!((late.state, late.blocker.cause), (State::Failed, Cause::NoRange(Bar::Claimed)));
    let why = "no range of that size and alignment is left in the pool: 0x41000000 is claimed already";
    assert_eq!(late.blocker.to_string(), why);
}

#[test]
fn p18_a_pool_outside_all_blocks_is_a_last_resort_and_can_be_claimed() {
    let pools = [PoolAt("cma", 0, 16 * MIB, 16 * MIB, NodeKind::Pool)];
    let mut machine = Machine::new(&[48 * MIB, 32 * MIB], &pools);
    let guest = machine.add_guest();
    let pool = machine.pool("cma");
    let usage =
        |machine: &Machine| Usage::of(machine.memory(), machine.claims.pools().unwrap().get(pool).unwrap());
    let only = Placement::only(machine::controller(0));
    assert!(machine.add_ram(guest, BASE, 16 * MIB, 9, only));
    assert_eq!(usage(&machine).lent, 0, "other frames first");
    assert!(machine.add_ram(guest, BASE + (1 << 30), 24 * MIB, 9, only));
    assert!(usage(&machine).lent > 0);
    let range = machine.granted(OPERATOR, pool, Wish::of_size(16 * MIB));
    assert_eq!(range, machine.pool_range(pool));
}

#[test]
fn the_map_of_a_pool_shows_the_use_of_each_block() {
    let (machine, pool) = lent(9, 6 * MIB);
    machine.granted(OPERATOR, pool, Wish::Exactly(range_at(0, 28 * MIB, 2 * MIB)));
    machine.granted(OPERATOR, pool, Wish::Exactly(range_at(0, 16 * MIB, 4096)));
    let range = machine.pool_range(pool);
    let map: String = (range.start()..range.end())
        .step_by(512)
        .map(|number| {
            BlockUse::of(machine.memory().glance(crate::addr::Frame::try_new(number).unwrap()).unwrap())
        })
        .map(BlockUse::symbol)
        .collect();
    assert_eq!(map.len(), 8);
    assert!(map.starts_with('C') && map.chars().nth(6) == Some('C') && map.contains("L"), "{map}");
}

#[test]
fn impossible_requests_are_refused_at_once() {
    let (machine, pool) = lent(9, 2 * MIB);
    let claim = |wish| machine.claims.claim(&machine, OPERATOR, pool, wish).unwrap_err();
    assert_eq!(claim(Wish::of_size(0)), RequestError::Empty);
    assert_eq!(claim(Wish::Sized { frames: 1, align: 3 }), RequestError::BadAlignment { align: 3 });
    assert_eq!(claim(Wish::Sized { frames: 1, align: 0 }), RequestError::BadAlignment { align: 0 });
    assert!(matches!(claim(Wish::of_size(u64::MAX)), RequestError::TooLarge { pool: 4096, .. }));
    let outside = Wish::Exactly(range_at(0, 31 * MIB, 2 * MIB));
    assert!(matches!(claim(outside), RequestError::OutsidePool { .. }));
    let nowhere = PoolId::try_new(5).unwrap();
    let refused = machine.claims.claim(&machine, OPERATOR, nowhere, Wish::of_size(4096));
    assert_eq!(refused, Err(RequestError::NoSuchPool));
    for _ in 0..8 {
        machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(4096)).unwrap();
    }
    assert_eq!(claim(Wish::of_size(4096)), RequestError::TooManyOpen);
    // No frame of the pool has this alignment.
    let (machine, pool) = lent(9, 2 * MIB);
    let report = machine.claim(OPERATOR, pool, Wish::Sized { frames: 1, align: 1 << 36 });
    assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::NoRange(Bar::Nothing)));
    let why = "no range of that size and alignment is left in the pool";
    assert_eq!(report.blocker.to_string(), why);
}
