//! Claims: taking a contiguous range out of a pool whose frames are lent, and giving it back.
//!
//! # The steps of a claim
//! | step | what is done | what undoes it |
//! |---|---|---|
//! | choosing | finds the range that is cheapest to empty: free frames first, then the fewest that have to move ([`search`]) | |
//! | isolating | sets the isolation bit of every pageblock that the range touches, first and last as all others: from now on none of their frames is handed out, and what is freed in them stays there | ends the isolation |
//! | moving | one job of the migration engine moves the tenants to frames outside every isolated pageblock; larger units are demoted where only a part of them is in the way | what has moved stays where it is |
//! | taking | verifies that every frame is free, makes it the owner's, scrubs what is not known to be zero; what a guest will see is cleaned to the point of coherency | gives the frames back, into isolated pageblocks |
//! | showing | maps the range into the owning guest's window, some leaves in a turn | takes it out of the window |
//! | granted | ends the isolation | |
//!
//! Where taking finds a frame in use, the rest moves once more, a bounded number of times. A claim that fails undoes
//! what it did, in the reverse order, so that types, owners and isolation of all pageblocks are what they were; it says
//! which frame was in the way and why. Unless an exact range was asked for, every range of the pool is looked at then, and
//! the cheapest of those that can be emptied is tried ([`exhaustive`]). Every try is in its report.
//!
//! Where the free frames behind some controller might not do for everybody, tenants are counted by the controllers that
//! they may move to before any moves ([`room`]). A range whose tenants do not all have room is given up at once. For one
//! whose tenants have room only if each goes to the right place, jobs move them there kind by kind. So a claim is granted
//! whenever some range can be emptied: its tenants can move, and the frames that are free outside it will do.
//!
//! *No circular targets*: an isolated pageblock hands out no frame, so a tenant never moves to where another has just
//! left. *Dissolved at once*: what is released into an isolated pageblock is free there and on no list; there is no
//! pool of units that it could end up in. *Barrier*: a job is over only once everything it moved is scrubbed and
//! released.
//!
//! # A release
//! Verifies that the owner has every frame of the range, takes it out of the guest's window (with invalidation), scrubs
//! it, and only then gives it back. A guest that stops or resets gives back all that it claimed in the same way.
//!
//! # One at a time
//! Operations wait in a queue and are worked on one after the other, in bounded turns, by whichever CPU is inside
//! [`Claims::step`]: all of them are serialised, those of other pools too, and of two that overlap the later one finds the
//! earlier one's frames claimed. A claim does not wait for migration that others asked for: its job overtakes all that
//! clear no frames, the one under way included, once the unit in flight has arrived. It does wait for `retire`, for a limit
//! of migration's rate, for guests that start, are reset or stop, and for what the operator pauses. A claim for a guest that
//! starts does not wait for guests that start, and a claim that waits for one makes way for it: neither waits for the other. A guest may have two operations open at a time, the operator
//! eight.
//!
//! # Turns
//! A turn looks at, isolates or opens a few pageblocks, scrubs 64 frames, or shows or hides one leaf of 1 GiB or a few
//! smaller ones: none takes longer than about a slice of migration.
//!
//! # Locks
//! The lock of the work (tried, never waited for), then the lock of the records; under the first also the locks of
//! migration's jobs and of memory's arenas. No scrubbing and no output under the lock of the records.
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
