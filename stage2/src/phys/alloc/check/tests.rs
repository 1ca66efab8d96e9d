use crate::phys::alloc::check::*;
use crate::phys::alloc::tests::model::assert_in_order;
use crate::phys::alloc::tests::{BASE, guest, words};
use crate::phys::alloc::{MemoryKind, Request};
use crate::phys::frame::Contents;
use crate::phys::map::BootMap;
use crate::phys::placement::Placement;
use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;

struct Shows(Cell<Translation>);

impl Translate for Shows {
    fn translate(&self, _: GuestId, _: Ipa) -> Translation {
        self.0.get()
    }
}

fn eight_mib() -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(ControllerId::default(), BASE, 8 << 20).unwrap();
    map
}

fn problems(memory: &Memory<'_>, stage2: &dyn Translate) -> (Vec<String>, Summary) {
    let mut check = Check::new();
    let mut problems = Vec::new();
    while !check.step(memory, stage2, 1, &mut |problem| problems.push(problem.to_string())) {}
    (problems, check.summary())
}

fn request(order: u8, mapping: Option<Mapping>) -> Request {
    Request { order, kind: MemoryKind::Movable, owner: guest(0), placement: Placement::Any, mapping }
}

#[test]
#[cfg_attr(miri, ignore = "repeats much work")]
fn damaged_records_are_found() {
    let map = eight_mib();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let block = memory.allocate(&request(9, None)).unwrap();
    let page = memory.allocate(&request(0, None)).unwrap();
    assert_in_order(&memory, &map);
    let nowhere = Shows(Cell::new(Translation::Nowhere));
    // Damage to any valid word, and to no other, is found, and never stops the walk.
    let mut told = 0;
    let entries = 3 * 2048;
    let is_chosen = |index: usize| index >= entries || index % 3 == 2 && index / 3 % 128 < 2;
    for (_, word) in words.iter().enumerate().filter(|(index, _)| is_chosen(*index)) {
        let before = word.load(Relaxed);
        word.store(before ^ 0x0010_0a41, Relaxed);
        told += u32::from(!problems(&memory, &nowhere).0.is_empty());
        word.store(before, Relaxed);
    }
    // Four pageblocks; the free map of the split one; the links of the free block of 4 MiB; two heads in use.
    assert_eq!(told, 4 + 20 + 2 + 2);
    memory.free(block.frame, 9, guest(0), Contents::Dirty).unwrap();
    memory.free(page.frame, 0, guest(0), Contents::Dirty).unwrap();
    assert_in_order(&memory, &map);
}

#[test]
fn a_reverse_map_that_differs_from_stage_2_is_found() {
    let map = eight_mib();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let mapping = Mapping { guest: GuestId::try_new(0).unwrap(), ipa: Ipa::new_truncate(0x8000_0000) };
    let block = memory.allocate(&request(9, Some(mapping))).unwrap();
    let stage2 = Shows(Cell::new(Translation::To(block.frame.pa())));
    let (found, summary) = problems(&memory, &stage2);
    assert_eq!((found.len(), summary.mapped_count, summary.unmapped_count), (0, 1, 0));
    stage2.0.set(Translation::Unknown);
    let (found, summary) = problems(&memory, &stage2);
    assert_eq!((found.len(), summary.mapped_count, summary.unmapped_count), (0, 0, 1));
    stage2.0.set(Translation::Nowhere);
    let text =
        format!("{} should be mapped at 0x80000000 of guest 0, but stage 2 maps nothing", block.frame.pa());
    assert_eq!(problems(&memory, &stage2).0, [text]);
}

#[test]
#[cfg_attr(miri, ignore = "repeats much work")]
fn an_arena_that_changes_is_walked_again_and_then_reported_as_busy() {
    let map = eight_mib();
    let words = words(&map);
    let memory = Memory::new();
    memory.boot(&map, &words, 0).unwrap();
    let nowhere = Shows(Cell::new(Translation::Nowhere));
    for (changes, busy) in [(1, 0), (100, 1)] {
        let mut check = Check::new();
        let mut step = 0;
        while !check.step(&memory, &nowhere, 1, &mut |problem| panic!("{problem}")) {
            step += 1;
            if step % 3 == 0 && step / 3 <= changes {
                let block = memory.allocate(&request(0, None)).unwrap();
                memory.free(block.frame, 0, guest(0), Contents::Dirty).unwrap();
            }
        }
        assert_eq!(check.summary().busy_count, busy);
    }
}
