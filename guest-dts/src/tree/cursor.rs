//! Tokens of a validated blob: the one place where fdt-rs is called, and where the crate's `unsafe` blocks are.
//!
//! Of fdt-rs 0.4.5 the tokenizer is used (`base::parse::next_devtree_token`). Its source was read; what is
//! avoided, and why:
//!
//! * Names of nodes over 29 bytes are refused by it, though the specification allows 31 and a unit address
//!   (`designated-movable-block@40000000` has 33): the start of a node is decoded here.
//! * It asserts, in debug builds, that bytes follow the token that it reads: FDT_END, which may be the last
//!   word of a blob, is never shown to it.
//! * `base::iters` swallows the ends of nodes, so that children cannot be told from siblings; the entries of
//!   the reservation block cannot be read through it; `DevTreeProp::node` unwraps unchecked.
//! * `index` links nodes by raw pointers that alias its mutable buffer.

use core::marker::PhantomData;
use core::ptr::NonNull;

use fdt_rs::base::parse::{ParsedTok, next_devtree_token};

use super::validate::{self, BEGIN_NODE, END};

/// Where tokens are read from: the first byte of a validated blob, whose header says the rest. One word, since
/// every node and every property has one, and all of them travel in registers.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'t> {
    header: NonNull<u32>,
    blob: PhantomData<&'t [u8]>,
}

// SAFETY: it stands for a shared slice of bytes, which can be sent.
#[allow(unsafe_code)]
unsafe impl Send for Cursor<'_> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Cursor<'_> {}

/// A token that means something, and the offset of the one after it.
pub(super) enum Token<'t> {
    Begin { name: &'t str, next: u32 },
    Property { name: &'t str, value: &'t [u8], next: u32 },
    End { next: u32 },
}

impl<'t> Cursor<'t> {
    /// A cursor over the blob that `validate` returned.
    pub(super) fn new(validated: &'t [u8]) -> Self {
        Self { header: NonNull::from(validated).cast(), blob: PhantomData }
    }

    /// The blob.
    #[allow(unsafe_code)]
    pub(super) fn blob(self) -> &'t [u8] {
        // SAFETY: `validate` checked that the slice begins at a multiple of 8 bytes, holds a header, and has as many
        // bytes as the second word of its header says; it is borrowed for 't.
        unsafe {
            let size = u32::from_be(self.header.add(1).read());
            core::slice::from_raw_parts(self.header.as_ptr().cast(), size as usize)
        }
    }

    /// The word of the header with number `index`, all of which were validated.
    fn field(self, index: usize) -> u32 {
        validate::word(self.blob(), index * 4).unwrap_or(u32::MAX)
    }

    /// Offset of the root's first token.
    pub(super) fn start(self) -> u32 {
        self.field(2)
    }

    /// The bytes from the reservation block on.
    pub(super) fn reservations(self) -> &'t [u8] {
        self.blob().get(self.field(4) as usize..).unwrap_or_default()
    }

    /// The name at `offset` in the strings block.
    fn string(self, offset: usize) -> Option<&'t str> {
        let start = (self.field(3) as usize).checked_add(offset)?;
        validate::name(self.blob().get(start..)?)
    }

    /// The token at `at`, the offset of a token of this blob; no-operations are skipped. `None` at the end.
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

    /// Whether both read the same bytes.
    pub(super) fn is_same(self, other: Self) -> bool {
        self.header == other.header
    }
}
