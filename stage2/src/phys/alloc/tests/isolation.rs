use crate::phys::alloc::tests::*;

/// Returns the whole state that isolation may change: every frame's records and every counter.
fn picture(memory: &Memory<'_>, map: &BootMap) -> Vec<FrameInfo> {
    let frames = map.ram().flat_map(|(range, _)| (range.start()..range.end()).step_by(64));
    frames.filter_map(|number| memory.frame_info(Frame::try_new(number)?)).collect()
}

fn totals(memory: &Memory<'_>) -> [ZoneTotals; 2] {
    Zone::ALL.map(|zone| memory.zone_totals(zone))
}

pub(super) fn pool(number: u8) -> PoolId {
    PoolId::try_new(number).unwrap()
}

fn range(pa: u64, bytes: u64) -> FrameRange {
    FrameRange::covering(pa, bytes).unwrap()
}

pub(super) const BLOCK: u64 = 0x8000_0000;

/// Returns a map with 32 MiB behind one controller and, behind another, a designated block of 32 MiB with a pool in its
/// first 16 MiB, and a pool of 8 MiB outside.
pub(super) fn pools() -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 32 * MIB).unwrap();
    map.add_ram(controller(1), BLOCK, 64 * MIB).unwrap();
    let node = |name, kind, base, size| Node {
        name,
        source: dmb::Source::Tree,
        kind,
        place: NodePlace::Static { base, size },
        entry: 0,
        is_reusable: true,
        is_no_map: false,
        is_cma_default: false,
    };
    let nodes = [
        node("dmb", NodeKind::Block, BLOCK, 32 * MIB),
        node("inside", NodeKind::Pool, BLOCK, 16 * MIB),
        node("outside", NodeKind::Pool, BLOCK + 40 * MIB, 8 * MIB),
    ];
    dmb::designate(&mut map, &Wishes { nodes: &nodes, ..Wishes::default() }).unwrap();
    map
}

#[test]
fn p01_only_its_own_pool_isolates_a_pageblock_anywhere_in_the_range() {
    let map = pools();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let before = picture(&memory, &map);
    let inside = IsolateReason::InPool(pool(0));
    let outside = IsolateReason::InPool(pool(1));
    let at = |base: u64, bytes: u64, requester| {
        let error = memory.isolate(range(base, bytes), requester).unwrap_err();
        assert_eq!(picture(&memory, &map), before, "nothing stays isolated");
        (error.frame.pa().get(), error.reason)
    };
    let anyone = Requester::Anyone;
    // First, interior, last; whole pageblocks and parts of one.
    assert_eq!(at(BLOCK, 2 * MIB, anyone), (BLOCK, inside));
    assert_eq!(at(BLOCK + 0x1000, 0x1000, Requester::Pool(pool(1))), (BLOCK + 0x1000, inside));
    let edge = BLOCK + 40 * MIB;
    assert_eq!(at(edge - 4 * MIB, 4 * MIB + 0x1000, anyone), (edge, outside));
    assert_eq!(at(edge - 4 * MIB, 24 * MIB, anyone), (edge, outside));
    let end = BLOCK + 16 * MIB;
    assert_eq!(at(end - 2 * MIB, 4 * MIB, Requester::Pool(pool(0))), (end, IsolateReason::InBlock(0)));
    assert_eq!(at(edge, 16 * MIB, Requester::Pool(pool(1))), (edge + 8 * MIB, IsolateReason::OutsidePool));
    assert_eq!(at(BLOCK + 30 * MIB, 4 * MIB, anyone).1, IsolateReason::InBlock(0));
    // Ranges that break off.
    assert_eq!(at(BASE + 30 * MIB, 4 * MIB, anyone), (BASE + 32 * MIB, IsolateReason::Broken));
    assert_eq!(at(0, 0x1000, anyone), (0, IsolateReason::Broken));
    let own = memory.isolate(range(BLOCK, 16 * MIB), Requester::Pool(pool(0))).unwrap();
    let again = memory.isolate(range(BLOCK + 3 * MIB, 0x1000), Requester::Pool(pool(0))).unwrap_err();
    assert_eq!(again.reason, IsolateReason::Isolated);
    memory.end_isolation(own);
    assert_eq!(picture(&memory, &map), before);
}

#[test]
fn p01_unmovable_frames_prevent_isolation_in_every_pageblock_of_the_range() {
    let map = pools();
    for at in [0, 5, 7] {
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let base = BASE + 8 * MIB;
        // Fill, then free all but one frame of one pageblock.
        let all: Vec<_> = core::iter::from_fn(|| {
            let placement = Placement::only(controller(0));
            memory.allocate(&Request { placement, ..request(0, MemoryKind::Unmovable) }).ok()
        })
        .collect();
        let pinned = frame(base + at * 2 * MIB + 0x7000);
        for block in all.iter().filter(|block| block.frame != pinned) {
            memory.free(block.frame, 0, guest(0), Contents::Dirty).unwrap();
        }
        let (before, sums) = (picture(&memory, &map), totals(&memory));
        let error = memory.isolate(range(base, 16 * MIB), Requester::Anyone).unwrap_err();
        assert_eq!((error.frame, error.reason), (pinned, IsolateReason::Pinned(guest(0))));
        assert_eq!((picture(&memory, &map), totals(&memory)), (before, sums));
        // Beside the frame, in the same pageblock, there is nothing against it.
        let beside = memory.isolate(range(pinned.pa().get() + 0x1000, 0x10_0000), Requester::Anyone).unwrap();
        memory.end_isolation(beside);
    }
}

#[test]
fn isolated_frames_are_not_allocated_and_counted_separately() {
    let map = pools();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let before = totals(&memory);
    let block = memory
        .allocate(&Request { placement: Placement::only(controller(1)), ..request(3, MemoryKind::Movable) })
        .unwrap();
    let whole = range(BLOCK, 16 * MIB);
    let isolated = memory.isolate(whole, Requester::Pool(pool(0))).unwrap();
    let is_inside = whole.contains(block.frame);
    assert_eq!(totals(&memory)[1].isolated, 4096 - if is_inside { 8 } else { 0 });
    let mut held = Vec::new();
    while let Ok(block) = memory.allocate(&request(0, MemoryKind::Movable)) {
        assert!(!whole.contains(block.frame));
        held.push(block.frame);
    }
    let error = memory.allocate(&request(9, MemoryKind::Movable)).unwrap_err();
    assert!(matches!(error, AllocError::NoFrames { free: 0, .. }), "{error}");
    // Frames freed there stay isolated.
    memory.free(block.frame, 3, guest(0), Contents::Dirty).unwrap();
    assert_eq!(memory.occupants(whole).next(), None);
    assert_eq!(memory.allocate(&request(0, MemoryKind::Movable)).is_ok(), !is_inside);
    for frame in held.into_iter().filter(|&frame| is_inside || frame != block.frame) {
        memory.free(frame, 0, guest(0), Contents::Dirty).unwrap();
    }
    memory.end_isolation(isolated);
    if is_inside {
        assert_eq!(totals(&memory), before);
    }
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn a_block_that_crosses_the_edge_of_an_isolated_range_is_freed_on_both_sides() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 2 << 30).unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = memory.allocate(&request(18, MemoryKind::Movable)).unwrap();
    let edge = block.frame.pa().get();
    let isolated = memory.isolate(range(edge + 512 * MIB, 512 * MIB), Requester::Anyone).unwrap();
    let occupant = memory.occupants(isolated.range()).next().unwrap();
    assert_eq!((occupant.frame, occupant.order, occupant.owner), (block.frame, 18, Some(guest(0))));
    memory.divide(block.frame, 18, guest(0)).unwrap();
    assert_eq!(memory.occupants(isolated.range()).count(), 256);
    memory.unite(block.frame, 18, guest(0), None).unwrap();
    memory.free(block.frame, 18, guest(0), Contents::Dirty).unwrap();
    let normal = totals(&memory)[0];
    assert_eq!((normal.isolated, normal.free), (256 * 512, 3 * 256 * 512));
    memory.end_isolation(isolated);
    assert!((0..2).all(|_| memory.allocate(&request(18, MemoryKind::Movable)).is_ok()));
}

#[test]
fn an_isolated_range_is_taken_and_released_in_parts() {
    let map = pools();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let (before, sums) = (picture(&memory, &map), totals(&memory));
    let owner = Owner::Pool(pool(0));
    let whole = range(BLOCK, 16 * MIB);
    let claim = range(BLOCK + 2 * MIB, 6 * MIB + 0x5000);
    let isolated = memory.isolate(whole, Requester::Pool(pool(0))).unwrap();
    assert_eq!(
        memory.take_isolated(&isolated, range(BLOCK + 15 * MIB, 2 * MIB), owner),
        Err(TakeError { frame: frame(BLOCK + 15 * MIB) })
    );
    assert_eq!(memory.take_isolated(&isolated, claim, owner), Ok(Contents::Dirty));
    let twice = memory.take_isolated(&isolated, range(BLOCK + MIB, 2 * MIB), owner);
    assert_eq!(twice, Err(TakeError { frame: frame(BLOCK + 2 * MIB) }));
    memory.end_isolation(isolated);
    assert_eq!(memory.resident(owner, controller(1)), claim.frames());
    let info = memory.frame_info(frame(BLOCK + 8 * MIB + 0x4000)).unwrap();
    assert_eq!((info.state, info.owner, info.zone), (State::Used, Some(owner), Zone::Movable));
    let error = memory.isolate(range(BLOCK + 7 * MIB, 2 * MIB), Requester::Pool(pool(0))).unwrap_err();
    assert_eq!(error.reason, IsolateReason::Pinned(owner));

    let not_all = memory.release_range(range(BLOCK + MIB, 2 * MIB), owner, Contents::Zeroed).unwrap_err();
    assert_eq!((not_all.frame, not_all.reason), (frame(BLOCK + MIB), BlockReason::AlreadyFree));
    let middle = range(BLOCK + 3 * MIB + 0x3000, 2 * MIB);
    memory.release_range(middle, owner, Contents::Zeroed).unwrap();
    assert_eq!(memory.resident(owner, controller(1)), claim.frames() - 512);
    assert_eq!(memory.occupants(middle).next(), None);
    let edge = memory.frame_info(frame(BLOCK + 3 * MIB + 0x2000)).unwrap();
    assert_eq!((edge.state, edge.owner), (State::Used, Some(owner)));
    memory.release_range(range(BLOCK + 2 * MIB, MIB + 0x3000), owner, Contents::Zeroed).unwrap();
    memory.release_range(range(BLOCK + 5 * MIB + 0x3000, 3 * MIB + 0x2000), owner, Contents::Zeroed).unwrap();
    assert_eq!(totals(&memory), sums);
    let after = picture(&memory, &map);
    assert_eq!(after.len(), before.len());
    let states = |infos: &[FrameInfo]| infos.iter().map(|info| (info.frame, info.state)).collect::<Vec<_>>();
    assert_eq!(states(&after), states(&before));
}
