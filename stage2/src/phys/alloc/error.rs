//! Errors of the allocator.

use core::fmt;

use super::MemoryKind;
use crate::addr::{FRAME_SIZE, Frame, MAX_ORDER};
use crate::controller::ControllerSet;
use crate::owner::Owner;
use crate::size::Size;

/// An error of an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocError {
    /// Memory has not been taken over yet.
    NotBooted,
    /// An order above 18 (1 GiB).
    OrderTooLarge {
        /// The requested order.
        order: u8,
    },
    /// No block of that order in the arenas that the request allows.
    NoFrames {
        /// The requested order.
        order: u8,
        /// The requested kind.
        kind: MemoryKind,
        /// The controllers that the request allows.
        controllers: ControllerSet,
        /// The number of these that are closed to allocations.
        closed: usize,
        /// Free frames there, in zones that the kind may use.
        free: u64,
        /// Free frames behind other open controllers.
        free_elsewhere: u64,
    },
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBooted => f.write_str("memory: not taken over yet"),
            Self::OrderTooLarge { order } => write!(f, "order {order}: the largest is {MAX_ORDER}"),
            Self::NoFrames { order, kind, controllers, closed, free, free_elsewhere } => {
                write!(
                    f,
                    "no {kind} block of {} behind controllers {controllers}",
                    Size(FRAME_SIZE.checked_shl((*order).into()).unwrap_or(0))
                )?;
                if *closed > 0 {
                    write!(f, " ({closed} closed to allocations)")?;
                }
                let [there, elsewhere] =
                    [free, free_elsewhere].map(|frames| Size(frames.saturating_mul(FRAME_SIZE)));
                write!(f, ": {there} free there, {elsewhere} elsewhere")
            }
        }
    }
}

impl core::error::Error for AllocError {}

/// An error about a block to be freed, split or joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockError {
    /// The first frame of the block, as given by the caller.
    pub frame: Frame,
    /// The order given by the caller.
    pub order: u8,
    /// The owner given by the caller.
    pub owner: Owner,
    /// The reason.
    pub reason: BlockReason,
}

/// The reason why a block was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockReason {
    /// Not RAM.
    NotRam,
    /// Already free.
    AlreadyFree,
    /// Reserved since boot.
    Reserved,
    /// Retired.
    Retired,
    /// Not the first frame of its block.
    InsideBlock {
        /// The first frame.
        head: Frame,
        /// The block's order.
        order: u8,
    },
    /// The block has another order.
    OtherOrder {
        /// The order of the block.
        order: u8,
    },
    /// The block belongs to another owner.
    OtherOwner {
        /// The owner.
        owner: Owner,
    },
    /// The blocks to be joined differ in kind, or their pageblocks in zone, type or pool.
    Unlike,
    /// The order is not from 9 to 18, or the frame is not aligned to it.
    Shape,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block at {} (order {}, {}): {}", self.frame.pa(), self.order, self.owner, self.reason)
    }
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRam => f.write_str("not RAM"),
            Self::AlreadyFree => f.write_str("already free"),
            Self::Reserved => f.write_str("reserved since boot"),
            Self::Retired => f.write_str("retired"),
            Self::InsideBlock { head, order } => {
                write!(f, "inside the block of order {order} at {}", head.pa())
            }
            Self::OtherOrder { order } => write!(f, "the block has order {order}"),
            Self::OtherOwner { owner } => write!(f, "the block belongs to {owner}"),
            Self::Unlike => f.write_str("the blocks differ in kind, zone, pool or type"),
            Self::Shape => f.write_str("not aligned, or not of an order from 9 to 18"),
        }
    }
}

impl core::error::Error for BlockError {}
