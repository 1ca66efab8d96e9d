//! Isolation of a range, and the migration jobs that empty it.

use super::{Active, Phase, ROUNDS, Turn};
use crate::addr::{FRAME_SIZE, PAGEBLOCK_FRAMES};
use crate::claim::cause::{Blocker, Cause};
use crate::claim::engine::Claims;
use crate::claim::host::{Ground, Host};
use crate::claim::operation::{Claimant, State};
use crate::claim::search::{first_frame, is_fixed};
use crate::migrate::{Engine, JobId, JobReport, JobState, Reason, Request};
use crate::owner::Owner;
use crate::phys::frame::Contents;
use crate::range::FrameRange;

/// Maximum number of pageblocks isolated in a turn. The frames of each are visited.
const ISOLATE: u64 = 4;

impl Active {
    /// Isolates the next pageblocks of the range.
    pub(super) fn isolate<H: Host>(&mut self, claims: &Claims, host: &H, next: u64) -> Option<Phase> {
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        let ground = host.ground();
        let end = ((next & !(PAGEBLOCK_FRAMES - 1)) + ISOLATE * PAGEBLOCK_FRAMES).min(self.range.end());
        let result = match &mut self.isolated {
            None => {
                let part = FrameRange::from_numbers(next, end).unwrap_or_default();
                ground.isolate(part, self.pool).map(|isolated| self.isolated = Some(isolated))
            }
            Some(isolated) => ground.isolate_on(isolated, end, self.pool),
        };
        if let Err(error) = result {
            let cause = Cause::of_isolation(error.reason);
            return Some(Phase::Undo(Blocker { frame: error.frame, cause }));
        }
        if end < self.range.end() {
            return Some(Phase::Isolate(end));
        }
        Some(Phase::Count { next: self.range.start(), used: 0 })
    }

    /// Begins to take the frames of the range.
    pub(super) fn begin_take(&self, claims: &Claims) -> Phase {
        claims.report_at(self.place, |report| report.state = State::Taking);
        Phase::Take { left: FrameRange::EMPTY, contents: Contents::Zeroed }
    }

    /// Begins to migrate the tenants of the range.
    pub(super) fn begin_move(&self, claims: &Claims) -> Phase {
        claims.report_at(self.place, |report| report.state = State::Moving);
        Phase::Move(None)
    }

    /// Submits a migration job, or checks on the one that was submitted.
    pub(super) fn wait<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        engine: &Engine,
        job: Option<JobId>,
    ) -> (Phase, Turn) {
        let end = Self::cancellation(claims, self.place);
        let Some(job) = job else {
            if let Some(blocker) = end {
                return (Phase::Undo(blocker), Turn::Worked);
            }
            // If the queue is full, a later turn tries again.
            return match engine.submit(self.request(claims)) {
                Ok(job) => (Phase::Move(Some(job)), Turn::Waiting),
                Err(_) => (Phase::Move(None), Turn::Stalled),
            };
        };
        let Some(report) = engine.job(job) else { return (self.begin_take(claims), Turn::Worked) };
        if !report.state.is_over() {
            let passed = (self.taken - self.range.start()) * 2;
            claims.report_at(self.place, |mine| mine.done = passed + report.scanned_bytes / FRAME_SIZE);
            let is_for_units = claims.report_at(self.place, |mine| mine.claimant == Claimant::Units);
            self.makes_way |= report.waits_for.is_some() && !is_for_units && claims.has_units_waiting();
            if end.is_some() || self.makes_way {
                let _ = engine.cancel(host, job);
            } else if report.state == JobState::Paused {
                return (Phase::Move(Some(job)), Turn::Stalled);
            }
            return (Phase::Move(Some(job)), Turn::Waiting);
        }
        claims.statistics().count_moved(report.moved);
        claims.report_at(self.place, |mine| {
            mine.moved.blocks += report.moved.blocks;
            mine.moved.pages += report.moved.pages;
            mine.migration_ticks += report.worked_ticks;
        });
        let blocker = end.or_else(|| {
            let makes_way = Blocker { frame: self.range.first(), cause: Cause::Busy };
            if self.makes_way { Some(makes_way) } else { self.still_there(host.ground(), &report) }
        });
        let next = match blocker {
            Some(blocker) => Phase::Undo(blocker),
            // Other tenants remain, or all have moved.
            None if self.plan.take().is_some() => self.begin_weigh(),
            None => self.begin_take(claims),
        };
        (next, Turn::Worked)
    }

    /// Returns the request for the next job.
    pub(super) fn request(&self, claims: &Claims) -> Request {
        let request = match self.plan {
            Some(plan) => Request::retire_some(self.rest(), plan.kind, plan.to, plan.frames),
            None => Request::retire(self.rest()),
        };
        // A claim for a starting guest must not wait for starting guests, which may wait for it.
        match claims.report_at(self.place, |report| report.claimant) {
            Claimant::Units => request.without_starting(),
            Claimant::Operator | Claimant::Guest(_) => request,
        }
    }

    /// Returns the first frame that `job` left in use, if another job would not help. After [`ROUNDS`] jobs, returns the
    /// first frame in use in any case.
    pub(super) fn still_there(&mut self, ground: &impl Ground, job: &JobReport) -> Option<Blocker> {
        let rest = self.rest();
        let occupant = ground.occupant(rest)?;
        let frame = first_frame(&occupant, rest);
        let fixed = match occupant.owner {
            Some(Owner::Pool(_)) => Some(Cause::Claimed),
            Some(owner) if is_fixed(&occupant) => Some(Cause::Fixed(owner)),
            _ => None,
        };
        let blocker = match fixed {
            Some(cause) => Some(Blocker { frame, cause }),
            None => lasting_reason(ground, rest, job),
        };
        // A job that has moved all tenants of its plan leaves the others to the next jobs.
        let moved = job.moved.bytes() / FRAME_SIZE;
        if blocker.is_none() && self.plan.is_some_and(|plan| moved >= plan.frames) {
            self.rounds = 0;
            return None;
        }
        self.rounds += 1;
        blocker.or((self.rounds >= ROUNDS).then_some(Blocker { frame, cause: Cause::Busy }))
    }
}

/// Returns the first frame of `rest` that `job` left in use for a reason that persists, and the reason.
fn lasting_reason(ground: &impl Ground, rest: FrameRange, job: &JobReport) -> Option<Blocker> {
    let blockers = Reason::ALL.into_iter().filter_map(|reason| {
        let (frame, cause) = (job.unmoved(reason).frame?, Cause::of_migration(reason));
        let is_in_use = || ground.occupant(FrameRange::try_new(frame, 1).unwrap_or_default()).is_some();
        let is_it = !cause.is_passing() && rest.contains(frame) && is_in_use();
        is_it.then_some(Blocker { frame, cause })
    });
    blockers.min_by_key(|blocker| blocker.frame)
}
