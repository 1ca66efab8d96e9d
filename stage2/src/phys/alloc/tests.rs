use crate::addr::{Ipa, MAX_ORDER, Pa};
use crate::controller::MAX_CONTROLLERS;
use crate::owner::{GuestId, MAX_GUESTS, Owner, PoolId};
use crate::phys::alloc::*;
use crate::phys::dmb;
use crate::phys::dmb::{Node, NodeKind, NodePlace, Wishes};
use crate::phys::frame::{Contents, Footprint, State};
use crate::phys::map::{MovableMark, ReservationKind};
use crate::phys::pageblock::MigrateType;
use crate::phys::placement::{ControllerList, Placement, Strictness};

mod blocks;
mod contiguous;
mod forget;
mod isolation;
mod migration;
pub(crate) mod model;
mod reshape;
mod retire;
mod single_frames;
mod zones;

const MIB: u64 = 1 << 20;
pub(super) const BASE: u64 = 0x4000_0000;

fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

fn frame(pa: u64) -> Frame {
    Frame::containing(Pa::try_new(pa).unwrap())
}

pub(super) fn guest(number: u8) -> Owner {
    Owner::Guest(GuestId::try_new(number).unwrap())
}

/// Returns words for the frame table of `map`, filled with a nonzero pattern.
pub(crate) fn words(map: &BootMap) -> Vec<AtomicU32> {
    crate::cases::words(Footprint::of(map).words())
}

fn request(order: u8, kind: MemoryKind) -> Request {
    Request { order, kind, owner: guest(0), placement: Placement::Any, mapping: None }
}

/// Returns a map of two controllers with 8 MiB each: the image in the first, a movable block of 4 MiB in the second.
fn two_controllers() -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), BASE, 8 * MIB).unwrap();
    map.add_ram(controller(1), 0x3_0000_0000, 8 * MIB).unwrap();
    map.reserve(BASE, 0x8_0000, ReservationKind::Image, "image").unwrap();
    map.mark_movable(FrameRange::covering(0x3_0020_0000, 4 * MIB).unwrap(), MovableMark::Block(0));
    map
}

#[test]
fn boot_counts_every_frame_once() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let normal = memory.zone_totals(Zone::Normal);
    let movable = memory.zone_totals(Zone::Movable);
    assert_eq!(normal.present + movable.present, map.ram_frames());
    assert_eq!((movable.present, movable.managed, movable.free), (1024, 1024, 1024));
    assert_eq!((normal.present, normal.managed), (3072, 3072 - 128));
    assert_eq!(movable.span, FrameRange::covering(0x3_0020_0000, 4 * MIB).unwrap());
    assert_eq!(memory.boot(&map, &words, 0), Err(BootError::Twice));
}

#[test]
fn frames_keep_their_addresses_up_to_48_bits() {
    for base in [1u64 << 40, 1 << 43, 1 << 44, 1 << 47, (1 << 48) - 8 * MIB] {
        let mut map = BootMap::new();
        map.add_ram(controller(0), BASE, 8 * MIB).unwrap();
        map.add_ram(controller(1), base, 8 * MIB).unwrap();
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let ram = FrameRange::covering(base, 8 * MIB).unwrap();
        for order in [0, 9] {
            let mapping = Some(Mapping { guest: GuestId::default(), ipa: Ipa::try_new(base).unwrap() });
            let placement = Placement::only(controller(1));
            let request = Request { placement, mapping, ..request(order, MemoryKind::Movable) };
            let taken = memory.allocate(&request).unwrap().frame;
            assert!(ram.contains(taken), "{taken:?} of {ram}");
            let info = memory.frame_info(taken).unwrap();
            assert_eq!((info.head, info.controller, info.mapping), (taken, controller(1), mapping));
            memory.free(taken, order, guest(0), Contents::Dirty).unwrap();
        }
        assert_eq!(memory.controller_totals(controller(1)).free(), 2048);
    }
}

#[test]
fn every_controller_has_arenas_of_its_own() {
    let mut map = BootMap::new();
    let controllers = || (0..MAX_CONTROLLERS as u8).map(controller);
    for id in controllers() {
        map.add_ram(id, (id.index() as u64 + 1) << 32, 4 * MIB).unwrap();
    }
    let words = words(&map);
    let needed = Memory::arenas_to_extend(&map);
    if needed > 0 {
        let refused = Memory::new().boot(&map, &words, 0);
        assert_eq!(refused, Err(BootError::TooFewArenas { needed, given: 0 }));
    }
    assert_eq!(Footprint::of(&map).arenas, needed);
    let arenas: Vec<Arena> = (0..needed).map(|_| Arena::new()).collect();
    let memory = Memory::new();
    memory.extend(&arenas);
    memory.boot(&map, &words, 0).unwrap();
    for id in controllers() {
        let only = Request { placement: Placement::only(id), ..request(9, MemoryKind::Movable) };
        let taken = memory.allocate(&only).unwrap().frame;
        assert_eq!(memory.controller_of(taken), Some(id));
        assert_eq!((memory.controller_totals(id).free(), memory.resident(guest(0), id)), (512, 512));
        memory.close(id);
        assert!(memory.is_closed(id) && memory.allocate(&only).is_err());
    }
    let mut check = check::Check::new();
    while !check.step(&memory, &|_, _| check::Translation::Nowhere, 64, &mut |problem| panic!("{problem}")) {}
    assert_eq!(check.summary().frames, map.ram_frames());
}

#[test]
fn more_ram_than_the_frame_table_describes_is_refused_with_the_reason() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 1 << 44, 1 << 44).unwrap();
    let error = Memory::new().boot(&map, &[], 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory map: 16 TiB of RAM; at most 4294966784 frames of 4 KiB, 2 MiB less than 16 TiB, are supported"
    );
}

#[test]
fn a_table_that_is_too_short_is_refused() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    let error = memory.boot(&map, &words[1..], 0).unwrap_err();
    assert_eq!(error.to_string(), "frame table: 12455 words given, the memory map needs 12456");
    assert_eq!(memory.allocate(&request(0, MemoryKind::Movable)), Err(AllocError::NotBooted));
}

#[test]
fn movable_requests_use_movable_first_and_unmovable_never() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let first = memory.allocate(&request(9, MemoryKind::Movable)).unwrap();
    assert_eq!(
        (first.zone, first.controller, first.contents),
        (Zone::Movable, controller(1), Contents::Dirty)
    );
    let mut taken = 0;
    while let Ok(allocation) = memory.allocate(&request(0, MemoryKind::Unmovable)) {
        assert_eq!(allocation.zone, Zone::Normal);
        taken += 1;
    }
    assert_eq!(taken, 3072 - 128);
    assert_eq!(memory.zone_totals(Zone::Movable).free, 512);
}

#[test]
fn the_floor_of_normal_holds_against_guests() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 1000).unwrap();
    while memory.allocate(&request(0, MemoryKind::Movable)).is_ok() {}
    assert_eq!(memory.zone_totals(Zone::Movable).free, 0);
    assert_eq!(memory.zone_totals(Zone::Normal).free, 1000);
    assert!(memory.allocate(&request(9, MemoryKind::Unmovable)).is_err());
    let tables = Owner::Tables(GuestId::try_new(0).unwrap());
    assert!(memory.allocate(&Request { owner: tables, ..request(0, MemoryKind::Unmovable) }).is_ok());
}

#[test]
fn the_floor_of_normal_holds_against_pinned_guests_of_every_order() {
    for order in [0, 3, 9] {
        let map = two_controllers();
        let words = words(&map);
        let memory = Memory::new();
        // An odd floor, inside a pageblock.
        memory.boot(&map, &words, 1001).unwrap();
        let own = Request { owner: Owner::Hypervisor, ..request(0, MemoryKind::Unmovable) };
        let held = [memory.allocate(&own).unwrap().frame, memory.allocate(&own).unwrap().frame];
        memory.free(held[0], 0, Owner::Hypervisor, Contents::Dirty).unwrap();
        while memory.allocate(&request(order, MemoryKind::Unmovable)).is_ok() {}
        let left = memory.zone_totals(Zone::Normal).free;
        assert!((1001..1001 + (1 << order)).contains(&left), "order {order}: {left} left");
    }
}

#[test]
fn everything_freed_merges_again() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let mut taken: Vec<_> =
        core::iter::from_fn(|| memory.allocate(&request(0, MemoryKind::Movable)).ok()).collect();
    assert_eq!(taken.len(), 4096 - 128);
    assert_eq!(memory.resident_everywhere(guest(0)), 4096 - 128);
    // A fixed shuffle: neighbours are not freed one after the other.
    taken.sort_by_key(|allocation| allocation.frame.number().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
    for allocation in taken {
        memory.free(allocation.frame, 0, guest(0), Contents::Zeroed).unwrap();
    }
    assert_eq!(memory.resident_everywhere(guest(0)), 0);
    let block = memory.allocate(&request(10, MemoryKind::Unmovable)).unwrap();
    assert_eq!(block.contents, Contents::Zeroed);
    for _ in 0..2 {
        assert_eq!(memory.allocate(&request(9, MemoryKind::Movable)).unwrap().zone, Zone::Movable);
    }
}

#[test]
fn each_invalid_free_has_its_reason() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = memory
        .allocate(&Request { placement: Placement::only(controller(0)), ..request(4, MemoryKind::Movable) })
        .unwrap();
    let reason = |frame, order, owner| memory.free(frame, order, owner, Contents::Dirty).unwrap_err().reason;
    let inside = block.frame.checked_add(3).unwrap();
    assert_eq!(reason(frame(0x1000), 0, guest(0)), BlockReason::NotRam);
    assert_eq!(reason(frame(BASE), 0, guest(0)), BlockReason::Reserved);
    assert_eq!(reason(frame(0x3_0000_0000), 0, guest(0)), BlockReason::AlreadyFree);
    assert_eq!(reason(inside, 0, guest(0)), BlockReason::InsideBlock { head: block.frame, order: 4 });
    assert_eq!(reason(block.frame, 5, guest(0)), BlockReason::OtherOrder { order: 4 });
    assert_eq!(reason(block.frame, 255, guest(0)), BlockReason::OtherOrder { order: 4 });
    assert_eq!(reason(block.frame, 4, guest(1)), BlockReason::OtherOwner { owner: guest(0) });
    memory.free(block.frame, 4, guest(0), Contents::Dirty).unwrap();
    assert_eq!(reason(block.frame, 4, guest(0)), BlockReason::AlreadyFree);
}

#[test]
fn an_order_that_does_not_exist_is_refused() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    assert_eq!(
        memory.allocate(&request(19, MemoryKind::Movable)),
        Err(AllocError::OrderTooLarge { order: 19 })
    );
    let error = memory.allocate(&request(18, MemoryKind::Unmovable)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no unmovable block of 1 GiB behind controllers 0,1: 11.5 MiB free there, 0 B elsewhere"
    );
}

#[test]
fn placement_is_respected() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let on = |placement, kind| {
        memory.allocate(&Request { placement, ..request(9, kind) }).map(|allocation| allocation.controller)
    };
    let both = ControllerList::new(&[controller(0), controller(1)]);
    for _ in 0..3 {
        assert_eq!(on(Placement::only(controller(0)), MemoryKind::Movable), Ok(controller(0)));
    }
    assert_eq!(
        on(Placement::only(controller(0)), MemoryKind::Movable).unwrap_err().to_string(),
        "no movable block of 2 MiB behind controllers 0: 1.5 MiB free there, 8 MiB elsewhere"
    );
    assert_eq!(on(Placement::Listed(both, Strictness::Strict), MemoryKind::Movable), Ok(controller(1)));
    assert_eq!(on(Placement::prefer(controller(0)), MemoryKind::Movable), Ok(controller(1)));
    memory.close(controller(1));
    assert!(on(Placement::Any, MemoryKind::Movable).is_err());
    memory.open(controller(1));
    assert!(on(Placement::Any, MemoryKind::Movable).is_ok());
}

#[test]
fn interleaving_takes_turns_by_units_of_2_mib() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0, 8 * MIB).unwrap();
    map.add_ram(controller(1), 0x4000_0000, 8 * MIB).unwrap();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let set = [controller(0), controller(1)].into_iter().collect();
    let placement = Placement::Interleave(set, Strictness::Strict);
    let sequence: Vec<_> = (0..2048)
        .map(|_| {
            memory
                .allocate(&Request { placement, ..request(0, MemoryKind::Movable) })
                .unwrap()
                .controller
                .index()
        })
        .collect();
    for (unit, chunk) in sequence.chunks(512).enumerate() {
        assert!(chunk.iter().all(|&c| c == unit % 2), "unit {unit}");
    }
}

#[test]
fn the_reverse_map_covers_every_frame_of_a_block() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let mapping = Mapping {
        guest: GuestId::try_new(MAX_GUESTS as u8 - 1).unwrap(),
        ipa: Ipa::try_new(0xffff_8000_0000).unwrap(),
    };
    let block =
        memory.allocate(&Request { mapping: Some(mapping), ..request(9, MemoryKind::Movable) }).unwrap();
    assert_eq!(memory.mapping(block.frame), Some(mapping));
    let inside = memory.mapping(block.frame.checked_add(5).unwrap()).unwrap();
    assert_eq!(inside.ipa.get(), 0xffff_8000_5000);
}

#[test]
fn an_unmovable_request_converts_whole_pageblocks() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let first = memory.allocate(&request(0, MemoryKind::Unmovable)).unwrap();
    let second = memory.allocate(&request(0, MemoryKind::Unmovable)).unwrap();
    let info = memory.frame_info(first.frame).unwrap();
    assert_eq!(info.migrate_type, MigrateType::Unmovable);
    assert_eq!(second.frame.number() >> 9, first.frame.number() >> 9);
}
