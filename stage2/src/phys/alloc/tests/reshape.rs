use crate::phys::alloc::tests::*;

fn mapping(ipa: u64) -> Option<Mapping> {
    Some(Mapping { guest: GuestId::try_new(0).unwrap(), ipa: Ipa::try_new(ipa).unwrap() })
}

/// Returns a map with one controller and 3 GiB of movable memory.
fn three_gib() -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 3 << 30).unwrap();
    map.mark_movable(FrameRange::covering(BASE, 3 << 30).unwrap(), MovableMark::Block(0));
    map
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p02_p03_a_gigabyte_splits_into_frames_and_joins_again() {
    let map = three_gib();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = memory
        .allocate(&Request { mapping: mapping(0x8000_0000), ..request(18, MemoryKind::Movable) })
        .unwrap();
    let held = memory.resident_everywhere(guest(0));
    memory.divide(block.frame, 18, guest(0)).unwrap();
    let third = block.frame.checked_add(3 << 9).unwrap();
    let info = memory.frame_info(third.checked_add(5).unwrap()).unwrap();
    assert_eq!((info.head, info.order, info.owner), (third, 9, Some(guest(0))));
    assert_eq!(info.mapping, mapping(0x8000_0000 + (3 << 21) + 0x5000));
    memory.divide(third, 9, guest(0)).unwrap();
    let fifth = third.checked_add(5).unwrap();
    let info = memory.frame_info(fifth).unwrap();
    assert_eq!((info.head, info.order, info.mapping), (fifth, 0, mapping(0x8000_0000 + (3 << 21) + 0x5000)));
    assert_eq!(memory.resident_everywhere(guest(0)), held, "dividing moves no frame");

    // While a part is missing, or of another size, nothing is united.
    let error = memory.unite(block.frame, 18, guest(0), None).unwrap_err();
    assert_eq!((error.frame, error.reason), (third, BlockReason::OtherOrder { order: 0 }));
    memory.free(fifth, 0, guest(0), Contents::Dirty).unwrap();
    let error = memory.unite(third, 9, guest(0), None).unwrap_err();
    assert_eq!((error.frame, error.reason), (fifth, BlockReason::AlreadyFree));
    let again = memory.allocate(&request(0, MemoryKind::Movable)).unwrap();
    assert_eq!(again.frame, fifth);
    memory.unite(third, 9, guest(0), mapping(0x6000)).unwrap();
    assert_eq!(memory.mapping(fifth), mapping(0xb000));
    memory.unite(block.frame, 18, guest(0), mapping(0x4000_0000)).unwrap();
    let info = memory.frame_info(fifth).unwrap();
    assert_eq!(
        (info.head, info.order, info.mapping),
        (block.frame, 18, mapping(0x4000_0000 + (3 << 21) + 0x5000))
    );
    memory.free(block.frame, 18, guest(0), Contents::Dirty).unwrap();
    assert_eq!(memory.zone_totals(Zone::Movable).free, map.ram_frames());
    assert!((0..3).all(|_| memory.allocate(&request(18, MemoryKind::Movable)).is_ok()), "all merged again");
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p03_a_block_of_a_gigabyte_never_crosses_a_hole_or_a_controller() {
    let mut map = BootMap::new();
    // 3 GiB that begin at a multiple of 1 GiB; half a GiB later, 1.5 GiB that hold one whole GiB; both controllers adjoin
    // a hole, and the third the second.
    map.add_ram(controller(0), 1 << 30, 3 << 30).unwrap();
    map.add_ram(controller(1), (16 << 30) + (1 << 29), 3 << 29).unwrap();
    map.add_ram(controller(2), 18 << 30, 1 << 29).unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let mut blocks = Vec::new();
    while let Ok(block) = memory.allocate(&request(18, MemoryKind::Movable)) {
        let whole = FrameRange::try_new(block.frame, 1 << 18).unwrap();
        assert!(map.ram().any(|(ram, _)| ram.contains_range(whole)), "{whole:?}");
        blocks.push(block.frame);
    }
    assert_eq!(blocks.len(), 4, "{blocks:?}");
    // The half GiB on each side of a whole one serves smaller requests only.
    let rest = core::iter::from_fn(|| memory.allocate(&request(17, MemoryKind::Movable)).ok()).count();
    assert_eq!(rest, 2);
}

#[test]
#[cfg_attr(miri, ignore = "repeats much work")]
fn any_order_from_a_pageblock_up_splits_into_512() {
    let map = three_gib();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    for order in 9..=18 {
        let block = memory.allocate(&request(order, MemoryKind::Movable)).unwrap();
        memory.divide(block.frame, order, guest(0)).unwrap();
        let last = block.frame.checked_add(511 << (order - 9)).unwrap();
        assert_eq!(memory.frame_info(last).map(|info| info.order), Some(order - 9));
        memory.unite(block.frame, order, guest(0), None).unwrap();
        memory.divide(block.frame, order, guest(0)).unwrap();
        for part in 0..512 {
            let part = block.frame.checked_add(part << (order - 9)).unwrap();
            memory.free(part, order - 9, guest(0), Contents::Dirty).unwrap();
        }
        assert_eq!(memory.zone_totals(Zone::Movable).free, map.ram_frames());
    }
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn only_the_owner_splits_or_joins_blocks() {
    let map = three_gib();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = memory.allocate(&request(10, MemoryKind::Movable)).unwrap();
    let reason = |frame, order, owner| memory.divide(frame, order, owner).unwrap_err().reason;
    let inside = block.frame.checked_add(512).unwrap();
    assert_eq!(reason(block.frame, 9, guest(0)), BlockReason::OtherOrder { order: 10 });
    assert_eq!(reason(block.frame, 8, guest(0)), BlockReason::Shape);
    assert_eq!(reason(block.frame, 19, guest(0)), BlockReason::Shape);
    assert_eq!(reason(block.frame, 10, guest(1)), BlockReason::OtherOwner { owner: guest(0) });
    assert_eq!(reason(inside, 9, guest(0)), BlockReason::InsideBlock { head: block.frame, order: 10 });
    assert_eq!(reason(frame(0), 9, guest(0)), BlockReason::NotRam);
    let reason = |frame, order| memory.unite(frame, order, guest(0), None).unwrap_err().reason;
    assert_eq!(reason(block.frame.checked_add(1).unwrap(), 9), BlockReason::Shape);
    assert_eq!(reason(block.frame, 8), BlockReason::Shape);
    assert_eq!(reason(frame(BASE + (3 << 30) - 0x20_0000), 9), BlockReason::AlreadyFree);
}

#[test]
#[cfg_attr(miri, ignore = "repeats much work")]
fn parts_in_different_zones_are_not_joined() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 1 << 30).unwrap();
    map.mark_movable(FrameRange::covering(BASE, 512 * MIB).unwrap(), MovableMark::Block(0));
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    while memory.allocate(&request(9, MemoryKind::Movable)).is_ok() {}
    let error = memory.unite(frame(BASE), 18, guest(0), None).unwrap_err();
    assert_eq!((error.frame, error.reason), (frame(BASE + 512 * MIB), BlockReason::Unlike));
}
