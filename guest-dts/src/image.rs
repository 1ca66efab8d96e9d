//! The arm64 Image header, and where kernel, ramdisk and tree go in a guest's RAM.
//!
//! By the arm64 Linux boot protocol (Documentation/arch/arm64/booting.rst): the kernel lies `text_offset` above
//! a multiple of 2 MiB, `image_size` bytes from there are its own; the ramdisk lies within the same 32 GiB,
//! which begin at a multiple of 1 GiB; the tree is at most 2 MiB long and lies at a multiple of 8 bytes.
//!
//! An image without that header is loaded 0x8_0000 above the start of RAM and entered at its first byte. In
//! both cases the tree lies above the image and its BSS: in the last 2 MiB of the bank, the ramdisk under it.

use core::fmt;

use stage2::addr::Ipa;

use crate::config::{Bank, BankKind, Layout, PageSize};
use crate::finding::Size;
use crate::guest_tree::platform::{RAW_TEXT_OFFSET, TREE_SLOT_SIZE};
use crate::range::IpaRange;

/// Bytes of the header.
const HEADER_SIZE: usize = 64;
/// "ARM\x64", at offset 56.
const MAGIC: u32 = 0x644d_5241;
/// Where a kernel lies above a multiple of 2 MiB if its header does not tell how large it is (before 3.17).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Alignment of the base that `text_offset` counts from.
const BASE_ALIGNMENT: u64 = 2 << 20;
/// Alignment of the ramdisk: the largest page of a guest.
const RAMDISK_ALIGNMENT: u64 = 64 << 10;
/// Kernel and ramdisk lie within so many bytes from a multiple of 1 GiB.
const WINDOW_SIZE: u64 = 32 << 30;

/// A kernel, or a program without header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    text_offset: u64,
    /// What it needs from its first byte on, BSS included.
    size: u64,
    has_header: bool,
    page_size: Option<PageSize>,
}

/// Why bytes are no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// There are none.
    Empty,
    /// They are something else: what.
    Format(&'static str),
    /// They do not begin with an instruction.
    NoInstruction,
    /// A big-endian kernel.
    BigEndian,
    /// The header's size or offset makes no sense.
    Header,
    /// The file ends before the last of its sections.
    Truncated,
}

/// Beginnings of files that are no kernels that could be entered, and what is to be done.
const FORMATS: [(&[u8], &str); 13] = [
    (b"\x1f\x8b", "be unpacked: this is gzip (zcat)"),
    (b"\x28\xb5\x2f\xfd", "be unpacked: this is zstd (zstdcat)"),
    (b"\xfd7zXZ\0", "be unpacked: this is xz (xzcat)"),
    (b"\x04\x22\x4d\x18", "be unpacked: this is lz4 (lz4cat)"),
    (b"\x02\x21\x4c\x18", "be unpacked: this is lz4 (lz4cat)"),
    (b"BZh", "be unpacked: this is bzip2 (bzcat)"),
    (b"MZ\0\0zimg", "be unpacked: this is an EFI zboot image, with the kernel compressed inside"),
    (b"\x7fELF", "be a flat image: this is ELF (objcopy -O binary)"),
    (b"\x27\x05\x19\x56", "be a flat image: this is a U-Boot image with its own header"),
    (b"\xd0\x0d\xfe\xed", "be a kernel: this is a device tree"),
    (b"070701", "be a kernel: this is a cpio archive, a ramdisk"),
    (b"MZ", "be an arm64 kernel: this is an EFI program without the arm64 Image header"),
    (b"!<arch>\n", "be a kernel: this is a package or an archive"),
];

impl Image {
    /// Reads the header of `bytes`; without one, they are a program to be entered at its first byte.
    ///
    /// # Errors
    /// Where they are known to be something else, or the header makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        match bytes.get(..HEADER_SIZE) {
            Some(header) if little(header, 56, 4) == u64::from(MAGIC) => Self::parse_header(bytes, header),
            _ => match FORMATS.iter().find(|(start, _)| bytes.starts_with(start)) {
                Some((_, what)) => Err(ImageError::Format(what)),
                None if !could_be_entered(bytes) => Err(ImageError::NoInstruction),
                None => Ok(Self {
                    text_offset: RAW_TEXT_OFFSET,
                    size: bytes.len() as u64,
                    has_header: false,
                    page_size: None,
                }),
            },
        }
    }

    fn parse_header(bytes: &[u8], header: &[u8]) -> Result<Self, ImageError> {
        let (text_offset, image_size, flags) =
            (little(header, 8, 8), little(header, 16, 8), little(header, 24, 8));
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        let page_size = match flags >> 1 & 3 {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size16K),
            3 => Some(PageSize::Size64K),
            _ => None,
        };
        let length = bytes.len() as u64;
        let (text_offset, size) = match image_size {
            0 => (OLD_TEXT_OFFSET, length),
            size => (text_offset, size.max(length)),
        };
        // The offset is below 2 MiB in all kernels that have one; sizes are far below a TiB.
        if text_offset >= BASE_ALIGNMENT || size >= 1 << 40 {
            return Err(ImageError::Header);
        }
        if length < sections_end(bytes) {
            return Err(ImageError::Truncated);
        }
        Ok(Self { text_offset, size, has_header: true, page_size })
    }

    /// Whether it has the arm64 header.
    pub fn has_header(&self) -> bool {
        self.has_header
    }

    /// The size of the kernel's pages, where the header says it.
    pub fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Bytes that it needs from its first byte on.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the image lies in RAM that begins at `base`.
    fn load_address(&self, base: u64) -> Option<u64> {
        let base = if self.has_header { base.checked_next_multiple_of(BASE_ALIGNMENT)? } else { base };
        base.checked_add(self.text_offset)
    }
}

/// Where the file of a kernel that is an EFI program as well ends at least, by its section table (PE format, 3
/// and 4); 0 where it is none. The arm64 header says how much memory the kernel needs, not how long its file is.
fn sections_end(bytes: &[u8]) -> u64 {
    if !bytes.starts_with(b"MZ") {
        return 0;
    }
    let number = |offset: u64, length| match usize::try_from(offset) {
        Ok(offset) if offset < bytes.len() => little(bytes, offset, length),
        _ => 0,
    };
    let header = number(0x3c, 4);
    if number(header, 4) != u64::from(u32::from_le_bytes(*b"PE\0\0")) {
        return header; // Cut before it.
    }
    let (count, optional_size) = (number(header + 6, 2), number(header + 20, 2));
    let table = header + 24 + optional_size;
    // Linux has two.
    let sections = (0..count.min(16)).map(|index| table + index * 40);
    sections.map(|section| number(section + 16, 4) + number(section + 20, 4)).max().unwrap_or(0)
}

/// Whether `bytes` could begin with an instruction: neither with a word of zeroes or ones, which are undefined
/// (Arm ARM, C4.1), nor with text.
fn could_be_entered(bytes: &[u8]) -> bool {
    let Some(first) = bytes.get(..4) else { return false };
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    let start = bytes.get(..bytes.len().min(16)).unwrap_or_default();
    let text = start.split(|&byte| byte == 0).next().unwrap_or_default();
    first != [0; 4] && first != [0xff; 4] && !(text.len() >= 7 && text.iter().all(is_text))
}

/// The little-endian number of `length` bytes at `offset`.
fn little(bytes: &[u8], offset: usize, length: usize) -> u64 {
    let field = bytes.get(offset..offset.saturating_add(length)).unwrap_or_default();
    field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl ImageError {
    /// What the image must do or be instead, after the word "must".
    pub fn must(&self) -> &'static str {
        match self {
            Self::Empty => "not be empty",
            Self::Format(what) => what,
            Self::NoInstruction => {
                "be a kernel: this begins neither with the arm64 Image header nor with an instruction"
            }
            Self::BigEndian => "be a little-endian kernel (flag 0 of its header)",
            Self::Header => "have a text_offset below 2 MiB and an image_size below 1 TiB in its header",
            Self::Truncated => "not be cut short: a section of it ends after the end of the file",
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel: must {}", self.must())
    }
}

impl core::error::Error for ImageError {}

/// Where a guest's images lie, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// The kernel with its BSS. Its first byte is the entry.
    pub kernel: IpaRange,
    /// The ramdisk.
    pub ramdisk: Option<IpaRange>,
    /// Room for the tree: its first byte is what x0 holds.
    pub tree: IpaRange,
}

/// There is no bank with room for kernel, ramdisk and tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that the three need, with what alignment costs.
    pub needed: u64,
    /// Bytes of the largest bank that may hold them.
    pub largest: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel, ramdisk and tree need {} in one region of RAM", Size(self.needed))?;
        write!(f, " that is no movable block; the largest has {}", Size(self.largest))
    }
}

impl core::error::Error for NoRoom {}

impl BootPlan {
    /// Finds the lowest bank of `layout` that takes the three. Designated movable blocks are left free: a kernel
    /// that knows them does not check what lies in them.
    ///
    /// # Errors
    /// Where no bank does.
    pub fn new(image: &Image, ramdisk_size: Option<u64>, layout: &Layout) -> Result<Self, NoRoom> {
        let is_plain = |bank: &&Bank| matches!(bank.kind, BankKind::Region(_));
        let mut banks = layout.banks.iter().filter(is_plain);
        banks.find_map(|bank| Self::in_bank(image, ramdisk_size, bank.range)).ok_or_else(|| {
            let sizes = layout.banks.iter().filter(is_plain).map(|bank| bank.range.size());
            let ramdisk = ramdisk_size.unwrap_or(0).saturating_add(RAMDISK_ALIGNMENT - 1);
            let needed = image.text_offset.saturating_add(image.size).saturating_add(ramdisk);
            let needed = needed.saturating_add(TREE_SLOT_SIZE);
            NoRoom { needed: needed.next_multiple_of(4096), largest: sizes.max().unwrap_or(0) }
        })
    }

    fn in_bank(image: &Image, ramdisk_size: Option<u64>, bank: IpaRange) -> Option<Self> {
        let start = image.load_address(bank.base().get())?;
        let window = (start & !((1 << 30) - 1)).checked_add(WINDOW_SIZE)?;
        let end = bank.end().min(window) & !(BASE_ALIGNMENT - 1);
        let tree = end.checked_sub(TREE_SLOT_SIZE)?;
        let low = match ramdisk_size {
            Some(size) => tree.checked_sub(size)? & !(RAMDISK_ALIGNMENT - 1),
            None => tree,
        };
        let kernel = IpaRange::from_numbers(start, image.size)?;
        if kernel.end() > low {
            return None;
        }
        let ramdisk = match ramdisk_size {
            Some(size) => Some(IpaRange::from_numbers(low, size)?),
            None => None,
        };
        Some(Self { kernel, ramdisk, tree: IpaRange::from_numbers(tree, TREE_SLOT_SIZE)? })
    }

    /// The address at which the guest begins.
    pub fn entry(&self) -> Ipa {
        self.kernel.base()
    }
}

#[cfg(test)]
mod tests;
