//! Physical memory: which frames are RAM, who owns each, and how frames are allocated.
//!
//! - [`map`]: the memory map during boot: RAM, reservations, designated blocks.
//! - `block`, [`dmb`], [`pool`]: designated movable blocks and pools, checked and placed.
//! - [`frame`]: the frame table, one entry for each frame; [`pageblock`]: one word for each 2 MiB; [`zone`]: NORMAL and
//!   MOVABLE.
//! - `buddy`, `arena`: the free blocks of one zone behind one controller, and their lock.
//! - [`placement`]: the controllers that a request may use.
//! - [`alloc`]: the allocator, which combines these and is the interface for the rest of Ballast.

pub mod alloc;
mod arena;
mod block;
mod buddy;
pub mod dmb;
pub mod frame;
pub mod map;
pub mod pageblock;
pub mod placement;
pub mod pool;
pub mod zone;
