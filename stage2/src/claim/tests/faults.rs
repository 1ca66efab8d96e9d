//! Failures at each step of a claim: the state is as before, or the claim is granted in another way.

use super::machine::{FailingStep, MIB, Machine, PoolAt};
use super::*;
use crate::cases::some;

#[test]
fn a_fault_at_any_step_leaves_the_state_of_before_or_of_after() {
    for order in [0, 9] {
        for step in [FailingStep::Isolate, FailingStep::Take, FailingStep::Show, FailingStep::Allocate] {
            for after in some([0, 1, 2, 3, 7], 2) {
                let (machine, pool) = lent(order, 16 * MIB);
                let before = machine.picture();
                machine.ground.fails.set(Some((step, after)));
                let report = machine.claim(OPERATOR, pool, Wish::of_size(14 * MIB));
                machine.ground.fails.set(None);
                match report.state {
                    State::Granted => {
                        assert_eq!(report.range.bytes(), 14 * MIB);
                        machine.release(OPERATOR, pool, report.range);
                    }
                    State::Failed => assert_ne!(report.blocker.cause, Cause::Nothing),
                    other => panic!("{other:?} after {step:?} {after}"),
                }
                assert_eq!(machine.picture(), before, "{step:?} {after}");
                // Nothing is left over: the next claim is granted.
                machine.granted(OPERATOR, pool, Wish::of_size(16 * MIB));
            }
        }
    }
}

#[test]
fn an_exact_claim_whose_interior_fails_is_undone_in_order() {
    let (machine, pool) = lent(9, 16 * MIB);
    let before = machine.picture();
    for after in 0..2 {
        machine.ground.fails.set(Some((FailingStep::Isolate, after)));
        let report = machine.claim(OPERATOR, pool, Wish::Exactly(range_at(0, 16 * MIB, 16 * MIB)));
        assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::Isolated));
        assert_eq!(machine.picture(), before);
    }
}

#[test]
fn a_range_that_cannot_be_unmapped_stays_claimed() {
    let pools = [PoolAt("g0-video", 0, 0, 256 * MIB, NodeKind::BlockPool)];
    for after in [0, 1] {
        let mut machine = Machine::new(&[320 * MIB, 64 * MIB], &pools);
        let guest = machine.add_guest();
        let (pool, owner) = (machine.pool("g0-video"), Claimant::Guest(guest));
        let before = machine.picture();
        // A release that fails can be repeated.
        let range = range_at(0, 2 * MIB, 200 * MIB);
        let report = machine.claim(owner, pool, Wish::Exactly(range));
        assert_eq!(report.state, State::Granted);
        machine.ground.fails.set(Some((FailingStep::Hide, after)));
        let id = machine.claims.release(&machine, owner, pool, range).unwrap();
        machine.run();
        let report = machine.claims.report(owner, id).unwrap();
        assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::NoTable));
        assert!(range.contains(report.blocker.frame) && machine.shown_frames(guest) > 0);
        assert_eq!(machine.ground.claimed_frames(pool), range.frames(), "all of it is the owner's");
        machine.check();
        machine.release(owner, pool, range);
        assert_eq!(machine.picture(), before);
        // A claim is cancelled while it is mapped. What cannot be unmapped stays claimed until the guest stops.
        let id = machine.claims.claim(&machine, owner, pool, Wish::Exactly(range)).unwrap();
        while machine.shown_frames(guest) <= after as usize * 32 * 512 {
            machine.claims.step(&machine, &machine.engine, 0);
        }
        machine.claims.cancel(&machine, owner, id).unwrap();
        machine.ground.fails.set(Some((FailingStep::Hide, after)));
        // Unmapping is retried while there is something else to undo.
        machine.ground.is_stubborn.set(true);
        machine.run();
        machine.ground.is_stubborn.set(false);
        machine.ground.fails.set(None);
        let report = machine.claims.report(owner, id).unwrap();
        assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::NoTable));
        assert!(machine.shown_frames(guest) > 0 && machine.ground.claimed_frames(pool) == range.frames());
        assert!(machine.is_open(), "nothing stays isolated");
        machine.check();
        machine.remove_ram(guest);
        machine.run();
        assert_eq!(machine.picture(), before);
    }
}
