//! Nodes, and the ways from one to another.

use core::fmt;

use super::DEPTH_LIMIT;
use super::cursor::{Cursor, Token};
use super::property::{Properties, Property};

/// A node of a tree.
#[derive(Clone, Copy)]
pub struct Node<'t> {
    cursor: Cursor<'t>,
    /// Offset of the FDT_BEGIN_NODE token.
    offset: u32,
    /// Offset of the parent's; the root's own for the root.
    parent: u32,
}

/// A node without its tree: for what is stored beside another node of the same tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(u32);

impl<'t> Node<'t> {
    pub(super) fn root(cursor: Cursor<'t>) -> Self {
        Self::at(cursor, cursor.start(), cursor.start())
    }

    /// The node whose first token lies at `offset`. Offsets in a blob have 32 bits.
    fn at(cursor: Cursor<'t>, offset: usize, parent: usize) -> Self {
        Self { cursor, offset: offset as u32, parent: parent as u32 }
    }

    /// The node, to be found again by [`Node::same_tree`] of any node of the same tree.
    pub fn id(&self) -> NodeId {
        NodeId(self.offset)
    }

    /// The node with `id` in the tree that this one is part of; `None` where there is none.
    pub fn same_tree(&self, id: NodeId) -> Option<Node<'t>> {
        Nodes::below(self.cursor).find(|node| node.id() == id)
    }

    /// The node's name with its unit address; empty for the root.
    #[inline(never)]
    pub fn name(&self) -> &'t str {
        match self.cursor.token(self.offset as usize) {
            Some(Token::Begin { name, .. }) => name,
            _ => "",
        }
    }

    /// The node's name up to the `@`.
    pub fn base_name(&self) -> &'t str {
        let name = self.name();
        name.split_once('@').map_or(name, |(base, _)| base)
    }

    /// What follows the `@` in the node's name.
    pub fn unit_address(&self) -> Option<&'t str> {
        self.name().split_once('@').map(|(_, address)| address)
    }

    /// Whether the node is the root.
    pub fn is_root(&self) -> bool {
        self.offset as usize == self.cursor.start()
    }

    /// The root of the tree that the node is part of.
    pub fn tree_root(&self) -> Node<'t> {
        Node::root(self.cursor)
    }

    /// The node's properties, in the order of the blob.
    pub fn properties(&self) -> Properties<'t> {
        Properties::new(self.cursor, self.body())
    }

    /// The property `name`.
    #[inline(never)]
    pub fn property(&self, name: &str) -> Option<Property<'t>> {
        self.properties().find(|property| property.name() == name)
    }

    /// Whether there is a property `name`, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.property(name).is_some()
    }

    /// The node's children, in the order of the blob.
    pub fn children(&self) -> Children<'t> {
        Children { cursor: self.cursor, parent: self.offset as usize, at: self.body() }
    }

    /// The first child named `name`, or, where `name` has no unit address, whose name begins with it and `@`.
    #[inline(never)]
    pub fn child(&self, name: &str) -> Option<Node<'t>> {
        let is_full = name.contains('@');
        self.children().find(|child| child.name() == name || (!is_full && child.base_name() == name))
    }

    /// The node and all nodes below it, each before its children.
    pub fn subtree(&self) -> Nodes<'t> {
        Nodes::from(self.cursor, self.offset as usize, self.parent as usize)
    }

    /// All nodes below this one, each before its children; the node itself is left out.
    #[inline(never)]
    pub fn descendants(&self) -> Nodes<'t> {
        let mut nodes = self.subtree();
        nodes.next();
        nodes
    }

    /// The parent, `None` for the root.
    #[inline(never)]
    pub fn parent(&self) -> Option<Node<'t>> {
        if self.is_root() {
            return None;
        }
        // The parent's own parent is found by a walk: a blob does not say it.
        Nodes::below(self.cursor).find(|node| node.offset == self.parent)
    }

    /// The offsets of the nodes from the root to this one. Takes one walk over the tree.
    fn ancestry(&self) -> heapless::Vec<usize, DEPTH_LIMIT> {
        let mut nodes = Nodes::below(self.cursor);
        match nodes.find(|node| node.offset == self.offset) {
            Some(_) => nodes.open,
            None => heapless::Vec::new(),
        }
    }

    /// The nodes above this one, the parent first, the root last. Takes one walk over the tree.
    #[inline(never)]
    pub fn ancestors(&self) -> impl Iterator<Item = Node<'t>> {
        let mut offsets = self.ancestry();
        let cursor = self.cursor;
        offsets.pop();
        core::iter::from_fn(move || {
            let offset = offsets.pop()?;
            Some(Node::at(cursor, offset, offsets.last().copied().unwrap_or(offset)))
        })
    }

    /// The node's path, for display.
    pub fn path(&self) -> NodePath<'t> {
        NodePath(*self)
    }

    /// Whether `compatible` lists `compatible`.
    #[inline(never)]
    pub fn is_compatible(&self, compatible: &str) -> bool {
        self.property("compatible").is_some_and(|list| list.strings().any(|string| string == compatible))
    }

    /// Whether `status` does not say otherwise (specification, 2.3.4).
    #[inline(never)]
    pub fn is_enabled(&self) -> bool {
        match self.property("status") {
            None => true,
            Some(status) => matches!(status.str(), Some("okay" | "ok")),
        }
    }

    /// The node's phandle.
    #[inline(never)]
    pub fn phandle(&self) -> Option<u32> {
        let property = self.property("phandle").or_else(|| self.property("linux,phandle"))?;
        property.u32().filter(|&phandle| phandle != 0 && phandle != u32::MAX)
    }

    /// Offset of the first token inside the node.
    fn body(&self) -> usize {
        match self.cursor.token(self.offset as usize) {
            Some(Token::Begin { next, .. }) => next,
            // Not a node of this tree: nothing inside.
            _ => usize::MAX,
        }
    }
}

impl PartialEq for Node<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cursor.is_same(&other.cursor) && self.offset == other.offset
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
        if self.0.is_root() {
            return f.write_str("/");
        }
        let cursor = self.0.cursor;
        for &offset in self.0.ancestry().iter().skip(1) {
            write!(f, "/{}", Node::at(cursor, offset, offset).name())?;
        }
        Ok(())
    }
}

/// Iterates over the children of a node.
#[derive(Clone)]
pub struct Children<'t> {
    cursor: Cursor<'t>,
    parent: usize,
    at: usize,
}

impl<'t> Iterator for Children<'t> {
    type Item = Node<'t>;

    fn next(&mut self) -> Option<Node<'t>> {
        // `at` is inside the parent, before a token at its own level.
        let mut depth = 0usize;
        let mut found = None;
        loop {
            match self.cursor.token(self.at) {
                Some(Token::Begin { next, .. }) => {
                    if depth == 0 {
                        found = Some(Node::at(self.cursor, self.at, self.parent));
                    }
                    depth += 1;
                    self.at = next;
                }
                Some(Token::Property { next, .. }) => self.at = next,
                Some(Token::End { next }) if depth > 0 => {
                    depth -= 1;
                    self.at = next;
                    if depth == 0 {
                        return found;
                    }
                }
                Some(Token::End { .. }) | None => return None,
            }
        }
    }
}

/// Iterates over a node and all below it, each before its children.
#[derive(Clone)]
pub struct Nodes<'t> {
    cursor: Cursor<'t>,
    at: usize,
    /// Parent of the first node.
    above: usize,
    /// Offsets of the nodes begun and not yet ended.
    open: heapless::Vec<usize, DEPTH_LIMIT>,
}

impl<'t> Nodes<'t> {
    pub(super) fn below(cursor: Cursor<'t>) -> Self {
        Self::from(cursor, cursor.start(), cursor.start())
    }

    fn from(cursor: Cursor<'t>, at: usize, above: usize) -> Self {
        Self { cursor, at, above, open: heapless::Vec::new() }
    }

    /// How deep the node that was returned last lies below the first, which lies at 0.
    pub fn depth(&self) -> usize {
        self.open.len().saturating_sub(1)
    }
}

impl<'t> Iterator for Nodes<'t> {
    type Item = Node<'t>;

    fn next(&mut self) -> Option<Node<'t>> {
        loop {
            match self.cursor.token(self.at)? {
                Token::Begin { next, .. } => {
                    let parent = self.open.last().copied().unwrap_or(self.above);
                    let offset = self.at;
                    self.at = next;
                    // Validated: never deeper than the limit.
                    self.open.push(offset).ok()?;
                    return Some(Node::at(self.cursor, offset, parent));
                }
                Token::Property { next, .. } => self.at = next,
                Token::End { next } => {
                    self.open.pop();
                    self.at = next;
                    if self.open.is_empty() {
                        self.at = usize::MAX;
                        return None;
                    }
                }
            }
        }
    }
}
