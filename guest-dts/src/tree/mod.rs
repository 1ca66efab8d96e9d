//! A reader for flattened device trees that copies nothing.
//!
//! A *blob* is the bytes of a flattened device tree (Devicetree Specification, chapter 5). Its author is not trusted:
//! [`Tree::new`] walks the whole blob once and checks every offset, length, name and the order of tokens, before
//! anything else reads it. Values are read in place, so that a blob with kernels of 100 MiB costs no more time than
//! its tokens.
//!
//! A *node* is identified by the offset of its first token. A *property* is a name and bytes of the blob. A *cell* is
//! a 32-bit big-endian number; the parent of a node states how many cells make up an address and a size
//! (`#address-cells`, `#size-cells`).

mod aligned;
mod bus;
mod cursor;
mod node;
mod print;
mod property;
mod reservation;
mod validate;

pub use aligned::AlignedBlob;
pub use bus::{Cells, Reg, RegIter, Translation};
pub use node::{Children, Node, NodeId, NodePath, Nodes};
#[cfg(test)]
pub(crate) use print::NodeSource;
pub(crate) use print::SourceValue;
pub use print::TreeSource;
pub use property::{Properties, Property, Strings};
pub use reservation::{Reservation, Reservations};
pub use validate::TreeError;

use cursor::Cursor;

/// Most levels of nodes in a tree, the root included (as in Linux and in vm-fdt).
pub(crate) const DEPTH_LIMIT: usize = 64;
/// Most bytes in the name of a node or property. The specification allows 31 and a unit address.
pub(crate) const NAME_LIMIT: usize = 127;

/// A device tree whose structure was validated. It is one word long and cheap to copy.
#[derive(Clone, Copy)]
pub struct Tree<'t> {
    cursor: Cursor<'t>,
}

impl<'t> Tree<'t> {
    /// Validates all of `blob`, except bytes after the total size in its header, which are ignored.
    ///
    /// The time grows with the number of tokens, not with the length of values.
    ///
    /// # Errors
    /// The first defect, with its offset.
    pub fn new(blob: &'t [u8]) -> Result<Self, TreeError> {
        Ok(Self { cursor: Cursor::new(validate::validate(blob)?) })
    }

    /// Returns the total size in `header`, in bytes, for callers that have yet to map the rest of the blob.
    ///
    /// # Errors
    /// [`TreeError::Truncated`] if `header` is shorter than a header, [`TreeError::Magic`] if it does not begin like
    /// one.
    pub fn total_size(header: &[u8]) -> Result<u32, TreeError> {
        validate::total_size(header)
    }

    /// Returns the bytes of the blob, up to its total size.
    pub fn blob(self) -> &'t [u8] {
        self.cursor.blob()
    }

    /// Returns the root.
    pub fn root(self) -> Node<'t> {
        Node::root(self.cursor)
    }

    /// Iterates over all nodes, the root first, each before its children.
    pub fn nodes(self) -> Nodes<'t> {
        self.root().subtree()
    }

    /// Returns the node at `path`, which is absolute (`/soc/serial@9000000`) or begins with a name from `/aliases`. A
    /// component without a unit address matches the first node of that name.
    #[inline(never)]
    pub fn find(self, path: &str) -> Option<Node<'t>> {
        let (first, rest) = match path.strip_prefix('/') {
            Some(rest) => (self.root(), rest),
            None => {
                let (alias, rest) = path.split_once('/').unwrap_or((path, ""));
                let target = self.find("/aliases")?.property(alias)?.str()?;
                // An alias must be an absolute path (specification, 3.3), so aliases cannot form a loop.
                let node = if target.starts_with('/') { self.find(target)? } else { return None };
                (node, rest)
            }
        };
        let mut node = first;
        for component in rest.split('/').filter(|component| !component.is_empty()) {
            node = node.child(component)?;
        }
        Some(node)
    }

    /// Iterates over the memory reservation block (specification, 5.3).
    pub fn reservations(self) -> Reservations<'t> {
        Reservations::new(self.cursor.reservations())
    }
}

impl core::fmt::Debug for Tree<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Tree({} bytes)", self.blob().len())
    }
}

#[cfg(test)]
mod tests;
