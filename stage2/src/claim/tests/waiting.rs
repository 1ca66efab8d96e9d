//! Claims and guests that start, reset or stop: claims wait for guests, never the other way round.

use super::machine::{BASE, MIB, Machine, PoolAt, guest_id};
use super::*;
use crate::migrate::Absence;

#[test]
fn a_claim_waits_for_a_guest_that_starts_or_is_reset() {
    for absence in [Absence::Starting, Absence::Resetting] {
        let (machine, pool) = lent(9, 16 * MIB);
        machine.set_absence(guest_id(0), Some(absence));
        let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(4 * MIB)).unwrap();
        (0..2000).for_each(|_| assert!(machine.step(), "{absence:?}"));
        let report = machine.claims.report(OPERATOR, id).unwrap();
        assert_eq!((report.state, report.moved.bytes(), report.tries.len()), (State::Moving, 0, 1));
        machine.set_absence(guest_id(0), None);
        machine.run();
        machine.check();
        let report = machine.claims.report(OPERATOR, id).unwrap();
        assert_eq!((report.state, report.tries.len()), (State::Granted, 1), "{}", report.blocker);
    }
}

#[test]
fn a_claim_waits_for_a_guest_that_stops_and_takes_what_it_leaves() {
    let (mut machine, pool) = lent(9, 16 * MIB);
    machine.set_absence(guest_id(0), Some(Absence::Stopping));
    let id = machine.claims.claim(&machine, OPERATOR, pool, Wish::of_size(16 * MIB)).unwrap();
    (0..2000).for_each(|_| assert!(machine.step()));
    assert_eq!(machine.claims.report(OPERATOR, id).unwrap().state, State::Moving);
    machine.remove_ram(guest_id(0));
    machine.set_absence(guest_id(0), None);
    machine.run();
    machine.check();
    let report = machine.claims.report(OPERATOR, id).unwrap();
    assert_eq!((report.state, report.moved.bytes()), (State::Granted, 0));
}

#[test]
fn a_claim_that_waits_returns_to_the_queue_for_a_starting_guest() {
    let pools = [
        PoolAt("video", 0, 16 * MIB, 16 * MIB, NodeKind::BlockPool),
        PoolAt("units", 1, 16 * MIB, 8 * MIB, NodeKind::BlockPool),
    ];
    let mut machine = Machine::new(&[64 * MIB, 64 * MIB], &pools);
    let (starting, running) = (machine.add_guest(), machine.add_guest());
    let (video, units) = (machine.pool("video"), machine.pool("units"));
    machine.keep_units(units, 9);
    // The starting guest fills the first pool, the running one the second.
    assert!(machine.add_ram(starting, BASE, 16 * MIB, 9, Placement::only(machine::controller(0))));
    assert!(machine.add_ram(running, BASE, 8 * MIB, 9, Placement::only(machine::controller(1))));
    machine.set_absence(starting, Some(Absence::Starting));
    let before = machine.picture();
    let waits = machine.claims.claim(&machine, OPERATOR, video, Wish::of_size(4 * MIB)).unwrap();
    (0..2000).for_each(|_| assert!(machine.step()));
    assert_eq!(machine.claims.report(OPERATOR, waits).unwrap().state, State::Moving);
    let wish = Wish::Sized { frames: 512, align: 512 };
    let unit = machine.claims.claim(&machine, Claimant::Units, units, wish).unwrap();
    let state = |claimant, id| machine.claims.report(claimant, id).unwrap().state;
    for _ in 0..10_000 {
        machine.step();
        if state(Claimant::Units, unit).is_over() {
            break;
        }
    }
    assert_eq!(state(Claimant::Units, unit), State::Granted);
    machine.claims.decline(&machine, unit);
    // The claim by the operator waits again for the starting guest.
    for _ in 0..2000 {
        machine.step();
    }
    assert_eq!(state(OPERATOR, waits), State::Moving, "it has begun again, and waits");
    machine.set_absence(starting, None);
    machine.run();
    machine.check();
    let report = machine.claims.report(OPERATOR, waits).unwrap();
    assert_eq!((report.state, report.tries.len()), (State::Granted, 1), "{}", report.blocker);
    let totals = machine.claims.statistics().totals();
    assert_eq!((totals.tried, totals.granted), (2, 2));
    machine.release(OPERATOR, video, report.range);
    assert_eq!(machine.picture(), before);
}

#[test]
fn a_claim_of_units_does_not_wait_for_guests_that_start() {
    let (mut machine, pool) = lent(9, 16 * MIB);
    machine.keep_units(pool, 9);
    machine.set_absence(guest_id(0), Some(Absence::Starting));
    let before = machine.picture();
    let report = machine.claim(Claimant::Units, pool, Wish::Sized { frames: 512, align: 512 });
    assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::Busy));
    assert_eq!(machine.picture(), before);
    machine.set_absence(guest_id(0), None);
    let report = machine.claim(Claimant::Units, pool, Wish::Sized { frames: 512, align: 512 });
    assert_eq!(report.state, State::Granted);
}
