//! Jobs that clear frames or controllers.

use super::*;

#[test]
fn tenants_leave_retired_frames() {
    let (mut host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    host.regions[0][0].placement = Placement::Any;
    let bad = host.any_space(guest).with(|s| s.translate(ipa(BASE + M2 + 7 * K4))).unwrap();
    let frames = FrameRange::try_new(Frame::containing(bad), 1).unwrap();
    host.hardware.allocator().retired.push(frames);
    let id = host.engine.submit(Request::retire(frames)).unwrap();
    host.run_jobs();
    host.check();
    // The unit is demoted in place, since most of it does not have to move.
    assert_eq!(host.moved(id), K4);
    assert_eq!(host.leaf_counts(guest), [0, 1, 512]);
    assert_eq!(host.behind(guest), behind(0), "within its controller");
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.total_bytes, report.scanned_bytes), (K4, K4));
}

#[test]
fn a_turn_skips_a_bounded_number_of_closed_tenants() {
    let (host, guest) = guest(512 * PAGEBLOCK_FRAMES, M2, 0);
    host.is_gone.store(true, Ordering::Relaxed);
    // 512 tenants that cannot be reached and that the job does not wait for, then 511 pageblocks without tenants.
    let frames = host.frames_behind(0);
    let id = host.engine.submit(Request::retire(frames)).unwrap();
    let mut steps = 0;
    while host.engine.step(&host, 0, Payer::Idle) != Step::Idle {
        assert!(host.tenant_count.swap(0, Ordering::Relaxed) <= 64);
        steps += 1;
        assert!(steps < 100);
    }
    assert!(steps >= 512 / 64 + 512 / 64, "{steps}");
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.state, report.scanned_bytes), (JobState::Incomplete, frames.bytes()));
    assert_eq!(report.unmoved(Reason::Busy).bytes, M2, "unmoved memory is counted");
    // The space opens between two turns: memory after the cursor moves.
    let id = host.engine.submit(Request::retire(frames)).unwrap();
    (0..4).for_each(|_| _ = host.engine.step(&host, 0, Payer::Idle));
    host.is_gone.store(false, Ordering::Relaxed);
    host.any_space(guest).with(|stage2| assert_eq!(stage2.leaves(ipa(0), 1 << 40).count(), 512));
    host.run_jobs();
    assert!(host.moved(id) > 0 && host.moved(id) < M2, "{}", host.moved(id));
    host.check();
}

/// Runs the worker, and checks that the job neither ends nor spins.
fn waits(host: &Host, id: JobId) {
    let mut wait_count = 0;
    for _ in 0..100 {
        match host.engine.step(host, u64::MAX, Payer::Idle) {
            Step::Wait(ticks) => {
                wait_count += 1;
                host.hardware.pass(ticks);
            }
            step => assert_eq!(step, Step::More, "the job is not over"),
        }
    }
    assert!(wait_count > 50, "the job waits and does not spin: {wait_count}");
    assert!(!host.engine.job(id).unwrap().state.is_over());
}

#[test]
fn frames_of_a_guest_that_starts_are_cleared_once_it_runs() {
    for late in [0, 1] {
        let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
        let second = host.add_guest();
        host.add_ram(second, BASE, 2 * M2, 9, only(0));
        host.regions.iter_mut().flatten().for_each(|region| region.placement = Placement::Any);
        let start = host.frames_behind(0).start();
        // A block of each guest.
        let frames = FrameRange::from_numbers(start + 512, start + 3 * 512).unwrap();
        host.hardware.allocator().retired.push(frames);
        host.coming.store(0b11, Ordering::Relaxed);
        let id = host.engine.submit(Request::retire(frames)).unwrap();
        waits(&host, id);
        let report = host.engine.job(id).unwrap();
        assert_eq!((report.state, report.waits_for), (JobState::Queued, Some(first)));
        assert_eq!((report.moved.bytes(), report.scanned_bytes), (0, 0));
        // The guests become reachable one after the other.
        host.coming.store(1 << late, Ordering::Relaxed);
        waits(&host, id);
        host.coming.store(0, Ordering::Relaxed);
        host.run_jobs();
        host.check();
        let report = host.engine.job(id).unwrap();
        assert_eq!(report.state, JobState::Finished);
        assert_eq!((report.moved.bytes(), report.unmoved_bytes()), (2 * M2, 0));
        assert_eq!((report.total_bytes, report.scanned_bytes), (frames.bytes(), frames.bytes()));
        assert!(host.hardware.allocator().blocks_in(frames).next().is_none());
    }
}

#[test]
fn a_job_that_waits_for_a_guest_does_not_block_others() {
    let (mut host, _) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let second = host.add_guest();
    host.add_ram(second, BASE, 2 * M2, 9, only(0));
    let frames = FrameRange::try_new(host.frames_behind(0).first(), PAGEBLOCK_FRAMES).unwrap();
    host.coming.store(0b01, Ordering::Relaxed);
    let waiting = host.engine.submit(Request::retire(frames)).unwrap();
    let other = host.engine.submit(Request::migrate(Scope::Guest(second), controller(1))).unwrap();
    waits(&host, waiting);
    let report = host.engine.job(other).unwrap();
    assert_eq!((report.state, report.moved.bytes()), (JobState::Finished, 2 * M2));
    host.engine.cancel(&host, waiting).unwrap();
    assert_eq!(host.engine.job(waiting).unwrap().state, JobState::Cancelled);
    assert_eq!(host.engine.step(&host, u64::MAX, Payer::Idle), Step::Idle);
}

#[test]
fn frames_of_a_guest_that_is_reset_meanwhile_are_cleared_afterwards() {
    let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 0);
    host.regions[0][0].placement = Placement::Any;
    let frames = FrameRange::try_new(host.frames_behind(0).first(), 4 * PAGEBLOCK_FRAMES).unwrap();
    host.hardware.allocator().retired.push(frames);
    let id = host.engine.submit(Request::retire(frames)).unwrap();
    while host.moved(id) < M2 {
        host.engine.step(&host, 20_000, Payer::Idle);
    }
    host.coming.store(1, Ordering::Relaxed);
    host.engine.abandon(&host, host.any_space(first));
    waits(&host, id);
    host.coming.store(0, Ordering::Relaxed);
    host.run_jobs();
    host.check();
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.state, report.moved.bytes(), report.unmoved_bytes()), (JobState::Finished, 4 * M2, 0));
}

#[test]
fn a_guest_that_is_reset_all_the_time_does_not_hold_up_a_job_by_frames() {
    let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    host.regions[0][0].placement = Placement::Any;
    let frames = FrameRange::try_new(host.frames_behind(0).first(), 4 * PAGEBLOCK_FRAMES).unwrap();
    host.hardware.allocator().retired.push(frames);
    let id = host.engine.submit(Request::retire(frames)).unwrap();
    for turn in 0..10_000 {
        let is_away = turn % 2 == 0;
        host.coming.store(u32::from(is_away), Ordering::Relaxed);
        if is_away {
            host.engine.abandon(&host, host.any_space(first));
        }
        if let Step::Wait(ticks) = host.engine.step(&host, 1, Payer::Idle) {
            host.hardware.pass(ticks);
        }
        if host.engine.job(id).unwrap().state.is_over() {
            break;
        }
    }
    let report = host.engine.job(id).unwrap();
    assert_eq!(report.state, JobState::Incomplete);
    assert!(report.unmoved(Reason::Busy).bytes > 0, "{report:?}");
    host.coming.store(0, Ordering::Relaxed);
    host.check();
}

#[test]
fn a_job_for_a_guest_that_starts_does_not_wait_for_one_that_starts() {
    let (host, first) = guest(8 * PAGEBLOCK_FRAMES, M2, 9);
    let frames = FrameRange::try_new(host.frames_behind(0).first(), PAGEBLOCK_FRAMES).unwrap();
    host.coming.store(1, Ordering::Relaxed);
    let id = host.engine.submit(Request::retire(frames).without_starting()).unwrap();
    host.run_jobs();
    let report = host.engine.job(id).unwrap();
    let busy = report.unmoved(Reason::Busy);
    assert_eq!((report.state, busy.bytes, busy.first), (JobState::Incomplete, M2, Some((first, ipa(BASE)))));
}

#[test]
fn frames_are_cleared_of_all_tenants_by_the_reverse_map() {
    let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let second = host.add_guest();
    host.add_ram(second, BASE, M2, 0, only(0));
    host.add_ram(second, BASE + G1, 2 * M2, 9, only(0));
    host.regions.iter_mut().flatten().for_each(|region| region.placement = Placement::Any);
    // From the middle of the first guest's second block to the second guest's second: 4 KiB units between.
    let start = host.frames_behind(0).start();
    let frames = FrameRange::from_numbers(start + 512 + 100, start + 3 * 512 + 300).unwrap();
    host.hardware.allocator().retired.push(frames);
    let id = host.engine.submit(Request::retire(frames)).unwrap();
    host.run_jobs();
    host.check();
    let report = host.engine.job(id).unwrap();
    assert_eq!(report.unmoved_bytes(), 0);
    assert_eq!((report.total_bytes, report.scanned_bytes), (frames.bytes(), frames.bytes()));
    for guest in [first, second] {
        host.any_space(guest).with(|stage2| {
            for leaf in stage2.leaves(ipa(0), 1 << 40) {
                let leaf = FrameRange::try_new(Frame::containing(leaf.pa()), leaf.size() / K4).unwrap();
                assert!(!leaf.overlaps(frames), "{leaf}");
            }
        });
    }
}

#[test]
fn all_guests_are_evacuated() {
    let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let second = host.add_guest();
    host.add_ram(second, BASE, M2, 0, only(0));
    for regions in &mut host.regions {
        regions[0].placement = Placement::Any;
    }
    host.hardware.allocator().close(controller(0));
    let id = host.engine.submit(Request::evacuate(controller(0))).unwrap();
    host.run_jobs();
    host.check();
    assert_eq!(host.engine.job(id).unwrap().moved, PairTotals { blocks: 2, pages: 512 });
    assert_eq!((host.behind(first), host.behind(second)), (behind(1), behind(1)));
    assert_eq!(host.engine.statistics().pair(controller(0), controller(1)).bytes(), 3 * M2);
}

#[test]
fn an_evacuation_waits_for_a_guest_that_starts_and_comes_back_to_one_that_is_reset() {
    let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    let second = host.add_guest();
    host.add_ram(second, BASE, M2, 9, only(0));
    for regions in &mut host.regions {
        regions[0].placement = Placement::Any;
    }
    host.hardware.allocator().close(controller(0));
    let set = |coming: &[GuestId]| {
        let bits = coming.iter().fold(0, |bits, guest| bits | 1 << guest.index());
        host.coming.store(bits, Ordering::Relaxed);
    };
    set(&[second]);
    let id = host.engine.submit(Request::evacuate(controller(0))).unwrap();
    while host.moved(id) < M2 {
        host.engine.step(&host, 20_000, Payer::Idle);
    }
    // The first guest is reset meanwhile.
    set(&[first, second]);
    host.engine.abandon(&host, host.any_space(first));
    let mut waits = 0;
    for _ in 0..100 {
        match host.engine.step(&host, u64::MAX, Payer::Idle) {
            Step::Wait(ticks) => {
                waits += 1;
                host.hardware.pass(ticks);
            }
            step => assert_eq!(step, Step::More, "the job is not over"),
        }
    }
    assert!(waits > 90, "the job waits and does not spin: {waits}");
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.state, report.waits_for), (JobState::Queued, Some(first)));
    set(&[]);
    host.run_jobs();
    host.check();
    let report = host.engine.job(id).unwrap();
    assert_eq!((report.state, report.moved.bytes(), report.unmoved_bytes()), (JobState::Finished, 5 * M2, 0));
    assert!(report.scanned_bytes <= report.total_bytes, "{report:?}");
    assert_eq!((host.behind(first), host.behind(second)), (behind(1), behind(1)));
}

#[test]
fn a_waiting_evacuation_can_be_cancelled_and_ends_when_the_guest_stops() {
    let (host, first) = guest(8 * PAGEBLOCK_FRAMES, M2, 9);
    host.hardware.allocator().close(controller(0));
    for is_cancelled in [true, false] {
        host.coming.store(1, Ordering::Relaxed);
        let id = host.engine.submit(Request::evacuate(controller(0))).unwrap();
        for _ in 0..10 {
            host.engine.step(&host, u64::MAX, Payer::Idle);
        }
        if is_cancelled {
            host.engine.cancel(&host, id).unwrap();
        } else {
            // The guest was stopped before it ran.
            host.is_gone.store(true, Ordering::Relaxed);
            host.coming.store(0, Ordering::Relaxed);
        }
        host.run_jobs();
        let state = host.engine.job(id).unwrap().state;
        assert_eq!(state, if is_cancelled { JobState::Cancelled } else { JobState::Finished });
        assert_eq!(host.engine.job(id).unwrap().moved.bytes(), 0);
    }
    host.is_gone.store(false, Ordering::Relaxed);
    assert_eq!(host.behind(first), behind(0));
}

#[test]
fn a_guest_that_is_reset_all_the_time_does_not_hold_up_an_evacuation() {
    let (mut host, first) = guest(8 * PAGEBLOCK_FRAMES, 4 * M2, 9);
    host.regions[0][0].placement = Placement::Any;
    host.hardware.allocator().close(controller(0));
    let id = host.engine.submit(Request::evacuate(controller(0))).unwrap();
    for turn in 0..10_000 {
        // The guest's memory can be reached for one short step at a time.
        let is_coming = turn % 2 == 0;
        host.coming.store(u32::from(is_coming), Ordering::Relaxed);
        if is_coming {
            host.engine.abandon(&host, host.any_space(first));
        }
        let step = host.engine.step(&host, 1, Payer::Idle);
        if let Step::Wait(ticks) = step {
            host.hardware.pass(ticks);
        }
        if host.engine.job(id).unwrap().state.is_over() {
            break;
        }
    }
    let report = host.engine.job(id).unwrap();
    assert_eq!(report.state, JobState::Incomplete);
    assert_eq!(report.unmoved(Reason::Busy).first, Some((first, ipa(BASE))), "{report:?}");
    host.coming.store(0, Ordering::Relaxed);
    host.check();
}
