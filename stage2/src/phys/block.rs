//! Designated movable blocks and pools, as the boot memory map holds them. [`dmb`](crate::phys::dmb) makes them.

use crate::controller::ControllerId;
use crate::name::Name;
use crate::owner::GuestId;
use crate::range::FrameRange;

/// The maximum number of designated movable blocks.
pub const MAX_BLOCKS: usize = 19;

/// The source of a block or pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// `movablecore=` on Ballast's command line.
    CommandLine,
    /// A node of the host tree's `/reserved-memory`.
    Tree,
    /// A node of the configuration.
    Configuration,
}

/// A designated movable block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its frames.
    pub range: FrameRange,
    /// The controller that the frames are behind.
    pub controller: ControllerId,
    /// The place where it was requested.
    pub source: Source,
    /// The name of the node, or the item of the command line.
    pub name: Name,
}

/// A pool: a contiguous allocator over a range of RAM, inside one block or outside all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its frames.
    pub range: FrameRange,
    /// The controller that the frames are behind.
    pub controller: ControllerId,
    /// The designated block that contains the pool.
    pub block: Option<u8>,
    /// The place where it was requested.
    pub source: Source,
    /// The name of its node.
    pub name: Name,
    /// The owner that the configuration names.
    pub bound: Option<GuestId>,
    /// True if the guest sees claimed frames at their physical addresses.
    pub is_in_place: bool,
    /// log2 of the frames of the huge units that the pool keeps for guests that ask for such units, if it does.
    pub unit_order: Option<u8>,
    /// The time that a starting guest waits for such a unit, in milliseconds.
    pub unit_wait_ms: u32,
}

impl Pool {
    /// Creates a pool without an owner.
    pub(crate) const fn new(
        range: FrameRange,
        controller: ControllerId,
        block: Option<u8>,
        source: Source,
        name: Name,
    ) -> Self {
        let (bound, is_in_place, unit_order, unit_wait_ms) = (None, false, None, 0);
        Self { range, controller, block, source, name, bound, is_in_place, unit_order, unit_wait_ms }
    }
}
