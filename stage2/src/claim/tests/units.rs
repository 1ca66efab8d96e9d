//! Units that claims win back for guests that start: none is lost, whoever looks too late or not at all.

use super::machine::{MIB, Machine};
use super::*;
use crate::addr::Ipa;
use crate::frame::Mapping;
use crate::owner::GuestId;

const UNITS: Claimant = Claimant::Units;

/// A pool of eight units of 2 MiB, all lent.
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
fn a_unit_that_was_granted_is_kept_until_somebody_fetches_it() {
    let (machine, pool) = units();
    let before = machine.picture();
    let granted: Vec<_> = (0..4).map(|_| claim(&machine, pool).unwrap()).collect();
    machine.run();
    assert_eq!(claim(&machine, pool), Err(RequestError::TooManyOpen));
    // Nor does anybody else take the place of one.
    for _ in 0..40 {
        let _ = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(4096));
    }
    for id in &granted {
        assert_eq!(machine.claims.report(UNITS, *id).unwrap().state, State::Granted);
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
    for steps in 0..160 {
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
fn what_cannot_be_adopted_goes_back() {
    let (machine, pool) = units();
    let before = machine.picture();
    let report = machine.claim(UNITS, pool, Wish::Sized { frames: 100, align: 1 });
    assert_eq!(report.state, State::Granted);
    assert!(machine.claims.adopt(&machine, machine.memory(), report.id, mapping()).unwrap().is_err());
    machine.run();
    machine.check();
    assert_eq!(machine.picture(), before);
    assert_eq!(machine.claims.owner(pool), None);
}
