//! A flattened device tree, read where it lies.
//!
//! A *blob* is the bytes of a flattened device tree (Devicetree Specification, chapter 5). Whoever wrote it
//! is not trusted: [`Tree::new`] walks all of it once and checks every offset, length, name and token order,
//! and only then does anything else look at it. What it holds is read in place, so that a blob with kernels of
//! 100 MiB inside costs no more than its tokens.
//!
//! A *node* is named by the offset of its first token, a *property* is a name and bytes of the blob. Cells are
//! 32-bit big-endian numbers; how many of them make an address or a size is said by the parent of the node
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
pub use print::{NodeSource, SourceValue, TreeSource};
pub use property::{Properties, Property, Strings};
pub use reservation::{Reservation, Reservations};
pub use validate::TreeError;

use cursor::Cursor;

/// Levels of nodes in a tree, the root included (as in Linux and in vm-fdt).
pub const DEPTH_LIMIT: usize = 64;
/// Bytes in the name of a node or of a property. The specification allows 31 and a unit address.
pub const NAME_LIMIT: usize = 127;

/// A device tree whose structure is known to be sound.
///
/// It is one word: copy it freely.
#[derive(Clone, Copy)]
pub struct Tree<'t> {
    cursor: Cursor<'t>,
}

impl<'t> Tree<'t> {
    /// Checks `blob` from end to end and gives access to it. Bytes after the header's total size are ignored.
    ///
    /// The time it takes grows with the number of tokens, not with the length of the values.
    ///
    /// # Errors
    /// The first defect found, with the offset where it lies.
    pub fn new(blob: &'t [u8]) -> Result<Self, TreeError> {
        Ok(Self { cursor: Cursor::new(validate::validate(blob)?) })
    }

    /// The length that a blob beginning with `header` says it has, in bytes: to be known before all of it is
    /// mapped.
    ///
    /// # Errors
    /// [`TreeError::Truncated`] where `header` is shorter than a header, [`TreeError::Magic`] where it is none.
    pub fn total_size(header: &[u8]) -> Result<u32, TreeError> {
        validate::total_size(header)
    }

    /// The bytes of the blob, up to its total size.
    pub fn blob(self) -> &'t [u8] {
        self.cursor.blob()
    }

    /// The root.
    pub fn root(self) -> Node<'t> {
        Node::root(self.cursor)
    }

    /// All nodes, the root first, each before its children.
    pub fn nodes(self) -> Nodes<'t> {
        self.root().subtree()
    }

    /// The node at `path`: absolute (`/soc/serial@9000000`), or beginning with a name from `/aliases`. A
    /// component without a unit address finds the first node of that name.
    #[inline(never)]
    pub fn find(self, path: &str) -> Option<Node<'t>> {
        let (first, rest) = match path.strip_prefix('/') {
            Some(rest) => (self.root(), rest),
            None => {
                let (alias, rest) = path.split_once('/').unwrap_or((path, ""));
                let target = self.find("/aliases")?.property(alias)?.str()?;
                // An alias is an absolute path (specification, 3.3): no alias of an alias, so no loop.
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

    /// The first node whose `compatible` lists `compatible`.
    pub fn find_compatible(self, compatible: &str) -> Option<Node<'t>> {
        self.nodes().find(|node| node.is_compatible(compatible))
    }

    /// The node with the phandle `phandle`.
    pub fn find_phandle(self, phandle: u32) -> Option<Node<'t>> {
        self.nodes().find(|node| node.phandle() == Some(phandle))
    }

    /// The entries of the memory reservation block (specification, 5.3).
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
