//! A search for instruction sequences that Cortex-A53 (and Brahma-B53, which derives from it) may execute
//! incorrectly.
//!
//! - **835769** (r0p0 to r0p4): a load, store or prefetch directly before a multiply-accumulate into a 64-bit register may
//!   corrupt its result. The compiler separates them with a NOP ([`FIX_835769`]).
//! - **843419** (r0p0 to r0p4): an ADRP in one of the last two words of a page, a load or store, and then, at most one
//!   instruction between, an access with an unsigned offset from the ADRP's register may use an incorrect address. The
//!   linker moves the last instruction elsewhere (`hyp/build.rs`).
//! - **819472, 824069, 826319, 827319, 855873** (r0p0 on): cleaning a cache line without invalidating it may corrupt data or
//!   deadlock. EL2 uses DC CIVAC for both.
//!
//! Compiler and linker do not see everything in an image (global assembly, Rust's precompiled libraries), so this
//! module searches the linked image. The conditions are those of GNU's and LLVM's tools for the Cortex-A53 MPCore
//! Software Developers Errata Notice (ARM-EPM-048406), without their exceptions: a pair counts even if its
//! instructions depend on each other. Encodings: Arm ARM, "A64 instruction set encoding".

use std::fmt;

use object::Endianness;
use object::elf::{FileHeader64, SHF_EXECINSTR, SHT_SYMTAB};
use object::read::elf::{FileHeader, SectionHeader, Sym};

/// LLVM feature, unknown to rustc, that keeps [`Found::accumulates`] empty.
pub(crate) const FIX_835769: &str = "fix-cortex-a53-835769";

/// The sequences found in an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of instructions examined.
    pub(crate) instruction_count: usize,
    /// Addresses of multiply-accumulates after an access to memory: erratum 835769.
    pub(crate) accumulates: Vec<u64>,
    /// Addresses of ADRPs that start a sequence of erratum 843419.
    pub(crate) pages: Vec<u64>,
    /// Addresses of instructions that clean a cache line without invalidating it: errata 819472 and others.
    pub(crate) cleans: Vec<u64>,
}

impl Found {
    /// Returns true if the image has none of the sequences.
    pub fn is_clean(&self) -> bool {
        self.accumulates.is_empty() && self.pages.is_empty() && self.cleans.is_empty()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instruction_count, accumulates, pages, cleans } = self;
        write!(f, "{instruction_count} instructions: ")?;
        for (number, places) in [("835769", accumulates), (", 843419", pages), (", 819472", cleans)] {
            write!(f, "{number}: {}", places.len())?;
            if let Some(first) = places.first() {
                write!(f, " (first at {first:#x})")?;
            }
        }
        Ok(())
    }
}

/// Searches all executable sections of the ELF file `data`, except parts that mapping symbols mark as data.
///
/// # Errors
/// `data` is not an ELF file, or its sections extend past its end.
pub fn scan(data: &[u8]) -> Result<Found, String> {
    let wrong = |error: object::Error| error.to_string();
    let header = FileHeader64::<Endianness>::parse(data).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let sections = header.sections(endian, data).map_err(wrong)?;
    let symbols = sections.symbols(endian, data, SHT_SYMTAB).map_err(wrong)?;
    let mut found = Found::default();
    for (index, section) in sections.iter().enumerate() {
        if !section.sh_flags(endian).contains(SHF_EXECINSTR) {
            continue;
        }
        // Mapping symbols: `$x` starts code, `$d` data; a suffix may follow after a full stop (AAELF64, 4.5.4).
        let mut marks: Vec<(u64, bool)> = symbols
            .iter()
            .filter(|symbol| usize::from(symbol.st_shndx.get(endian).0) == index)
            .filter_map(|symbol| match symbol.name(endian, symbols.strings()).ok()?.get(..2)? {
                b"$x" => Some((symbol.st_value(endian), true)),
                b"$d" => Some((symbol.st_value(endian), false)),
                _ => None,
            })
            .collect();
        marks.sort_unstable();
        let bytes = section.data(endian, data).map_err(wrong)?;
        let words: Vec<u32> =
            bytes.as_chunks().0.iter().map(|bytes: &[u8; 4]| u32::from_le_bytes(*bytes)).collect();
        let mut at = section.sh_addr(endian);
        let (end, mut rest) = (at + 4 * words.len() as u64, &words[..]);
        let mut is_code = true;
        for (next, next_is_code) in marks.into_iter().chain([(end, true)]) {
            let (piece, others) = rest.split_at((next.saturating_sub(at) as usize / 4).min(rest.len()));
            if is_code {
                scan_code(at, piece, &mut found);
            }
            (at, rest, is_code) = (at + 4 * piece.len() as u64, others, next_is_code);
        }
    }
    Ok(found)
}

/// Searches consecutive instructions from `address`.
fn scan_code(address: u64, words: &[u32], found: &mut Found) {
    found.instruction_count += words.len();
    let places = (address..).step_by(4);
    for (place, pair) in places.clone().skip(1).zip(words.windows(2)) {
        if is_access(pair[0]) && is_long_accumulate(pair[1]) {
            found.accumulates.push(place);
        }
    }
    found
        .cleans
        .extend(places.clone().zip(words).filter(|(_, word)| is_clean(**word)).map(|(place, _)| place));
    for (index, (place, &word)) in places.zip(words).enumerate() {
        if is_page_address(word) && matches!(place % 4096, 0xff8 | 0xffc) {
            let mut after = words[index + 1..].iter().copied();
            let (second, third, fourth) = (after.next(), after.next(), after.next());
            let register = word & 31;
            let is_last = |word: Option<u32>| word.is_some_and(|word| is_access_with_offset(word, register));
            let is_first = second.is_some_and(|word| is_access(word) && !is_load_of_several(word));
            let is_between = third.is_some_and(|word| !is_branch(word));
            if is_first && (is_last(third) || is_between && is_last(fourth)) {
                found.pages.push(place);
            }
        }
    }
}

/// Returns true for loads, stores and prefetches of all kinds ("A64 instruction set encoding": op0 is x1x0).
fn is_access(word: u32) -> bool {
    word & 0x0a00_0000 == 0x0800_0000
}

/// Returns true for MADD, MSUB, SMADDL, SMSUBL, UMADDL, UMSUBL into an X register, except plain multiplications,
/// which add to XZR (MUL, SMULL, SMULH and others).
fn is_long_accumulate(word: u32) -> bool {
    word & 0xff00_0000 == 0x9b00_0000 && word >> 10 & 31 != 31
}

/// Returns true for DC CVAC, CVAU, CVAP, CVADP and CSW.
fn is_clean(word: u32) -> bool {
    matches!(word & !31, 0xd50b_7a20 | 0xd50b_7b20 | 0xd50b_7c20 | 0xd50b_7d20 | 0xd508_7a40)
}

/// Returns true for ADRP.
fn is_page_address(word: u32) -> bool {
    word & 0x9f00_0000 == 0x9000_0000
}

/// Returns true for loads of a pair, or of a vector structure.
fn is_load_of_several(word: u32) -> bool {
    let is_pair = word & 0x3a00_0000 == 0x2800_0000;
    let is_structure = word & 0xbe00_0000 == 0x0c00_0000;
    (is_pair || is_structure) && word & 1 << 22 != 0
}

/// Returns true for a load or store of one register with an unsigned offset from X`register`.
fn is_access_with_offset(word: u32, register: u32) -> bool {
    word & 0x3b00_0000 == 0x3900_0000 && word >> 5 & 31 == register
}

/// Returns true for branches: immediate, compare, test, conditional, by register.
fn is_branch(word: u32) -> bool {
    word & 0x7c00_0000 == 0x1400_0000
        || word & 0x7c00_0000 == 0x3400_0000
        || word & 0xfe00_0000 == 0x5400_0000
        || word & 0xfe00_0000 == 0xd600_0000
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const NONE: [u64; 0] = [];
    const NOP: u32 = 0xd503_201f;
    /// `ldr x8, [x25, x27]`, `str w1, [sp, #8]`, `ldp x1, x2, [x3]`, `prfm pldl1keep, [x0]`, `ldxr x0, [x1]`,
    /// `st1 {v0.16b}, [x0]`, `ldr x16, <literal>`.
    pub(crate) const ACCESSES: [u32; 7] =
        [0xf87b_6b28, 0xb900_0be1, 0xa940_0861, 0xf980_0000, 0xc85f_7c20, 0x4c00_7000, 0x5800_0050];
    /// `madd x8, x9, x10, x8`, `msub x1, x2, x3, x4`, `umaddl x21, w0, w9, x8`, `umsubl x1, w2, w3, x4`,
    /// `smaddl x1, w2, w3, x4`, `smsubl x1, w2, w3, x4`.
    pub(crate) const ACCUMULATES: [u32; 6] =
        [0x9b0a_2128, 0x9b03_9041, 0x9ba9_2015, 0x9ba3_9041, 0x9b23_1041, 0x9b23_9041];
    /// `mul x0, x1, x2`, `umull x0, w1, w2`, `smulh x0, x1, x2`, `madd w0, w1, w2, w3`, `add x0, x1, x2`, `udiv x0,
    /// x1, x2`.
    const NOT_ACCUMULATES: [u32; 6] =
        [0x9b02_7c20, 0x9ba2_7c20, 0x9b42_7c20, 0x1b02_0c20, 0x8b02_0020, 0x9ac2_0820];
    /// `add x0, x0, #1`, `dsb ish`, `dc civac, x0`, `mrs x0, midr_el1`, `b .`, `adrp x0, .`, `fadd d0, d0, d0`.
    const NOT_ACCESSES: [u32; 7] =
        [0x9100_0400, 0xd503_3b9f, 0xd50b_7e20, 0xd538_0000, 0x1400_0000, 0x9000_0000, 0x1e60_2800];

    fn accumulates(words: &[u32]) -> Vec<u64> {
        let mut found = Found::default();
        scan_code(0x1000, words, &mut found);
        found.accumulates
    }

    fn pages(address: u64, words: &[u32]) -> Vec<u64> {
        let mut found = Found::default();
        scan_code(address, words, &mut found);
        found.pages
    }

    #[test]
    fn every_access_before_every_long_accumulate_is_found() {
        for access in ACCESSES {
            for accumulate in ACCUMULATES {
                let words = [NOP, access, accumulate, NOP];
                assert_eq!(accumulates(&words), [0x1008], "{access:#x} {accumulate:#x}");
            }
        }
    }

    #[test]
    fn a_nop_between_or_another_instruction_on_either_side_is_harmless() {
        for access in ACCESSES {
            assert_eq!(accumulates(&[access, NOP, ACCUMULATES[0]]), NONE);
            for other in NOT_ACCUMULATES {
                assert_eq!(accumulates(&[access, other]), NONE, "{access:#x} {other:#x}");
            }
        }
        for other in NOT_ACCESSES {
            assert_eq!(accumulates(&[other, ACCUMULATES[0]]), NONE, "{other:#x}");
        }
        assert_eq!(accumulates(&[ACCUMULATES[0], ACCESSES[0]]), NONE);
        assert_eq!(accumulates(&[]), NONE);
    }

    #[test]
    fn cleans_without_invalidation_are_found() {
        // DC CVAC, CVAU, CVAP, CVADP, CSW; then CIVAC, IVAC, CISW, ZVA and IC IALLUIS.
        let words = [0xd50b_7a23, 0xd50b_7b20, 0xd50b_7c3f, 0xd50b_7d20, 0xd508_7a41];
        let others = [0xd50b_7e20, 0xd508_7620, 0xd508_7e40, 0xd50b_7420, 0xd508_711f];
        let mut found = Found::default();
        scan_code(0x1000, &[words, others].concat(), &mut found);
        assert_eq!(found.cleans, [0x1000, 0x1004, 0x1008, 0x100c, 0x1010]);
        assert!(!found.is_clean());
    }

    /// `adrp x0, .`
    const ADRP: u32 = 0x9000_0000;
    /// `ldr x1, [x0, #8]`
    const LAST: u32 = 0xf940_0401;
    /// `str x2, [x3]`
    const STORE: u32 = 0xf900_0062;

    #[test]
    fn adrp_at_the_end_of_a_page_with_accesses_after_it_is_found() {
        for address in [0xff8, 0xffc, 0x8000_0000_1ffc] {
            for between in [&[][..], &[NOP]] {
                for first in [STORE, 0xa900_0861, 0xf841_0c61, 0x4c00_7060, 0x5800_0041] {
                    let words = [&[ADRP, first], between, &[LAST]].concat();
                    assert_eq!(pages(address, &words), [address], "{words:x?}");
                }
            }
        }
    }

    #[test]
    fn similar_sequences_are_not_counted() {
        // Other places in the page.
        for address in [0xff0, 0xff4, 0x1000] {
            assert_eq!(pages(address, &[ADRP, STORE, LAST]), NONE);
        }
        // ADR, as in the tiny code model.
        assert_eq!(pages(0xffc, &[0x1000_0000, STORE, LAST]), NONE);
        // The second instruction is not an access, or is LDP or LD1, which the erratum excludes.
        for second in [NOP, 0xa940_0861, 0x4c40_7060] {
            assert_eq!(pages(0xffc, &[ADRP, second, LAST]), NONE, "{second:#x}");
        }
        // A branch, or two instructions, in between.
        assert_eq!(pages(0xffc, &[ADRP, STORE, 0xd65f_03c0, LAST]), NONE);
        assert_eq!(pages(0xffc, &[ADRP, STORE, NOP, NOP, LAST]), NONE);
        // The last access has another base, or another kind of offset.
        for last in [0xf940_0421, 0xf840_8001, 0xf861_6801] {
            assert_eq!(pages(0xffc, &[ADRP, STORE, last]), NONE, "{last:#x}");
        }
        assert_eq!(pages(0xffc, &[ADRP, STORE]), NONE);
    }

    /// Makes an ELF file with one executable section of `words` at 0x1000, and symbols.
    pub(crate) fn elf(words: &[u32], symbols: &[(&str, u64)]) -> Vec<u8> {
        let mut strings = b"\0".to_vec();
        let mut table = vec![0; 24];
        for (name, value) in symbols {
            table.extend((strings.len() as u32).to_le_bytes());
            table.extend([0, 0, 1, 0]);
            table.extend(value.to_le_bytes());
            table.extend(0_u64.to_le_bytes());
            strings.extend([name.as_bytes(), b"\0"].concat());
        }
        let text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 183, 0, 1, 0, 0, 0]);
        // Entry, program headers, section headers; flags; sizes: header, program header, none, section header, 4,
        // names.
        for word in [0, 0, 64_u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 0, 64, 4, 3] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 4 * 64;
        let mut header = |kind: u32, flags: u64, address: u64, size: usize, link: u32, entry: u64| {
            file.extend([0; 4]);
            file.extend(kind.to_le_bytes());
            for word in [flags, address, offset, size as u64] {
                file.extend(word.to_le_bytes());
            }
            file.extend(link.to_le_bytes());
            file.extend(1_u32.to_le_bytes());
            for word in [1, entry] {
                file.extend(word.to_le_bytes());
            }
            offset += size as u64;
        };
        header(0, 0, 0, 0, 0, 0);
        header(1, 6, 0x1000, text.len(), 0, 0);
        header(2, 0, 0, table.len(), 3, 24);
        header(3, 0, 0, strings.len(), 0, 0);
        file.extend([text, table, strings].concat());
        file
    }

    #[test]
    fn code_is_scanned_and_data_is_not() {
        let pair = [ACCESSES[0], ACCUMULATES[0]];
        let words = [pair, pair, [NOP, NOP], pair].concat();
        let all =
            Found { instruction_count: 8, accumulates: vec![0x1004, 0x100c, 0x101c], ..Found::default() };
        assert_eq!(scan(&elf(&words, &[])).unwrap(), all);
        assert_eq!(all.to_string(), "8 instructions: 835769: 3 (first at 0x1004), 843419: 0, 819472: 0");
        assert!(!all.is_clean());

        let marks = [("$x", 0x1000), ("main", 0x1004), ("$d.1", 0x1008), ("$x.2", 0x1018)];
        let some = Found { instruction_count: 4, accumulates: vec![0x1004, 0x101c], ..Found::default() };
        assert_eq!(scan(&elf(&words, &marks)).unwrap(), some);

        // A literal separates an access from an accumulate.
        let marks = [("$x", 0x1000), ("$d", 0x1004), ("$x", 0x1008)];
        let clean = scan(&elf(&[pair[0], NOP, pair[1], NOP], &marks)).unwrap();
        assert_eq!(clean.to_string(), "3 instructions: 835769: 0, 843419: 0, 819472: 0");
        assert!(clean.is_clean());
        assert!(scan(b"no ELF file").is_err());
    }
}
