//! Every turn is short, and a claim that has to wait for somebody says so.

use super::machine::{GIB, MIB, Machine, PoolAt};
use super::*;
use crate::migrate::{self, JobId, JobState, MAX_JOBS, Payer, Request};

#[test]
fn no_turn_looks_at_more_pageblocks_than_it_may() {
    let pools = [PoolAt("video", 0, GIB, 2 * GIB, NodeKind::BlockPool)];
    let machine = Machine::new(&[4 * GIB, GIB], &pools);
    let pool = machine.pool("video");
    let before = machine.picture();
    // Half an exact range, and half one that is cancelled late.
    for (wish, is_cancelled) in [
        (Wish::Exactly(range_at(0, GIB + 5 * MIB, GIB)), false),
        (Wish::of_size(GIB), false),
        (Wish::Exactly(range_at(0, GIB, GIB)), true),
    ] {
        let id = machine.claims.claim(&machine, OPERATOR, pool, wish).unwrap();
        let mut most = 0;
        let turn = || {
            machine.soil.touched.set(0);
            let step = machine.claims.step(&machine, &machine.engine, 0);
            (machine.soil.touched.get(), step)
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
        assert!((4..=2 * 16).contains(&most), "{most}");
        let report = machine.claims.report(OPERATOR, id).unwrap();
        let expected = if is_cancelled { State::Cancelled } else { State::Granted };
        assert_eq!(report.state, expected, "{}", report.blocker);
        assert!(machine.is_open());
        if !is_cancelled {
            machine.claims.release_all(OPERATOR, pool).unwrap();
            while turn().1 != Step::Idle {
                assert!(machine.soil.touched.get() <= 64);
            }
        }
        assert_eq!(machine.picture(), before);
    }
}

/// Lets a claim go on until it waits for its job.
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
        let job = machine.engine.job_after(&machine, JobId::new(0)).unwrap().id;
        machine.engine.pause(&machine, job).unwrap();
        for _ in 0..3 {
            let claims = machine.claims.step(&machine, &machine.engine, 1);
            let migration = machine.engine.step(&machine, 1, Payer::Idle);
            assert_eq!((claims, migration), (Step::Stalled, migrate::Step::Idle));
            assert_eq!(claims.and_migration(migration, 77), migrate::Step::Wait(77), "nobody spins");
        }
        assert_eq!(machine.engine.job(&machine, job).unwrap().state, JobState::Paused);
        if is_resumed {
            machine.engine.resume(&machine, job).unwrap();
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
fn a_claim_without_a_place_in_the_queue_is_stalled_until_there_is_one() {
    let (machine, pool) = lent(9, 16 * MIB);
    let nothing = Request::retire(FrameRange::from_numbers(1, 2).unwrap());
    let jobs: Vec<_> = (0..MAX_JOBS).map(|_| machine.engine.submit(&machine, nothing).unwrap()).collect();
    jobs.iter().for_each(|job| machine.engine.pause(&machine, *job).unwrap());
    let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(16 * MIB)).unwrap();
    assert_eq!(until_it_waits(&machine), Step::Stalled);
    assert_eq!(machine.engine.step(&machine, 1, Payer::Idle), migrate::Step::Idle);
    machine.engine.cancel(&machine, jobs[7]).unwrap();
    machine.run();
    assert_eq!(machine.claims.report(OPERATOR, id).unwrap().state, State::Granted);
}

#[test]
fn what_claims_and_migration_come_to_together() {
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
