//! Claims: taking a contiguous range out of a pool whose frames are lent to guests, and giving it back.
//!
//! # Words
//! - A pool's frames are *lent*: guests use them as RAM while nobody has claimed them. A guest with such RAM is a
//!   *tenant* of the range that it lies in.
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
//! If a frame is still in use when it is to be taken, the rest of the range is moved once more, up to a limit. A try that fails
//! is undone in reverse order: types, owners and isolation of all pageblocks are then as before. The report names the
//! frame in the way and the reason, for each try.
//!
//! A claim of a size then examines every range of the pool, and tries the cheapest of those that can be emptied
//! (`exhaustive.rs`). A claim of an exact range fails.
//!
//! If a controller may run out of free frames, tenants are counted before any of them moves, by the controllers that
//! they may move to (`room.rs`). If they do not all have room, the try fails at once. If they have room only in a certain
//! arrangement, several jobs move them, each to one controller. So a claim is granted whenever its pool has a range
//! whose tenants can all move, and there are enough free frames outside that range.
//!
//! No tenant moves into a range that is being emptied, because isolated pageblocks hand out no frame. Frames freed into
//! an isolated pageblock are on no free list. A migration job is over only once all that it moved is scrubbed and freed,
//! so nothing is in flight when frames are taken.
//!
//! # Steps of a release
//! Verifies that the claimant owns every frame of the range, unmaps it from the guest's window (with invalidation),
//! scrubs it, and only then frees it. When a guest stops or resets, all that it claimed is released in the same way.
//!
//! # Order of operations
//! Operations wait in a queue. One at a time is worked on, in bounded turns, by the CPU that is inside
//! [`Claims::step`]. This holds for all pools together, so two operations never race for a frame: of two claims that
//! overlap, the later one finds frames claimed.
//!
//! - The migration job of a claim overtakes all other jobs, also the one in progress once the unit in flight has
//!   arrived. It does not overtake `retire`.
//! - A claim waits for guests that start, reset or stop, for migration's rate limit, and for a job that the operator has
//!   paused.
//! - A claim for a guest that starts does not wait for guests that start. Another claim that waits for such a guest
//!   returns to the queue in its favour. So neither waits for the other.
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
//! With the worker's lock held, migration's job lock and the locks of the allocator's arenas are taken too. Nothing is
//! scrubbed or printed under the lock of the records.
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
