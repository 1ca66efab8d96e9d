//! Instructions of the image whose absence the emulator forgives.

use object::{Object, ObjectSection, ObjectSymbol};

/// A function of the image.
struct Function {
    address: u64,
    instructions: Vec<u32>,
}

impl Function {
    /// Finds the one function whose mangled name contains each of `parts`.
    #[track_caller]
    fn find(parts: &[&str]) -> Self {
        Self::only(&format!("a name with {parts:?}"), |symbol| {
            symbol.name().is_ok_and(|name| parts.iter().all(|part| name.contains(part)))
        })
    }

    /// Finds the function at `address`.
    #[track_caller]
    fn at(address: u64) -> Self {
        Self::only(&format!("address {address:#x}"), |symbol| {
            symbol.address() == address && symbol.kind() == object::SymbolKind::Text
        })
    }

    #[track_caller]
    fn only(wanted: &str, is_it: impl Fn(&object::Symbol<'_, '_>) -> bool) -> Self {
        let path = system_tests::elf();
        let data = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = object::File::parse(&*data).unwrap();
        let found: Vec<_> = file.symbols().filter(is_it).collect();
        let [symbol] = &found[..] else { panic!("{} symbols have {wanted}", found.len()) };
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        // What is written in assembly has no size: it ends where the next symbol or the section does.
        let ends = file.symbols().map(|other| other.address()).filter(|&at| at > symbol.address());
        let end = ends.min().unwrap_or(section.address() + section.size());
        let size = if symbol.size() == 0 { end - symbol.address() } else { symbol.size() };
        let bytes = section.data_range(symbol.address(), size).unwrap().unwrap();
        let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
        Self { address: symbol.address(), instructions: words.collect() }
    }

    /// Returns the index of the first `instruction`, at or after index `start`.
    #[track_caller]
    fn position(&self, instruction: u32, start: usize) -> usize {
        let found = self.instructions[start..].iter().position(|&word| word == instruction);
        start + found.unwrap_or_else(|| panic!("no {instruction:#010x} in {:#x?}", self.instructions))
    }
}

/// `dsb sy` and `isb`.
const DSB_SY: u32 = 0xd503_3f9f;
const ISB: u32 = 0xd503_3fdf;
/// BL, but for its offset in bits 25:0; `ret`.
const BL: u32 = 0x9400_0000;
const BL_MASK: u32 = 0xfc00_0000;
const RET: u32 = 0xd65f_03c0;

/// A load, of any kind (Arm ARM, "A64 instruction set encoding", "Loads and Stores": bits 27 and 25 are 1 and 0; bit 22
/// is L, or the low bit of opc).
fn is_load(instruction: u32) -> bool {
    instruction & 0x0a00_0000 == 0x0800_0000 && instruction & 1 << 22 != 0
}

/// A branch that ends a run of instructions which are executed one after the other (Arm ARM, "Branches, Exception
/// Generating and System instructions"): B, BL, BR, BLR, RET.
fn leaves(instruction: u32) -> bool {
    instruction & 0x7c00_0000 == 0x1400_0000 || instruction & 0xfe00_0000 == 0xd600_0000
}

#[test]
fn data_is_read_after_the_interrupt_that_announces_it_is_acknowledged() {
    let slow = Function::find(&["interrupt4slow"]);
    let (dsb, isb) = (slow.position(DSB_SY, 0), slow.position(ISB, 0));
    assert!(dsb < isb);
    // In front of them there is nothing but the test for special INTIDs: no load, and no call, but for code that the compiler
    // has moved out of line, such as the prologue.
    let before = &slow.instructions[..isb];
    assert!(!before.iter().any(|&word| is_load(word)), "a load in front: {before:#010x?}");
    for (index, &word) in before.iter().enumerate().filter(|&(_, &word)| leaves(word)) {
        assert_eq!(word & BL_MASK, BL, "a branch in front: {before:#010x?}");
        let offset = i64::from(word << 6) << 32 >> 38 << 2;
        let callee = Function::at((slow.address + 4 * index as u64).wrapping_add_signed(offset));
        let body = callee.instructions.split(|&word| word == RET).next().unwrap_or_default();
        let is_plain = !body.iter().any(|&word| is_load(word) || leaves(word));
        assert!(is_plain && body.len() < callee.instructions.len(), "a call in front: {before:#010x?}");
    }
}

/// QEMU has no CPU whose HCR_EL2.E2H is RES1 (without FEAT_E2H0).
#[test]
fn a_cpu_that_cannot_clear_e2h_is_refused_before_anything_depends_on_it() {
    const WRITE_HCR: u32 = 0xd51c_1101; // msr hcr_el2, x1
    const READ_HCR: u32 = 0xd53c_1101; // mrs x1, hcr_el2
    const TEST_E2H: u32 = 0xb710_0001; // tbnz x1, #34, offset in bits 18:5
    const OFFSET: u32 = 0x3fff;
    let refusal = Function::find(&["only_vhe"]);
    for name in ["primary_entry", "secondary_entry"] {
        let entry = Function::find(&[name]);
        let write = entry.position(WRITE_HCR, 0);
        let check = &entry.instructions[write + 1..write + 4];
        assert_eq!((check[0], check[1], check[2] & !(OFFSET << 5)), (ISB, READ_HCR, TEST_E2H), "{name}");
        let offset = i64::from((check[2] >> 5 & OFFSET) << 18) << 32 >> 50 << 2;
        let at = entry.address + 4 * (write as u64 + 3);
        assert_eq!(at.wrapping_add_signed(offset), refusal.address, "{name}");
    }
}

/// Erratum 832075 of Cortex-A57. A PC test of hyp::errata sees that all accesses go through the same functions.
#[test]
fn device_registers_are_read_by_load_acquire() {
    // LDAR of a word (Arm ARM, LDAR: size 10, all register fields free). UARTFR is read there, until there is room.
    let is_load_acquire = |word: &u32| word & 0xffe0_8000 == 0x88c0_8000;
    let polled = Function::find(&["serial..Polled", "write_str"]);
    assert!(polled.instructions.iter().any(is_load_acquire), "{:#010x?}", polled.instructions);
}
