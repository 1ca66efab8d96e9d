//! Numbers the log's format strings in the image's ELF file as decoders of defmt expect.
//!
//! A format string is the name of a symbol in the section `.defmt`. Its number, which frames contain, is the symbol's
//! address. Decoders expect that section at address 0. Ballast is linked at a high address, from which ADR does not
//! reach address 0, so the section lies below the image at a multiple of 64 KiB, and code uses the low half of an
//! address. After linking, this module moves the section to address 0 for decoders such as `defmt-print`: it changes
//! the section's header, its symbols, and their addresses in the debug information.

use std::ops::Range;

use object::Endianness;
use object::elf::{FileHeader64, SHF_COMPRESSED, SHT_SYMTAB, SectionHeader64};
use object::read::elf::{FileHeader, SectionHeader};

/// Name of the section.
const SECTION: &[u8] = b".defmt";
/// Count of numbers, which have 16 bits.
const NUMBERS: u64 = 1 << 16;
/// `DW_FORM_exprloc` of nine bytes: `DW_OP_addr` and an address (DWARF 4, 2.6 and 7.7.1).
const PLACE: [u8; 2] = [9, 3];

/// The position of the section in the file and in memory.
struct Found {
    /// Addresses of the section.
    addresses: Range<u64>,
    /// File offsets of the 8-byte addresses to change in headers and tables.
    places: Vec<usize>,
    /// The part of the file with debug information.
    debug: Range<usize>,
}

/// Moves the section to address 0. Does nothing if there is no such section or it lies there.
///
/// # Errors
/// `data` is not an ELF file, or the low halves of the symbols' addresses are not valid numbers.
pub(crate) fn number(data: &mut [u8]) -> Result<(), String> {
    let Some(Found { addresses, mut places, debug }) = find(data)? else { return Ok(()) };
    if addresses.start == 0 {
        return Ok(());
    }
    if addresses.start % NUMBERS != 0 || addresses.end - addresses.start > NUMBERS {
        return Err(format!("the log's format strings at {addresses:x?} have no numbers of 16 bits"));
    }
    let pieces = data.get(debug.clone()).unwrap_or(&[]).windows(10).enumerate();
    let is_place = |(_, piece): &(usize, &[u8])| {
        piece.starts_with(&PLACE) && word(piece, 2).is_some_and(|address| addresses.contains(&address))
    };
    places.extend(pieces.filter(is_place).map(|(at, _)| debug.start + at + 2));
    for place in places {
        if let Some(address) = word(data, place).filter(|address| addresses.contains(address))
            && let Some(bytes) = data.get_mut(place..place + 8)
        {
            bytes.copy_from_slice(&(address - addresses.start).to_le_bytes());
        }
    }
    Ok(())
}

fn find(data: &[u8]) -> Result<Option<Found>, String> {
    let wrong = |error: object::Error| error.to_string();
    let header = FileHeader64::<Endianness>::parse(data).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let sections = header.sections(endian, data).map_err(wrong)?;
    let Some((index, formats)) = sections.section_by_name(endian, SECTION) else { return Ok(None) };
    let start = formats.sh_addr(endian);
    let headers = header.e_shoff(endian) as usize;
    let header_at = headers + index.0 * size_of::<SectionHeader64<Endianness>>();
    // sh_addr is the fourth field of a section's header, st_value the fifth of a symbol (System V ABI, ELF-64).
    let mut places = vec![header_at + 16];
    let symbols = sections.symbols(endian, data, SHT_SYMTAB).map_err(wrong)?;
    let table = sections.section(symbols.section()).map_err(wrong)?.sh_offset(endian) as usize;
    for (at, symbol) in symbols.iter().enumerate() {
        if usize::from(symbol.st_shndx.get(endian).0) == index.0 {
            places.push(table + at * 24 + 8);
        }
    }
    let debug = match sections.section_by_name(endian, b".debug_info") {
        Some((_, debug)) if !debug.sh_flags(endian).contains(SHF_COMPRESSED) => {
            let (offset, size) = debug.file_range(endian).unwrap_or_default();
            offset as usize..(offset + size) as usize
        }
        _ => 0..0,
    };
    Ok(Some(Found { addresses: start..start + formats.sh_size(endian), places, debug }))
}

/// Returns the little-endian 64-bit word at `offset`.
fn word(data: &[u8], offset: usize) -> Option<u64> {
    let bytes = data.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
