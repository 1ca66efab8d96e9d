//! Live migration: moves the RAM of a running guest to other frames, without the guest's help or knowledge.
//!
//! # Words
//! - A *unit* is one stage 2 leaf that moves as one: 4 KiB or 2 MiB. A leaf of 1 GiB is demoted in place and moves as
//!   its 2 MiB parts.
//! - An *area* is 2 MiB of IPA, aligned: one 2 MiB unit, or the table of up to 512 units of 4 KiB.
//! - A *batch* is up to [`BATCH`] units of 4 KiB of one area that are broken, copied and made together.
//! - The *source* and the *target* are the frames before and after.
//! - The *worker* is the CPU inside [`Engine::step`]. There is one at a time.
//! - A *helper* is a CPU inside [`Engine::fault`]: its vCPU touched a unit in flight.
//!
//! # States of a unit
//! A unit's state is in its leaf (valid bit, protection and [`Mark`](crate::table::Mark)), so a CPU that faults on the
//! unit finds it there. The guest's [`Space`] has what does not fit into the leaf.
//!
//! A unit of 4 KiB:
//!
//! | state | leaf | access | next step |
//! |---|---|---|---|
//! | at rest | valid, at the source | vCPUs | The worker breaks the leaf: invalid entry, TLBI, DSB. |
//! | broken | invalid, `MOVING` | none | The worker or a helper claims the copy by an atomic bit of `claimed`. |
//! | copying | invalid, `MOVING` | the CPU that claimed it | That CPU sets the bit of `copied`. A vCPU that faults waits for this unit only. |
//! | copied | invalid, `MOVING` | none | IC, then make at the target: by the first vCPU to fault, or by the worker for the rest of the batch. |
//! | at rest | valid, at the target | vCPUs | |
//!
//! A unit of 2 MiB:
//!
//! | state | leaf | access | next step |
//! |---|---|---|---|
//! | at rest | valid, at the source | vCPUs | The worker protects the leaf: read-only, TLBI, DSB. |
//! | copying | valid, read-only, `COPYING` | vCPUs read and fetch; one CPU copies, worker or helper | Complete: switch. A guest's write: wait, help or split. Cancelled: unprotect. |
//! | switching | invalid, `SWITCHING` | none; the space's lock is held, so no CPU at EL2 sees this state | Break, TLBI, DSB, make at the target: done by the same CPU. |
//! | split | table of 4 KiB leaves at rest: copied ones at the target, the others at the source | vCPUs | The worker moves the others as 4 KiB units into the same target block, then promotes. |
//! | at rest | valid, at the target | vCPUs | |
//!
//! A guest may write to a 2 MiB unit that is being copied. The next step depends on how much is left to copy:
//! - At most [`Policy::stall_frames`](policy::Policy): the guest's CPU waits for the copy, or finishes the copy itself.
//! - More: the guest's CPU splits the unit, without copying. The guest then writes to the target if that page is copied,
//!   and to the source if not. If there is no memory for the table, the move is rolled back: the unit becomes writable
//!   at the source, and the worker tries it again later.
//!
//! A helper counts the frames that are left and claims the copy under one hold of the space's lock. The stall bound
//! therefore holds for the unit that it copies.
//!
//! # Order of barriers and invalidations
//! Titles in quotation marks are those of sections of the Arm ARM.
//!
//! 1. *Break or protect; DSB ISHST; TLBI IPAS2E1IS; DSB ISH; TLBI VMALLE1IS; DSB ISH*, before the first read of the
//!    source. When the last DSB completes, so have all stores through the old translation ("Ordering and
//!    completion of TLB maintenance instructions").
//! 2. *DC CIVAC on the source; copy; DC CIVAC on the target*. A guest with its MMU or caches off, or with a
//!    Non-cacheable mapping, accesses memory and not the cache ("Memory types and attributes", "Enabling and disabling
//!    the caching of memory accesses"). Fetches read at the point of unification.
//! 3. *DSB ISH; IC IALLUIS; DSB ISH* ([`Copier::synchronise_fetches`]), before the target can be fetched from. An
//!    instruction cache may still hold the target's previous content ("A64 Cache maintenance instructions"). One for a
//!    batch.
//! 4. *Make; DSB ISHST*. A change from invalid to valid needs no invalidation, since faults are not cached
//!    ("Translation Lookaside Buffers").
//! 5. *Scrub and release the source*. Since 1, no TLB has a translation to it.
//!
//! Hardware may set a leaf's access flag at any time. [`table`](crate::table) changes leaves by atomic operations that
//! keep it, and hardware does not write to an invalid descriptor ("Hardware management of the Access flag"): no update
//! is lost between break and make.
//!
//! A stage 1 walk through a unit in flight faults like any other access, with S1PTW set. If the walk updates the guest's
//! own descriptor, it writes, and takes a permission fault on a protected unit. A permission fault with S1PTW is therefore
//! handled as a write, whether or not the syndrome has WnR set.
//!
//! A Load-Exclusive succeeds on a protected unit. A Store-Exclusive or an atomic takes a permission fault. The exception
//! return clears the local monitor ("Synchronization and semaphores"), so the Store-Exclusive then fails and the guest
//! tries again. A unit may also move between a Load-Exclusive and its Store-Exclusive without a fault. Break-before-make
//! covers this case: monitors that are not cleared are among the consequences that the Arm ARM lists if it is omitted.
//! The global monitor then holds an address of the source, and the line there has been cleaned and invalidated.
//!
//! # Guests that start, reset or stop
//! The memory of such a guest is not accessible ([`Guests::absence`]). A job skips the guest and returns to it after the
//! other guests, a bounded number of times. While a job waits for a guest, it stays in the queue and other jobs run. A
//! job on behalf of a starting guest does not wait for other starting guests.
//!
//! # Idle time
//! Jobs may leave areas split into 4 KiB units. When no job can run, an idle CPU coalesces these areas
//! (`worker/coalesce.rs`). This never uses a guest's CPU time. Scattered units first move into one block, in batches, as in
//! a job; between two batches the area is at rest. A job that is submitted meanwhile starts once the area is complete.
//!
//! # Locks
//! In this order:
//! 1. the worker's ([`Engine::step`] tries it; only [`Engine::abandon`] waits for it),
//! 2. the jobs',
//! 3. one [`Space`]'s,
//! 4. an arena's ([`alloc`](crate::phys::alloc)).
//!
//! While the worker holds the jobs' lock, it checks whether a guest's memory is accessible; the check takes no lock.
//! Nothing is scrubbed or printed under a space's lock, and no more is copied under it than the stall bound allows.
//!
//! # Invariant
//! Each leaf of a guest's RAM is backed by one allocated block of the same size (order 0, 9 or 18) that the guest owns.
//! Demotion and promotion keep this ([`Frames::divide`], [`Frames::unite`]).
#![forbid(unsafe_code)]

mod copier;
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

pub use copier::{Copier, SOME, Time};
pub use engine::{Engine, Payer, Shortage, Step};
pub use host::{Absence, Frames, Guests, Host, Mobility, Region, Span};
pub use job::{JobId, JobReport, JobState, MAX_JOBS, Request, RequestError, Scope, Select};
pub use pacer::Pacer;
pub use reason::{Reason, Unmoved};
pub use space::{BATCH, Fault, Space, Verdict};
pub use statistics::{Counters, PairTotals, Statistics, Totals};
