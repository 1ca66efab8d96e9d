//! Coalescing in idle time.

use super::*;

/// Makes a guest with two units of 2 MiB behind controller 0, one of them split by the retirement of a frame.
fn split() -> (Host, GuestId) {
    let (mut host, guest) = guest(8 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    host.regions[0][0].placement = Placement::Any;
    let bad = host.any_space(guest).with(|s| s.translate(ipa(BASE + M2 + 7 * K4))).unwrap();
    let frames = FrameRange::try_new(Frame::containing(bad), 1).unwrap();
    host.hardware.allocator().retired.push(frames);
    host.engine.submit(Request::retire(frames)).unwrap();
    host.run_jobs();
    assert_eq!(host.leaf_counts(guest), [0, 1, 512]);
    (host, guest)
}

fn counts(host: &Host, guest: GuestId) -> (u64, u64) {
    let totals = host.engine.statistics().guest(guest).totals();
    (totals.coalesced, totals.gathered)
}

#[test]
fn an_area_with_scattered_frames_moves_into_one_block() {
    let (host, guest) = split();
    let copied = host.hardware.frames_copied.load(Ordering::Relaxed);
    assert!(host.engine.has_spare_work());
    // Not in a guest's time.
    assert_eq!(host.engine.step(&host, u64::MAX, Payer::Guest(guest)), Step::Idle);
    assert_eq!(host.hardware.frames_copied.load(Ordering::Relaxed), copied);
    host.run_idle();
    host.check();
    assert_eq!((host.leaf_counts(guest), host.behind(guest)), ([0, 2, 0], behind(0)));
    assert_eq!(host.hardware.frames_copied.load(Ordering::Relaxed), copied + PAGEBLOCK_FRAMES);
    assert_eq!(counts(&host, guest), (1, 1));
    assert!(!host.engine.has_spare_work());
}

#[test]
fn an_area_with_contiguous_frames_is_promoted_in_place() {
    let (host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    // A job demotes a unit and then finds no frame for any of its parts.
    host.hardware.allocator().forbidden_orders.extend([0, 9]);
    let report = migrate_all(&host, guest, 1);
    assert_eq!((report.moved.bytes(), report.unmoved_bytes()), (0, 2 * M2));
    assert!(host.leaf_counts(guest)[2] >= 512);
    host.run_idle();
    host.check();
    assert_eq!(host.leaf_counts(guest), [0, 2, 0]);
    assert_eq!(counts(&host, guest).1, 0);
    assert!(counts(&host, guest).0 > 0 && host.hardware.frames_copied.load(Ordering::Relaxed) == 0);
}

#[test]
fn areas_behind_several_controllers_or_of_small_regions_stay() {
    let (mut host, guest) = guest(4 * PAGEBLOCK_FRAMES, 2 * M2, 9);
    let scope = Scope::Range(guest, ipa(BASE + M2 - 2 * K4), 5 * K4);
    let id = host.engine.submit(Request::migrate(scope, controller(1))).unwrap();
    host.run_idle();
    assert_eq!((host.moved(id), host.leaf_counts(guest)), (5 * K4, [0, 0, 1024]));
    assert_eq!(host.behind(guest), behind(0).with(controller(1)));
    // Back again: coalesced, unless the region forbids it.
    host.regions[0][0].largest = Level::L3;
    host.engine.submit(Request::migrate(scope, controller(0))).unwrap();
    host.run_idle();
    assert_eq!(host.leaf_counts(guest), [0, 0, 1024]);
    host.regions[0][0].largest = Level::L2;
    host.engine.note_split(guest);
    host.run_idle();
    host.check();
    assert_eq!((host.leaf_counts(guest), host.behind(guest)), ([0, 2, 0], behind(0)));
}

#[test]
fn without_a_free_block_an_area_is_tried_again_once_memory_is_freed() {
    let (host, guest) = split();
    host.hardware.allocator().forbidden_orders.push(9);
    host.run_idle();
    assert_eq!((host.leaf_counts(guest), counts(&host, guest)), ([0, 1, 512], (0, 0)));
    assert!(!host.engine.has_spare_work(), "nobody spins");
    host.hardware.allocator().forbidden_orders.clear();
    host.engine.note_freed();
    assert!(host.engine.has_spare_work());
    host.run_idle();
    host.check();
    assert_eq!((host.leaf_counts(guest), counts(&host, guest)), ([0, 2, 0], (1, 1)));
}

#[test]
fn a_turn_copies_at_most_a_batch_and_a_job_starts_once_the_area_is_at_rest() {
    for steps in some(1..60, 7) {
        let (host, guest) = split();
        let copied = || host.hardware.frames_copied.load(Ordering::Relaxed);
        for _ in 0..steps {
            let before = copied();
            host.engine.step(&host, 0, Payer::Idle);
            assert!(copied() - before <= BATCH as u64);
        }
        let id = host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
        host.run_jobs();
        host.check();
        let report = host.engine.job(id).unwrap();
        assert_eq!((report.state, report.moved.bytes()), (JobState::Finished, 2 * M2), "after {steps} steps");
        assert_eq!(host.behind(guest), behind(1));
        host.run_idle();
        host.check();
        assert_eq!(host.leaf_counts(guest), [0, 2, 0]);
    }
}

#[test]
fn a_guest_that_is_reset_or_stops_meanwhile_leaks_nothing() {
    for (steps, is_reset) in some(1..40, 5).flat_map(|steps| [(steps, true), (steps, false)]) {
        let (host, guest) = split();
        (0..steps).for_each(|_| _ = host.engine.step(&host, 0, Payer::Idle));
        let away = if is_reset { &host.coming } else { &std::sync::atomic::AtomicU32::new(0) };
        away.store(1, Ordering::Relaxed);
        host.is_gone.store(!is_reset, Ordering::Relaxed);
        host.engine.abandon(&host, host.any_space(guest));
        host.check();
        host.run_idle();
        host.check();
        away.store(0, Ordering::Relaxed);
        host.is_gone.store(false, Ordering::Relaxed);
        host.engine.note_freed();
        host.run_idle();
        host.check();
        assert_eq!(host.leaf_counts(guest), [0, 2, 0], "after {steps} steps");
    }
}

#[test]
fn the_rate_limit_holds_for_coalescing_too() {
    let (host, guest) = split();
    host.engine.policy().set_rate_bytes(M2 * 100);
    host.engine.submit(Request::migrate(Scope::Range(guest, ipa(BASE), M2), controller(1))).unwrap();
    host.run_jobs();
    let started = host.now();
    host.run_idle();
    // It waits for the 10 ms that the job's 2 MiB have used up.
    assert!(host.now() - started >= 9_000_000, "{}", host.now() - started);
    assert_eq!(host.leaf_counts(guest), [0, 2, 0]);
}
