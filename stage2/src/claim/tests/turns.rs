//! Length of turns, and claims that wait.

use super::machine::{BASE, GIB, MIB, Machine, PoolAt, controller};
use super::*;
use crate::addr::FRAME_SIZE;
use crate::migrate::{self, JobId, JobState, MAX_JOBS, Payer, Request};

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn every_turn_examines_a_bounded_number_of_pageblocks() {
    let pools = [PoolAt("video", 0, GIB, 2 * GIB, NodeKind::BlockPool)];
    let machine = Machine::new(&[4 * GIB, GIB], &pools);
    let pool = machine.pool("video");
    let before = machine.picture();
    // Half of the pool as an exact range, by size, and as a claim that is cancelled late.
    for (wish, is_cancelled) in [
        (Wish::Exactly(range_at(0, GIB + 5 * MIB, GIB)), false),
        (Wish::of_size(GIB), false),
        (Wish::Exactly(range_at(0, GIB, GIB)), true),
    ] {
        let id = machine.claims.claim(&machine, OPERATOR, pool, wish).unwrap();
        let mut most = 0;
        let turn = || {
            machine.ground.touched.set(0);
            let step = machine.claims.step(&machine, &machine.engine, 0);
            (machine.ground.touched.get(), step)
        };
        loop {
            let (touched, step) = turn();
            most = most.max(touched);
            if step == Step::Idle {
                break;
            }
            let report = machine.claims.report(OPERATOR, id).unwrap();
            if is_cancelled && report.state == State::Taking {
                let _ = machine.claims.cancel(&machine, OPERATOR, id);
            }
        }
        // The last pageblock of a turn may be a split one.
        assert!((4..64 + 32).contains(&most), "{most}");
        let report = machine.claims.report(OPERATOR, id).unwrap();
        let expected = if is_cancelled { State::Cancelled } else { State::Granted };
        assert_eq!(report.state, expected, "{}", report.blocker);
        assert!(machine.is_open());
        if !is_cancelled {
            machine.claims.release_all(OPERATOR, pool).unwrap();
            while turn().1 != Step::Idle {
                assert!(machine.ground.touched.get() <= 64);
            }
        }
        assert_eq!(machine.picture(), before);
    }
}

#[test]
fn a_window_that_slides_far_subtracts_a_bounded_number_of_pageblocks_per_turn() {
    let pools = [PoolAt("video", 0, GIB, 4 * GIB, NodeKind::BlockPool)];
    let mut machine = Machine::new(&[5 * GIB, GIB], &pools);
    let (pool, guest) = (machine.pool("video"), machine.add_guest());
    // The start of the pool is in use, so the window has to slide, 1 GiB at a time.
    assert!(machine.add_ram(guest, BASE, 2 * MIB, 9, Placement::only(controller(0))));
    let (frames, align) = (2 * GIB / FRAME_SIZE, GIB / FRAME_SIZE);
    let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::Sized { frames, align }).unwrap();
    let mut most = 0;
    loop {
        machine.ground.touched.set(0);
        let step = machine.claims.step(&machine, &machine.engine, 0);
        most = most.max(machine.ground.touched.get());
        if step == Step::Idle {
            break;
        }
    }
    assert!((4..64 + 32).contains(&most), "{most}");
    let report = machine.claims.report(OPERATOR, id).unwrap();
    assert_eq!((report.state, report.moved.bytes()), (State::Granted, 0), "where nothing has to move");
    machine.check();
}

/// Works on a claim until it waits for its migration job.
fn until_it_waits(machine: &Machine) -> Step {
    loop {
        match machine.claims.step(machine, &machine.engine, 0) {
            Step::More => {}
            step => return step,
        }
    }
}

#[test]
fn a_claim_whose_job_is_paused_is_stalled_until_it_is_resumed_or_cancelled() {
    for is_resumed in [true, false] {
        let (machine, pool) = lent(9, 16 * MIB);
        let before = machine.picture();
        let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(16 * MIB)).unwrap();
        assert_eq!(until_it_waits(&machine), Step::Waiting);
        let job = machine.engine.job_after(JobId::new(0)).unwrap().id;
        machine.engine.pause(job).unwrap();
        for _ in 0..3 {
            let claims = machine.claims.step(&machine, &machine.engine, 1);
            let migration = machine.engine.step(&machine, 1, Payer::Idle);
            assert_eq!((claims, migration), (Step::Stalled, migrate::Step::Idle));
            assert_eq!(claims.and_migration(migration, 77), migrate::Step::Wait(77), "nobody spins");
        }
        assert_eq!(machine.engine.job(job).unwrap().state, JobState::Paused);
        if is_resumed {
            machine.engine.resume(job).unwrap();
        } else {
            machine.claims.cancel(&machine, OPERATOR, id).unwrap();
        }
        machine.run();
        let expected = if is_resumed { State::Granted } else { State::Cancelled };
        assert_eq!(machine.claims.report(OPERATOR, id).unwrap().state, expected);
        if !is_resumed {
            assert_eq!(machine.picture(), before);
        }
    }
}

#[test]
fn a_claim_is_stalled_while_the_queue_of_migration_is_full() {
    let (machine, pool) = lent(9, 16 * MIB);
    let nothing = Request::retire(FrameRange::from_numbers(1, 2).unwrap());
    let jobs: Vec<_> = (0..MAX_JOBS).map(|_| machine.engine.submit(nothing).unwrap()).collect();
    jobs.iter().for_each(|job| machine.engine.pause(*job).unwrap());
    let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(16 * MIB)).unwrap();
    assert_eq!(until_it_waits(&machine), Step::Stalled);
    assert_eq!(machine.engine.step(&machine, 1, Payer::Idle), migrate::Step::Idle);
    machine.engine.cancel(&machine, jobs[7]).unwrap();
    machine.run();
    assert_eq!(machine.claims.report(OPERATOR, id).unwrap().state, State::Granted);
}

#[test]
fn results_of_claims_and_migration_are_combined() {
    use migrate::Step::{Busy, Idle, More, Wait};
    let cases = [
        (Step::Idle, Idle, Idle),
        (Step::Idle, Wait(5), Wait(5)),
        (Step::Idle, More, More),
        (Step::Waiting, Idle, More),
        (Step::Waiting, Wait(5), Wait(5)),
        (Step::Waiting, Busy, Busy),
        (Step::Stalled, Idle, Wait(9)),
        (Step::Stalled, More, More),
        (Step::Stalled, Busy, Busy),
        (Step::Busy, Idle, Busy),
        (Step::Busy, Wait(5), Wait(5)),
        (Step::More, Idle, More),
    ];
    for (claims, migration, both) in cases {
        assert_eq!(claims.and_migration(migration, 9), both, "{claims:?} {migration:?}");
    }
}

#[test]
fn a_claim_overtakes_a_job_that_is_under_way() {
    let (mut machine, pool) = lent(9, 16 * MIB);
    let other = machine.add_guest();
    let ipa = BASE + GIB;
    assert!(machine.add_ram(other, ipa, 32 * MIB, 9, Placement::only(controller(1))));
    let job = Request::migrate(migrate::Scope::Guest(other), controller(0));
    let job = machine.engine.submit(job).unwrap();
    let of_job = |machine: &Machine| machine.engine.job(job).unwrap();
    while of_job(&machine).moved.bytes() == 0 {
        assert!(machine.step());
    }
    let before = of_job(&machine).moved.bytes();
    let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(4 * MIB)).unwrap();
    while !machine.claims.report(OPERATOR, id).unwrap().state.is_over() {
        assert!(machine.step());
    }
    let report = machine.claims.report(OPERATOR, id).unwrap();
    assert_eq!((report.state, report.moved.bytes()), (State::Granted, 4 * MIB));
    // At most the unit in flight arrived before.
    assert!(of_job(&machine).moved.bytes() <= before + 2 * MIB && !of_job(&machine).state.is_over());
    machine.run();
    machine.check();
    let over = of_job(&machine);
    assert_eq!((over.state, over.moved.bytes()), (JobState::Finished, 32 * MIB), "it goes on afterwards");
}

#[test]
#[cfg_attr(miri, ignore = "has a list of a million frames; windows are shown and hidden in other tests too")]
fn a_window_is_shown_and_hidden_a_few_leaves_at_a_time() {
    let pools = [PoolAt("g0-video", 0, 0, GIB, NodeKind::BlockPool)];
    let mut machine = Machine::new(&[GIB + 64 * MIB, 64 * MIB], &pools);
    let guest = machine.add_guest();
    let (pool, owner) = (machine.pool("g0-video"), Claimant::Guest(guest));
    let before = machine.picture();
    // The range is not aligned to the largest leaf, so it has hundreds of smaller ones.
    let range = range_at(0, 2 * MIB + 4096, 900 * MIB);
    let id = machine.claims.claim(&machine, owner, pool, Wish::Exactly(range)).unwrap();
    let most = |machine: &Machine, id| {
        let (mut most, mut seen) = (0, machine.shown_frames(guest));
        while !machine.claims.report(owner, id).unwrap().state.is_over() {
            machine.claims.step(machine, &machine.engine, 0);
            let now = machine.shown_frames(guest);
            most = most.max(now.abs_diff(seen));
            seen = now;
        }
        most
    };
    assert_eq!(most(&machine, id), 32 * 512);
    assert_eq!(machine.shown_frames(guest) as u64, range.frames());
    let part = range_at(0, 4 * MIB + 8192, 800 * MIB);
    let id = machine.claims.release(&machine, owner, pool, part).unwrap();
    assert_eq!(most(&machine, id), 32 * 512);
    assert_eq!(machine.shown_frames(guest) as u64, range.frames() - part.frames());
    machine.check();
    // A claim that is cancelled while it is being mapped leaves nothing mapped.
    for steps in [1, 9] {
        let id = machine.claims.claim(&machine, owner, pool, Wish::Exactly(part)).unwrap();
        let shown = machine.shown_frames(guest);
        let mut left = steps;
        while left > 0 {
            machine.claims.step(&machine, &machine.engine, 0);
            left -= u64::from(machine.shown_frames(guest) > shown);
        }
        machine.claims.cancel(&machine, owner, id).unwrap();
        machine.run();
        assert_eq!(machine.claims.report(owner, id).unwrap().state, State::Cancelled);
        assert_eq!(machine.shown_frames(guest), shown);
        machine.check();
    }
    machine.remove_ram(guest);
    machine.run();
    assert_eq!(machine.picture(), before);
}
