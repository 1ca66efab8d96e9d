//! The registers of all devices of the host, to find out whose registers lie in a page.

use alloc::vec::Vec;
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Reg, Translation, Tree};

/// Registers and their nodes.
#[derive(Debug, Default)]
pub(super) struct Registers<'t>(Vec<(PaRange, Node<'t>)>);

impl<'t> Registers<'t> {
    /// Reads `reg` of all enabled nodes. Entries that CPUs do not reach, and malformed ones, are left out.
    pub(super) fn read(tree: &Tree<'t>) -> Self {
        let (mut found, mut path) = (Vec::new(), Vec::<Node<'t>>::new());
        let mut nodes = tree.nodes();
        // The depth of a disabled node, whose descendants are passed over.
        let mut disabled = None;
        while let Some(node) = nodes.next() {
            let depth = nodes.depth();
            path.truncate(depth);
            if disabled.is_none_or(|above| depth <= above) {
                disabled = (!node.is_enabled()).then_some(depth);
                if disabled.is_none() {
                    add(&path, node, &mut found);
                }
            }
            path.push(node);
        }
        Self(found)
    }

    /// Iterates over the nodes with registers in `range`.
    pub(super) fn within(&self, range: PaRange) -> impl Iterator<Item = Node<'t>> {
        self.0.iter().filter(move |(registers, _)| registers.overlaps(&range)).map(|(_, node)| *node)
    }
}

/// Adds the registers of `node`, whose ancestors are `path`.
fn add<'t>(path: &[Node<'t>], node: Node<'t>, found: &mut Vec<(PaRange, Node<'t>)>) {
    let Some(parent) = path.last().filter(|_| node.has("reg")) else { return };
    let Ok(entries) = parent.child_cells().and_then(|cells| node.pairs("reg", cells)) else { return };
    for Reg { base, size } in entries {
        if let Ok(Translation::Address(base)) = Node::translate_below(path, Reg { base, size })
            && let Some(range) = PaRange::from_numbers(base, size)
        {
            found.push((range, node));
        }
    }
}
