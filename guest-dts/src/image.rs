//! The arm64 Image header, and the placement of kernel, ramdisk and tree in a guest's RAM.
//!
//! The placement follows the arm64 Linux boot protocol (Documentation/arch/arm64/booting.rst). The kernel lies
//! `text_offset` above a multiple of 2 MiB and owns `image_size` bytes from there. The ramdisk lies in the same
//! window of 32 GiB, which begins at a multiple of 1 GiB. The tree is at most 2 MiB long and aligned to 8 bytes.
//!
//! An image without the header is loaded 0x8_0000 above the start of RAM and entered at its first byte. In both cases
//! the tree takes the last 2 MiB of the region, above the image and its BSS, with the ramdisk right below it.

use core::fmt;

use stage2::addr::Ipa;

use crate::finding::Size;
use crate::guest_tree::platform::{RAW_TEXT_OFFSET, TREE_SLOT_SIZE};
use crate::range::IpaRange;

/// Size of the header in bytes.
const HEADER_SIZE: usize = 64;
/// Magic number at offset 56: "ARM\x64".
const MAGIC: u32 = 0x644d_5241;
/// Offset of a kernel above a multiple of 2 MiB if its header states no size (before Linux 3.17).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Alignment of the base that `text_offset` counts from.
const BASE_ALIGNMENT: u64 = 2 << 20;
/// Alignment of the ramdisk: the largest page of a guest.
const RAMDISK_ALIGNMENT: u64 = 64 << 10;
/// Size of the window that must contain kernel and ramdisk. It begins at a multiple of 1 GiB.
const WINDOW_SIZE: u64 = 32 << 30;

/// A kernel with the arm64 header, or a program without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    text_offset: u64,
    /// Bytes of memory needed from the first byte, BSS included.
    size: u64,
    has_header: bool,
    page_size: Option<PageSize>,
}

/// Page size of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// 4 KiB.
    #[default]
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl PageSize {
    /// Returns the size in bytes.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 4 << 10,
            Self::Size16K => 16 << 10,
            Self::Size64K => 64 << 10,
        }
    }

    /// Returns the alignment of base and size of a movable block in bytes: the kernel's pageblock or the largest
    /// block of its allocator, whichever is larger.
    pub(crate) const fn block_alignment(self) -> u64 {
        match self {
            Self::Size4K => 4 << 20,
            Self::Size16K => 32 << 20,
            Self::Size64K => 512 << 20,
        }
    }
}

/// An error that makes an image unusable as a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The image is empty.
    Empty,
    /// The image is a file of another kind; the text after "must" says which.
    Format(&'static str),
    /// The image begins neither with the header nor with an instruction.
    NoInstruction,
    /// The kernel is big-endian.
    BigEndian,
    /// The header's image_size or text_offset is out of range.
    Header,
    /// The file ends before the end of its last section.
    Truncated,
}

/// First bytes of other kinds of files, each with the text after "must" of its error.
const FORMATS: [(&[u8], &str); 13] = [
    (b"\x1f\x8b", "be decompressed: this is gzip (zcat)"),
    (b"\x28\xb5\x2f\xfd", "be decompressed: this is zstd (zstdcat)"),
    (b"\xfd7zXZ\0", "be decompressed: this is xz (xzcat)"),
    (b"\x04\x22\x4d\x18", "be decompressed: this is lz4 (lz4cat)"),
    (b"\x02\x21\x4c\x18", "be decompressed: this is lz4 (lz4cat)"),
    (b"BZh", "be decompressed: this is bzip2 (bzcat)"),
    (b"MZ\0\0zimg", "be decompressed: this is an EFI zboot image with a compressed kernel inside"),
    (b"\x7fELF", "be a flat image: this is ELF (objcopy -O binary)"),
    (b"\x27\x05\x19\x56", "be a flat image: this is a U-Boot image with its own header"),
    (b"\xd0\x0d\xfe\xed", "be a kernel: this is a device tree"),
    (b"070701", "be a kernel: this is a cpio archive, a ramdisk"),
    (b"MZ", "be an arm64 kernel: this is an EFI program without the arm64 Image header"),
    (b"!<arch>\n", "be a kernel: this is a package or an archive"),
];

impl Image {
    /// Reads the header of `bytes`. An image without header is taken as a program to enter at its first byte.
    ///
    /// # Errors
    /// The bytes are another kind of file, or the header is invalid.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        match bytes.get(..HEADER_SIZE) {
            Some(header) if little(header, 56, 4) == u64::from(MAGIC) => Self::parse_header(bytes, header),
            _ => match FORMATS.iter().find(|(start, _)| bytes.starts_with(start)) {
                Some((_, what)) => Err(ImageError::Format(what)),
                None if !begins_with_instruction(bytes) => Err(ImageError::NoInstruction),
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
        // All kernels with an offset have one below 2 MiB, and sizes are far below 1 TiB.
        if text_offset >= BASE_ALIGNMENT || size >= 1 << 40 {
            return Err(ImageError::Header);
        }
        if length < sections_end(bytes) {
            return Err(ImageError::Truncated);
        }
        Ok(Self { text_offset, size, has_header: true, page_size })
    }

    /// Returns the kernel's page size, if the header states it.
    pub(crate) fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Returns the bytes of memory needed from the first byte, BSS included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the load address in RAM that begins at `base`.
    fn load_address(&self, base: u64) -> Option<u64> {
        let base = if self.has_header { base.checked_next_multiple_of(BASE_ALIGNMENT)? } else { base };
        base.checked_add(self.text_offset)
    }
}

/// Returns the least length of the file of a kernel that is also an EFI program, from its section table (PE format, 3
/// and 4); 0 for other files. The arm64 header states how much memory the kernel needs, not how long its file is.
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
        return header; // The file is cut before its PE header.
    }
    let (count, optional_size) = (number(header + 6, 2), number(header + 20, 2));
    let table = header + 24 + optional_size;
    // Linux has two sections.
    let sections = (0..count.min(16)).map(|index| table + index * 40);
    sections.map(|section| number(section + 16, 4) + number(section + 20, 4)).max().unwrap_or(0)
}

/// Tests whether `bytes` may begin with an instruction: not with a word of zeroes or ones, which are undefined (Arm
/// ARM, "A64 instruction set encoding"), and not with text.
fn begins_with_instruction(bytes: &[u8]) -> bool {
    let Some(first) = bytes.get(..4) else { return false };
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    let start = bytes.get(..bytes.len().min(16)).unwrap_or_default();
    let text = start.split(|&byte| byte == 0).next().unwrap_or_default();
    first != [0; 4] && first != [0xff; 4] && !(text.len() >= 7 && text.iter().all(is_text))
}

/// Reads the little-endian number of `length` bytes at `offset`.
fn little(bytes: &[u8], offset: usize, length: usize) -> u64 {
    let field = bytes.get(offset..offset.saturating_add(length)).unwrap_or_default();
    field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl ImageError {
    /// Returns the rule that the image breaks: the text after "must".
    pub fn must(&self) -> &'static str {
        match self {
            Self::Empty => "not be empty",
            Self::Format(what) => what,
            Self::NoInstruction => {
                "be a kernel: this begins with neither the arm64 Image header nor an instruction"
            }
            Self::BigEndian => "be a little-endian kernel: flag 0 of its header says big-endian",
            Self::Header => "have a text_offset below 2 MiB and an image_size below 1 TiB in its header",
            Self::Truncated => "be complete: a section extends past the end of the file",
        }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel: must {}", self.must())
    }
}

impl core::error::Error for ImageError {}

/// The placement of a guest's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// The kernel with its BSS. Its first byte is the entry point.
    pub kernel: IpaRange,
    /// The ramdisk.
    pub ramdisk: Option<IpaRange>,
    /// Room for the tree. The guest starts with the first address in x0.
    pub tree: IpaRange,
}

/// An error: no region of RAM has room for kernel, ramdisk and tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that the three need, alignment included.
    pub needed: u64,
    /// Bytes of the largest region.
    pub largest: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel, ramdisk and device tree need {} in one region of RAM", Size(self.needed))?;
        write!(f, " (movable blocks do not count); the largest has {}", Size(self.largest))
    }
}

impl core::error::Error for NoRoom {}

impl BootPlan {
    /// Places the three in the first of `regions` that has room. `regions` are the guest's RAM by ascending address, without
    /// designated movable blocks: kernels that support these do not check what they contain.
    ///
    /// # Errors
    /// No region has room.
    pub fn new(
        image: &Image,
        ramdisk_size: Option<u64>,
        regions: impl Iterator<Item = IpaRange> + Clone,
    ) -> Result<Self, NoRoom> {
        let place = |region| Self::in_region(image, ramdisk_size, region);
        regions.clone().find_map(place).ok_or_else(|| {
            let ramdisk = ramdisk_size.unwrap_or(0).saturating_add(RAMDISK_ALIGNMENT - 1);
            let needed = image.text_offset.saturating_add(image.size).saturating_add(ramdisk);
            let needed = needed.saturating_add(TREE_SLOT_SIZE);
            NoRoom {
                needed: needed.next_multiple_of(4096),
                largest: regions.map(|region| region.size()).max().unwrap_or(0),
            }
        })
    }

    fn in_region(image: &Image, ramdisk_size: Option<u64>, region: IpaRange) -> Option<Self> {
        let start = image.load_address(region.base().get())?;
        let window = (start & !((1 << 30) - 1)).checked_add(WINDOW_SIZE)?;
        let end = region.end().min(window) & !(BASE_ALIGNMENT - 1);
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

    /// Returns the entry point.
    pub fn entry(&self) -> Ipa {
        self.kernel.base()
    }
}

#[cfg(test)]
mod tests;
