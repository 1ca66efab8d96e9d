//! Blocks of every order: invalid frees are refused, contents are remembered, lists stay consistent.

use crate::phys::alloc::Requester;
use crate::phys::alloc::check::{Check, Translate, Translation};
use crate::phys::alloc::tests::model::assert_in_order;
use crate::phys::alloc::tests::*;

const OWN: Request = Request {
    order: 0,
    kind: MemoryKind::Unmovable,
    owner: Owner::Hypervisor,
    placement: Placement::Any,
    mapping: None,
};

struct NoGuests;

impl Translate for NoGuests {
    fn translate(&self, _: GuestId, _: Ipa) -> Translation {
        Translation::Nowhere
    }
}

fn map(mib: u64) -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, mib * MIB).unwrap();
    map
}

/// Returns a map of `mib` MiB in one range.
fn with_memory(mib: u64, test: impl FnOnce(&Memory<'_>)) {
    let map = map(mib);
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    test(&memory);
    assert_in_order(&memory, &map);
}

fn take(memory: &Memory<'_>, order: u8) -> Allocation {
    memory.allocate(&Request { order, ..OWN }).unwrap()
}

fn give(memory: &Memory<'_>, frame: Frame, order: u8, contents: Contents) {
    memory.free(frame, order, Owner::Hypervisor, contents).unwrap();
}

#[test]
fn orders_beyond_the_largest_are_refused() {
    with_memory(8, |memory| {
        let whole = take(memory, 9).frame;
        // In the bits that words and entries have for it, 41 looks like 9.
        for order in [19, 32, 41, 255] {
            let own = Owner::Hypervisor;
            memory.free(whole, order, own, Contents::Dirty).unwrap_err();
            memory.divide(whole, order, own).unwrap_err();
        }
        give(memory, whole, 9, Contents::Dirty);
    });
}

#[test]
fn stale_entries_inside_a_block_are_not_heads() {
    let map = map(8);
    let words = words(&map);
    // As a former boot may have left them: "in use, order 9, Ballast's".
    for meta in words.iter().take(3 * 2048).skip(2).step_by(3) {
        meta.store(1 | 9 << 3, core::sync::atomic::Ordering::Relaxed);
    }
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let whole = take(&memory, 9).frame;
    let inside = whole.checked_add(5).unwrap();
    let error = memory.free(inside, 9, Owner::Hypervisor, Contents::Dirty).unwrap_err();
    assert_eq!(error.reason, BlockReason::InsideBlock { head: whole, order: 9 });
    memory.divide(inside, 9, Owner::Hypervisor).unwrap_err();
    give(&memory, whole, 9, Contents::Dirty);
    assert_in_order(&memory, &map);
}

#[test]
fn a_failed_request_that_corrects_classes_counts_as_a_change() {
    with_memory(4, |memory| {
        let four = take(memory, 2).frame;
        let all: Vec<Frame> = core::iter::from_fn(|| memory.allocate(&OWN).ok()).map(|it| it.frame).collect();
        // Enough is free, but not side by side, and the class of the pageblock of the four is too high now.
        all.iter().rev().step_by(100).take(2).for_each(|&frame| give(memory, frame, 0, Contents::Dirty));
        give(memory, four, 2, Contents::Dirty);
        let two = take(memory, 1).frame;
        assert_eq!(two, four);
        let mut check = Check::new();
        let mut problems = Vec::new();
        let mut steps = 0;
        while !check.step(memory, &NoGuests, 1, &mut |problem| problems.push(problem.to_string())) {
            steps += 1;
            if steps == 2 {
                memory.allocate(&Request { order: 2, ..OWN }).unwrap_err();
            }
        }
        assert!(steps > 2 && problems.is_empty(), "{problems:?}");
    });
}

#[test]
fn borrowed_frames_come_from_the_movable_pageblock_with_the_most_room() {
    with_memory(8, |memory| {
        let movable = Request { kind: MemoryKind::Movable, ..OWN };
        let mut all: Vec<Frame> = (0..2048).map(|_| memory.allocate(&movable).unwrap().frame).collect();
        all.sort_by_key(|frame| frame.number());
        // The last pageblock gets 300 frames back, the others one each, one by one.
        all[1536..1836].iter().for_each(|&frame| give(memory, frame, 0, Contents::Dirty));
        for &single in all.iter().step_by(512).take(3) {
            assert_eq!(memory.frame_info(single).unwrap().state, State::Used);
            give(memory, single, 0, Contents::Dirty);
        }
        assert_eq!(memory.frame_info(all[0]).unwrap().state, State::Free);
        for _ in 0..4 {
            let own = take(memory, 0).frame;
            assert!(own.number() >= all[1536].number(), "{own:?}");
        }
    });
}

#[test]
fn one_dirty_frame_makes_its_block_dirty() {
    with_memory(2, |memory| {
        let whole = take(memory, 9).frame;
        give(memory, whole, 9, Contents::Zeroed);
        assert_eq!(memory.frame_info(whole).unwrap().contents, Contents::Zeroed);
        let single = take(memory, 0);
        assert_eq!(single.contents, Contents::Zeroed);
        give(memory, single.frame, 0, Contents::Dirty);
        assert_eq!(memory.frame_info(single.frame).unwrap().contents, Contents::Dirty);
        assert_eq!(take(memory, 9).contents, Contents::Dirty);
    });
    for order in [3, 6, 8] {
        with_memory(2, |memory| {
            give(memory, take(memory, 9).frame, 9, Contents::Zeroed);
            let part = take(memory, order);
            assert_eq!(part.contents, Contents::Zeroed);
            give(memory, part.frame, order, Contents::Dirty);
            assert_eq!(take(memory, 9).contents, Contents::Dirty, "order {order}");
        });
    }
}

#[test]
fn a_block_merged_with_a_dirty_one_is_dirty_in_either_order() {
    for (first, second) in [(0, 1), (1, 0)] {
        for (before, after) in [(Contents::Dirty, Contents::Zeroed), (Contents::Zeroed, Contents::Dirty)] {
            with_memory(4, |memory| {
                let held = [take(memory, 9).frame, take(memory, 9).frame];
                give(memory, held[first], 9, before);
                give(memory, held[second], 9, after);
                assert_eq!(
                    take(memory, 10).contents,
                    Contents::Dirty,
                    "{first} {before:?}, {second} {after:?}"
                );
            });
        }
    }
}

#[test]
fn blocks_of_adjacent_controllers_do_not_merge() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 2 * MIB).unwrap();
    map.add_ram(controller(1), BASE + 2 * MIB, 2 * MIB).unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    memory.allocate(&Request { order: 10, ..OWN }).unwrap_err();
    // Nor when they are freed.
    let held = [take(&memory, 9), take(&memory, 9)];
    assert_ne!(held[0].controller, held[1].controller);
    held.iter().for_each(|it| give(&memory, it.frame, 9, Contents::Dirty));
    memory.allocate(&Request { order: 10, ..OWN }).unwrap_err();
    assert_in_order(&memory, &map);
}

#[test]
fn entries_are_valid_only_after_their_pageblock_was_split() {
    for upper in [false, true] {
        with_memory(4, |memory| {
            // One of two pageblocks is split and whole again, and both are one block.
            let [low, high] = [take(memory, 9).frame, take(memory, 9).frame];
            let (split, other) = if upper { (high, low) } else { (low, high) };
            give(memory, split, 9, Contents::Dirty);
            let parts: Vec<Frame> = (0..2).map(|_| take(memory, 8).frame).collect();
            parts.iter().for_each(|&part| give(memory, part, 8, Contents::Dirty));
            give(memory, other, 9, Contents::Dirty);
            give(memory, take(memory, 10).frame, 10, Contents::Dirty);
            // Then each is split, and frames behind a head are none, whatever was left in the table.
            let all: Vec<Frame> = (0..128).map(|_| take(memory, 3).frame).collect();
            for &frame in &all {
                for behind in 0..8 {
                    let info = memory.frame_info(frame.checked_add(behind).unwrap()).unwrap();
                    assert_eq!((info.state, info.order), (State::Used, 3), "{frame:?} + {behind}");
                }
            }
            all.iter().for_each(|&frame| give(memory, frame, 3, Contents::Dirty));
        });
    }
}

#[test]
fn frames_released_into_an_isolated_pageblock_are_counted_as_isolated() {
    let mut map = map(8);
    map.reserve(BASE + 2 * MIB, 0x8000, ReservationKind::Image, "module").unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let range = FrameRange::covering(BASE + 3 * MIB, 0x8000).unwrap();
    let isolated = memory.isolate(range, Requester::Anyone).unwrap();
    memory.release_reserved(FrameRange::covering(BASE + 2 * MIB, 0x8000).unwrap()).unwrap();
    assert_eq!(memory.zone_totals(Zone::Normal).free, 3 * 512);
    memory.end_isolation(isolated);
    assert_eq!(memory.zone_totals(Zone::Normal).free, 4 * 512);
    assert_in_order(&memory, &map);
}
