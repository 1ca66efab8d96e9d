//! The answers to `evacuate`, and `restore`.

use std::sync::atomic::AtomicU32;

use stage2::phys::alloc::Memory;
use stage2::phys::frame::{Contents, Footprint};
use stage2::phys::map::BootMap;

use super::*;

#[test]
fn an_evacuation_says_what_stays_claimed() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    machine.pools = Some(FakePools::new());
    let answer = |machine: &Fake| {
        let said = output_of(machine, "evacuate mc1");
        output_of(machine, "restore mc1");
        said
    };
    assert!(!answer(&machine).contains("claimed"), "{}", answer(&machine));
    output_of(&machine, "claim video 2M");
    let said = answer(&machine);
    assert!(said.contains("\n2 MiB will stay, so mc1 will be closed, but not evacuated:\n"), "{said}");
    assert!(said.contains("\n2 MiB  -      -       claimed by a pool's owner\n"), "{said}");
}

/// A report of a controller names few of its ranges; none of them may keep what the allocator knew of replaced memory.
#[test]
fn a_restored_controller_has_no_known_contents_in_any_range() {
    let mut map = BootMap::new();
    let (id, here) = (ControllerId::try_new(1).unwrap(), ControllerId::default());
    map.add_ram(here, 0x4000_0000, 8 << 20).unwrap();
    for at in 0..6 {
        map.add_ram(id, 0x8000_0000 + at * (8 << 20), 4 << 20).unwrap();
    }
    let words: Vec<AtomicU32> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
    let memory: &'static Memory<'static> = Box::leak(Box::new(Memory::new()));
    memory.boot(&map, words.leak(), 0).unwrap();
    let mut machine = Fake::new();
    let mut migration = FakeMigration::new();
    migration.memory = memory;
    machine.migration = Some(migration);
    let owner = Owner::Guest(GuestId::default());
    let placement = Placement::only(id);
    let request = Request { order: 9, kind: MemoryKind::Movable, owner, placement, mapping: None };
    let all = || core::iter::from_fn(|| memory.allocate(&request).ok()).collect::<Vec<_>>();
    for block in all() {
        memory.free(block.frame, 9, owner, Contents::Zeroed).unwrap();
    }
    memory.close(id);
    output_of(&machine, "restore mc1");
    let contents: Vec<_> = all().iter().map(|block| block.contents).collect();
    assert_eq!(contents, [Contents::Dirty; 12]);
}
