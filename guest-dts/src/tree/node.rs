//! Nodes, and the ways from one to another.

use core::fmt;

use super::DEPTH_LIMIT;
use super::cursor::{Cursor, Token};
use super::property::{Properties, Property};

/// A node of a tree: two words, to be passed by value.
#[derive(Clone, Copy)]
pub struct Node<'t> {
    cursor: Cursor<'t>,
    /// Offset of the FDT_BEGIN_NODE token.
    offset: u32,
}

/// A node without its tree: for what is stored beside another node of the same tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(u32);

impl<'t> Node<'t> {
    pub(super) fn root(cursor: Cursor<'t>) -> Self {
        Self { cursor, offset: cursor.start() }
    }

    /// The node, to be found again by [`Node::same_tree`] of any node of the same tree.
    pub fn id(self) -> NodeId {
        NodeId(self.offset)
    }

    /// The node with `id` in the tree that this one is part of; `None` where there is none.
    pub fn same_tree(self, id: NodeId) -> Option<Node<'t>> {
        Nodes::below(self.tree_root()).find(|node| node.id() == id)
    }

    /// The node's name with its unit address; empty for the root.
    #[inline(never)]
    pub fn name(self) -> &'t str {
        match self.cursor.token(self.offset) {
            Some(Token::Begin { name, .. }) => name,
            _ => "",
        }
    }

    /// The node's name up to the `@`.
    pub fn base_name(self) -> &'t str {
        let name = self.name();
        name.split_once('@').map_or(name, |(base, _)| base)
    }

    /// What follows the `@` in the node's name.
    pub fn unit_address(self) -> Option<&'t str> {
        self.name().split_once('@').map(|(_, address)| address)
    }

    /// Whether the node is the root.
    pub fn is_root(self) -> bool {
        self.offset == self.cursor.start()
    }

    /// The root of the tree that the node is part of.
    pub fn tree_root(self) -> Node<'t> {
        Node::root(self.cursor)
    }

    /// The node's properties, in the order of the blob.
    pub fn properties(self) -> Properties<'t> {
        Properties::new(self.cursor, self.body())
    }

    /// The property `name`.
    #[inline(never)]
    pub fn property(self, name: &str) -> Option<Property<'t>> {
        self.properties().find(|property| property.name() == name)
    }

    /// Whether there is a property `name`, whatever its value.
    pub fn has(self, name: &str) -> bool {
        self.property(name).is_some()
    }

    /// The node's children, in the order of the blob.
    pub fn children(self) -> Children<'t> {
        Children { cursor: self.cursor, at: self.body() }
    }

    /// The node's children that `status` does not disable.
    pub fn enabled_children(self) -> impl Iterator<Item = Node<'t>> {
        self.children().filter(|child| child.is_enabled())
    }

    /// The first child named `name`, or, where `name` has no unit address, whose name begins with it and `@`.
    #[inline(never)]
    pub fn child(self, name: &str) -> Option<Node<'t>> {
        let is_full = name.contains('@');
        self.children().find(|child| child.name() == name || (!is_full && child.base_name() == name))
    }

    /// The node and all nodes below it, each before its children.
    pub fn subtree(self) -> Nodes<'t> {
        Nodes::below(self)
    }

    /// All nodes below this one, each before its children; the node itself is left out.
    #[inline(never)]
    pub fn descendants(self) -> Nodes<'t> {
        let mut nodes = self.subtree();
        nodes.next();
        nodes
    }

    /// The parent, `None` for the root. Takes one walk over the tree: a blob does not say it.
    #[inline(never)]
    pub fn parent(self) -> Option<Node<'t>> {
        let mut nodes = Nodes::below(Node::root(self.cursor));
        let mut open = heapless::Vec::<u32, DEPTH_LIMIT>::new();
        while let Some(node) = nodes.next() {
            open.truncate(nodes.depth());
            if node.offset == self.offset {
                return open.pop().map(|offset| Node { cursor: self.cursor, offset });
            }
            // Validated: never deeper than the limit.
            open.push(node.offset).ok()?;
        }
        None
    }

    /// The nodes above this one, the parent first, the root last. Takes a walk over the tree for each.
    pub fn ancestors(self) -> impl Iterator<Item = Node<'t>> {
        core::iter::successors(self.parent(), |node| node.parent())
    }

    /// The node's path, for display.
    pub fn path(self) -> NodePath<'t> {
        NodePath(self)
    }

    /// Whether `compatible` lists `compatible`.
    #[inline(never)]
    pub fn is_compatible(self, compatible: &str) -> bool {
        self.property("compatible").is_some_and(|list| list.strings().any(|string| string == compatible))
    }

    /// Whether `status` does not say otherwise (specification, 2.3.4).
    #[inline(never)]
    pub fn is_enabled(self) -> bool {
        match self.property("status") {
            None => true,
            Some(status) => matches!(status.str(), Some("okay" | "ok")),
        }
    }

    /// The node's phandle.
    #[inline(never)]
    pub fn phandle(self) -> Option<u32> {
        let property = self.property("phandle").or_else(|| self.property("linux,phandle"))?;
        property.u32().filter(|&phandle| phandle != 0 && phandle != u32::MAX)
    }

    /// Offset of the first token inside the node.
    fn body(self) -> u32 {
        match self.cursor.token(self.offset) {
            Some(Token::Begin { next, .. }) => next,
            // Not a node of this tree: nothing inside.
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

/// Writes the path of `node`, which lies below `parent`. No deeper than a tree may be.
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
    /// Inside the parent, before a token at its own level.
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

/// Iterates over a node and all below it, each before its children.
#[derive(Clone)]
pub struct Nodes<'t> {
    cursor: Cursor<'t>,
    at: u32,
    /// How many nodes were begun and not yet ended.
    open: u32,
}

impl<'t> Nodes<'t> {
    pub(super) fn below(first: Node<'t>) -> Self {
        Self { cursor: first.cursor, at: first.offset, open: 0 }
    }

    /// How deep the node that was returned last lies below the first, which lies at 0.
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
