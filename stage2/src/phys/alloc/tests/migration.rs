use crate::migrate::Frames;
use crate::phys::alloc::tests::*;

#[test]
fn migration_gets_its_frames_from_memory() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let frames: &dyn Frames = &memory;
    let id = GuestId::try_new(0).unwrap();
    let (ipa, there) = (Ipa::try_new(0x4000_0000).unwrap(), Placement::only(controller(1)));
    assert_eq!(frames.free_frames(&there), 2048);
    let target = frames.allocate(id, 9, &there, ipa).unwrap();
    assert_eq!(memory.mapping(target), Some(Mapping { guest: id, ipa }));
    assert_eq!(frames.free_frames(&there), 1536);
    let span = frames.span_of(target).unwrap();
    assert_eq!((span.controller, span.frames.base().get()), (controller(1), 0x3_0000_0000));
    assert!(frames.divide(id, target, 9) && !frames.divide(id, target, 9));
    assert!(!frames.unite(GuestId::try_new(1).unwrap(), target, 9, ipa));
    assert!(frames.unite(id, target, 9, ipa));
    memory.close(controller(1));
    assert_eq!((frames.allocate(id, 0, &there, ipa), frames.free_frames(&there)), (None, 0));
    frames.release(id, target, 9, Contents::Dirty);
    assert_eq!(memory.refused_count(), 0);
    frames.release(id, target, 9, Contents::Dirty);
    assert_eq!(memory.refused_count(), 1);
}

#[test]
fn migration_respects_the_floor_of_normal() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 2000).unwrap();
    let frames: &dyn Frames = &memory;
    assert_eq!(frames.free_frames(&Placement::Any), 1024 + 3072 - 128 - 2000);
    assert_eq!(frames.free_frames(&Placement::only(controller(0))), 3072 - 128 - 2000);
}
