//! Complete jobs on one CPU.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::fake::{Books, G1, Host, K4, M2, controller, ipa, only};
use super::*;
use crate::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES, Pa};
use crate::cases::some;
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::GuestId;
use crate::phys::frame::Contents;
use crate::phys::placement::{ControllerList, Placement, Strictness, Turns};
use crate::range::FrameRange;
use crate::sync::hooks;
use crate::table::{Attributes, Level, TableError};

mod coalesce;
mod evacuation;

const BASE: u64 = 0x4000_0000;

/// Makes a guest with `size` bytes in blocks of `order` behind controller 0.
fn guest(frames: u64, size: u64, order: u8) -> (Host, GuestId) {
    let mut host = Host::new(frames, None);
    let guest = host.add_guest();
    host.add_ram(guest, BASE, size, order, only(0));
    (host, guest)
}

fn behind(number: u8) -> ControllerSet {
    ControllerSet::EMPTY.with(controller(number))
}

fn migrate_all(host: &Host, guest: GuestId, to: u8) -> JobReport {
    let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(to))).unwrap();
    host.run_jobs();
    host.check();
    host.engine.job(id).unwrap()
}

#[test]
fn blocks_move_as_units() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 3 * M2, 9);
    let report = migrate_all(&host, guest, 1);
    assert_eq!(report.state, JobState::Finished);
    assert_eq!(report.moved, PairTotals { blocks: 3, pages: 0 });
    assert_eq!(host.arrivals.load(Ordering::Relaxed), 3);
    assert_eq!((report.total_bytes, report.scanned_bytes), (3 * M2, 3 * M2));
    assert_eq!(host.behind(guest), behind(1));
    assert_eq!(host.leaf_counts(guest), [0, 3, 0]);
    let statistics = host.engine.statistics();
    assert_eq!(statistics.pair(controller(0), controller(1)).bytes(), 3 * M2);
    assert_eq!(statistics.pair(controller(1), controller(0)), PairTotals::default());
    // No frame was copied twice.
    assert_eq!(host.hardware.frames_copied.load(Ordering::Relaxed), 3 * PAGEBLOCK_FRAMES);
    let back = migrate_all(&host, guest, 0);
    assert_eq!(back.moved.blocks, 3);
    assert_eq!(migrate_all(&host, guest, 0).moved, PairTotals::default(), "all of it is there already");
}

#[test]
fn time_is_charged_to_the_job_that_used_it() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    host.hardware.ticks_per_copy.store(1, Ordering::Relaxed);
    // Both in one step.
    host.engine.policy().set_slice_ns(1_000_000_000);
    let long = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    let idle = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    let started = host.now();
    host.run_jobs();
    let took = host.now() - started;
    let [long, idle] = [long, idle].map(|id| host.engine.job(id).unwrap());
    assert_eq!((long.moved.blocks, idle.moved.blocks), (2, 0));
    assert!(long.worked_ticks >= 2 * PAGEBLOCK_FRAMES, "{} of {took}", long.worked_ticks);
    assert!(long.worked_ticks + idle.worked_ticks <= took);
    assert!(idle.worked_ticks < PAGEBLOCK_FRAMES, "{} of {took}", idle.worked_ticks);
}

#[test]
fn pages_gather_into_blocks_and_are_promoted() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 0);
    assert_eq!(host.leaf_counts(guest), [0, 0, 1024]);
    let report = migrate_all(&host, guest, 1);
    assert_eq!(report.moved, PairTotals { blocks: 0, pages: 1024 });
    assert_eq!(host.leaf_counts(guest), [0, 2, 0]);
    assert_eq!(host.engine.statistics().guest(guest).totals().promotions, 2);
}

#[test]
fn pages_are_not_promoted_if_the_region_forbids_it() {
    let (mut host, guest) = guest(4 * PAGEBLOCK_FRAMES, M2, 0);
    host.regions[0][0].largest = Level::L3;
    let report = migrate_all(&host, guest, 1);
    assert_eq!(report.moved.pages, 512);
    assert_eq!(host.leaf_counts(guest), [0, 0, 512]);
    assert_eq!(host.engine.statistics().guest(guest).totals().invalidations, 512 / BATCH as u64);
}

#[test]
fn a_leaf_that_was_demoted_meanwhile_is_not_moved_as_2_mib() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, M2, 0);
    let space = host.space(guest).unwrap();
    let target = Frame::containing(Pa::new_truncate(host.frames_behind(1).start() * FRAME_SIZE));
    assert_eq!(space.begin_huge(ipa(BASE), target), Err(TableError::InMotion(ipa(BASE))));
    let leaf = space.with(|stage2| stage2.leaf(ipa(BASE))).unwrap();
    assert!(!leaf.is_protected() && !leaf.is_broken(), "{leaf:?}");
    assert!(host.access(guest, 0, ipa(BASE), true), "the leaf is writable");
    host.check();
}

#[test]
fn pages_that_become_contiguous_are_promoted() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, M2, 0);
    // There is no block to gather in, but single frames are allocated in order from an aligned one.
    host.hardware.allocator().forbidden_orders.push(9);
    migrate_all(&host, guest, 1);
    assert_eq!(host.leaf_counts(guest), [0, 1, 0]);
}

#[test]
fn a_part_of_a_block_is_moved_by_pages() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let scope = Scope::Range(guest, ipa(BASE + M2 - 2 * K4), 5 * K4);
    let id = host.engine.submit(Request::migrate(scope, controller(1))).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.moved(id), 5 * K4);
    assert_eq!(host.behind(guest), behind(0).with(controller(1)));
    assert_eq!(host.leaf_counts(guest), [0, 0, 1024]);
    assert_eq!(host.engine.statistics().guest(guest).totals().demotions, 2);
    migrate_all(&host, guest, 1);
    assert_eq!(host.leaf_counts(guest), [0, 1, 512], "an area that is mostly there already is not gathered");
}

#[test]
#[cfg_attr(miri, ignore = "moves a GiB frame by frame")]
fn a_gigantic_leaf_is_demoted_moved_by_parts_and_promoted() {
    let frames = 512 * PAGEBLOCK_FRAMES;
    let (host, guest) = guest(frames, G1, 18);
    assert_eq!(host.leaf_counts(guest), [1, 0, 0]);
    let report = migrate_all(&host, guest, 1);
    assert_eq!(report.moved, PairTotals { blocks: 512, pages: 0 });
    assert_eq!(host.leaf_counts(guest), [1, 0, 0]);
    let totals = host.engine.statistics().guest(guest).totals();
    assert_eq!((totals.demotions, totals.promotions), (1, 1));
}

#[test]
#[cfg_attr(miri, ignore = "moves a GiB frame by frame")]
fn a_gigantic_leaf_is_moved_without_a_gigantic_block() {
    let frames = 512 * PAGEBLOCK_FRAMES;
    let (host, guest) = guest(frames, G1, 18);
    host.hardware.allocator().forbidden_orders.push(18);
    migrate_all(&host, guest, 1);
    assert_eq!(host.behind(guest), behind(1));
    assert_eq!(host.leaf_counts(guest), [1, 0, 0], "the blocks are contiguous");
}

#[test]
fn a_cancelled_gigantic_move_releases_its_reserve() {
    let (host, guest) = guest(512 * PAGEBLOCK_FRAMES, G1, 18);
    let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    while host.moved(id) < 3 * M2 {
        host.engine.step(&host, 50_000, Payer::Idle);
    }
    host.engine.cancel(&host, id).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.engine.job(id).unwrap().state, JobState::Cancelled);
    assert_eq!(host.leaf_counts(guest), [0, 512, 0]);
}

#[test]
fn blocks_move_by_pages_if_no_block_is_free() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    // 600 free frames on the target, but no aligned 512.
    let blocker = GuestId::try_new(7).unwrap();
    for offset in [0, 1, 2, 3] {
        let frame = host.allocate(blocker, 9, &only(1), ipa(0)).unwrap();
        host.divide(blocker, frame, 9);
        for index in 0..PAGEBLOCK_FRAMES {
            if offset < 2 && (100..400).contains(&index) {
                host.release(blocker, frame.checked_add(index).unwrap(), 0, Contents::Dirty);
            }
        }
    }
    let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    host.run_jobs();
    let report = host.engine.job(id).unwrap();
    assert_eq!(report.state, JobState::Incomplete, "2 MiB found no frame");
    assert_eq!(report.moved, PairTotals { blocks: 0, pages: 512 });
    let unmoved = report.unmoved(Reason::NoFrame);
    assert_eq!((unmoved.leaf_count, unmoved.bytes), (1, M2));
    assert_eq!(unmoved.first, Some((guest, ipa(BASE + M2))));
}

#[test]
fn a_full_target_takes_what_fits_and_the_rest_is_reported() {
    let mut host = Host::with_controllers(&[4 * PAGEBLOCK_FRAMES, PAGEBLOCK_FRAMES], None);
    let guest = host.add_guest();
    host.add_ram(guest, BASE, 3 * M2, 9, only(0));
    let report = migrate_all(&host, guest, 1);
    assert_eq!(report.state, JobState::Incomplete);
    assert_eq!(report.moved.blocks, 1);
    assert_eq!(report.unmoved(Reason::NoFrame).bytes, 2 * M2);
    assert_eq!(report.unmoved_bytes(), 2 * M2);
    assert_eq!(host.engine.shortage(&host, &report), Shortage { bytes: 2 * M2, fits: ControllerSet::EMPTY });
}

#[test]
fn a_shortage_lists_controllers_that_have_room_and_are_allowed() {
    for (placement, fits) in [
        (Placement::Any, behind(2)),
        (Placement::prefer(controller(0)), behind(2)),
        (only(1), ControllerSet::EMPTY),
        (
            Placement::Listed(ControllerList::new(&[controller(1), controller(2)]), Strictness::Strict),
            behind(2),
        ),
    ] {
        let frames = [4, 1, 8].map(|blocks| blocks * PAGEBLOCK_FRAMES);
        let mut host = Host::with_controllers(&frames, None);
        let guest = host.add_guest();
        host.add_ram(guest, BASE, 4 * M2, 9, only(0));
        host.regions[0][0].placement = placement;
        let report = migrate_all(&host, guest, 1);
        assert_eq!(host.engine.shortage(&host, &report), Shortage { bytes: 3 * M2, fits }, "{placement:?}");
    }
}

#[test]
fn unmoved_memory_is_reported_with_its_reason() {
    let (mut host, guest) = guest(8 * PAGEBLOCK_FRAMES, M2, 9);
    for (number, mobility) in [
        Mobility::PinnedInPlace,
        Mobility::OptedOut,
        Mobility::Claimed,
        Mobility::InClaim,
        Mobility::DmaWindow,
    ]
    .into_iter()
    .enumerate()
    {
        let base = BASE + (number as u64 + 1) * M2;
        host.add_ram(guest, base, M2, 9, only(0));
        host.regions[0][number + 1].mobility = mobility;
    }
    let report = migrate_all(&host, guest, 1);
    assert_eq!(report.moved.blocks, 1);
    for reason in
        [Reason::PinnedInPlace, Reason::OptedOut, Reason::Claimed, Reason::InClaim, Reason::DmaWindow]
    {
        assert_eq!(report.unmoved(reason).bytes, M2, "{reason}");
    }
    assert_eq!(report.unmoved(Reason::Claimed).first, Some((guest, ipa(BASE + 3 * M2))));
    // Evacuation obeys placement: the region is strictly behind controller 0.
    let id = host.engine.submit(Request::evacuate(controller(1))).unwrap();
    host.run_jobs();
    assert_eq!(host.moved(id), M2);
    host.regions[0][0].placement = only(0);
    let id = host.engine.submit(Request::evacuate(controller(0))).unwrap();
    host.run_jobs();
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.moved.bytes(), report.unmoved(Reason::Placement).bytes), (0, M2));
}

#[test]
fn a_controller_that_closes_at_any_step_of_a_job_ends_empty() {
    for (steps, order) in some(0..24, 4).flat_map(|steps| [(steps, 9), (steps, 0)]) {
        let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, order);
        let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
        for step in 0..steps {
            host.engine.step(&host, 40_000, Payer::Idle);
            if step % 7 == 3 {
                host.access(guest, 0, ipa(BASE + step * M2 / 8), true);
            }
        }
        // The target is evacuated while the job runs.
        host.hardware.allocator().close(controller(1));
        let back = host.engine.submit(Request::evacuate(controller(1))).unwrap();
        host.run_jobs();
        host.check();
        let report = host.engine.job(id).unwrap();
        assert_eq!(report.moved.bytes() + report.unmoved_bytes(), 4 * M2, "{report:?}");
        assert_eq!(host.moved(back), report.moved.bytes());
        assert_eq!(host.behind(guest), behind(0));
    }
}

#[test]
fn pinning_moves_memory_behind_other_controllers() {
    let mut host = Host::with_controllers(&[4 * PAGEBLOCK_FRAMES; 4], None);
    let guest = host.add_guest();
    for number in 0..4 {
        host.map_ram(guest, BASE + u64::from(number) * M2, M2, 9, &only(number));
    }
    let list = ControllerList::new(&[controller(2), controller(3)]);
    let placement = Placement::Listed(list, Strictness::Strict);
    let region =
        Region { ipa: ipa(BASE), size: 4 * M2, mobility: Mobility::Movable, placement, largest: Level::L1 };
    host.regions[0].push(region);
    let id = host.engine.submit(Request::pin(Scope::Guest(guest), placement)).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.moved(id), 2 * M2);
    assert_eq!(host.behind(guest), behind(2).with(controller(3)));
}

#[test]
fn memory_behind_one_controller_is_interleaved() {
    for (order, largest) in [(0, Level::L3), (9, Level::L2), (18, Level::L1)] {
        let mut host = Host::with_controllers(&[1024 * PAGEBLOCK_FRAMES; 2], None);
        let guest = host.add_guest();
        let size = if order == 18 { 1 << 30 } else { 20 * M2 };
        host.add_ram(guest, BASE, size, order, only(0));
        let set = behind(0).with(controller(1));
        let turns = Turns::new(set, |_| 1000).unwrap();
        let request = Request::spread(Scope::Guest(guest), set, turns);
        let id = host.engine.submit(request).unwrap();
        host.run_jobs();
        host.check();
        assert_eq!(host.moved(id), size / 2, "{largest:?}");
        let report = host.engine.job(id).unwrap();
        assert_eq!((report.unmoved_bytes(), report.scanned_bytes), (0, size));
        for at in (BASE..BASE + size).step_by(M2 as usize) {
            let pa = host.any_space(guest).with(|s| s.translate(ipa(at))).unwrap();
            let span = host.span_of(Frame::containing(pa)).unwrap();
            assert_eq!(span.controller, turns.at(ipa(at)), "at {at:#x}");
        }
        // A second job finds nothing to do.
        let again = host.engine.submit(request).unwrap();
        host.run_jobs();
        assert_eq!(host.moved(again), 0);
    }
}

#[test]
fn interleaving_continues_if_a_controller_is_full() {
    let mut host =
        Host::with_controllers(&[32 * PAGEBLOCK_FRAMES, PAGEBLOCK_FRAMES, 32 * PAGEBLOCK_FRAMES], None);
    let guest = host.add_guest();
    host.add_ram(guest, BASE, 12 * M2, 9, only(0));
    let set = (0..3).filter_map(ControllerId::try_new).collect();
    let turns = Turns::new(set, |_| 1000).unwrap();
    let id = host.engine.submit(Request::spread(Scope::Guest(guest), set, turns)).unwrap();
    host.run_jobs();
    host.check();
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.moved.bytes(), report.unmoved(Reason::NoFrame).bytes), (5 * M2, 3 * M2));
}

#[test]
fn a_preferred_pin_to_a_full_controller_splits_no_unit() {
    let (mut host, first) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let other = host.add_guest();
    // Less than a unit is free on the target.
    host.add_ram(other, BASE, 4 * M2 - 16 * K4, 0, only(1));
    let preferred = Placement::prefer(controller(1));
    let id = host.engine.submit(Request::pin(Scope::Guest(first), preferred)).unwrap();
    host.run_jobs();
    host.check();
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.moved.bytes(), report.unmoved(Reason::NoFrame).bytes), (0, 2 * M2), "{report:?}");
    assert_eq!(host.leaf_counts(first), [0, 2, 0]);
}

#[test]
fn a_share_of_a_guest_is_shifted_if_its_placement_allows() {
    let (mut host, guest) = guest(8 * PAGEBLOCK_FRAMES, 5 * M2, 9);
    let request = Request::shift(Scope::Guest(guest), controller(0), controller(1), 3 * M2);
    let pinned = host.engine.submit(request).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.moved(pinned), 0);
    let report = host.engine.job(pinned).unwrap();
    assert_eq!(report.unmoved(Reason::Placement).bytes, 5 * M2);

    host.regions[0][0].placement = Placement::prefer(controller(0));
    let id = host.engine.submit(request).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.moved(id), 3 * M2);
}

#[test]
fn a_slice_ends_in_time() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    loop {
        let before = host.now();
        let step = host.engine.step(&host, 50_000, Payer::Idle);
        // 50 µs, and one uninterruptible batch of 32 frames at 300 ticks each.
        assert!(host.now() - before <= 50_000 + 32 * 300 + 5_000, "{}", host.now() - before);
        if step == Step::Idle {
            break;
        }
    }
    host.check();
}

#[test]
fn a_paused_job_lets_others_run_and_continues_later() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    let [half, rest] = [0, 2].map(|area| Scope::Range(guest, ipa(BASE + area * M2), 2 * M2));
    let first = host.engine.submit(Request::migrate(half, controller(1))).unwrap();
    let second = host.engine.submit(Request::migrate(rest, controller(1))).unwrap();
    host.engine.step(&host, 20_000, Payer::Idle);
    host.engine.pause(first).unwrap();
    assert_eq!(host.engine.job(first).unwrap().state, JobState::Pausing);
    host.run_jobs();
    host.check();
    assert_eq!(host.engine.job(first).unwrap().state, JobState::Paused);
    assert_eq!(host.moved(first), M2, "the unit in flight arrived");
    assert_eq!(host.engine.job(second).unwrap().state, JobState::Finished);
    host.engine.resume(first).unwrap();
    host.run_jobs();
    let report = host.engine.job(first).unwrap();
    assert_eq!((report.moved.bytes(), report.scanned_bytes), (2 * M2, 2 * M2));
    assert_eq!(host.engine.job_after(JobId::new(0)).unwrap().id, first);
    assert_eq!(host.engine.job_after(first).unwrap().id, second);
}

#[test]
fn a_cancelled_unit_stays_at_its_source() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    host.engine.step(&host, 20_000, Payer::Idle);
    assert!(host.any_space(guest).with(|s| s.leaf(ipa(BASE))).unwrap().is_protected());
    host.engine.cancel(&host, id).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.engine.job(id).unwrap().state, JobState::Cancelled);
    assert_eq!(host.behind(guest), behind(0));
    assert!(host.access(guest, 0, ipa(BASE), true));
}

#[test]
fn a_write_splits_a_unit_and_the_parts_are_promoted() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    for (page, vcpu) in [(0, 0), (100, 1), (511, 0)] {
        host.access(guest, vcpu, ipa(BASE + page * K4), true);
    }
    host.engine.step(&host, 30_000, Payer::Idle);
    assert!(host.access(guest, 0, ipa(BASE + 7 * K4), false), "reads do not fault");
    let before = host.now();
    assert!(!host.access(guest, 0, ipa(BASE + 511 * K4), true), "a write faults");
    assert!(host.now() - before < 5_000, "without waiting for a copy");
    assert_eq!(host.leaf_counts(guest), [0, 1, 512]);
    assert!(host.access(guest, 1, ipa(BASE), true));
    host.run_jobs();
    host.check();
    let totals = host.engine.statistics().guest(guest).totals();
    assert_eq!((totals.splits, totals.promotions, totals.faults), (1, 1, 1));
    assert_eq!(host.leaf_counts(guest), [0, 2, 0]);
    assert_eq!(host.behind(guest), behind(1));
    assert_eq!((totals.moved.pages, totals.moved.blocks), (512, 1), "pages that the split has moved count");
}

#[test]
fn a_writer_helps_if_little_is_left() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, M2, 9);
    host.engine.policy().set_stall_frames(512);
    host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    host.engine.step(&host, 30_000, Payer::Idle);
    assert!(!host.access(guest, 0, ipa(BASE + 511 * K4), true));
    assert_eq!(host.leaf_counts(guest), [0, 1, 0]);
    assert_eq!(host.behind(guest), behind(1), "the guest's CPU has finished the move");
    host.run_jobs();
    host.check();
    let totals = host.engine.statistics().guest(guest).totals();
    assert_eq!((totals.splits, totals.helps, totals.moved.blocks), (0, 1, 1));
    assert!(totals.stalls.max > 100_000, "{totals:?}");
}

#[test]
fn a_unit_that_cannot_be_split_is_given_up_and_tried_again() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, M2, 9);
    let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    host.engine.step(&host, 30_000, Payer::Idle);
    host.hardware.fail_tables.store(true, Ordering::Relaxed);
    assert!(!host.access(guest, 0, ipa(BASE), true));
    assert_eq!(host.behind(guest), behind(0));
    host.run_jobs();
    host.check();
    assert_eq!(host.moved(id), M2);
    assert_eq!(host.engine.statistics().guest(guest).totals().retries, 1);
    // If it happens every time, the job reports it.
    let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(0))).unwrap();
    while host.engine.step(&host, 20_000, Payer::Idle) != Step::Idle {
        host.access(guest, 0, ipa(BASE), true);
    }
    host.check();
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.moved.bytes(), report.unmoved(Reason::NoTable).bytes), (0, M2));
}

#[test]
fn a_guest_that_ends_leaks_nothing() {
    let is_gigantic = |steps: &u64| steps % 8 == 5;
    // 1 GiB takes too long under Miri.
    for steps in some((0..32).filter(|steps| !(cfg!(miri) && is_gigantic(steps))), 5) {
        // A gigantic leaf, blocks, pages.
        let (host, guest) = match steps % 8 {
            5 => guest(512 * PAGEBLOCK_FRAMES, G1, 18),
            even if even % 2 == 0 => guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9),
            _ => guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 0),
        };
        host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
        let other = host.engine.submit(Request::evacuate(controller(0))).unwrap();
        for step in 0..steps {
            host.engine.step(&host, 20_000, Payer::Idle);
            if step % 7 == 3 {
                host.access(guest, 0, ipa(BASE + step * M2 / 8), true);
            }
        }
        host.is_gone.store(true, Ordering::Relaxed);
        host.engine.abandon(&host, host.any_space(guest));
        host.check();
        assert!(host.engine.job(JobId::new(1)).unwrap().state.is_over());
        host.run_jobs();
        assert_eq!(host.engine.job(other).unwrap().state, JobState::Finished);
    }
}

#[test]
fn jobs_whose_guest_is_gone_are_cancelled_as_abandoned() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    let ids =
        [1, 0].map(|to| host.engine.submit(Request::migrate(Scope::Guest(guest), controller(to))).unwrap());
    host.engine.step(&host, 20_000, Payer::Idle);
    // The guest is gone, and CPUs continue to work before its space is brought to rest.
    host.is_gone.store(true, Ordering::Relaxed);
    host.run_jobs();
    host.engine.abandon(&host, host.any_space(guest));
    host.check();
    for report in ids.map(|id| host.engine.job(id).unwrap()) {
        assert_eq!((report.state, report.is_abandoned), (JobState::Cancelled, true));
        assert!(report.moved.bytes() < 4 * M2);
    }
}

#[test]
fn a_helper_copies_no_more_than_the_stall_bound() {
    // Slightly more than is left after ten parts of the copy.
    const STALL: u16 = 33;
    let mut helps = 0;
    // The worker runs while the helper is about to take a lock: it completes the unit and starts the next one.
    for (locks, steps) in (0..6).flat_map(|locks| (0..30).map(move |steps| (locks, steps))) {
        let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
        let host = Rc::new(host);
        host.engine.policy().set_stall_frames(STALL);
        host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
        let copied = || host.hardware.frames_copied.load(Ordering::Relaxed);
        while copied() + u64::from(STALL) < PAGEBLOCK_FRAMES {
            host.engine.step(&*host, 1, Payer::Idle);
        }
        assert!(PAGEBLOCK_FRAMES - copied() == 32, "a nearly complete unit that nobody copies now");
        *host.work_at_lock.lock().unwrap() = Some((locks, steps));
        let other = host.clone();
        hooks::set_before_lock(Some(Rc::new(move || other.work_before_lock())));
        let other = host.clone();
        // The worker waits for the helper that it interrupts until its step ends: the clock has to advance.
        hooks::set_relax(Some(Rc::new(move || other.hardware.pass(10))));
        let before = copied();
        host.access(guest, 0, ipa(BASE + 500 * K4), true);
        let by_helper = copied() - before - host.copied_at_lock.load(Ordering::Relaxed);
        assert!(by_helper <= STALL.into(), "{by_helper} frames while the guest waits: {locks} {steps}");
        hooks::set_before_lock(None);
        hooks::set_relax(None);
        helps += host.engine.statistics().guest(guest).totals().helps;
        host.run_jobs();
        host.check();
    }
    assert!(helps > 0);
}

#[test]
fn the_share_of_a_guest_is_kept() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    let (started, mut spent) = (host.now(), 0);
    loop {
        let ticks = host.engine.allowance(&host, guest);
        if ticks == 0 {
            host.hardware.pass(1000);
            continue;
        }
        let before = host.now();
        let step = host.engine.step(&host, ticks, Payer::Guest(guest));
        spent += host.now() - before;
        if step == Step::Idle {
            break;
        }
    }
    let share = spent * 100 / (host.now() - started);
    assert!((8..=13).contains(&share), "{share} %");
    host.check();
}

#[test]
fn the_rate_is_kept() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    host.engine.policy().set_rate_bytes(M2 * 100);
    host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
    let started = host.now();
    host.run_jobs();
    // The first unit is free; each of the others waits 10 ms.
    let elapsed = host.now() - started;
    assert!((30_000_000..42_000_000).contains(&elapsed), "{elapsed} ns");
    host.engine.policy().set_rate_bytes(0);
    host.rate.store(M2 * 100, Ordering::Relaxed);
    host.engine.submit(Request::migrate(Scope::Guest(guest), controller(0))).unwrap();
    let started = host.now();
    host.run_jobs();
    assert!((30_000_000..42_000_000).contains(&(host.now() - started)));
}

#[test]
fn a_failed_allocation_breaks_no_invariant() {
    for order in [0, 9, 18] {
        if order == 18 && cfg!(miri) {
            continue;
        }
        let upto = if order == 18 { 4 } else { 40 };
        let late = [200, 511, 512, 513].into_iter().filter(|_| order != 18);
        for fail_after in some((0..upto).chain(late), 4) {
            let (size, frames) = if order == 18 { (G1, 512) } else { (2 * M2, 4) };
            let (host, guest) = guest(frames * PAGEBLOCK_FRAMES, size, order);
            host.hardware.allocator().fail_after = Some(fail_after);
            let report = migrate_all(&host, guest, 1);
            assert_eq!(report.state, JobState::Finished);
            assert_eq!(
                report.moved.bytes() + report.unmoved_bytes(),
                size,
                "{order} {fail_after} {report:?}"
            );
        }
    }
}

#[test]
fn faults_of_the_guests_own_are_told_apart() {
    let (host, guest) = guest(8 * PAGEBLOCK_FRAMES, M2, 9);
    let fault = |at, kind| host.engine.fault(&host, guest, ipa(at), kind);
    assert_eq!(fault(0, Fault::Translation), Verdict::NotOurs);
    assert_eq!(fault(BASE, Fault::Translation), Verdict::Retry, "a late fault: it is mapped by now");
    assert_eq!(fault(BASE, Fault::Write), Verdict::Retry);
    host.any_space(guest).with(|s| {
        let pa = s.leaf(ipa(BASE)).unwrap().pa();
        let attributes = Attributes { execute: crate::table::Execute::Never, ..Attributes::ROM };
        s.unmap(ipa(BASE), M2, |_| ()).unwrap();
        s.map(ipa(BASE), pa, M2, attributes).unwrap();
    });
    assert_eq!(fault(BASE, Fault::Write), Verdict::NotOurs);
    assert_eq!(fault(BASE, Fault::Fetch), Verdict::NotOurs);
    let nobody = GuestId::try_new(5).unwrap();
    assert_eq!(host.engine.fault(&host, nobody, ipa(BASE), Fault::Write), Verdict::NotOurs);
    // Read-only memory moves too, and stays read-only.
    migrate_all(&host, guest, 1);
    assert_eq!(fault(BASE, Fault::Write), Verdict::NotOurs);
    assert_eq!(host.hardware.allocator().used_frames(), 512);
}

#[test]
#[cfg_attr(miri, ignore = "moves a GiB frame by frame")]
fn cost_does_not_grow_with_the_guest() {
    let cost = |size: u64| {
        let (host, guest) = guest(1024 * PAGEBLOCK_FRAMES, size, 9);
        let before = host.now();
        let report = migrate_all(&host, guest, 1);
        (host.now() - before) / report.moved.blocks
    };
    let (small, large) = (cost(8 * M2), cost(G1));
    assert!(large <= small + small / 50, "{small} {large}");
}
