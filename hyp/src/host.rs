//! The host, once boot has read it: board, device tree, names.

use crate::board::{Board, BoardError};
use guest_dts::tree::Tree;
use spin::Once;

static BOARD: Once<Board<'static>> = Once::new();
static TREE: Once<Tree<'static>> = Once::new();
static NAME: Once<&'static str> = Once::new();

/// Reads the board from the host's device tree. Once, before the other functions are of use.
///
/// # Errors
///
/// Names what the tree lacks.
// Not inlined: a board takes much of the stack on its way to its place.
#[inline(never)]
pub(crate) fn read(tree: &Tree<'static>) -> Result<&'static Board<'static>, BoardError<'static>> {
    BOARD.try_call_once(|| Board::read(tree))
}

/// Keeps the device tree and the name that it gives the host.
pub(crate) fn keep(tree: Tree<'static>) {
    let name = tree.root().property("model").or_else(|| tree.root().property("compatible"));
    NAME.call_once(|| name.and_then(|name| name.strings().next()).unwrap_or_default());
    TREE.call_once(|| tree);
}

/// Returns the board, once it has been read.
pub(crate) fn board() -> Option<&'static Board<'static>> {
    BOARD.get()
}

/// Returns the host's device tree.
pub(crate) fn tree() -> Option<&'static Tree<'static>> {
    TREE.get()
}

/// Returns the host's name: `model`, or else the first of `compatible`, of the root node.
pub(crate) fn name() -> &'static str {
    NAME.get().copied().unwrap_or_default()
}

/// Returns the name of controller `index`, which has the number that the host's tree gives it.
pub(crate) fn controller_name(index: usize) -> &'static str {
    let controller = board().and_then(|board| board.ram.controllers.get(index));
    controller.map_or("mc?", |controller| controller.name())
}
