//! Tokens of a validated blob. This is the only module that calls fdt-rs and the only one with `unsafe` blocks.
//!
//! The module uses only the tokenizer of fdt-rs 0.4.5 (`base::parse::next_devtree_token`). Reading its source showed
//! what to avoid:
//!
//! * The tokenizer refuses names of nodes of more than 29 bytes, although the specification allows 31 and a unit
//!   address (`designated-movable-block@40000000` has 33). This module decodes the start of a node itself.
//! * In debug builds, the tokenizer asserts that bytes follow the token that it reads. It must not see FDT_END, which
//!   may be the last word of a blob.
//! * `base::iters` skips the ends of nodes, so that children look like siblings. It gives no access to the entries of
//!   the reservation block. `DevTreeProp::node` unwraps unchecked.
//! * `index` links nodes by raw pointers that alias its mutable buffer.

use core::marker::PhantomData;
use core::ptr::NonNull;

use fdt_rs::base::parse::{ParsedTok, next_devtree_token};

use super::validate::{self, BEGIN_NODE, END};

/// A pointer to a validated blob, whose header has its size. It is one word long, since every node and property
/// contains one and is passed in registers.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'t> {
    header: NonNull<u32>,
    blob: PhantomData<&'t [u8]>,
}

// SAFETY: a cursor is a shared slice of bytes, which is `Send`.
#[allow(unsafe_code)]
unsafe impl Send for Cursor<'_> {}
// SAFETY: a cursor is a shared slice of bytes, which is `Sync`.
#[allow(unsafe_code)]
unsafe impl Sync for Cursor<'_> {}

/// A token other than a no-operation, with the offset of the next token.
pub(super) enum Token<'t> {
    Begin { name: &'t str, next: u32 },
    Property { name: &'t str, value: &'t [u8], next: u32 },
    End { next: u32 },
}

impl<'t> Cursor<'t> {
    /// Creates a cursor over the blob that `validate` returned.
    pub(super) fn new(validated: &'t [u8]) -> Self {
        Self { header: NonNull::from(validated).cast(), blob: PhantomData }
    }

    /// Returns the blob.
    #[allow(unsafe_code)]
    pub(super) fn blob(self) -> &'t [u8] {
        // SAFETY: `validate` checked that the slice begins at a multiple of 8 bytes, holds a header, and has as many
        // bytes as the second word of its header states; it is borrowed for 't.
        unsafe {
            let size = u32::from_be(self.header.add(1).read());
            core::slice::from_raw_parts(self.header.as_ptr().cast(), size as usize)
        }
    }

    /// Returns word `index` of the header, which was validated.
    fn field(self, index: usize) -> u32 {
        validate::word(self.blob(), index * 4).unwrap_or(u32::MAX)
    }

    /// Returns the offset of the root's first token.
    pub(super) fn start(self) -> u32 {
        self.field(2)
    }

    /// Returns the bytes from the reservation block to the end of the blob.
    pub(super) fn reservations(self) -> &'t [u8] {
        self.blob().get(self.field(4) as usize..).unwrap_or_default()
    }

    /// Returns the name at `offset` in the strings block.
    fn string(self, offset: usize) -> Option<&'t str> {
        let start = (self.field(3) as usize).checked_add(offset)?;
        validate::name(self.blob().get(start..)?)
    }

    /// Returns the first token other than a no-operation at or after `at`, the offset of a token; `None` at the end.
    #[inline(never)]
    #[allow(unsafe_code)]
    pub(super) fn token(self, at: u32) -> Option<Token<'t>> {
        let blob = self.blob();
        let mut at = at as usize;
        loop {
            match validate::word(blob, at)? {
                BEGIN_NODE => {
                    let name = validate::name(blob.get(at + 4..)?)?;
                    let next = (at + 4 + name.len() + 1).next_multiple_of(4) as u32;
                    return Some(Token::Begin { name, next });
                }
                END => return None,
                _ => {}
            }
            // SAFETY: the blob begins at a multiple of 8 bytes, and a token that is not FDT_END begins at `at`, a
            // multiple of 4: `validate` walked over all of them.
            let token = unsafe { next_devtree_token(blob, &mut at) }.ok()??;
            let next = at as u32;
            match token {
                ParsedTok::Prop(property) => {
                    let name = self.string(property.name_offset)?;
                    return Some(Token::Property { name, value: property.prop_buf, next });
                }
                ParsedTok::EndNode => return Some(Token::End { next }),
                ParsedTok::Nop => {}
                ParsedTok::BeginNode(_) => return None,
            }
        }
    }

    /// Tests whether both cursors point to the same blob.
    pub(super) fn is_same(self, other: Self) -> bool {
        self.header == other.header
    }
}
