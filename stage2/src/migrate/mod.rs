//! Moving what backs a running guest's memory to other frames, without the guest's help or knowledge.
//!
//! Words:
//! - a *unit* is one stage-2 leaf, moved as one: 4 KiB or 2 MiB. A leaf of 1 GiB is demoted in place and
//!   moved by its 2 MiB parts;
//! - an *area* is 2 MiB of IPA, aligned: a 2 MiB unit, or the table of up to 512 units of 4 KiB;
//! - a *batch* is up to [`BATCH`] units of 4 KiB of one area that are broken, copied and made together;
//! - the *worker* is whichever CPU is inside [`Engine::step`]; there is one at a time. A *helper* is a CPU
//!   whose vCPU touched a unit in flight and that is inside [`Engine::fault`];
//! - *source* and *target* are the frames of before and after.
//!
//! # The states of a unit
//! The state of a unit is in its leaf: valid bit, protection and [`Mark`](crate::table::Mark), so that
//! whoever faults on it finds it there; what the leaf cannot hold is in the guest's [`Space`].
//!
//! 4 KiB:
//!
//! | state | leaf | who may run there | left by |
//! |---|---|---|---|
//! | at rest | valid | vCPUs | worker: break, TLBI, DSB |
//! | broken | invalid, `MOVING` | nobody | worker or helper claims the copy: one bit of `claimed`, set atomically |
//! | copying | invalid, `MOVING` | who claimed it; a vCPU that faults waits for this unit alone | the same: bit of `copied` |
//! | copied | invalid, `MOVING` | nobody | worker for the batch, or the first vCPU to fault: IC, make at the target |
//! | at rest | valid | vCPUs | |
//!
//! 2 MiB:
//!
//! | state | leaf | who may run there | left by |
//! |---|---|---|---|
//! | at rest | valid | vCPUs | worker: protect, TLBI, DSB |
//! | copying | valid, read-only, `COPYING` | vCPUs that read or fetch; one copier, worker or helper | copied to the end: switch. A write: wait, help or split. Cancel: unprotect |
//! | switching | invalid, `SWITCHING` | nobody; under the space's lock, seen by no other CPU at EL2 | the same: break, TLBI, DSB, make at the target |
//! | split | table of 4 KiB leaves, at rest: the copied ones at the target, the others at the source | vCPUs | worker: the others move as 4 KiB units into the same target block; then promoted |
//!
//! A guest that writes to a 2 MiB unit being copied waits or helps where at most
//! [`Policy::stall_frames`](policy::Policy) are left to copy; else the unit is split, which takes no copy at all, and the
//! guest goes on writing to the source. Where there is no memory for the split's table the unit is given
//! up: it becomes writable at the source and is tried again.
//! A helper takes the copy under the lock under which it looked at the unit: what it copies is that unit, of which no more
//! than the bound is left.
//!
//! # Order of barriers and invalidations, and why (DDI 0487J.a)
//! 1. *Break or protect, DSB ISHST, TLBI IPAS2E1IS, DSB ISH, TLBI VMALLE1IS, DSB ISH* before the first
//!    read of the source: a store through the old translation is complete when the DSB is
//!    (D8.14, completion of TLB maintenance), so none comes after the copy has read.
//! 2. *DC CIVAC on the source; copy; DC CIVAC on the target*: a guest whose MMU or caches are off, or that maps its RAM
//!    Non-cacheable, reads and writes memory, not the cache (B2.7; D7.2), and a fetch reads at the point of unification.
//! 3. *DSB ISH, IC IALLUIS, DSB ISH* ([`Copier::synchronise_fetches`]) before the target can be
//!    fetched from: an instruction cache may still hold what the target frame held before (D7.5.9).
//!    One for a batch.
//! 4. *Make, DSB ISHST*. Invalid to valid needs no invalidation: faults are not cached (D8.13).
//! 5. Only now is the source scrubbed and released. No TLB leads to it since 1.
//!
//! Hardware's own writes: access flag and dirty state are taken along by the atomic operations of
//! [`table`](crate::table); none can be lost between break and make, since hardware does not write to
//! an invalid descriptor (D8.4, hardware updates).
//!
//! Stage 1 walks of the guest through a unit in flight fault like any other access, with S1PTW set. A
//! walk that has to set a flag in the guest's own descriptor is a write: on a protected unit it gives a
//! permission fault, which is therefore answered as a write whatever the syndrome says.
//!
//! Exclusives and atomics: Load-Exclusive works on a protected unit; Store-Exclusive and atomics give a
//! permission fault, and after the exception return, which clears the local monitor (B2.9), the
//! Store-Exclusive fails and the guest tries again. Where a unit moves between the two halves without a
//! fault, the global monitor holds the source's address and the Store-Exclusive, to the target's, is not
//! covered by it (B2.9.3).
//!
//! # Guests that come and go
//! The memory of a guest that starts, is reset or stops cannot be reached ([`Guests::absence`]). Jobs pass over it, and go
//! back to it in the end, a bounded number of times. While a job waits for such a guest it is in the queue, and others go
//! on. A job for the sake of a guest that starts waits for none that starts.
//!
//! # Idle time
//! Jobs leave areas in units of 4 KiB. Where no job can go on, an idle CPU coalesces them (`worker/coalesce.rs`). An area
//! that moves into one block for that does so like one of a job, and is at rest between two batches. A job that comes
//! meanwhile begins when the area has arrived. In a guest's time nothing is coalesced.
//!
//! # Locks
//! In this order: the worker's lock ([`Engine::step`], tried, never waited for but by
//! [`Engine::abandon`]), the lock of the jobs, the lock of one [`Space`], an arena lock of
//! [`memory`](crate::phys::alloc). Whether a guest is there is asked under the lock of the jobs, and takes no lock. No copy of more than what the stall bound allows, no scrubbing and no output under
//! the lock of a space.
//!
//! # What has to hold for a guest's RAM
//! Every leaf is backed by one block of the allocator of the same size (order 0, 9 or 18), owned by the
//! guest. Demotion and promotion keep it so ([`Frames::divide`], [`Frames::unite`]).
#![forbid(unsafe_code)]

mod engine;
#[cfg(test)]
mod fake;
mod host;
#[cfg(test)]
mod interleaving_tests;
mod job;
mod pacer;
mod plan;
pub mod policy;
mod reason;
mod space;
mod statistics;
#[cfg(test)]
mod tests;
mod unit;
mod worker;

pub use engine::{Engine, Payer, Shortage, Step};
pub use host::{Absence, Copier, Frames, Guests, Host, Mobility, Region, SOME, Span, Time};
pub use job::{JobId, JobReport, JobState, MAX_JOBS, Request, RequestError, Scope, Select};
pub use pacer::Pacer;
pub use reason::{Reason, Unmoved};
pub use space::{BATCH, Fault, Space, Verdict};
pub use statistics::{Counters, Distribution, Histogram, PairTotals, Statistics, Totals};
