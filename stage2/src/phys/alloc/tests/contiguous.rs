use super::isolation::{BLOCK, pools};
use crate::phys::alloc::tests::*;
use crate::phys::alloc::{FreeBlocks, Wanted};

fn wanted(frames: u64, alignment: u64, kind: MemoryKind) -> Wanted {
    Wanted { frames, alignment, kind, controllers: ControllerSet::ALL }
}

#[test]
fn p14_a_search_keeps_out_of_blocks_and_pools() {
    let map = pools();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let mut found = 0;
    let mut from = 0;
    while let Some(window) = memory.find_contiguous(&wanted(700, 1, MemoryKind::Movable), from) {
        assert!(
            (window.start()..window.end())
                .map(|number| memory.frame_info(Frame::try_new(number).unwrap()).unwrap())
                .all(|info| info.pool.is_none() && info.block.is_none())
        );
        found += 1;
        from = window.start() + 512;
    }
    // Behind controller 0 all 32 MiB; behind controller 1 8 MiB before the second pool and 16 MiB after it.
    assert_eq!(found, 15 + 3 + 7);
    // More than there is anywhere in one piece outside blocks and pools, although the block has as much.
    assert_eq!(memory.find_contiguous(&wanted(8193, 1, MemoryKind::Movable), 0), None);
    assert_eq!(memory.find_contiguous(&wanted(1, 1, MemoryKind::Movable), (BLOCK + 64 * MIB) >> 12), None);
}

#[test]
fn p14_a_free_range_is_taken_around_blocks_in_use_and_released() {
    let map = pools();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let at = frame(BASE + 5 * MIB + 0x3000);
    let everything: Vec<_> = core::iter::from_fn(|| {
        let placement = Placement::only(controller(0));
        memory.allocate(&Request { placement, ..request(0, MemoryKind::Unmovable) }).ok()
    })
    .collect();
    for block in everything.iter().filter(|block| block.frame != at) {
        memory.free(block.frame, 0, guest(0), Contents::Zeroed).unwrap();
    }
    let owner = Owner::Hypervisor;
    let first = memory.take_contiguous(&wanted(1000, 256, MemoryKind::Unmovable), owner).unwrap();
    assert_eq!(first, (FrameRange::from_numbers(BASE >> 12, (BASE >> 12) + 1000).unwrap(), Contents::Zeroed));
    let second = memory.take_contiguous(&wanted(1000, 256, MemoryKind::Unmovable), owner).unwrap().0;
    assert_eq!(second.start(), (at.number() + 1).next_multiple_of(256), "past the frame in use");
    assert_eq!(memory.resident_everywhere(owner), 2000);
    memory.release_range(first.0, owner, Contents::Zeroed).unwrap();
    memory.release_range(second, owner, Contents::Zeroed).unwrap();
    model::assert_in_order(&memory, &map);
}

#[test]
fn unmovable_memory_is_never_put_into_movable() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 32 * MIB).unwrap();
    map.mark_movable(FrameRange::covering(BASE + 8 * MIB, 24 * MIB).unwrap(), MovableMark::Amount);
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    assert_eq!(memory.find_contiguous(&wanted(2049, 1, MemoryKind::Unmovable), 0), None);
    let window = memory.find_contiguous(&wanted(2049, 1, MemoryKind::Movable), 0).unwrap();
    assert_eq!(window.base().get(), BASE + 8 * MIB, "in one zone");
}

#[test]
fn free_blocks_are_counted_by_type_and_order() {
    let map = pools();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let count = |zone| {
        let mut free = FreeBlocks::NONE;
        memory.ram().for_each(|(range, _)| memory.count_free_blocks(zone, range, &mut free));
        free
    };
    let total =
        |free: &FreeBlocks| (0..19).map(|order| u64::from(free.of_order(order)) << order).sum::<u64>();
    assert_eq!(total(&count(Zone::Normal)), memory.zone_totals(Zone::Normal).free);
    let block = memory.allocate(&request(3, MemoryKind::Movable)).unwrap();
    let movable = count(Zone::Movable);
    assert_eq!(block.zone, Zone::Movable);
    assert_eq!(total(&movable), memory.zone_totals(Zone::Movable).free);
    // 512 - 8 frames of a split pageblock are 8 + 16 + 32 + 64 + 128 + 256.
    let [unmovable, movable, pool] = movable.free;
    assert_eq!((unmovable[3..9].iter().sum::<u32>(), pool), (0, [0; 19]));
    assert_eq!(movable[..9], [0, 0, 0, 1, 1, 1, 1, 1, 1]);
    let normal = count(Zone::Normal);
    assert_eq!(normal.pageblocks.iter().sum::<u32>(), 32);
    assert_eq!(normal.pageblocks[MigrateType::Pool as usize], 4);
}
