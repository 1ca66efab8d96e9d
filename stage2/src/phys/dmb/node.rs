//! Nodes of `/reserved-memory` that designate blocks and pools.
//!
//! | `compatible` | designates |
//! |---|---|
//! | `designated-movable-block` | a block |
//! | `shared-dmb-pool` | a block and a pool over all of it |
//! | `shared-dma-pool`, with `reusable` | a pool, inside the block that contains it, or outside all |
//!
//! Each node needs `reusable` and must not have `no-map`. A pool in a block must not be `linux,cma-default`. A node has
//! one location: one `reg` entry, or `size` with `alignment` and `alloc-ranges`. A fixed location is used as it is or
//! refused. For a location that Ballast chooses, the alignment is raised to a pageblock, but never the size. Fixed
//! locations are settled first, in the order of the tree, then the others, from the top of memory down.
//!
//! The configuration's nodes (`/designated-movable-blocks`, `/pools`) follow the same rules with two exceptions: they
//! may leave the location to Ballast, behind controllers in an order; and a `shared-dmb-pool` inside a block creates no
//! block of its own.

use super::error::{DesignationError, Edge, Item, Rule};
use super::place::{add_block, add_static_block, check_free, check_shape, highest_place};
use super::{Block, Plan, Pool, Source};
use crate::addr::{FRAME_SHIFT, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::name::Name;
use crate::phys::map::{BootMap, MAX_RAM_RANGES};
use crate::range::FrameRange;

/// The designation of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A block.
    Block,
    /// A block and a pool over it.
    BlockPool,
    /// A pool, in a block or outside all.
    Pool,
}

/// The location of a node.
#[derive(Clone, Copy, Debug)]
pub enum NodePlace<'a> {
    /// A fixed location (`reg`).
    Static {
        /// The address of its first byte.
        base: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// A location that Ballast chooses (`size`).
    Dynamic {
        /// Its length in bytes.
        size: u64,
        /// `alignment` in bytes.
        alignment: Option<u64>,
        /// `alloc-ranges`; if empty, anywhere.
        within: &'a [FrameRange],
    },
    /// A location that Ballast chooses behind the first of some controllers that has room.
    Behind {
        /// Its length in bytes.
        size: u64,
        /// Its alignment in bytes, a power of two.
        alignment: u64,
        /// The controllers in order of preference; if empty, any.
        controllers: &'a [ControllerId],
    },
}

/// A node of `/reserved-memory`.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The name.
    pub name: &'a str,
    /// The tree that contains the node.
    pub source: Source,
    /// The designation by its `compatible`.
    pub kind: NodeKind,
    /// The location.
    pub place: NodePlace<'a>,
    /// The index of the node's `reg` entry.
    pub entry: usize,
    /// True if it has `reusable`.
    pub is_reusable: bool,
    /// True if it has `no-map`.
    pub is_no_map: bool,
    /// True if it has `linux,cma-default`.
    pub is_cma_default: bool,
}

impl Node<'_> {
    /// Returns the node as an item of messages.
    fn item(&self) -> Item {
        let container = match (self.source, self.kind) {
            (Source::Configuration, NodeKind::Block) => "/designated-movable-blocks",
            (Source::Configuration, _) => "/pools",
            _ => "/reserved-memory",
        };
        Item::Node { container, name: Name::new(self.name) }
    }
}

/// Adds the designations of `nodes` to the plan.
pub(super) fn add_all(map: &BootMap, plan: &mut Plan, nodes: &[Node<'_>]) -> Result<(), DesignationError> {
    let refused = |node: &Node<'_>, rule| DesignationError { item: node.item(), rule };
    for node in nodes {
        check_properties(node).map_err(|rule| refused(node, rule))?;
    }
    // Blocks before the pools that may lie in them, fixed locations before chosen ones.
    for kind_is_pool in [false, true] {
        for node in nodes.iter().filter(|node| (node.kind == NodeKind::Pool) == kind_is_pool) {
            if let NodePlace::Static { base, size } = node.place {
                add_static(map, plan, node, base, size).map_err(|rule| refused(node, rule))?;
            }
        }
    }
    for node in nodes {
        match node.place {
            NodePlace::Static { .. } => Ok(()),
            NodePlace::Dynamic { size, alignment, within } => {
                add_dynamic(map, plan, node, size, alignment, within)
            }
            NodePlace::Behind { size, alignment, controllers } => {
                add_behind(map, plan, node, size, alignment, controllers)
            }
        }
        .map_err(|rule| refused(node, rule))?;
    }
    Ok(())
}

fn check_properties(node: &Node<'_>) -> Result<(), Rule> {
    if node.entry > 0 {
        return Err(Rule::SeveralRanges);
    }
    if node.is_no_map {
        return Err(Rule::NoMap);
    }
    if !node.is_reusable {
        return Err(Rule::NotReusable);
    }
    if node.is_cma_default && node.kind == NodeKind::BlockPool {
        return Err(Rule::CmaDefault);
    }
    Ok(())
}

fn add_static(map: &BootMap, plan: &mut Plan, node: &Node<'_>, base: u64, size: u64) -> Result<(), Rule> {
    let name = Name::new(node.name);
    match node.kind {
        NodeKind::Block => add_static_block(map, plan, size, base, node.source, name).map(drop),
        NodeKind::BlockPool if node.source != Source::Configuration => {
            let block = add_static_block(map, plan, size, base, node.source, name)?;
            let (range, controller) = check_shape(map, size, base)?;
            add_pool(plan, node, range, controller, Some(block))
        }
        NodeKind::BlockPool | NodeKind::Pool => {
            let (range, controller) = check_shape(map, size, base)?;
            let block = plan.blocks.iter().position(|block| block.range.overlaps(range));
            let Some(index) = block else {
                check_free(map, plan, range)?;
                let block = match node.kind {
                    NodeKind::BlockPool => {
                        Some(add_block(plan, Block { range, controller, source: node.source, name })?)
                    }
                    _ => None,
                };
                return add_pool(plan, node, range, controller, block);
            };
            let around = plan.blocks[index];
            if !around.range.contains_range(range) {
                return Err(Rule::PartlyInBlock { range, name: around.name, block: around.range });
            }
            if node.is_cma_default {
                return Err(Rule::CmaDefault);
            }
            if let Some(other) = plan.pools.iter().find(|pool| pool.range.overlaps(range)) {
                return Err(Rule::Overlaps { range, name: other.name, other: other.range });
            }
            add_pool(plan, node, range, controller, Some(index as u8))
        }
    }
}

/// Tries one controller after the other. If none has room, the error reports the largest free range behind any of them.
fn add_behind(
    map: &BootMap,
    plan: &mut Plan,
    node: &Node<'_>,
    size: u64,
    alignment: u64,
    controllers: &[ControllerId],
) -> Result<(), Rule> {
    if controllers.is_empty() {
        return add_dynamic(map, plan, node, size, Some(alignment), &[]);
    }
    let mut longest = 0;
    for &wanted in controllers {
        let mut within = heapless::Vec::<FrameRange, MAX_RAM_RANGES>::new();
        // The capacity is the maximum number of RAM ranges.
        map.ram().filter(|(_, controller)| *controller == wanted).for_each(|(range, _)| {
            let _ = within.push(range);
        });
        match add_dynamic(map, plan, node, size, Some(alignment), &within) {
            Err(Rule::NoRoom { longest: here, .. }) => longest = longest.max(here),
            other if !within.is_empty() => return other,
            _ => {}
        }
    }
    Err(Rule::NoRoom { size, alignment, longest })
}

fn add_dynamic(
    map: &BootMap,
    plan: &mut Plan,
    node: &Node<'_>,
    size: u64,
    alignment: Option<u64>,
    within: &[FrameRange],
) -> Result<(), Rule> {
    let alignment = alignment.unwrap_or(0);
    if alignment != 0 && !alignment.is_power_of_two() {
        return Err(Rule::BadAlignment { alignment });
    }
    if size == 0 {
        return Err(Rule::NoSize);
    }
    if !size.is_multiple_of(PAGEBLOCK_SIZE) {
        return Err(Rule::Misaligned { edge: Edge::Size, value: size });
    }
    let alignment = alignment.max(PAGEBLOCK_SIZE);
    let anywhere = [FrameRange::inside(0, crate::addr::ADDRESS_LIMIT).unwrap_or_default()];
    let within = if within.is_empty() { &anywhere } else { within };
    let (range, controller) = highest_place(map, plan, within, size >> FRAME_SHIFT, alignment >> FRAME_SHIFT)
        .map_err(|longest| Rule::NoRoom { size, alignment, longest: longest << FRAME_SHIFT })?;
    let block = match node.kind {
        NodeKind::Block | NodeKind::BlockPool => {
            let name = Name::new(node.name);
            Some(add_block(plan, Block { range, controller, source: node.source, name })?)
        }
        NodeKind::Pool => None,
    };
    match node.kind {
        NodeKind::Block => Ok(()),
        NodeKind::BlockPool | NodeKind::Pool => add_pool(plan, node, range, controller, block),
    }
}

fn add_pool(
    plan: &mut Plan,
    node: &Node<'_>,
    range: FrameRange,
    controller: ControllerId,
    block: Option<u8>,
) -> Result<(), Rule> {
    let pool = Pool::new(range, controller, block, node.source, Name::new(node.name));
    plan.pools.push(pool).map_err(|_| Rule::TooManyPools)
}
