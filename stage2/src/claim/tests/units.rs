//! Claims of units for guests that start: no unit is lost, even if the guest stops or never fetches it.

use super::machine::{MIB, Machine};
use super::*;
use crate::addr::Ipa;
use crate::cases::some;
use crate::migrate::{Frames, JobState, Reason, Request};
use crate::owner::{GuestId, Owner};
use crate::phys::frame::{Mapping, State};

const UNITS: Claimant = Claimant::Units;

/// Returns a machine with a pool of eight units of 2 MiB, all lent.
fn units() -> (Machine, PoolId) {
    let (mut machine, pool) = lent(0, 16 * MIB);
    machine.keep_units(pool, 9);
    (machine, pool)
}

fn claim(machine: &Machine, pool: PoolId) -> Result<ClaimId, RequestError> {
    machine.claims.claim(machine, UNITS, pool, Wish::Sized { frames: 512, align: 512 })
}

fn mapping() -> Mapping {
    Mapping { guest: GuestId::try_new(3).unwrap(), ipa: Ipa::try_new(1 << 30).unwrap() }
}

#[test]
fn a_granted_unit_is_kept_until_it_is_adopted_or_declined() {
    let (machine, pool) = units();
    let before = machine.picture();
    let granted: Vec<_> = (0..4).map(|_| claim(&machine, pool).unwrap()).collect();
    machine.run();
    assert_eq!(claim(&machine, pool), Err(RequestError::TooManyOpen));
    // No other operation replaces the record of a granted unit.
    for _ in 0..40 {
        let _ = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(4096));
    }
    for id in &granted {
        assert_eq!(machine.claims.report(UNITS, *id).unwrap().state, super::State::Granted);
        machine.claims.decline(&machine, *id);
        machine.claims.decline(&machine, *id);
        assert!(machine.claims.adopt(&machine, machine.memory(), *id, mapping()).is_none(), "declined");
        machine.run();
    }
    machine.check();
    assert_eq!(machine.picture(), before);
    assert_eq!(machine.claims.owner(pool), None);
    assert!(claim(&machine, pool).is_ok());
}

#[test]
fn a_claim_that_is_declined_at_any_step_leaves_nothing() {
    let (machine, pool) = units();
    let before = machine.picture();
    for steps in some(0..160, 5) {
        let id = claim(&machine, pool).unwrap();
        (0..steps).for_each(|_| _ = machine.claims.step(&machine, &machine.engine, 0));
        (0..steps).for_each(|_| _ = machine.step());
        machine.claims.decline(&machine, id);
        machine.run();
        machine.check();
        assert_eq!(machine.picture(), before, "after {steps} steps");
        assert_eq!(machine.claims.owner(pool), None, "after {steps} steps");
    }
    assert!(machine.claims.statistics().totals().released > 0, "some were granted already");
}

#[test]
fn a_range_that_cannot_be_adopted_is_released() {
    let (machine, pool) = units();
    let before = machine.picture();
    let report = machine.claim(UNITS, pool, Wish::Sized { frames: 100, align: 1 });
    assert_eq!(report.state, super::State::Granted);
    assert!(machine.claims.adopt(&machine, machine.memory(), report.id, mapping()).unwrap().is_err());
    machine.run();
    machine.check();
    assert_eq!(machine.picture(), before);
    assert_eq!(machine.claims.owner(pool), None);
}

/// Units of a pool are lent or a guest's RAM. A unit that is RAM is freed only after its replacement is in place (P04),
/// whatever range is emptied (P06).
#[test]
fn p04_p06_a_unit_in_use_is_replaced_before_it_goes() {
    let (mut machine, pool) = units();
    let guest = machine.add_guest();
    let mapping = Mapping { guest, ipa: Ipa::try_new(1 << 30).unwrap() };
    let id = claim(&machine, pool).unwrap();
    machine.run();
    let frame = machine.claims.adopt(&machine, machine.memory(), id, mapping).unwrap().unwrap();
    machine.add_unit(guest, mapping.ipa, frame, 9);
    machine.check();
    let to_the_end = |request| {
        let job = machine.engine.submit(request).unwrap();
        while !machine.engine.job(job).unwrap().state.is_over() {
            machine.step();
            assert!(
                machine.memory().resident_everywhere(Owner::Guest(guest)) >= 512,
                "the unit is there all the while"
            );
        }
        machine.run();
        machine.check();
        let report = machine.engine.job(job).unwrap();
        assert_eq!((report.state, report.unmoved_bytes()), (JobState::Finished, 0));
        assert_eq!(machine.memory().resident_everywhere(Owner::Guest(guest)), 512);
        (report.moved.blocks, machine.frame_at(guest, mapping.ipa).unwrap())
    };
    // All memory of the unit is retired.
    let span = FrameRange::try_new(frame, 512).unwrap();
    assert_eq!(machine.memory().retire(span).doomed, 512);
    let (moved, first) = to_the_end(Request::retire(span));
    assert_eq!(moved, 1, "as one");
    assert!(
        !span.contains(first) && machine.memory().occupants(span).all(|what| what.state == State::Retired)
    );
    // The controller of the unit is evacuated.
    let from = machine.memory().span_of(first).unwrap().controller;
    machine.memory().close(from);
    let (moved, second) = to_the_end(Request::evacuate(from));
    assert!(moved > 0 && machine.memory().span_of(second).unwrap().controller != from);
    machine.memory().open(from);
    // The pool has one unit less, and still grants the others.
    let report = machine.claim(UNITS, pool, Wish::Sized { frames: 512, align: 512 });
    assert!(report.state == super::State::Granted && !report.range.overlaps(span), "{:?}", report.blocker);
}

#[test]
fn an_evacuation_is_incomplete_while_a_claim_stays() {
    let (machine, pool) = lent(9, 16 * MIB);
    let claimed = machine.granted(OPERATOR, pool, Wish::Sized { frames: 1024, align: 512 });
    let from = machine.memory().span_of(claimed.first()).unwrap().controller;
    machine.memory().close(from);
    let evacuate = || {
        let job = machine.engine.submit(Request::evacuate(from)).unwrap();
        machine.run();
        let report = machine.engine.job(job).unwrap();
        (report.state, report.unmoved(Reason::Claimed).bytes, report.unmoved_bytes())
    };
    assert_eq!(evacuate(), (JobState::Incomplete, 4 * MIB, 4 * MIB));
    assert_eq!(machine.release(OPERATOR, pool, claimed).state, super::State::Released);
    assert_eq!(evacuate(), (JobState::Finished, 0, 0));
}
