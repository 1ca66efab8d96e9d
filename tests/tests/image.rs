//! Barriers that the emulator forgives the absence of, in the image itself.

use object::{Object, ObjectSection, ObjectSymbol};

/// The instructions of the one function whose mangled name contains `name`.
fn instructions(name: &str) -> Vec<u32> {
    let path = system_tests::elf();
    let data = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = object::File::parse(&*data).unwrap();
    let found: Vec<_> =
        file.symbols().filter(|symbol| symbol.name().is_ok_and(|n| n.contains(name))).collect();
    let [symbol] = &found[..] else { panic!("{} symbols contain `{name}`", found.len()) };
    let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
    let bytes = section.data_range(symbol.address(), symbol.size()).unwrap().unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// `dsb sy` and `isb`.
const DSB_SY: u32 = 0xd503_3f9f;
const ISB: u32 = 0xd503_3fdf;

/// A load, of any kind (Arm ARM C4.1, "Loads and Stores": bits 27 and 25 are 1 and 0; bit 22 is L, or the low bit of opc).
fn is_load(instruction: u32) -> bool {
    instruction & 0x0a00_0000 == 0x0800_0000 && instruction & 1 << 22 != 0
}

/// A branch that ends a run of instructions which are executed one after the other (C4.1, "Branches"): B, BL, BR, BLR, RET.
fn leaves(instruction: u32) -> bool {
    instruction & 0x7c00_0000 == 0x1400_0000 || instruction & 0xfe00_0000 == 0xd600_0000
}

#[test]
fn what_an_interrupt_announces_is_read_after_it_is_acknowledged() {
    let slow = instructions("interrupt4slow");
    let find = |wanted: u32| slow.iter().position(|&word| word == wanted).expect("a barrier");
    let (dsb, isb) = (find(DSB_SY), find(ISB));
    assert!(dsb < isb);
    // In front of them there is nothing but the test for special INTIDs: no load, and no call.
    let before = &slow[..isb];
    assert!(!before.iter().any(|&word| is_load(word)), "a load in front: {before:#010x?}");
    assert!(!before.iter().any(|&word| leaves(word)), "a call in front: {before:#010x?}");
}
