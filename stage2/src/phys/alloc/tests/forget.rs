use crate::phys::alloc::tests::*;

/// Marks the free memory of controller 1 as dirty, in whole blocks and in split pageblocks, and allocates all of it.
#[test]
fn free_memory_of_a_replaced_module_is_dirty() {
    let map = two_controllers();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    // Everything behind the controller is allocated and freed as known zeroes.
    let ram = memory.ram().find(|&(_, id)| id == controller(1)).unwrap().0;
    let mut request = request(0, MemoryKind::Movable);
    request.placement = Placement::only(controller(1));
    let all: Vec<Frame> =
        core::iter::from_fn(|| memory.allocate(&request).ok().map(|block| block.frame)).collect();
    for frame in &all {
        memory.free(*frame, 0, guest(0), Contents::Zeroed).unwrap();
    }
    let kept = memory.allocate(&request).unwrap();
    assert_eq!(kept.contents, Contents::Zeroed);
    let mut rest = ram;
    while !rest.is_empty() {
        rest = memory.forget_some(rest);
    }
    let again: Vec<_> = core::iter::from_fn(|| memory.allocate(&request).ok()).collect();
    assert_eq!(again.len(), all.len() - 1);
    assert!(again.iter().all(|block| block.contents == Contents::Dirty));
    // What is scrubbed from now on is known again.
    memory.free(kept.frame, 0, guest(0), Contents::Zeroed).unwrap();
    for block in &again {
        memory.free(block.frame, 0, guest(0), Contents::Zeroed).unwrap();
    }
    assert_eq!(memory.allocate(&request).unwrap().contents, Contents::Zeroed);
}
