//! Nodes and navigation between them.

use core::fmt;

use super::DEPTH_LIMIT;
use super::cursor::{Cursor, Token};
use super::property::{Properties, Property};

/// A node of a tree. It is two words long and passed by value.
#[derive(Clone, Copy)]
pub struct Node<'t> {
    cursor: Cursor<'t>,
    /// Offset of the FDT_BEGIN_NODE token.
    offset: u32,
}

/// A node without its tree, to be stored beside another node of the same tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(u32);

impl<'t> Node<'t> {
    pub(super) fn root(cursor: Cursor<'t>) -> Self {
        Self { cursor, offset: cursor.start() }
    }

    /// Returns the node's identifier for [`Node::same_tree`].
    pub fn id(self) -> NodeId {
        NodeId(self.offset)
    }

    /// Returns the node with `id` in this node's tree, or `None` if there is none.
    pub(crate) fn same_tree(self, id: NodeId) -> Option<Node<'t>> {
        Nodes::below(self.tree_root()).find(|node| node.id() == id)
    }

    /// Returns the node's name with its unit address; empty for the root.
    #[inline(never)]
    pub fn name(self) -> &'t str {
        match self.cursor.token(self.offset) {
            Some(Token::Begin { name, .. }) => name,
            _ => "",
        }
    }

    /// Returns the node's name up to the `@`.
    pub fn base_name(self) -> &'t str {
        let name = self.name();
        name.split_once('@').map_or(name, |(base, _)| base)
    }

    /// Returns the part of the node's name after the `@`.
    pub(crate) fn unit_address(self) -> Option<&'t str> {
        self.name().split_once('@').map(|(_, address)| address)
    }

    /// Tests whether the node is the root.
    pub fn is_root(self) -> bool {
        self.offset == self.cursor.start()
    }

    /// Returns the root of the node's tree.
    pub fn tree_root(self) -> Node<'t> {
        Node::root(self.cursor)
    }

    /// Iterates over the node's properties in the order of the blob.
    pub fn properties(self) -> Properties<'t> {
        Properties::new(self.cursor, self.body())
    }

    /// Returns the property `name`.
    #[inline(never)]
    pub fn property(self, name: &str) -> Option<Property<'t>> {
        self.properties().find(|property| property.name() == name)
    }

    /// Tests whether the node has a property `name`.
    pub fn has(self, name: &str) -> bool {
        self.property(name).is_some()
    }

    /// Iterates over the node's children in the order of the blob.
    pub fn children(self) -> Children<'t> {
        Children { cursor: self.cursor, at: self.body() }
    }

    /// Iterates over the children that `status` does not disable.
    pub fn enabled_children(self) -> impl Iterator<Item = Node<'t>> {
        self.children().filter(|child| child.is_enabled())
    }

    /// Returns the first child named `name`. Without a unit address, `name` also matches names with one.
    #[inline(never)]
    pub fn child(self, name: &str) -> Option<Node<'t>> {
        let is_full = name.contains('@');
        self.children().find(|child| child.name() == name || (!is_full && child.base_name() == name))
    }

    /// Iterates over the node and its descendants, each before its children.
    pub(crate) fn subtree(self) -> Nodes<'t> {
        Nodes::below(self)
    }

    /// Iterates over the node's descendants, each before its children.
    #[inline(never)]
    pub fn descendants(self) -> Nodes<'t> {
        let mut nodes = self.subtree();
        nodes.next();
        nodes
    }

    /// Returns the parent, or `None` for the root. Walks the tree, since a blob has no links to parents.
    #[inline(never)]
    pub fn parent(self) -> Option<Node<'t>> {
        let mut nodes = Nodes::below(Node::root(self.cursor));
        let mut open = heapless::Vec::<u32, DEPTH_LIMIT>::new();
        while let Some(node) = nodes.next() {
            open.truncate(nodes.depth());
            if node.offset == self.offset {
                return open.pop().map(|offset| Node { cursor: self.cursor, offset });
            }
            // Validation limits the depth.
            open.push(node.offset).ok()?;
        }
        None
    }

    /// Iterates over the node's ancestors, from the parent to the root. Walks the tree for each of them.
    pub fn ancestors(self) -> impl Iterator<Item = Node<'t>> {
        core::iter::successors(self.parent(), |node| node.parent())
    }

    /// Returns the node's path for display.
    pub fn path(self) -> NodePath<'t> {
        NodePath(self)
    }

    /// Tests whether the property `compatible` lists `compatible`.
    #[inline(never)]
    pub fn is_compatible(self, compatible: &str) -> bool {
        self.property("compatible").is_some_and(|list| list.strings().any(|string| string == compatible))
    }

    /// Tests whether the node is enabled: `status` is missing, `okay` or `ok` (specification, 2.3.4).
    #[inline(never)]
    pub fn is_enabled(self) -> bool {
        match self.property("status") {
            None => true,
            Some(status) => matches!(status.str(), Some("okay" | "ok")),
        }
    }

    /// Returns the node's phandle.
    #[inline(never)]
    pub fn phandle(self) -> Option<u32> {
        let property = self.property("phandle").or_else(|| self.property("linux,phandle"))?;
        property.u32().filter(|&phandle| phandle != 0 && phandle != u32::MAX)
    }

    /// Returns the offset of the first token inside the node.
    fn body(self) -> u32 {
        match self.cursor.token(self.offset) {
            Some(Token::Begin { next, .. }) => next,
            // Not a node of this tree: it has no contents.
            _ => u32::MAX,
        }
    }
}

impl PartialEq for Node<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cursor.is_same(other.cursor) && self.offset == other.offset
    }
}

impl Eq for Node<'_> {}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.path())
    }
}

/// Displays the path of a node, `/` for the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePath<'t>(Node<'t>);

impl fmt::Display for NodePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.parent() {
            Some(parent) => write_below(f, parent, self.0),
            None => f.write_str("/"),
        }
    }
}

/// Writes the path of `node`, a child of `parent`. Recurses at most [`DEPTH_LIMIT`] times.
fn write_below(f: &mut fmt::Formatter<'_>, parent: Node<'_>, node: Node<'_>) -> fmt::Result {
    if let Some(above) = parent.parent() {
        write_below(f, above, parent)?;
    }
    f.write_str("/")?;
    f.write_str(node.name())
}

/// Iterates over the children of a node.
#[derive(Clone)]
pub struct Children<'t> {
    cursor: Cursor<'t>,
    /// Offset of a token at the level of the children.
    at: u32,
}

impl<'t> Iterator for Children<'t> {
    type Item = Node<'t>;

    #[inline(never)]
    fn next(&mut self) -> Option<Node<'t>> {
        let mut depth = 0usize;
        let mut found = None;
        loop {
            match self.cursor.token(self.at)? {
                Token::Begin { next, .. } => {
                    if depth == 0 {
                        found = Some(Node { cursor: self.cursor, offset: self.at });
                    }
                    depth += 1;
                    self.at = next;
                }
                Token::Property { next, .. } => self.at = next,
                Token::End { next } => {
                    depth = depth.checked_sub(1)?;
                    self.at = next;
                    if depth == 0 {
                        return found;
                    }
                }
            }
        }
    }
}

/// Iterates over a node and its descendants, each before its children.
#[derive(Clone)]
pub struct Nodes<'t> {
    cursor: Cursor<'t>,
    at: u32,
    /// Number of nodes that have begun and not yet ended.
    open: u32,
}

impl<'t> Nodes<'t> {
    pub(super) fn below(first: Node<'t>) -> Self {
        Self { cursor: first.cursor, at: first.offset, open: 0 }
    }

    /// Returns the depth of the node that was returned last; the first node has depth 0.
    pub fn depth(&self) -> usize {
        self.open.saturating_sub(1) as usize
    }
}

impl<'t> Iterator for Nodes<'t> {
    type Item = Node<'t>;

    #[inline(never)]
    fn next(&mut self) -> Option<Node<'t>> {
        loop {
            match self.cursor.token(self.at)? {
                Token::Begin { next, .. } => {
                    let node = Node { cursor: self.cursor, offset: self.at };
                    self.at = next;
                    self.open += 1;
                    return Some(node);
                }
                Token::Property { next, .. } => self.at = next,
                Token::End { next } => {
                    self.open = self.open.saturating_sub(1);
                    self.at = if self.open == 0 { u32::MAX } else { next };
                }
            }
        }
    }
}
