//! Allocating and freeing single frames.

use crate::phys::alloc::Requester;
use crate::phys::alloc::tests::model::assert_in_order;
use crate::phys::alloc::tests::*;

const SINGLE: Request = Request {
    order: 0,
    kind: MemoryKind::Unmovable,
    owner: Owner::Hypervisor,
    placement: Placement::Any,
    mapping: None,
};

fn with_memory(test: impl FnOnce(&Memory<'_>, &BootMap)) {
    let mut map = BootMap::new();
    map.add_ram(ControllerId::default(), BASE, 4 * MIB).unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    test(&memory, &map);
    assert_in_order(&memory, &map);
}

fn take(memory: &Memory<'_>, count: usize) -> Vec<Frame> {
    (0..count).map(|_| memory.allocate(&SINGLE).unwrap().frame).collect()
}

fn free(memory: &Memory<'_>, frame: Frame, contents: Contents) -> Result<(), BlockError> {
    memory.free(frame, 0, Owner::Hypervisor, contents)
}

#[test]
fn a_freed_frame_is_counted_and_goes_into_larger_blocks() {
    with_memory(|memory, _| {
        let single = take(memory, 1)[0];
        assert_eq!(memory.zone_totals(Zone::Normal).free, 1023);
        free(memory, single, Contents::Dirty).unwrap();
        assert_eq!(memory.zone_totals(Zone::Normal).free, 1024);
        let whole = Request { order: 9, ..SINGLE };
        let blocks = [memory.allocate(&whole).unwrap(), memory.allocate(&whole).unwrap()];
        assert!(memory.allocate(&SINGLE).is_err());
        blocks.into_iter().for_each(|it| {
            memory.free(it.frame, 9, Owner::Hypervisor, Contents::Dirty).unwrap();
        });
    });
}

#[test]
fn the_last_free_frame_serves_any_kind_of_request() {
    with_memory(|memory, _| {
        let all = take(memory, 1024);
        assert!(memory.allocate(&SINGLE).is_err());
        free(memory, all[77], Contents::Dirty).unwrap();
        let movable = Request { kind: MemoryKind::Movable, owner: guest(0), ..SINGLE };
        let last = memory.allocate(&movable).unwrap();
        assert_eq!(last.frame, all[77]);
        memory.free(last.frame, 0, guest(0), Contents::Dirty).unwrap();
        all.into_iter().filter(|&frame| frame != last.frame).for_each(|frame| {
            free(memory, frame, Contents::Dirty).unwrap();
        });
    });
}

#[test]
fn a_second_free_and_a_free_by_another_owner_are_refused() {
    with_memory(|memory, _| {
        let held = take(memory, 40);
        free(memory, held[3], Contents::Dirty).unwrap();
        free(memory, held[4], Contents::Dirty).unwrap();
        let reason =
            |frame, order, owner| memory.free(frame, order, owner, Contents::Dirty).unwrap_err().reason;
        assert_eq!(reason(held[3], 0, Owner::Hypervisor), BlockReason::AlreadyFree);
        assert_eq!(reason(held[7], 0, guest(0)), BlockReason::OtherOwner { owner: Owner::Hypervisor });
        assert_eq!(reason(held[7], 1, Owner::Hypervisor), BlockReason::OtherOrder { order: 0 });
        assert_eq!(memory.zone_totals(Zone::Normal).free, 1024 - 38);
    });
}

#[test]
fn frames_freed_into_an_isolated_pageblock_are_not_allocated() {
    with_memory(|memory, _| {
        let movable = Request { kind: MemoryKind::Movable, owner: guest(0), ..SINGLE };
        let held: Vec<Frame> = (0..8).map(|_| memory.allocate(&movable).unwrap().frame).collect();
        let give = |index: usize| memory.free(held[index], 0, guest(0), Contents::Dirty).unwrap();
        give(0);
        give(1);
        let range = FrameRange::try_new(held[0], 8).unwrap();
        let isolated = memory.isolate(range, Requester::Anyone).unwrap();
        (2..8).for_each(give);
        for _ in 0..512 {
            let other = memory.allocate(&movable).unwrap().frame;
            assert!(!range.aligned_around(512).contains(other), "{other:?} is isolated");
        }
        assert!(memory.allocate(&movable).is_err());
        memory.end_isolation(isolated);
        assert_eq!(memory.zone_totals(Zone::Normal).free, 512);
    });
}

#[test]
fn a_closed_controller_takes_no_allocations() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    // The one that has some of MOVABLE.
    let movable = request(0, MemoryKind::Movable);
    let first = memory.allocate(&movable).unwrap();
    assert_eq!((first.controller, first.zone), (controller(1), Zone::Movable));
    memory.close(controller(1));
    let other = memory.allocate(&movable).unwrap();
    assert_eq!((other.controller, other.zone), (controller(0), Zone::Normal));
    memory.open(controller(1));
    let again = memory.allocate(&movable).unwrap();
    assert_eq!((again.controller, again.zone), (controller(1), Zone::Movable));
    assert_in_order(&memory, &map);
}

#[test]
fn ram_ranges_with_a_hole_of_one_page_between_them_are_kept_apart() {
    let mut map = BootMap::new();
    // A hole of one page.
    map.add_ram(ControllerId::default(), BASE, 2 * MIB + 0x8000).unwrap();
    map.add_ram(ControllerId::default(), BASE + 2 * MIB + 0x9000, 2 * MIB).unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let movable = Request { kind: MemoryKind::Movable, ..SINGLE };
    let take = |count: usize| -> Vec<Frame> {
        (0..count).map(|_| memory.allocate(&movable).unwrap().frame).collect()
    };
    let all = take(8 + 512 + 512);
    // Frames 0 to 7 are of the first range, 9 to 63 of the second.
    let of = |number: u64| frame(BASE + 2 * MIB + (number << 12));
    free(&memory, of(3), Contents::Dirty).unwrap();
    free(&memory, of(12), Contents::Dirty).unwrap();
    assert_in_order(&memory, &map);
    let again = take(2);
    assert!(again.contains(&of(3)) && again.contains(&of(12)), "{again:?}");
    all.into_iter().for_each(|it| free(&memory, it, Contents::Dirty).unwrap());
    assert_in_order(&memory, &map);
}
