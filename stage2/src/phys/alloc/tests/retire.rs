use crate::phys::alloc::tests::*;

fn range(pa: u64, frames: u64) -> FrameRange {
    FrameRange::try_new(frame(pa), frames).unwrap()
}

fn take_everything(memory: &Memory<'_>) -> Vec<Frame> {
    core::iter::from_fn(|| memory.allocate(&request(0, MemoryKind::Movable)).ok().map(|block| block.frame))
        .collect()
}

#[test]
fn free_frames_retire_at_once_and_are_never_allocated() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let bad = range(0x3_0020_3000, 5);
    assert_eq!(memory.retire(bad), Retired { now: 5, ..Retired::default() });
    assert_eq!(memory.retire(bad), Retired { before: 5, ..Retired::default() });
    assert_eq!(memory.retire(range(BASE, 1)), Retired { untouched: 1, ..Retired::default() });
    assert_eq!(memory.retire(range(0, 3)), Retired { untouched: 3, ..Retired::default() });
    let totals = memory.arena_totals(Zone::Movable, controller(1));
    assert_eq!((totals.free, totals.retired, totals.managed), (1019, 5, 1024));
    assert_eq!(memory.frame_info(bad.first()).unwrap().state, State::Retired);
    let all = take_everything(&memory);
    assert_eq!(all.len() as u64, 4096 - 128 - 5);
    assert!(all.iter().all(|frame| !bad.contains(*frame)));
    let error = memory.free(bad.first(), 0, guest(0), Contents::Dirty).unwrap_err();
    assert_eq!(error.reason, BlockReason::Retired);
}

#[test]
fn a_whole_free_block_can_retire() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = range(0x3_0020_0000, 1024);
    assert_eq!(memory.retire(block).now, 1024);
    let totals = memory.zone_totals(Zone::Movable);
    assert_eq!((totals.free, totals.retired), (0, 1024));
    assert!(take_everything(&memory).iter().all(|frame| !block.contains(*frame)));
}

#[test]
fn doomed_frames_retire_when_their_block_is_freed() {
    let map = two_controllers();
    for order in [0, 1, 4, 8, 9, 10] {
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let block = memory.allocate(&request(order, MemoryKind::Movable)).unwrap();
        let last = FrameRange::try_new(block.frame.checked_add((1 << order) - 1).unwrap(), 1).unwrap();
        assert_eq!(memory.retire(last), Retired { doomed: 1, ..Retired::default() });
        assert!(memory.frame_info(last.first()).unwrap().is_doomed);
        let occupant = memory.occupants(last).next().unwrap();
        assert_eq!((occupant.frame, occupant.order, occupant.is_doomed), (block.frame, order, true));
        memory.free(block.frame, order, guest(0), Contents::Dirty).unwrap();
        let [normal, movable] = Zone::ALL.map(|zone| memory.zone_totals(zone));
        let sums = (normal.free + movable.free, normal.retired + movable.retired);
        assert_eq!(sums, (4096 - 128 - 1, 1), "order {order}");
        assert_eq!(memory.frame_info(last.first()).unwrap().state, State::Retired);
        assert!(!take_everything(&memory).contains(&last.first()));
    }
}

#[test]
fn doomed_marks_survive_splitting_joining_and_partial_frees() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = memory.allocate(&request(9, MemoryKind::Movable)).unwrap();
    let bad = FrameRange::try_new(block.frame.checked_add(100).unwrap(), 2).unwrap();
    let also = FrameRange::try_new(block.frame, 1).unwrap();
    assert_eq!((memory.retire(bad).doomed, memory.retire(also).doomed), (2, 1));
    memory.divide(block.frame, 9, guest(0)).unwrap();
    memory.unite(block.frame, 9, guest(0), None).unwrap();
    memory.divide(block.frame, 9, guest(0)).unwrap();
    for at in 0..512 {
        memory.free(block.frame.checked_add(at).unwrap(), 0, guest(0), Contents::Dirty).unwrap();
    }
    let totals = memory.zone_totals(Zone::Movable);
    assert_eq!((totals.free, totals.retired), (1021, 3));
    let all = take_everything(&memory);
    assert!(all.iter().all(|frame| !bad.contains(*frame) && *frame != block.frame));
}

#[test]
fn addresses_that_are_not_ram_are_skipped_at_once() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    // All possible addresses, few of them RAM.
    let all = FrameRange::from_numbers(0, 1 << 36).unwrap();
    let (mut done, mut rest, mut slices) = (Retired::default(), all, 0);
    while !rest.is_empty() {
        rest = memory.retire_some(rest, &mut done);
        slices += 1;
    }
    assert_eq!(done.now + done.doomed + done.before + done.untouched, 1 << 36);
    assert!(done.now > 0 && slices < 100_000, "{slices} slices, {done:?}");
}
