//! State machine of an operation. Each turn does a bounded amount of work and chooses the next [`Phase`].
//!
//! | operation | phases |
//! |---|---|
//! | claim of a size | `Choose`, `Isolate`, `Count`, (`Weigh`,) `Move`, `Take`, `Show`, `Open` |
//! | claim of an exact range | `Choose` (to measure the pool), `Count`, then as above from `Isolate` on |
//! | release | `Verify`, `Hide`, `Give` |
//!
//! A claim that fails goes through `Undo`, and then tries another range (`ChooseAgain`), returns to the queue, or ends.

mod choose;
mod empty;
mod release;
mod take;
mod undo;

use super::cause::{Blocker, Cause};
use super::engine::Claims;
use super::exhaustive::Exhaustive;
use super::host::Host;
use super::operation::{Claimant, Kind, MAX_TRIES, Wish};
use super::records::Place;
use super::room::{Move, Tenants};
use super::search::Search;
use crate::addr::Frame;
use crate::migrate::{Engine, JobId};
use crate::owner::{GuestId, PoolId};
use crate::phys::alloc::Isolated;
use crate::phys::frame::Contents;
use crate::range::FrameRange;

/// Maximum number of frames scrubbed in a turn.
const SCRUB: u64 = 64;
/// Maximum number of migration jobs for one range, counted from the last one that completed its plan.
const ROUNDS: u8 = 4;

/// Result of a turn.
pub(super) enum Turn {
    /// The turn did some work.
    Worked,
    /// The operation waits for a job of migration.
    Waiting,
    /// The job is paused, or migration's queue is full.
    Stalled,
    /// There is no operation.
    Idle,
}

/// Work of the next turn. `Idle` is all zero bytes.
#[repr(u8)]
enum Phase {
    /// No operation.
    Idle,
    /// Searches for the range that is cheapest to empty.
    Choose(Search),
    /// Examines every range, after the first choice failed.
    ChooseAgain(Exhaustive),
    /// Counts the frames of the range that are in use, from frame number `next` on.
    ///
    /// Every range is counted once it is isolated. An exact range is also counted before, for the report.
    Count { next: u64, used: u64 },
    /// Isolates the range from this frame number on.
    Isolate(u64),
    /// Counts tenants by the controllers that they may move to, from frame number `next` on.
    Weigh { next: u64, tenants: Tenants },
    /// Waits for a migration job, or for a place in migration's queue.
    Move(Option<JobId>),
    /// Takes free frames. `left` are taken frames with these contents that have to be scrubbed and cleaned.
    Take { left: FrameRange, contents: Contents },
    /// Maps the rest of the range into the owner's window.
    Show,
    /// Ends the isolation of the claimed range.
    Open,
    /// Undoes a try, which failed for this reason.
    Undo(Blocker),
    /// Verifies that the claimant owns every frame from this frame number on.
    Verify(u64),
    /// Unmaps the rest of the range from the owner's window.
    Hide,
    /// Scrubs and frees the range from frame number `next` on. Frames before `scrubbed` are scrubbed.
    Give { next: u64, scrubbed: u64 },
}

/// The operation in progress.
struct Active {
    place: Place,
    pool: PoolId,
    range: FrameRange,
    isolated: Option<Isolated>,
    /// Number of the first frame that is not taken yet.
    taken: u64,
    /// Part of the range that is mapped in the owner's window.
    shown: FrameRange,
    /// Jobs so far that left frames of the range in use.
    rounds: u8,
    /// Frames that made a try fail.
    barred: heapless::Vec<Frame, MAX_TRIES>,
    /// Starts of the ranges whose tenants had no room elsewhere.
    tried: heapless::Vec<u64, MAX_TRIES>,
    /// Tenants that the next job moves, and their target, if room is short.
    plan: Option<Move>,
    /// Set if the operation returns to the queue once it is undone.
    makes_way: bool,
    /// Set if no range of the pool can be emptied.
    is_hopeless: bool,
    /// Reason for which the first search found no range.
    bar: Blocker,
    phase: Phase,
}

/// The worker's state between turns.
pub(super) struct Worker {
    active: Active,
    /// Frame number at which [`Claims::reclaim_some`] continues.
    reclaimed: u64,
}

impl Worker {
    pub(super) const fn new() -> Self {
        Self { active: Active::NONE, reclaimed: 0 }
    }

    /// Returns the operation in progress.
    pub(super) const fn place(&self) -> Option<Place> {
        match self.active.phase {
            Phase::Idle => None,
            _ => Some(self.active.place),
        }
    }

    /// Does one turn of work.
    pub(super) fn turn<H: Host>(&mut self, claims: &Claims, host: &H, engine: &Engine) -> Turn {
        if matches!(self.active.phase, Phase::Idle) {
            return self.start_next(claims, host);
        }
        match self.active.turn(claims, host, engine) {
            Some(turn) => turn,
            None => {
                self.active = Active::NONE;
                engine.note_freed();
                Turn::Worked
            }
        }
    }

    /// Starts the next operation of the queue, unless memory of an absent owner is left to reclaim.
    fn start_next<H: Host>(&mut self, claims: &Claims, host: &H) -> Turn {
        if claims.reclaim_some(host, &mut self.reclaimed) {
            return Turn::Worked;
        }
        let Some((place, report)) = claims.start_next(host) else { return Turn::Idle };
        let Some(pool) = claims.pools().and_then(|pools| pools.get(report.pool)) else { return Turn::Idle };
        if report.kind == Kind::Claim && !report.is_resumed {
            claims.statistics().count_tried();
        }
        host.note(&report);
        let (range, phase) = match (report.kind, report.wish) {
            (Kind::Claim, Wish::Sized { frames, align }) => {
                (FrameRange::EMPTY, Phase::Choose(Search::new(pool.range, frames, align)))
            }
            (Kind::Claim, Wish::Exactly(range)) => {
                // This search finds nothing, as the pool is too small. It measures how much of the pool is lent.
                (range, Phase::Choose(Search::new(pool.range, pool.range.frames() + 1, 1)))
            }
            (Kind::Release, Wish::Exactly(range)) => (range, Phase::Verify(range.start())),
            (Kind::Release, Wish::Sized { .. }) => return Turn::Worked,
        };
        self.active = Active { place, pool: report.pool, range, taken: range.start(), phase, ..Active::NONE };
        Turn::Worked
    }
}

impl Active {
    const NONE: Self = Self {
        place: Place::FIRST,
        pool: PoolId::FIRST,
        range: FrameRange::EMPTY,
        isolated: None,
        taken: 0,
        shown: FrameRange::EMPTY,
        rounds: 0,
        barred: heapless::Vec::new(),
        tried: heapless::Vec::new(),
        plan: None,
        makes_way: false,
        is_hopeless: false,
        bar: Blocker::NOTHING,
        phase: Phase::Idle,
    };

    /// Does one turn. `None` if the operation is over.
    fn turn<H: Host>(&mut self, claims: &Claims, host: &H, engine: &Engine) -> Option<Turn> {
        let phase = core::mem::replace(&mut self.phase, Phase::Idle);
        if let Phase::Move(job) = phase {
            let (next, turn) = self.wait(claims, host, engine, job);
            self.phase = next;
            return Some(turn);
        }
        let next = match phase {
            Phase::Idle | Phase::Move(_) => None,
            Phase::Choose(search) => self.choose(claims, host, search),
            Phase::ChooseAgain(search) => Some(self.choose_again(claims, host, search)),
            Phase::Weigh { next, tenants } => Some(self.weigh(claims, host, next, tenants)),
            Phase::Count { next, used } => Some(self.count(claims, host, next, used)),
            Phase::Isolate(next) => self.isolate(claims, host, next),
            Phase::Take { left, contents } => self.take(claims, host, left, contents),
            Phase::Show => Some(self.show(claims, host)),
            Phase::Open => self.open(claims, host),
            Phase::Undo(blocker) => self.undo(claims, host, blocker),
            Phase::Verify(next) => self.verify(claims, host, next),
            Phase::Hide => self.hide(claims, host),
            Phase::Give { next, scrubbed } => self.give(claims, host, next, scrubbed),
        };
        self.phase = next?;
        Some(Turn::Worked)
    }

    /// Returns the blocker of an operation that was cancelled or whose claimant stopped.
    fn cancellation(claims: &Claims, place: Place) -> Option<Blocker> {
        claims.report_at(place, |report| {
            let cause = match (report.is_orphan, report.is_cancelled) {
                (true, _) => Cause::OwnerGone,
                (_, true) => Cause::Cancelled,
                _ => return None,
            };
            Some(Blocker { frame: report.range.first(), cause })
        })
    }

    /// Returns the range of the pool.
    fn pool_range(&self, claims: &Claims) -> FrameRange {
        claims.pools().and_then(|pools| pools.get(self.pool)).map_or(FrameRange::EMPTY, |pool| pool.range)
    }

    /// Returns the frames that are not taken yet.
    fn rest(&self) -> FrameRange {
        FrameRange::from_numbers(self.taken, self.range.end()).unwrap_or_default()
    }

    /// Returns the guest that owns the pool. `None` if the claimant is not a guest.
    fn guest(&self, claims: &Claims) -> Option<GuestId> {
        match claims.report_at(self.place, |report| report.claimant) {
            Claimant::Guest(guest) => Some(guest),
            Claimant::Operator | Claimant::Units => None,
        }
    }
}
