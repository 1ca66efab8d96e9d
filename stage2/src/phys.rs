//! Physical memory: what RAM there is, whose each frame is, and how frames are allocated.
//!
//! - [`map`]: the memory map while Ballast boots: RAM, reservations, designated blocks.
//! - [`dmb`], [`pool`]: designated movable blocks and pools, checked and placed.
//! - [`frame`]: the frame table, one entry a frame; [`pageblock`]: one word for each 2 MiB; [`zone`]: NORMAL and MOVABLE.
//! - `buddy`, `arena`: free blocks of one zone behind one controller, and the lock around them.
//! - [`placement`]: the controllers that a request may use.
//! - [`alloc`]: all of it together, and what the rest of Ballast calls.

pub mod alloc;
mod arena;
mod buddy;
pub mod dmb;
pub mod frame;
pub mod map;
pub mod pageblock;
pub mod placement;
pub mod pool;
pub mod zone;
