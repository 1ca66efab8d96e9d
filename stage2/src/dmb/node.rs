//! Nodes of `/reserved-memory` that designate blocks and pools.
//!
//! | `compatible` | makes |
//! |---|---|
//! | `designated-movable-block` | a block |
//! | `shared-dmb-pool` | a block and a pool over all of it |
//! | `shared-dma-pool`, with `reusable` | a pool, inside one block where it lies in one, else outside all |
//!
//! Each needs `reusable` and must not have `no-map`; a pool in a block must not be `linux,cma-default`. A node has one
//! place: one `reg` entry, or `size` with `alignment` and `alloc-ranges`. A fixed place is taken as it is or refused; a
//! place that Ballast chooses has its alignment raised to a pageblock, never its size. Fixed places are settled first,
//! in the order of the tree, then the others, from the top of memory down.

use super::error::{DesignationError, Edge, Item, Rule};
use super::place::{add_block, add_static_block, check_free, check_shape, highest_place};
use super::{Block, Plan, Pool, Source};
use crate::addr::{FRAME_SHIFT, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::map::BootMap;
use crate::name::Name;
use crate::range::FrameRange;

/// What a node makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A block.
    Block,
    /// A block and a pool over it.
    BlockPool,
    /// A pool, in a block or outside all.
    Pool,
}

/// Where a node lies.
#[derive(Clone, Copy, Debug)]
pub enum NodePlace<'a> {
    /// At a fixed place (`reg`).
    Static {
        /// The address of its first byte.
        base: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// Where Ballast puts it (`size`).
    Dynamic {
        /// Its length in bytes.
        size: u64,
        /// `alignment` in bytes.
        alignment: Option<u64>,
        /// `alloc-ranges`; anywhere where empty.
        within: &'a [FrameRange],
    },
}

/// A node of `/reserved-memory`.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// What its `compatible` makes of it.
    pub kind: NodeKind,
    /// Where it lies.
    pub place: NodePlace<'a>,
    /// Which entry of the node's `reg` this is, from 0.
    pub entry: usize,
    /// Whether it has `reusable`.
    pub is_reusable: bool,
    /// Whether it has `no-map`.
    pub is_no_map: bool,
    /// Whether it has `linux,cma-default`.
    pub is_cma_default: bool,
}

/// Adds what `nodes` designate to the plan.
pub(super) fn add_all(map: &BootMap, plan: &mut Plan, nodes: &[Node<'_>]) -> Result<(), DesignationError> {
    let refused =
        |node: &Node<'_>, rule| DesignationError { item: Item::Node { name: Name::new(node.name) }, rule };
    for node in nodes {
        check_properties(node).map_err(|rule| refused(node, rule))?;
    }
    // Blocks before the pools that may lie in them; fixed places before free ones.
    for kind_is_pool in [false, true] {
        for node in nodes.iter().filter(|node| (node.kind == NodeKind::Pool) == kind_is_pool) {
            if let NodePlace::Static { base, size } = node.place {
                add_static(map, plan, node, base, size).map_err(|rule| refused(node, rule))?;
            }
        }
    }
    for node in nodes {
        if let NodePlace::Dynamic { size, alignment, within } = node.place {
            add_dynamic(map, plan, node, size, alignment, within).map_err(|rule| refused(node, rule))?;
        }
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
        NodeKind::Block => add_static_block(map, plan, size, base, Source::Tree, name).map(drop),
        NodeKind::BlockPool => {
            let block = add_static_block(map, plan, size, base, Source::Tree, name)?;
            let (range, controller) = check_shape(map, size, base)?;
            add_pool(plan, range, controller, Some(block), name)
        }
        NodeKind::Pool => {
            let (range, controller) = check_shape(map, size, base)?;
            let block = plan.blocks.iter().position(|block| block.range.overlaps(range));
            let Some(index) = block else {
                check_free(map, plan, range)?;
                return add_pool(plan, range, controller, None, name);
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
            add_pool(plan, range, controller, Some(index as u8), name)
        }
    }
}

fn add_dynamic(
    map: &BootMap,
    plan: &mut Plan,
    node: &Node<'_>,
    size: u64,
    alignment: Option<u64>,
    within: &[FrameRange],
) -> Result<(), Rule> {
    let name = Name::new(node.name);
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
            Some(add_block(plan, Block { range, controller, source: Source::Tree, name })?)
        }
        NodeKind::Pool => None,
    };
    match node.kind {
        NodeKind::Block => Ok(()),
        NodeKind::BlockPool | NodeKind::Pool => add_pool(plan, range, controller, block, name),
    }
}

fn add_pool(
    plan: &mut Plan,
    range: FrameRange,
    controller: ControllerId,
    block: Option<u8>,
    name: Name,
) -> Result<(), Rule> {
    let pool = Pool { range, controller, block, source: Source::Tree, name };
    plan.pools.push(pool).map_err(|_| Rule::TooManyPools)
}
