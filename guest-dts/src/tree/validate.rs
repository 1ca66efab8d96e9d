//! Validation of an untrusted blob. It establishes the invariants that `cursor` relies on.

use core::fmt;
use core::ops::Range;

use super::{DEPTH_LIMIT, NAME_LIMIT};

/// Magic number: the first word of every blob.
const MAGIC: u32 = 0xd00d_feed;
/// Size of a version 17 header in bytes.
const HEADER_SIZE: usize = 40;
/// Supported version of the format: the one that the specification describes.
const VERSION: u32 = 17;

pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROP: u32 = 3;
pub(super) const NOP: u32 = 4;
pub(super) const END: u32 = 9;

/// A defect of a blob. Offsets count bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// The blob ends before its header, or before the total size that its header states.
    Truncated {
        /// Length of the blob in bytes.
        length: usize,
        /// Required length in bytes.
        needed: usize,
    },
    /// The first word is this instead of the magic number.
    Magic(u32),
    /// The blob is not aligned to 8 bytes. It must be moved before it is read.
    Unaligned,
    /// The format's version is not supported: the version, and the oldest version that it is compatible with.
    Version(u32, u32),
    /// A block (structure, strings, reservations) is misaligned or extends past the end of the blob.
    Block {
        /// Name of the block.
        name: &'static str,
        /// Offset of the block.
        offset: u32,
        /// Size of the block in bytes.
        size: u32,
    },
    /// Two blocks overlap.
    BlocksOverlap(&'static str, &'static str),
    /// The memory reservation block has no terminating entry.
    ReservationsUnterminated,
    /// A memory reservation extends past the end of the address space: its base and size.
    Reservation(u64, u64),
    /// The token at this offset extends past the structure block.
    TokenCut(usize),
    /// The word at this offset is not a token.
    Token(usize, u32),
    /// The token at this offset is out of order.
    TokenOrder(usize, &'static str),
    /// The node at this offset is nested deeper than [`DEPTH_LIMIT`].
    Depth(usize),
    /// The name of the node or property at this offset is empty, not terminated within [`NAME_LIMIT`] bytes, or not
    /// printable ASCII.
    Name(usize),
    /// The name of the property at this offset lies outside the strings block, at this offset in it.
    NameOffset(usize, u32),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("device tree: ")?;
        match *self {
            Self::Truncated { length, needed } => write!(f, "truncated: {length} of {needed} bytes"),
            Self::Magic(word) => {
                write!(f, "begins with {word:#010x} instead of {MAGIC:#010x}: not a device tree")
            }
            Self::Unaligned => write!(f, "not aligned to 8 bytes"),
            Self::Version(version, compatible) => {
                write!(f, "format version {version} (compatible with {compatible}); must be {VERSION}")
            }
            Self::Block { name, offset, size } => {
                write!(f, "{name} block at {offset:#x} of {size:#x} bytes: misaligned or out of bounds")
            }
            Self::BlocksOverlap(one, other) => write!(f, "{one} and {other} blocks overlap"),
            Self::ReservationsUnterminated => write!(f, "reservation block has no terminating entry"),
            Self::Reservation(base, size) => {
                write!(
                    f,
                    "reservation of {size:#x} bytes at {base:#x} extends past the end of the address space"
                )
            }
            Self::TokenCut(at) => write!(f, "token at {at:#x} extends past the end of the structure block"),
            Self::Token(at, word) => write!(f, "{word:#x} at {at:#x} is not a token"),
            Self::TokenOrder(at, what) => write!(f, "at {at:#x}: {what}"),
            Self::Depth(at) => write!(f, "node at {at:#x} is nested deeper than {DEPTH_LIMIT} levels"),
            Self::Name(at) => {
                write!(
                    f,
                    "name at {at:#x}: must be 1 to {NAME_LIMIT} printable characters and a NUL; empty for the root only"
                )
            }
            Self::NameOffset(at, offset) => {
                write!(
                    f,
                    "name of the property at {at:#x}: offset {offset:#x} lies outside the strings block"
                )
            }
        }
    }
}

impl core::error::Error for TreeError {}

/// Returns the big-endian word at `offset`.
pub(super) fn word(blob: &[u8], offset: usize) -> Option<u32> {
    let bytes = blob.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Returns the name at the start of `bytes`, without its NUL.
pub(super) fn name(bytes: &[u8]) -> Option<&str> {
    let window = bytes.get(..bytes.len().min(NAME_LIMIT + 1))?;
    let length = window.iter().position(|&byte| byte == 0)?;
    let name = window.get(..length)?;
    if !name.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    core::str::from_utf8(name).ok()
}

/// Returns the total size in `header` (see [`super::Tree::total_size`]).
pub(super) fn total_size(header: &[u8]) -> Result<u32, TreeError> {
    let truncated = TreeError::Truncated { length: header.len(), needed: HEADER_SIZE };
    if header.len() < HEADER_SIZE {
        return Err(truncated);
    }
    match word(header, 0).ok_or(truncated)? {
        MAGIC => word(header, 4).ok_or(truncated),
        other => Err(TreeError::Magic(other)),
    }
}

/// Validates `blob` and returns it cut to the total size in its header. Afterwards, all offsets in the header are in
/// bounds, all names are terminated, all tokens from the first to FDT_END are complete and in order, and the
/// reservation block has a terminating entry.
pub(super) fn validate(blob: &[u8]) -> Result<&[u8], TreeError> {
    let total = total_size(blob)? as usize;
    let truncated = TreeError::Truncated { length: blob.len(), needed: total };
    if total < HEADER_SIZE {
        return Err(TreeError::Truncated { length: total, needed: HEADER_SIZE });
    }
    let blob = blob.get(..total).ok_or(truncated)?;
    if !blob.as_ptr().addr().is_multiple_of(8) {
        return Err(TreeError::Unaligned);
    }
    let field = |index: usize| word(blob, index * 4).ok_or(truncated);
    let (version, compatible) = (field(5)?, field(6)?);
    if version < VERSION || compatible > VERSION {
        return Err(TreeError::Version(version, compatible));
    }
    let structure = block(blob, "structure", 4, field(2)?, field(9)?)?;
    let strings = block(blob, "strings", 1, field(3)?, field(8)?)?;
    let reservations = reservations(blob, field(4)?)?;
    for (one, other) in [
        (("structure", &structure), ("strings", &strings)),
        (("structure", &structure), ("reservation", &reservations)),
        (("strings", &strings), ("reservation", &reservations)),
    ] {
        if one.1.start.max(other.1.start) < one.1.end.min(other.1.end) {
            return Err(TreeError::BlocksOverlap(one.0, other.0));
        }
    }
    let strings = blob.get(strings).unwrap_or_default();
    walk(blob, structure, strings)?;
    Ok(blob)
}

fn block(
    blob: &[u8],
    name: &'static str,
    align: usize,
    offset: u32,
    size: u32,
) -> Result<Range<usize>, TreeError> {
    let start = offset as usize;
    match start.checked_add(size as usize) {
        Some(end) if end <= blob.len() && start >= HEADER_SIZE && start.is_multiple_of(align) => {
            Ok(start..end)
        }
        _ => Err(TreeError::Block { name, offset, size }),
    }
}

/// Returns the range of the reservation block without its terminating entry.
fn reservations(blob: &[u8], offset: u32) -> Result<Range<usize>, TreeError> {
    let start = block(blob, "reservation", 8, offset, 16)?.start;
    let entries = blob.get(start..).unwrap_or_default().chunks_exact(16);
    let mut end = start;
    for entry in entries {
        let (base, size) = super::reservation::decode(entry);
        if base == 0 && size == 0 {
            return Ok(start..end);
        }
        if base.checked_add(size).is_none() {
            return Err(TreeError::Reservation(base, size));
        }
        end += 16;
    }
    Err(TreeError::ReservationsUnterminated)
}

/// Walks the tokens up to FDT_END.
fn walk(blob: &[u8], range: Range<usize>, strings: &[u8]) -> Result<(), TreeError> {
    let structure = blob.get(..range.end).unwrap_or_default();
    let mut at = range.start;
    let mut depth = 0usize;
    let mut has_root = false;
    // Properties may follow the start of a node or another property, not a child (specification, 5.4.2).
    let mut takes_properties = false;
    loop {
        let token = word(structure, at).ok_or(TreeError::TokenCut(at))?;
        let body = at + 4;
        let next = match token {
            BEGIN_NODE => {
                if depth == 0 && has_root {
                    return Err(TreeError::TokenOrder(at, "a second root"));
                }
                if depth == DEPTH_LIMIT {
                    return Err(TreeError::Depth(at));
                }
                let name = name(structure.get(body..).unwrap_or_default()).ok_or(TreeError::Name(body))?;
                // The root has no name. A `/` in a name would make paths ambiguous.
                if name.is_empty() != (depth == 0) || name.contains('/') {
                    return Err(TreeError::Name(body));
                }
                has_root = true;
                takes_properties = true;
                depth += 1;
                body + name.len() + 1
            }
            END_NODE if depth > 0 => {
                takes_properties = false;
                depth -= 1;
                body
            }
            END_NODE => return Err(TreeError::TokenOrder(at, "the end of a node that has not begun")),
            PROP if takes_properties => property(structure, at, strings)?,
            PROP => return Err(TreeError::TokenOrder(at, "a property outside a node or after a child")),
            NOP => body,
            END if depth == 0 && has_root => return Ok(()),
            END => return Err(TreeError::TokenOrder(at, "the end inside a node, or without a root")),
            other => return Err(TreeError::Token(at, other)),
        };
        // Does not overflow: `next` is at most the 32-bit end of the structure block, plus a NUL.
        at = next.next_multiple_of(4);
    }
}

/// Checks the property token at `at` and returns the offset after its value.
fn property(structure: &[u8], at: usize, strings: &[u8]) -> Result<usize, TreeError> {
    let length = word(structure, at + 4).ok_or(TreeError::TokenCut(at))? as usize;
    let name_offset = word(structure, at + 8).ok_or(TreeError::TokenCut(at))?;
    let end = (at + 12).checked_add(length).filter(|&end| end <= structure.len());
    let end = end.ok_or(TreeError::TokenCut(at))?;
    let rest = strings.get(name_offset as usize..).ok_or(TreeError::NameOffset(at, name_offset))?;
    match name(rest) {
        Some(name) if !name.is_empty() => Ok(end),
        _ => Err(TreeError::Name(at)),
    }
}
