use core::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;
use crate::addr::{Ipa, Pa};
use crate::controller::ControllerId;
use crate::frame::{Contents, Mapping, State};
use crate::map::BootMap;
use crate::memory::tests::model::assert_in_order;
use crate::memory::tests::words;
use crate::memory::{Memory, Requester};
use crate::owner::Owner;
use crate::placement::Placement;
use crate::range::FrameRange;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn guest(number: u8) -> GuestId {
    GuestId::try_new(number).unwrap()
}

fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

/// 3 GiB from 1 GiB on behind one controller, and behind another 1.5 GiB that begin at half a GiB: one whole GiB each
/// less than it looks.
fn machine() -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), GIB, 3 * GIB).unwrap();
    map.add_ram(controller(1), 16 * GIB + GIB / 2, GIB + GIB / 2).unwrap();
    map
}

fn assert_exact(units: &HugeUnits, memory: &Memory<'_>) {
    let mut frames = 0;
    for size in UnitSize::ALL {
        let totals = units.totals(size);
        assert_eq!(totals.total, totals.resting + totals.lent);
        assert!(totals.promised <= totals.resting, "{size}: {totals:?}");
        frames += u64::from(totals.resting) * size.frames();
    }
    assert_eq!(memory.resident_everywhere(Owner::Huge), frames, "what rests is what memory has down");
}

fn with_memory<T>(test: impl FnOnce(&Memory<'_>, &HugeUnits, &BootMap) -> T) -> T {
    let map = machine();
    let words: Vec<AtomicU32> = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let units = HugeUnits::new();
    let result = test(&memory, &units, &map);
    assert_exact(&units, &memory);
    assert_in_order(&memory, &map);
    result
}

fn settle(units: &HugeUnits, memory: &Memory<'_>, size: UnitSize, target: u32, surplus: u32) -> Settled {
    units.set_target(size, target, surplus);
    units.settle(memory, size, u32::MAX, Placement::Any)
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p03_a_unit_of_a_gigabyte_never_crosses_a_hole_or_a_controller() {
    with_memory(|memory, units, _| {
        let done = settle(units, memory, UnitSize::OneGib, 9, 0);
        assert_eq!(done, Settled { grown: 4, shrunk: 0, missing: 5, is_out_of_memory: true });
        assert_eq!(settle(units, memory, UnitSize::TwoMib, 1000, 0).grown, 256);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p02_demotion_adds_512_units_and_conserves_every_byte() {
    with_memory(|memory, units, _| {
        settle(units, memory, UnitSize::OneGib, 2, 0);
        let of_huge = memory.resident_everywhere(Owner::Huge);
        let first = units.demote_one_gib(memory, None).unwrap();
        let (one, two) = (units.totals(UnitSize::OneGib), units.totals(UnitSize::TwoMib));
        assert_eq!((one.total, one.target, two.total, two.target, two.resting), (1, 1, 512, 512, 512));
        assert_eq!(memory.resident_everywhere(Owner::Huge), of_huge);
        assert_exact(units, memory);
        let part = units.demote_two_mib(memory, first.checked_add(512)).unwrap();
        let two = units.totals(UnitSize::TwoMib);
        assert_eq!((two.total, two.target), (511, 511));
        assert_eq!(memory.frame_info(part).unwrap().state, State::Free);
        assert_eq!(memory.resident_everywhere(Owner::Huge), of_huge - 512);
        let again = units.demote_two_mib(memory, Some(part));
        assert_eq!(again, Err(UnitError::NoUnit { frame: part }));
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn promises_are_kept_and_refused_whole() {
    with_memory(|memory, units, _| {
        let size = UnitSize::OneGib;
        settle(units, memory, size, 2, 1);
        units.promise(memory, size, guest(0), 2, Placement::Any).unwrap();
        let before = units.totals(size);
        let error = units.promise(memory, size, guest(1), 2, Placement::Any).unwrap_err();
        assert_eq!(error.to_string(), "at most 3 huge units of 1 GiB are allowed");
        assert_eq!(units.totals(size), before);
        units.promise(memory, size, guest(1), 1, Placement::Any).unwrap();
        assert_eq!(units.totals(size).surplus, 1);
        let nobody_else = units.lend(memory, size, guest(2), Placement::Any, None).unwrap_err();
        assert_eq!(nobody_else, UnitError::Limit { size, limit: 3 });
        let unit = units.lend(memory, size, guest(1), Placement::Any, None).unwrap();
        assert_eq!(memory.frame_info(unit.frame).unwrap().owner, Some(Owner::Guest(guest(1))));
        assert!(units.demote_one_gib(memory, None).is_err(), "all that rests is promised");
        assert_eq!(
            units.withdraw(memory, size, guest(0), 3),
            Err(UnitError::NotTheGuests { guest: guest(0) })
        );
        units.withdraw(memory, size, guest(0), 1).unwrap();
        assert_eq!(units.totals(size).surplus, 0, "what is surplus goes when a promise ends");
        units.give_back(memory, guest(1), unit.frame, 18, Contents::Dirty).unwrap();
        let totals = units.totals(size);
        assert_eq!((totals.total, totals.resting, totals.promised), (2, 2, 1));

        // Out of memory half-way: nothing stays.
        settle(units, memory, size, 2, 100);
        let before = (units.totals(size), memory.zone_totals(crate::zone::Zone::Normal));
        let error = units.promise(memory, size, guest(0), 50, Placement::Any).unwrap_err();
        assert!(matches!(error, UnitError::NoMemory { .. }));
        assert_eq!((units.totals(size), memory.zone_totals(crate::zone::Zone::Normal)), before);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn units_come_from_where_they_are_wanted() {
    with_memory(|memory, units, _| {
        let size = UnitSize::TwoMib;
        settle(units, memory, size, 64, 0);
        for number in [1, 0, 1] {
            let there = Placement::only(controller(number));
            let unit = units.lend(memory, size, guest(0), there, None).unwrap();
            assert_eq!(unit.controller, controller(number));
        }
        assert_eq!(units.totals(size).total, 64);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p06_no_unit_that_touches_an_isolated_pageblock_is_lent() {
    with_memory(|memory, units, _| {
        let size = UnitSize::OneGib;
        settle(units, memory, size, 4, 0);
        // The last 2 MiB of the lowest unit: far from its head.
        let last = FrameRange::covering(2 * GIB - 2 * MIB, 2 * MIB).unwrap();
        let isolated = memory.isolate(last, Requester::Anyone).unwrap();
        for _ in 0..3 {
            let unit = units.lend(memory, size, guest(0), Placement::Any, None).unwrap();
            assert_ne!(unit.frame.pa(), Pa::new_truncate(GIB));
        }
        let error = units.lend(memory, size, guest(0), Placement::Any, None).unwrap_err();
        assert!(matches!(error, UnitError::NoneLeft { resting: 1, promised: 0, .. }), "{error}");
        memory.end_isolation(isolated);
        let unit = units.lend(memory, size, guest(0), Placement::Any, None).unwrap();
        assert_eq!(unit.frame.pa(), Pa::new_truncate(GIB));
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p04_p05_a_claim_replaces_the_units_at_rest_in_one_go_and_the_pool_never_dips() {
    with_memory(|memory, units, _| {
        let size = UnitSize::TwoMib;
        settle(units, memory, size, 700, 0);
        let range = FrameRange::covering(GIB + 8 * MIB, 64 * MIB).unwrap();
        let isolated = memory.isolate(range, Requester::Anyone).unwrap();
        let before = units.totals(size);
        while units.vacate(memory, range, Placement::Any).unwrap() {
            assert_eq!(units.totals(size), before);
            assert_exact(units, memory);
        }
        assert_eq!(memory.occupants(range).next(), None);
        memory.take_isolated(&isolated, range, Owner::Hypervisor).unwrap();
        memory.end_isolation(isolated);
        memory.release_range(range, Owner::Hypervisor, Contents::Dirty).unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p04_without_a_replacement_no_unit_is_lost() {
    with_memory(|memory, units, _| {
        let size = UnitSize::TwoMib;
        settle(units, memory, size, 10_000, 0);
        let range = FrameRange::covering(GIB, 4 * MIB).unwrap();
        let isolated = memory.isolate(range, Requester::Anyone).unwrap();
        let before = units.totals(size);
        assert!(matches!(units.vacate(memory, range, Placement::Any), Err(UnitError::NoMemory { .. })));
        assert_eq!(units.totals(size), before);
        memory.end_isolation(isolated);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn a_gigabyte_at_rest_in_a_claimed_range_is_demoted_where_there_is_no_other() {
    with_memory(|memory, units, _| {
        settle(units, memory, UnitSize::OneGib, 4, 0);
        let range = FrameRange::covering(GIB + 512 * MIB, 4 * MIB).unwrap();
        let isolated = memory.isolate(range, Requester::Anyone).unwrap();
        while units.vacate(memory, range, Placement::Any).unwrap() {}
        assert_eq!(memory.occupants(range).next(), None);
        assert_eq!((units.totals(UnitSize::OneGib).total, units.totals(UnitSize::TwoMib).total), (3, 512));
        memory.end_isolation(isolated);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn a_promised_gigabyte_is_not_demoted_for_a_claim() {
    with_memory(|memory, units, _| {
        settle(units, memory, UnitSize::OneGib, 4, 0);
        units.promise(memory, UnitSize::OneGib, guest(0), 4, Placement::Any).unwrap();
        let range = FrameRange::covering(GIB + 512 * MIB, 4 * MIB).unwrap();
        let isolated = memory.isolate(range, Requester::Anyone).unwrap();
        let refused = units.vacate(memory, range, Placement::Any);
        assert!(matches!(refused, Err(UnitError::NoMemory { size: UnitSize::OneGib, .. })));
        assert_eq!(units.totals(UnitSize::OneGib).promised, 4);
        memory.end_isolation(isolated);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p05_migration_of_a_lent_unit_changes_no_total() {
    with_memory(|memory, units, _| {
        let size = UnitSize::TwoMib;
        settle(units, memory, size, 8, 0);
        let mapping = |ipa| Some(Mapping { guest: guest(0), ipa: Ipa::new_truncate(ipa) });
        let unit =
            units.lend(memory, size, guest(0), Placement::only(controller(0)), mapping(0x8000_0000)).unwrap();
        let before = units.totals(size);
        let whole = FrameRange::try_new(unit.frame, 512).unwrap();
        let isolated = memory.isolate(whole, Requester::Anyone).unwrap();
        // What the worker does: a fresh target, a copy, and the source is released into the isolated range.
        let frames: &dyn crate::migrate::Frames = memory;
        let target =
            frames.allocate(guest(0), 9, &Placement::only(controller(1)), Ipa::new_truncate(0x8000_0000));
        frames.release(guest(0), unit.frame, 9, Contents::Dirty);
        assert_eq!(units.totals(size), before);
        assert_eq!(memory.occupants(whole).next(), None, "free for the claim at once");
        memory.end_isolation(isolated);
        units.give_back(memory, guest(0), target.unwrap(), 9, Contents::Dirty).unwrap();
        assert_eq!((units.totals(size).resting, units.totals(size).lent), (8, 0));
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn a_lent_gigabyte_comes_back_in_parts() {
    with_memory(|memory, units, _| {
        settle(units, memory, UnitSize::OneGib, 1, 0);
        let unit = units.lend(memory, UnitSize::OneGib, guest(0), Placement::Any, None).unwrap();
        memory.divide(unit.frame, 18, Owner::Guest(guest(0))).unwrap();
        let third = unit.frame.checked_add(3 << 9).unwrap();
        memory.divide(third, 9, Owner::Guest(guest(0))).unwrap();
        for part in 0..512u64 {
            let frame = unit.frame.checked_add(part << 9).unwrap();
            if frame != third {
                units.give_back(memory, guest(0), frame, 9, Contents::Dirty).unwrap();
                continue;
            }
            for page in 0..512 {
                let page = third.checked_add(page).unwrap();
                units.give_back(memory, guest(0), page, 0, Contents::Dirty).unwrap();
            }
        }
        let (one, two) = (units.totals(UnitSize::OneGib), units.totals(UnitSize::TwoMib));
        assert_eq!((one.total, two.total, two.resting, two.target), (0, 511, 511, 512));
        let done = units.settle(memory, UnitSize::TwoMib, 10, Placement::Any);
        assert_eq!((done.grown, done.missing), (1, 0));
        let nobodys = units.give_back(memory, guest(0), third, 9, Contents::Dirty);
        assert!(nobodys.is_err());
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn a_unit_with_a_frame_to_be_retired_does_not_come_back() {
    with_memory(|memory, units, _| {
        let size = UnitSize::TwoMib;
        settle(units, memory, size, 2, 0);
        let unit = units.lend(memory, size, guest(0), Placement::Any, None).unwrap();
        memory.retire(FrameRange::try_new(unit.frame.checked_add(7).unwrap(), 1).unwrap());
        units.give_back(memory, guest(0), unit.frame, 9, Contents::Dirty).unwrap();
        assert_eq!(units.totals(size).total, 1);
        assert_eq!(memory.zone_totals(crate::zone::Zone::Normal).retired, 1);
        assert_eq!(units.settle(memory, size, 1, Placement::Any).grown, 1);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p21_a_gigabyte_comes_out_of_a_block_that_served_movable_memory_and_goes_back() {
    let mut map = machine();
    let block = FrameRange::covering(2 * GIB, GIB).unwrap();
    map.mark_movable(block, crate::map::MovableMark::Block(0));
    let words = words(&map);
    let (memory, units) = (Memory::new(), HugeUnits::new());
    memory.boot(&map, &words, 0).unwrap();
    let size = UnitSize::OneGib;
    // While it is lent, in however small pieces, there is no unit of that size there; and none is taken elsewhere.
    let request = crate::memory::Request {
        order: 0,
        kind: crate::memory::Kind::Movable,
        owner: Owner::Guest(guest(0)),
        placement: Placement::only(controller(0)),
        mapping: None,
    };
    let tenant = memory.allocate(&request).unwrap();
    assert!(block.contains(tenant.frame), "the block is used first");
    units.set_target(size, 3, 0);
    let done = units.settle(&memory, size, 3, Placement::only(controller(0)));
    assert_eq!((done.grown, done.missing), (2, 1));
    // The tenant moves out, as migration moves it, and the unit is there.
    memory.free(tenant.frame, 0, Owner::Guest(guest(0)), Contents::Dirty).unwrap();
    assert_eq!(units.settle(&memory, size, 3, Placement::only(controller(0))).grown, 1);
    assert_eq!(memory.frame_info(block.first()).unwrap().owner, Some(Owner::Huge));
    units.set_target(size, 0, 0);
    assert_eq!(units.settle(&memory, size, 3, Placement::Any).shrunk, 3);
    assert_eq!(memory.zone_totals(crate::zone::Zone::Movable).free, block.frames());
    assert_exact(&units, &memory);
    assert_in_order(&memory, &map);
}

#[derive(Clone, Debug)]
enum Step {
    Target(UnitSize, u32, u32),
    Promise(UnitSize, u8, u32),
    Withdraw(UnitSize, u8, u32),
    Lend(UnitSize, u8, Option<u8>),
    Give(prop::sample::Index),
    DemoteOne,
    DemoteTwo,
    Divide(prop::sample::Index),
    Vacate(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop::sample::select(&UnitSize::ALL[..]);
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => (size(), 0u32..5, 0u32..3).prop_map(|(size, target, surplus)| Step::Target(size, target, surplus)),
        2 => (size(), 0u8..2, 1u32..4).prop_map(|(size, guest, count)| Step::Promise(size, guest, count)),
        1 => (size(), 0u8..2, 1u32..3).prop_map(|(size, guest, count)| Step::Withdraw(size, guest, count)),
        4 => (size(), 0u8..2, proptest::option::of(0u8..2)).prop_map(|(size, guest, on)| Step::Lend(size, guest, on)),
        3 => index().prop_map(Step::Give),
        1 => Just(Step::DemoteOne),
        1 => Just(Step::DemoteTwo),
        1 => index().prop_map(Step::Divide),
        1 => (0u64..1536, 1u64..300).prop_map(|(at, pageblocks)| Step::Vacate(at, pageblocks)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases::cases(32, 1), failure_persistence: None, ..Default::default() })]

    /// Whatever is asked for, accounts are exact, and what was lent comes back.
    #[test]
    #[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
    fn accounts_are_always_exact(steps in proptest::collection::vec(step(), 1..if cfg!(miri) { 8 } else { 60 })) {
        with_memory(|memory, units, _| {
            let mut held: Vec<(GuestId, Frame, u8)> = Vec::new();
            for step in &steps {
                match *step {
                    Step::Target(size, target, surplus) => _ = settle(units, memory, size, target, surplus),
                    Step::Promise(size, to, count) => {
                        let before = units.totals(size);
                        let done = units.promise(memory, size, guest(to), count, Placement::Any);
                        let promised = if done.is_ok() { count } else { 0 };
                        prop_assert_eq!(units.totals(size).promised, before.promised + promised);
                    }
                    Step::Withdraw(size, of, count) => _ = units.withdraw(memory, size, guest(of), count),
                    Step::Lend(size, to, on) => {
                        let placement = on.map_or(Placement::Any, |on| Placement::only(controller(on)));
                        let had = units.of_guest(size, guest(to));
                        if let Ok(unit) = units.lend(memory, size, guest(to), placement, None) {
                            prop_assert!(on.is_none_or(|on| unit.controller == controller(on)));
                            held.push((guest(to), unit.frame, size.order()));
                        } else {
                            prop_assert_eq!(units.of_guest(size, guest(to)), had);
                        }
                    }
                    Step::Give(index) => if !held.is_empty() {
                        let (guest, frame, order) = held.swap_remove(index.index(held.len()));
                        units.give_back(memory, guest, frame, order, Contents::Dirty).unwrap();
                    },
                    Step::DemoteOne => _ = units.demote_one_gib(memory, None),
                    Step::DemoteTwo => _ = units.demote_two_mib(memory, None),
                    Step::Divide(index) => if !held.is_empty() {
                        let (guest, frame, order) = held.swap_remove(index.index(held.len()));
                        if order == 18 {
                            memory.divide(frame, order, Owner::Guest(guest)).unwrap();
                            held.extend((0..512).map(|part| (guest, frame.checked_add(part << 9).unwrap(), 9)));
                        } else {
                            held.push((guest, frame, order));
                        }
                    },
                    Step::Vacate(at, pageblocks) => {
                        let range = FrameRange::covering(GIB + at * 2 * MIB, pageblocks * 2 * MIB).unwrap();
                        if let Ok(isolated) = memory.isolate(range, Requester::Anyone) {
                            let bytes = |units: &HugeUnits| UnitSize::ALL.iter().map(|size| {
                                u64::from(units.totals(*size).total) * size.frames()
                            }).sum::<u64>();
                            let before = bytes(units);
                            while units.vacate(memory, range, Placement::Any).is_ok_and(|more| more) {
                                prop_assert_eq!(bytes(units), before);
                            }
                            memory.end_isolation(isolated);
                        }
                    }
                }
                assert_exact(units, memory);
            }
            for (guest, frame, order) in held {
                units.give_back(memory, guest, frame, order, Contents::Dirty).unwrap();
            }
            for size in UnitSize::ALL {
                prop_assert_eq!(units.totals(size).lent, 0);
            }
            Ok(())
        })?;
    }
}
