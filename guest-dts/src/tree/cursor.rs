//! Tokens of a validated blob: the one place where fdt-rs is called, and the crate's one `unsafe` block.
//!
//! Of fdt-rs 0.4.5 the tokenizer is used (`base::parse::DevTreeParseIter`). Its source was read; what is
//! avoided, and why:
//!
//! * Names of nodes over 29 bytes are refused by it, though the specification allows 31 and a unit address
//!   (`designated-movable-block@40000000` has 33): the start of a node is decoded here.
//! * It asserts, in debug builds, that bytes follow the token that it reads: FDT_END, which may be the last
//!   word of a blob, is never shown to it.
//! * `base::iters` swallows the ends of nodes, so that children cannot be told from siblings; the entries of
//!   the reservation block cannot be read through it; `DevTreeProp::node` unwraps unchecked.
//! * `index` links nodes by raw pointers that alias its mutable buffer.

use fdt_rs::base::parse::{DevTreeParseIter, ParsedTok};
use fdt_rs::base::tree::DevTree;
use fdt_rs::prelude::FallibleIterator;

use super::validate::{self, BEGIN_NODE, Layout};

/// Where tokens are read from. Small, since every node has one: what the header says is read from there.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'t> {
    fdt: DevTree<'t>,
    /// Offset of the root's first token.
    start: u32,
    /// Offset of FDT_END.
    end: u32,
}

/// A token that means something, and the offset of the one after it.
pub(super) enum Token<'t> {
    Begin { name: &'t str, next: usize },
    Property { name: &'t str, value: &'t [u8], next: usize },
    End { next: usize },
}

impl<'t> Cursor<'t> {
    /// A cursor over a validated blob, or `None` where fdt-rs does not take it.
    #[allow(unsafe_code)]
    pub(super) fn new(layout: &Layout<'t>) -> Option<Self> {
        // SAFETY: `validate` checked that the slice begins at a multiple of 8 bytes, and cut it to exactly the
        // total size in its header.
        let fdt = unsafe { DevTree::new(layout.blob) }.ok()?;
        let (start, end) = (layout.structure.start.try_into().ok()?, layout.structure.end.try_into().ok()?);
        Some(Self { fdt, start, end })
    }

    pub(super) fn blob(&self) -> &'t [u8] {
        self.fdt.buf()
    }

    /// Offset of the root's first token.
    pub(super) fn start(&self) -> usize {
        self.start as usize
    }

    /// The name at `offset` in the strings block.
    fn string(&self, offset: usize) -> Option<&'t str> {
        let start = (validate::word(self.blob(), 12)? as usize).checked_add(offset)?;
        validate::name(self.blob().get(start..)?)
    }

    /// The token at `at`, the offset of a token of this blob; no-operations are skipped. `None` at the end.
    #[inline(never)]
    pub(super) fn token(&self, mut at: usize) -> Option<Token<'t>> {
        loop {
            if at >= self.end as usize {
                return None;
            }
            if validate::word(self.blob(), at)? == BEGIN_NODE {
                let name = validate::name(self.blob().get(at + 4..)?)?;
                return Some(Token::Begin { name, next: (at + 4 + name.len() + 1).next_multiple_of(4) });
            }
            let mut tokens = DevTreeParseIter { offset: at, fdt: &self.fdt };
            let token = tokens.next().ok()??;
            let next = tokens.offset;
            match token {
                ParsedTok::Prop(property) => {
                    let name = self.string(property.name_offset)?;
                    return Some(Token::Property { name, value: property.prop_buf, next });
                }
                ParsedTok::EndNode => return Some(Token::End { next }),
                ParsedTok::Nop => at = next,
                ParsedTok::BeginNode(_) => return None,
            }
        }
    }

    /// Whether both read the same bytes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        core::ptr::eq(self.blob(), other.blob())
    }
}
