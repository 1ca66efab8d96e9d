//! Claims: taking a contiguous range out of a pool whose frames are lent to guests, and giving it back.
//!
//! # Words
//! - A pool's frames are *lent*: guests use them as RAM until the pool's owner claims them. A guest with RAM in a range is
//!   a *tenant* of that range.
//! - A *claim* empties a range and gives it to the *claimant*, the owner of the pool. A *release* is the reverse.
//! - A *try* is an attempt to claim one range; a claim makes up to four.
//! - A *unit* is one stage-2 leaf. Ballast claims a single one for a guest that starts with huge units
//!   ([`Claimant::Units`]); all other claims are the operator's or a guest's.
//!
//! # Steps of a claim
//! | step | action | undone by |
//! |---|---|---|
//! | choose | Finds the range that is cheapest to empty: the one with the fewest frames in use (`search.rs`). | |
//! | isolate | Isolates every pageblock that the range touches. None of their frames is allocated from now on, and frames that are freed stay there. | ending the isolation |
//! | move | Migration moves the tenants to frames outside every isolated pageblock. A large unit that lies in the range in part is demoted. | (moved tenants stay where they are) |
//! | take | Verifies that every frame is free, makes the claimant its owner, scrubs it unless it is known to be zero. Frames that a guest will see are cleaned to the point of coherency. | freeing the frames |
//! | show | Maps the range into the window of the guest that owns the pool, a few leaves per turn. | unmapping it |
//! | grant | Ends the isolation. | |
//!
//! The *take* step may find a frame still in use. The claim then repeats the *move* step for the rest of the range, up to a
//! limit. A failed try is undone in reverse order, which restores types, owners and isolation of all pageblocks. The
//! report names, for each try, the frame that blocked it and the reason.
//!
//! After a failed try, a claim by size examines every range of the pool, and tries the cheapest range that can be emptied
//! (`exhaustive.rs`). A claim of an exact range fails.
//!
//! Before any tenant moves, the claim checks that no controller can run out of free frames. If one can, it counts the
//! tenants by the controllers that they may move to (`room.rs`):
//! - If some tenant has no room, the try fails at once.
//! - If all fit, but only in one arrangement, several jobs move them, each to one controller.
//!
//! So a claim is granted if its pool has a range whose tenants can all move, and enough frames outside that range are free.
//!
//! No tenant moves into a range that is being emptied, because the allocator does not use isolated pageblocks. Frames that
//! are freed into an isolated pageblock are on no free list. A migration job ends only after it has scrubbed and freed all
//! sources, so nothing is in flight when the claim takes the frames.
//!
//! # Steps of a release
//! Verifies that the claimant owns every frame of the range, unmaps it from the guest's window (with invalidation),
//! scrubs it, and only then frees it. When a guest stops or resets, all that it claimed is released in the same way.
//!
//! # Order of operations
//! Operations on all pools wait in one queue. The CPU inside [`Claims::step`] works on one operation at a time, in
//! bounded turns. Two operations therefore never race for a frame: if two claims overlap, the later one finds claimed
//! frames.
//!
//! - The migration job of a claim runs before all other jobs except `retire`. It also interrupts the job in progress,
//!   after that job's unit in flight is complete.
//! - A claim waits for guests that start, reset or stop, for migration's rate limit, and for a job that the operator has
//!   paused.
//! - A claim for a starting guest does not wait for other starting guests. A claim that waits for a starting guest goes
//!   back to the queue, so that the guest's own claim can run. This prevents a deadlock between the two.
//! - A guest may have two operations open at a time, the operator eight.
//!
//! # Length of a turn
//! A turn examines, isolates or opens a few pageblocks, scrubs 64 frames, or maps or unmaps one leaf of 1 GiB or a few
//! smaller ones. None takes much longer than a slice of migration.
//!
//! # Locks
//! 1. The worker's lock. A CPU tries it, and never waits for it.
//! 2. The lock of the records.
//!
//! A CPU that holds the worker's lock may also take migration's job lock and the locks of the allocator's arenas. Nothing
//! is scrubbed or printed under the lock of the records.
#![forbid(unsafe_code)]

mod cause;
mod engine;
mod exhaustive;
mod host;
mod operation;
mod records;
mod room;
mod search;
mod statistics;
#[cfg(test)]
mod tests;
mod worker;

pub use cause::{Bar, Blocker, Cause};
pub use engine::{Claims, Step};
pub use host::{Ground, Host, Windows, slice_of};
pub use operation::{ClaimId, Claimant, Kind, Report, RequestError, State, Try, Wish};
pub use records::RECORDS;
pub use statistics::{FULLNESS_CLASSES, SIZE_CLASSES, Statistics, Totals};
