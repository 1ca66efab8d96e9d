//! Designated movable blocks: the decision at boot which memory is movable.
//!
//! A *designated movable block* (DMB) is a range of RAM, aligned to pageblocks, that is absent from NORMAL and present
//! in MOVABLE. It lies in one RAM range behind one controller. Blocks come from `movablecore=size@base` on Ballast's
//! command line, and from nodes of the host tree's `/reserved-memory` and of the configuration. In addition,
//! `movablecore=` and `kernelcore=` may request a general amount, which is taken from the top of memory.
//!
//! [`designate`] checks each item against RAM, reservations, and the other blocks and pools, and changes the map only
//! if all pass. It must run after the last reservation is known and before the first
//! [`carve`](crate::phys::map::BootMap::carve).
//!
//! If it refuses a node, the caller keeps the nodes' memory out of use with [`withhold`], so that memory meant for an
//! owner does not end up in the general pool.

use crate::name::Name;
use crate::owner::MAX_POOLS;
use crate::phys::block::Pool;
use crate::phys::map::{BootMap, MapError, ReservationKind};
use crate::range::FrameRange;

mod error;
mod general;
mod grammar;
mod node;
mod number;
mod place;
#[cfg(test)]
mod tests;

pub use crate::phys::block::{Block, MAX_BLOCKS, Source};
pub use error::{Designation, DesignationError, Edge, Item, Rule, Warning};
pub use general::default_floor;
pub use grammar::{Amount, Core, CoreOption, option_values};
pub use node::{Node, NodeKind, NodePlace};

/// The requests to [`designate`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    /// `movablecore=`, parsed by [`Core::parse`].
    pub movablecore: Option<&'a Core>,
    /// `kernelcore=`, likewise.
    pub kernelcore: Option<&'a Core>,
    /// The nodes that designate blocks or pools: the host tree's, then the configuration's.
    pub nodes: &'a [Node<'a>],
    /// The number of frames of NORMAL that must stay free for Ballast and its tables: see [`default_floor`].
    pub floor: u64,
}

/// The decisions of [`designate`] so far.
struct Plan {
    blocks: heapless::Vec<Block, MAX_BLOCKS>,
    pools: heapless::Vec<Pool, MAX_POOLS>,
}

/// Designates blocks, pools and the general amount in `map`.
///
/// # Errors
/// Returns the first item that breaks a rule. The map does not change then.
pub fn designate(map: &mut BootMap, wishes: &Wishes<'_>) -> Result<Designation, DesignationError> {
    let mut plan = Plan { blocks: heapless::Vec::new(), pools: heapless::Vec::new() };
    if let Some(core) = wishes.movablecore {
        for item in core.blocks() {
            let source = Source::CommandLine;
            let refused = |rule| DesignationError { item: item.item, rule };
            place::add_static_block(map, &mut plan, item.size, item.base, source, item.name)
                .map_err(refused)?;
        }
    }
    node::add_all(map, &mut plan, wishes.nodes)?;
    general::finish(map, plan, wishes)
}

/// Reserves every range that `nodes` name, after [`designate`] refused one of them.
///
/// # Errors
/// Fails if the map is full.
pub fn withhold(map: &mut BootMap, nodes: &[Node<'_>]) -> Result<(), MapError> {
    for node in nodes {
        if let NodePlace::Static { base, size } = node.place
            && let Some(range) = FrameRange::covering(base, size)
        {
            map.reserve_range(range, ReservationKind::Withheld, Name::new(node.name))?;
        }
    }
    Ok(())
}
