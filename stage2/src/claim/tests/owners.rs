//! Guests as owners of pools: windows, refusals, and stops.

use super::machine::{BASE, MIB, Machine, PoolAt, guest_id};
use super::*;
use crate::cases::some;

/// Returns a machine with a pool that guest 1 owns and that is lent to guest 0.
fn owned() -> (Machine, PoolId, Claimant) {
    let pools = [
        PoolAt("g1-video", 0, 16 * MIB, 16 * MIB, NodeKind::BlockPool),
        PoolAt("free", 0, 48 * MIB, 8 * MIB, NodeKind::BlockPool),
    ];
    let mut machine = Machine::new(&[64 * MIB, 64 * MIB], &pools);
    let tenant = machine.add_guest();
    machine.add_guest();
    assert!(machine.add_ram(tenant, BASE, 24 * MIB, 9, Placement::Any));
    let pool = machine.pool("g1-video");
    (machine, pool, Claimant::Guest(guest_id(1)))
}

#[test]
fn p17_a_pool_has_one_owner_and_the_second_is_refused_distinctly() {
    let (machine, pool, owner) = owned();
    let free = machine.pool("free");
    let wish = Wish::of_size(2 * MIB);
    let refused = |claimant, pool| machine.claims.claim(&machine, claimant, pool, wish).unwrap_err();
    let other = Claimant::Guest(guest_id(0));
    assert_eq!(refused(OPERATOR, pool), RequestError::NotOwner { owner });
    assert_eq!(refused(other, pool), RequestError::NotOwner { owner });
    assert_eq!(refused(other, free), RequestError::NotNamed);
    // The operator owns a pool without a configured owner while frames of it are claimed.
    let range = machine.granted(OPERATOR, free, wish);
    assert_eq!(machine.claims.owner(free), Some(OPERATOR));
    assert_eq!(refused(other, free), RequestError::NotOwner { owner: OPERATOR });
    machine.release(OPERATOR, free, range);
    assert_eq!(machine.claims.owner(free), None);
    assert_eq!(machine.claims.owner(pool), Some(owner), "bound for good");
}

#[test]
fn the_owner_sees_what_it_claimed_in_one_piece() {
    let (machine, pool, owner) = owned();
    let report = machine.claim(owner, pool, Wish::of_size(6 * MIB));
    assert_eq!(report.state, State::Granted);
    let guest = guest_id(1);
    for page in 0..6 * MIB / 4096 {
        let ipa = report.ipa.checked_add(page * 4096).unwrap();
        assert_eq!(machine.frame_at(guest, ipa), report.range.first().checked_add(page));
    }
    let part = FrameRange::from_numbers(report.range.start() + 512, report.range.end()).unwrap();
    machine.fill(report.range);
    assert_eq!(machine.release(owner, pool, part).state, State::Released);
    assert!(machine.is_zero(part));
    assert_eq!(machine.shown_frames(guest), 512);
    assert_eq!(machine.frame_at(guest, report.ipa.checked_add(2 * MIB).unwrap()), None);
}

#[test]
fn a_guest_that_stops_gives_back_all_it_claimed() {
    let (mut machine, pool, owner) = owned();
    let before = machine.picture();
    let first = machine.claim(owner, pool, Wish::of_size(4 * MIB));
    let second = machine.claim(owner, pool, Wish::of_size(4096));
    machine.fill(first.range);
    machine.fill(second.range);
    machine.remove_ram(guest_id(1));
    machine.run();
    machine.check();
    assert_eq!(machine.shown_frames(guest_id(1)), 0);
    assert!(machine.is_zero(first.range) && machine.is_zero(second.range), "scrubbed");
    assert_eq!(machine.picture(), before);
    // The guest starts again, and claims again.
    assert_eq!(machine.claim(owner, pool, Wish::of_size(16 * MIB)).state, State::Granted);
}

#[test]
fn a_guest_that_stops_in_the_middle_of_a_claim_leaks_nothing() {
    let (mut machine, pool, owner) = owned();
    let before = machine.picture();
    for steps in some((0..900).step_by(37), 4) {
        let id = machine.claims.claim(&machine, owner, pool, Wish::of_size(16 * MIB)).unwrap();
        let late = machine.claims.claim(&machine, owner, pool, Wish::of_size(4096)).unwrap();
        (0..steps).for_each(|_| _ = machine.step());
        machine.remove_ram(guest_id(1));
        machine.run();
        machine.check();
        assert_eq!(machine.picture(), before, "after {steps} steps");
        assert!(machine.claims.report(owner, id).unwrap().state.is_over());
        assert!(machine.claims.report(owner, late).unwrap().state.is_over());
    }
}

#[test]
fn a_tenant_that_stops_or_starts_in_the_middle_of_a_claim_does_no_harm() {
    for steps in some((0..700).step_by(61), 3) {
        let (mut machine, pool, owner) = owned();
        let id = machine.claims.claim(&machine, owner, pool, Wish::of_size(16 * MIB)).unwrap();
        (0..steps).for_each(|_| _ = machine.step());
        machine.remove_ram(guest_id(0));
        (0..5).for_each(|_| _ = machine.step());
        assert!(machine.add_ram(guest_id(0), BASE, 24 * MIB, 0, Placement::Any));
        machine.run();
        machine.check();
        assert_eq!(machine.claims.report(owner, id).unwrap().state, State::Granted, "after {steps} steps");
    }
}

#[test]
fn without_a_window_nothing_is_claimed() {
    let (machine, pool, owner) = owned();
    let before = machine.picture();
    machine.set_tables(true);
    let report = machine.claim(owner, pool, Wish::of_size(2 * MIB));
    assert_eq!((report.state, report.blocker.cause), (State::Failed, Cause::NoWindow));
    assert_eq!(machine.picture(), before);
    machine.set_tables(false);
    assert_eq!(machine.claim(owner, pool, Wish::of_size(2 * MIB)).state, State::Granted);
}

#[test]
fn a_part_is_released_only_if_its_leaf_can_be_demoted() {
    let (machine, pool, owner) = owned();
    let report = machine.claim(owner, pool, Wish::of_size(4 * MIB));
    let part = FrameRange::from_numbers(report.range.start() + 5, report.range.start() + 600).unwrap();
    let before = machine.picture();
    machine.set_tables(true);
    let refused = machine.release(owner, pool, part);
    assert_eq!((refused.state, refused.blocker.cause), (State::Failed, Cause::NoTable));
    assert_eq!((machine.picture(), machine.shown_frames(guest_id(1))), (before, 1024));
    machine.set_tables(false);
    assert_eq!(machine.release(owner, pool, part).state, State::Released);
    assert_eq!(machine.shown_frames(guest_id(1)), 1024 - 595);
}

#[test]
fn hostile_numbers_are_refused() {
    let (machine, pool, owner) = owned();
    for id in [0, 1, 7, u32::MAX] {
        let id = ClaimId::new(id);
        assert!(machine.claims.report(owner, id).is_none());
        assert_eq!(machine.claims.cancel(&machine, owner, id), Err(RequestError::NoSuchClaim(id)));
    }
    // A claimant cannot see the operations of another.
    let id = machine.claims.claim(&machine, owner, pool, Wish::of_size(4096)).unwrap();
    let other = Claimant::Guest(guest_id(0));
    assert!(machine.claims.report(other, id).is_none());
    assert_eq!(machine.claims.cancel(&machine, other, id), Err(RequestError::NoSuchClaim(id)));
}

#[test]
fn p21_a_unit_is_won_back_for_a_guest_and_lent_again_when_it_stops() {
    // No units of 1 GiB under Miri, which is too slow for their frame table.
    let units = [(9, 2 * MIB), (18, super::machine::GIB)];
    for (order, size) in units.into_iter().take(if cfg!(miri) { 1 } else { 2 }) {
        let offset = if order == 9 { 16 * MIB } else { super::machine::GIB };
        let pools = [PoolAt("units", 0, offset, size, NodeKind::BlockPool)];
        let sizes = if order == 9 { [64 * MIB, 64 * MIB] } else { [2 * super::machine::GIB; 2] };
        let mut machine = Machine::new(&sizes, &pools);
        let tenant = machine.add_guest();
        // The tenant has smaller units.
        assert!(machine.add_ram(tenant, BASE, size, order - 9, Placement::Any));
        let (before, pool) = (machine.picture(), machine.pool("units"));
        let wish = Wish::of_size(size);
        let wish = Wish::Sized { frames: wish.frames(), align: 1 << order };
        let refused = machine.claims.claim(&machine, Claimant::Units, pool, wish);
        assert_eq!(refused, Err(RequestError::NotNamed), "no pool for units");
        machine.keep_units(pool, order);
        let report = machine.claim(Claimant::Units, pool, wish);
        assert_eq!(report.state, State::Granted, "{}", report.blocker);
        let big = crate::owner::GuestId::try_new(1).unwrap();
        let mapping =
            crate::phys::frame::Mapping { guest: big, ipa: crate::addr::Ipa::try_new(1 << 30).unwrap() };
        let adopt = || machine.claims.adopt(&machine, machine.memory(), report.id, mapping);
        assert_eq!(adopt(), Some(Ok(report.range.first())));
        assert_eq!(machine.claims.owner(pool), None);
        let info = machine.memory().frame_info(report.range.first()).unwrap();
        assert_eq!((info.order, info.owner), (order, Some(crate::owner::Owner::Guest(big))));
        assert_eq!(adopt(), None, "once");
        // Migration treats the unit as the guest's RAM. When the guest frees it, it can be lent again.
        assert!(machine.memory().tenant_in(report.range).is_some_and(|tenant| tenant.guest == big));
        let owner = crate::owner::Owner::Guest(big);
        machine
            .memory()
            .free(report.range.first(), order, owner, crate::phys::frame::Contents::Zeroed)
            .unwrap();
        assert_eq!(machine.picture(), before);
    }
}

#[test]
fn a_claim_that_is_cancelled_at_once_counts_for_a_while() {
    let (machine, pool, owner) = owned();
    let claim = || machine.claims.claim(&machine, owner, pool, Wish::of_size(4096));
    for _ in 0..2 {
        machine.claims.cancel(&machine, owner, claim().unwrap()).unwrap();
    }
    assert_eq!(claim(), Err(RequestError::TooManyOpen));
    // It counts neither for ever nor after a restart of the guest.
    machine.pass(10_000_000);
    machine.claims.cancel(&machine, owner, claim().unwrap()).unwrap();
    let last = claim().unwrap();
    assert_eq!(claim(), Err(RequestError::TooManyOpen));
    machine.run();
    assert_eq!(machine.claims.report(owner, last).unwrap().state, State::Granted);
    machine.claims.cancel(&machine, owner, claim().unwrap()).unwrap();
    machine.claims.abandon(&machine, guest_id(1));
    assert!(claim().is_ok());
}
