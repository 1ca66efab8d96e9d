//! Conversion of an ELF file to the bytes that it loads.

use std::fmt;

/// The reason why a file cannot be converted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ElfError {
    /// The file is not a little-endian 64-bit ELF file for AArch64.
    NotAarch64Elf,
    /// A structure at this offset is beyond the end of the file.
    Truncated(usize),
    /// The image would be too large: end of a segment.
    TooLarge(u64),
}

impl fmt::Display for ElfError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAarch64Elf => write!(formatter, "not a little-endian 64-bit ELF file for AArch64"),
            Self::Truncated(offset) => write!(formatter, "the file ends before offset {offset:#x}"),
            Self::TooLarge(end) => write!(formatter, "a segment ends at {end:#x}"),
        }
    }
}

const LOAD: u32 = 1;
const LARGEST_IMAGE: u64 = 16 << 20;

/// Returns the bytes that `file` loads, from address 0 to the last byte in the file.
pub(crate) fn image(file: &[u8]) -> Result<Vec<u8>, ElfError> {
    if file.get(..6) != Some(b"\x7fELF\x02\x01") || number(file, 18, 2)? != 183 {
        return Err(ElfError::NotAarch64Elf);
    }
    let (table, stride, count) = (number(file, 32, 8)?, number(file, 54, 2)?, number(file, 56, 2)?);
    let mut image = Vec::new();
    for index in 0..count {
        let header = usize::try_from(table.saturating_add(index * stride)).unwrap_or(usize::MAX);
        if number(file, header, 4)? != u64::from(LOAD) {
            continue;
        }
        let (offset, address, size) =
            (number(file, header + 8, 8)?, number(file, header + 16, 8)?, number(file, header + 32, 8)?);
        let end = address.saturating_add(size);
        if end > LARGEST_IMAGE {
            return Err(ElfError::TooLarge(end));
        }
        let bytes = slice(file, offset as usize, size as usize)?;
        let end = end as usize;
        image.resize(image.len().max(end), 0);
        image[address as usize..end].copy_from_slice(bytes);
    }
    Ok(image)
}

fn number(file: &[u8], offset: usize, size: usize) -> Result<u64, ElfError> {
    Ok(slice(file, offset, size)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn slice(file: &[u8], offset: usize, size: usize) -> Result<&[u8], ElfError> {
    let end = offset.checked_add(size).ok_or(ElfError::Truncated(usize::MAX))?;
    file.get(offset..end).ok_or(ElfError::Truncated(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(segment_size: u64) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 183;
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 1;
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[80..88].copy_from_slice(&4u64.to_le_bytes());
        file[96..104].copy_from_slice(&segment_size.to_le_bytes());
        file.extend_from_slice(b"ballast!");
        file
    }

    #[test]
    fn a_segment_lands_at_its_address() {
        assert_eq!(image(&file(8)), Ok(b"\0\0\0\0ballast!".to_vec()));
    }

    #[test]
    fn what_is_broken_is_told() {
        assert_eq!(image(b"MZ"), Err(ElfError::NotAarch64Elf));
        assert_eq!(image(&file(9)), Err(ElfError::Truncated(129)));
        assert_eq!(image(&file(1 << 40)), Err(ElfError::TooLarge((1 << 40) + 4)));
        assert_eq!(image(&file(8)[..70]), Err(ElfError::Truncated(80)));
    }
}
