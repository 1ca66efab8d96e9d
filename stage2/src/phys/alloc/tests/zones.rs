use super::isolation::{BLOCK, pools};
use crate::phys::alloc::tests::*;
use crate::phys::dmb::{Core, CoreOption};

fn range(pa: u64, bytes: u64) -> FrameRange {
    FrameRange::covering(pa, bytes).unwrap()
}

/// Returns the map of a BCM7278: 1 GiB behind each of two controllers, far apart.
fn two_gib(movablecore: &str) -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0x4000_0000, 1 << 30).unwrap();
    map.add_ram(controller(1), 0x3_0000_0000, 1 << 30).unwrap();
    let core = Core::parse(CoreOption::Movable, [movablecore]).unwrap();
    dmb::designate(&mut map, &Wishes { movablecore: core.as_ref(), ..Wishes::default() }).unwrap();
    map
}

fn with_memory(map: &BootMap, test: impl FnOnce(&Memory<'_>)) {
    let words = words(map);
    let memory = Memory::new();
    memory.boot(map, &words, 0).unwrap();
    test(&memory);
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p07_movable_only_counts_blocks_and_the_general_amount() {
    with_memory(&two_gib("256M@0x70000000,512M"), |memory| {
        // 512 MiB in all, including the block.
        let [normal, movable] = Zone::ALL.map(|zone| memory.zone_totals(zone));
        assert_eq!(movable.present, (512 * MIB) >> 12);
        assert_eq!(normal.present + movable.present, (2048 * MIB) >> 12);
        assert_eq!((normal.reserved(), movable.reserved()), (0, 0));
        assert_eq!(memory.pool_frames(), 0);
    });
    with_memory(&pools(), |memory| {
        // As CmaTotal: pools in blocks are movable memory, the others are pools.
        assert_eq!(memory.pool_frames(), (8 * MIB) >> 12);
        assert_eq!(memory.zone_totals(Zone::Movable).present, (32 * MIB) >> 12);
    });
}

#[test]
#[cfg_attr(miri, ignore = "has a frame table for some GiB, which Miri looks at word by word")]
fn p08_the_spans_of_zones_are_minimal_and_an_empty_zone_has_none() {
    // The three examples of the series' review.
    with_memory(&two_gib("256M@0x70000000"), |memory| {
        assert_eq!(memory.zone_totals(Zone::Movable).span, range(0x7000_0000, 256 * MIB));
        let normal = memory.zone_totals(Zone::Normal).span;
        assert_eq!((normal.base().get(), normal.end() << 12), (0x4000_0000, 0x3_4000_0000));
    });
    with_memory(&two_gib("256M@0x70000000,512M"), |memory| {
        let movable = memory.zone_totals(Zone::Movable).span;
        assert_eq!((movable.base().get(), movable.end() << 12), (0x7000_0000, 0x3_4000_0000));
        assert_eq!(memory.zone_totals(Zone::Normal).span.end() << 12, 0x3_3000_0000);
    });
    with_memory(&two_gib("256M@0x70000000,1G@12G"), |memory| {
        let of_far = memory.arena_totals(Zone::Normal, controller(1));
        assert_eq!((of_far.present, of_far.span), (0, FrameRange::EMPTY), "no frame and no span");
        assert_eq!(memory.zone_totals(Zone::Normal).span, range(0x4000_0000, 768 * MIB));
    });
}

#[test]
#[cfg_attr(miri, ignore = "repeats much work")]
fn p09_every_frame_is_present_in_one_zone_and_spans_add_up_to_nothing() {
    let map = two_gib("256M@0x50000000,256M@0x310000000");
    with_memory(&map, |memory| {
        let [normal, movable] = Zone::ALL.map(|zone| memory.zone_totals(zone));
        assert_eq!(normal.present + movable.present, map.ram_frames());
        let spans = normal.span.frames() + movable.span.frames();
        assert!(spans > (0x3_4000_0000 - 0x4000_0000) >> 12, "the zones overlap");
        let by_arena: u64 = Zone::ALL
            .into_iter()
            .flat_map(|zone| [0, 1].map(|number| memory.arena_totals(zone, controller(number)).present))
            .sum();
        assert_eq!(by_arena, map.ram_frames());
        let in_movable =
            map.ram().flat_map(|(range, _)| (range.start()..range.end()).step_by(512)).filter(|number| {
                memory.frame_info(Frame::try_new(*number).unwrap()).unwrap().zone == Zone::Movable
            });
        assert_eq!(in_movable.count() as u64 * 512, movable.present);
    });
}

#[test]
fn p11_reserved_blocks_become_managed_in_one_place_and_are_counted_once() {
    let mut map = pools();
    map.reserve(BASE + MIB, 5 * MIB + 0x3000, ReservationKind::Module, "kernel").unwrap();
    map.reserve(BLOCK + 2 * MIB, 2 * MIB, ReservationKind::Firmware, "in the block").unwrap();
    with_memory(&map, |memory| {
        let module = range(BASE + MIB, 5 * MIB + 0x3000);
        let before = memory.zone_totals(Zone::Normal);
        assert_eq!(before.reserved(), module.frames());
        // Only reserved blocks, and whole ones.
        let reason = |range| memory.release_reserved(range).unwrap_err().reason;
        assert_eq!(reason(range(BASE, 2 * MIB)), BlockReason::AlreadyFree);
        assert_eq!(
            reason(range(BASE + 2 * MIB, MIB)),
            BlockReason::InsideBlock { head: frame(BASE + 2 * MIB), order: 9 }
        );
        assert_eq!(memory.zone_totals(Zone::Normal), before, "nothing was handed over");
        memory.release_reserved(module).unwrap();
        let after = memory.zone_totals(Zone::Normal);
        assert_eq!((after.reserved(), after.free), (0, before.free + module.frames()));
        assert_eq!(after.managed, before.managed + module.frames());
        assert_eq!(reason(module), BlockReason::AlreadyFree, "not twice");
        // A pageblock in a block has the type of the block.
        memory.release_reserved(range(BLOCK + 2 * MIB, 2 * MIB)).unwrap();
        let info = memory.frame_info(frame(BLOCK + 2 * MIB)).unwrap();
        assert_eq!(
            (info.state, info.zone, info.migrate_type),
            (State::Free, Zone::Movable, MigrateType::Movable)
        );
        assert_eq!((info.block, info.pool), (Some(0), Some(PoolId::try_new(0).unwrap())));
        model::assert_in_order(memory, &map);
    });
}

#[test]
fn contents_are_zeroed_only_if_nothing_was_written() {
    with_memory(&two_controllers(), |memory| {
        let block = memory.allocate(&request(9, MemoryKind::Movable)).unwrap();
        assert_eq!(block.contents, Contents::Dirty, "what RAM holds at boot is unknown");
        let everything = |contents| {
            let all: Vec<_> =
                core::iter::from_fn(|| memory.allocate(&request(0, MemoryKind::Movable)).ok()).collect();
            all.iter().for_each(|block| memory.free(block.frame, 0, guest(0), contents).unwrap());
            all.iter().filter(|block| block.contents == Contents::Dirty).count()
        };
        memory.free(block.frame, 9, guest(0), Contents::Zeroed).unwrap();
        everything(Contents::Zeroed);
        assert_eq!(everything(Contents::Zeroed), 0, "all was scrubbed");
        // A dirty frame makes the block that it merges with dirty, never the other way round.
        let one = memory.allocate(&request(0, MemoryKind::Movable)).unwrap();
        memory.free(one.frame, 0, guest(0), Contents::Dirty).unwrap();
        let again = memory.allocate(&request(0, MemoryKind::Movable)).unwrap();
        assert_eq!((again.frame, again.contents), (one.frame, Contents::Dirty));
    });
}
