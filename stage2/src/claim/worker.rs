//! What one turn of a claim or of a release does. Every turn is short; nothing is kept on a stack between turns.

use super::cause::{Blocker, Cause};
use super::engine::Claims;
use super::exhaustive::Exhaustive;
use super::host::{Ground, Host, after, slice_of};
use super::operation::{Claimant, Kind, Report, State, Try, Wish};
use super::records::Place;
use super::room::{Move, Piece, Room, Tenants};
use super::search::{Progress, Search, first_frame, is_fixed, pageblock_at};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES};
use crate::migrate::{Engine, JobId, JobReport, JobState, Reason, Request};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::alloc::{Glance, Isolated};
use crate::phys::frame::Contents;
use crate::range::FrameRange;

/// Pageblocks that are looked at in a turn, fewer where some are split.
const LOOK: u64 = 64;
/// Pageblocks that are isolated, or opened again, in a turn: each is gone through.
const ISOLATE: u64 = 4;
/// Frames that are scrubbed in a turn.
const SCRUB: u64 = 64;
/// Blocks that are verified in a turn: an owner may have claimed each frame for itself.
const VERIFY: usize = 64;
/// How often what is still in use is moved again.
const ROUNDS: u8 = 4;
/// Blocks and windows that are looked at in a turn, where tenants are told apart.
const TELL_APART: u64 = 64;

/// What a turn came to.
pub(super) enum Turn {
    /// Something was done.
    Worked,
    /// Migration has to do its part first.
    Waiting,
    /// Migration does nothing for it until somebody else acts: its job is paused, or has no place in the queue.
    Stalled,
    /// There is nothing to do.
    Idle,
}

/// What the next turn does. The first is all zero bytes.
#[repr(u8)]
enum Phase {
    /// There is no operation.
    Idle,
    /// Looks for a range.
    Choose(Search),
    /// Looks at every range, after the one that was chosen first did not do.
    ChooseAgain(Exhaustive),
    /// Counts what of the range is in use, from this frame number on: before it is isolated where an exact range was
    /// asked for, and after it always.
    Count { next: u64, used: u64 },
    /// Isolates the range from this frame number on.
    Isolate(u64),
    /// Counts the tenants by where they may move to, from this frame number on.
    Weigh { next: u64, tenants: Tenants },
    /// Waits for a job of migration, or for a place in its queue.
    Move(Option<JobId>),
    /// Takes free frames; scrubs and cleans what of the last ones is left.
    Take { left: FrameRange, contents: Contents },
    /// Shows what of the range is not shown yet.
    Show,
    /// Ends the isolation of what was taken and shown.
    Open,
    /// Gives back what was taken, and ends the isolation.
    Undo(Blocker),
    /// Verifies that everything from this frame number on is the owner's.
    Verify(u64),
    /// Hides what of the range is shown.
    Hide,
    /// Scrubs, gives back, from this frame number on; so far is scrubbed.
    Give { next: u64, scrubbed: u64 },
}

/// The operation being worked on.
struct Active {
    place: Place,
    pool: PoolId,
    range: FrameRange,
    isolated: Option<Isolated>,
    /// The number of the first frame not taken yet.
    taken: u64,
    /// What of the range the owning guest sees.
    shown: FrameRange,
    rounds: u8,
    /// Frames that were in the way.
    barred: heapless::Vec<Frame, { super::operation::MAX_TRIES }>,
    /// Starts of ranges whose tenants had no room.
    tried: heapless::Vec<u64, { super::operation::MAX_TRIES }>,
    /// Which tenants the next job moves where, if room is short.
    plan: Option<Move>,
    /// Whether the operation goes back to the queue once it is undone.
    makes_way: bool,
    /// Whether no range of the pool can be emptied.
    is_hopeless: bool,
    /// The first frame that no range may hold, as long as no range was tried.
    bar: Blocker,
    phase: Phase,
}

/// The worker's state between turns.
pub(super) struct Worker {
    active: Active,
    /// Where the search for what an owner that is gone has left goes on.
    reclaimed: u64,
}

impl Worker {
    pub(super) const fn new() -> Self {
        Self { active: Active::NONE, reclaimed: 0 }
    }

    /// The operation being worked on.
    pub(super) const fn place(&self) -> Option<Place> {
        match self.active.phase {
            Phase::Idle => None,
            _ => Some(self.active.place),
        }
    }

    /// Does the next thing.
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
                // Only to see how full the pool is: no window of more than the pool fits.
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

    /// One turn; `None`: the operation is over.
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

    /// The blocker of a claim that is to end, whatever it found.
    fn end_of(claims: &Claims, place: Place) -> Option<Blocker> {
        claims.report_at(place, |report| {
            let cause = match (report.is_orphan, report.is_cancelled) {
                (true, _) => Cause::OwnerGone,
                (_, true) => Cause::Cancelled,
                _ => return None,
            };
            Some(Blocker { frame: report.range.first(), cause })
        })
    }

    fn pool_range(&self, claims: &Claims) -> FrameRange {
        claims.pools().and_then(|pools| pools.get(self.pool)).map_or(FrameRange::EMPTY, |pool| pool.range)
    }

    fn choose<H: Host>(&mut self, claims: &Claims, host: &H, mut search: Search) -> Option<Phase> {
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        let barred = &self.barred;
        let is_barred = |part: FrameRange| barred.iter().any(|frame| part.contains(*frame));
        let found = match search.advance(host.ground(), is_barred, LOOK) {
            Progress::More => return Some(Phase::Choose(search)),
            Progress::Done(found) => found,
        };
        let lent = search.lent_per_cent();
        claims.statistics().saw_lent(self.pool, search.lent_frames());
        let is_exact = claims.report_at(self.place, |report| {
            if report.tries.is_empty() {
                report.lent_per_cent = lent;
            }
            matches!(report.wish, Wish::Exactly(_))
        });
        if is_exact {
            return Some(Phase::Count { next: self.range.start(), used: 0 });
        }
        let Some((range, used)) = found else {
            let (frame, bar) = search.bar(host.ground());
            let frame = frame.unwrap_or(self.pool_range(claims).first());
            self.bar = Blocker { frame, cause: Cause::NoRange(bar) };
            return Some(self.choose_elsewhere(claims, host).unwrap_or(Phase::Undo(self.bar)));
        };
        self.range = range;
        Some(self.begin_try(claims, used))
    }

    /// Counts on. What is in use is counted afresh once the range is isolated: from then on it only gets less.
    fn count<H: Host>(&mut self, claims: &Claims, host: &H, next: u64, used: u64) -> Phase {
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Phase::Undo(blocker);
        }
        let ground = host.ground();
        let (more, next) = used_frames(ground, next, self.range.end());
        let used = used + more;
        if next < self.range.end() {
            return Phase::Count { next, used };
        }
        if self.isolated.is_none() {
            return self.begin_try(claims, used);
        }
        let missing = used.saturating_sub(ground.free_frames());
        if missing > 0 {
            let cause = Cause::NoFrame { missing };
            return Phase::Undo(Blocker { frame: self.range.first(), cause });
        }
        let ground = host.ground();
        match used {
            0 => self.begin_take(claims),
            _ if Room::of(ground).is_ample(used, ground.controllers()) => self.begin_move(claims),
            _ => self.begin_weigh(),
        }
    }

    /// Begins to look at the ranges that the first search passes over: those that do not consist of whole pageblocks. `None`
    /// if there are none, or if there is too little free memory for any range.
    fn choose_elsewhere<H: Host>(&self, claims: &Claims, host: &H) -> Option<Phase> {
        let pool = claims.pools().and_then(|pools| pools.get(self.pool))?;
        let Wish::Sized { frames, align } = claims.report_at(self.place, |report| report.wish) else {
            return None;
        };
        let is_of_pageblocks =
            frames.is_multiple_of(PAGEBLOCK_FRAMES) && align.is_multiple_of(PAGEBLOCK_FRAMES);
        if is_of_pageblocks || frames > host.ground().free_frames() {
            return None;
        }
        Some(Phase::ChooseAgain(Exhaustive::new(pool.range, pool.controller, frames, align)))
    }

    fn choose_again<H: Host>(&mut self, claims: &Claims, host: &H, mut search: Exhaustive) -> Phase {
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Phase::Undo(blocker);
        }
        match search.advance(host.ground(), host, &self.barred, &self.tried, TELL_APART) {
            Progress::More => Phase::ChooseAgain(search),
            Progress::Done(Some((range, used))) => {
                self.range = range;
                self.begin_try(claims, used)
            }
            // The last try says what was in the way.
            Progress::Done(None) => {
                self.is_hopeless = true;
                let last =
                    claims.report_at(self.place, |report| report.tries.last().map(|last| last.blocker));
                Phase::Undo(last.unwrap_or(self.bar))
            }
        }
    }

    fn begin_weigh(&self) -> Phase {
        Phase::Weigh { next: self.range.start(), tenants: Tenants::default() }
    }

    /// Counts on by where tenants may move to. Then lets all move, or those that have to go first, or gives the range up
    /// before any does.
    fn weigh<H: Host>(&mut self, claims: &Claims, host: &H, mut next: u64, mut tenants: Tenants) -> Phase {
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Phase::Undo(blocker);
        }
        let (ground, end) = (host.ground(), self.range.end());
        for _ in 0..TELL_APART {
            if next >= end {
                break;
            }
            let frame = Frame::try_new(next).unwrap_or_default();
            next = match Piece::at(ground, host, next, pageblock_at(next).end().min(end)) {
                Piece::Free { end } => end,
                Piece::Tenant { kind, why, .. } if kind.is_empty() => {
                    return Phase::Undo(Blocker { frame, cause: why });
                }
                Piece::Tenant { end, kind, .. } => {
                    tenants.add(kind, end - next);
                    end
                }
                // What was claimed or retired meanwhile is found when frames are taken.
                Piece::Fixed { end } => end,
            };
        }
        if next < end {
            return Phase::Weigh { next, tenants };
        }
        let room = Room::of(ground);
        let missing = tenants.missing(&room);
        if missing > 0 {
            return Phase::Undo(Blocker { frame: self.range.first(), cause: Cause::NoFrame { missing } });
        }
        self.plan = if tenants.need_no_plan(&room) { None } else { tenants.next_move(&room) };
        if tenants.used() == 0 { self.begin_take(claims) } else { self.begin_move(claims) }
    }

    /// The range is chosen.
    fn begin_try(&mut self, claims: &Claims, used: u64) -> Phase {
        let range = self.range;
        let is_first = claims.report_at(self.place, |report| {
            report.range = range;
            report.state = State::Isolating;
            report.done = 0;
            let is_first = report.tries.is_empty();
            let _ = report.tries.push(Try { range, used, blocker: Blocker::default() });
            is_first
        });
        if !is_first {
            claims.statistics().count_retry();
        }
        self.taken = range.start();
        self.rounds = 0;
        Phase::Isolate(range.start())
    }

    fn isolate<H: Host>(&mut self, claims: &Claims, host: &H, next: u64) -> Option<Phase> {
        if let Some(blocker) = Self::end_of(claims, self.place) {
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

    fn begin_take(&self, claims: &Claims) -> Phase {
        claims.report_at(self.place, |report| report.state = State::Taking);
        Phase::Take { left: FrameRange::EMPTY, contents: Contents::Zeroed }
    }

    fn begin_move(&self, claims: &Claims) -> Phase {
        claims.report_at(self.place, |report| report.state = State::Moving);
        Phase::Move(None)
    }

    /// What has to be empty but is not taken yet.
    fn rest(&self) -> FrameRange {
        FrameRange::from_numbers(self.taken, self.range.end()).unwrap_or_default()
    }

    fn wait<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        engine: &Engine,
        job: Option<JobId>,
    ) -> (Phase, Turn) {
        let end = Self::end_of(claims, self.place);
        let Some(job) = job else {
            if let Some(blocker) = end {
                return (Phase::Undo(blocker), Turn::Worked);
            }
            // Where the queue is full, a later turn tries again.
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
            // The others come next, or all have moved.
            None if self.plan.take().is_some() => self.begin_weigh(),
            None => self.begin_take(claims),
        };
        (next, Turn::Worked)
    }

    /// What the next job is to move.
    fn request(&self, claims: &Claims) -> Request {
        let request = match self.plan {
            Some(plan) => Request::retire_some(self.rest(), plan.kind, plan.to, plan.frames),
            None => Request::retire(self.rest()),
        };
        // A guest that starts waits for this claim: neither is to wait for the other.
        match claims.report_at(self.place, |report| report.claimant) {
            Claimant::Units => request.without_starting(),
            Claimant::Operator | Claimant::Guest(_) => request,
        }
    }

    /// The first frame that a job has left in use for a reason that another round would not change, or, after too many
    /// rounds, the first that is in use.
    fn still_there(&mut self, ground: &impl Ground, job: &JobReport) -> Option<Blocker> {
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
        // A job that has moved all that it was to move has left the others to those after it.
        let moved = job.moved.bytes() / FRAME_SIZE;
        if blocker.is_none() && self.plan.is_some_and(|plan| moved >= plan.frames) {
            self.rounds = 0;
            return None;
        }
        self.rounds += 1;
        blocker.or((self.rounds >= ROUNDS).then_some(Blocker { frame, cause: Cause::Busy }))
    }

    fn take<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        left: FrameRange,
        contents: Contents,
    ) -> Option<Phase> {
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        let claimant = claims.report_at(self.place, |report| report.claimant);
        if !left.is_empty() {
            let count = left.frames().min(SCRUB);
            if contents == Contents::Dirty {
                host.scrub(left.first(), count);
            }
            if matches!(claimant, Claimant::Guest(_)) {
                host.clean(left.first(), count);
            }
            let left = FrameRange::from_numbers(left.start() + count, left.end()).unwrap_or_default();
            return Some(Phase::Take { left, contents });
        }
        if self.taken >= self.range.end() {
            return Some(Phase::Show);
        }
        let end = ((self.taken | (PAGEBLOCK_FRAMES - 1)) + 1).min(self.range.end());
        let part = FrameRange::from_numbers(self.taken, end).unwrap_or_default();
        let Some(isolated) = &self.isolated else { return Some(Phase::Undo(Blocker::default())) };
        match host.ground().take(isolated, part, self.pool) {
            Ok(contents) => {
                self.taken = end;
                let done = self.range.frames() + self.taken - self.range.start();
                claims.report_at(self.place, |report| report.done = done);
                let is_ready = contents == Contents::Zeroed && !matches!(claimant, Claimant::Guest(_));
                Some(Phase::Take { left: if is_ready { FrameRange::EMPTY } else { part }, contents })
            }
            Err(error) => {
                // A doubt about the books, or a tenant that is left: either is settled by another round.
                self.rounds += 1;
                if self.rounds > ROUNDS {
                    return Some(Phase::Undo(Blocker { frame: error.frame, cause: Cause::Busy }));
                }
                Some(self.begin_move(claims))
            }
        }
    }

    /// The guest that owns the pool, if one does.
    fn guest(&self, claims: &Claims) -> Option<GuestId> {
        match claims.report_at(self.place, |report| report.claimant) {
            Claimant::Guest(guest) => Some(guest),
            Claimant::Operator | Claimant::Units => None,
        }
    }

    /// Lets the owning guest see some of the range.
    fn show<H: Host>(&mut self, claims: &Claims, host: &H) -> Phase {
        let Some(guest) = self.guest(claims) else { return Phase::Open };
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Phase::Undo(blocker);
        }
        if self.shown.is_empty() {
            // Every frame was scrubbed before, and no tenant reaches one any more.
            host.invalidate_instructions();
        }
        let shown = self.shown.end().max(self.range.start());
        let slice = slice_of(FrameRange::from_numbers(shown, self.range.end()).unwrap_or_default());
        let Some(ipa) = host.show(guest, self.pool, slice) else {
            let cause = Cause::NoWindow;
            return Phase::Undo(Blocker { frame: slice.first(), cause });
        };
        if self.shown.is_empty() {
            claims.report_at(self.place, |report| report.ipa = ipa);
        }
        self.shown = FrameRange::from_numbers(self.range.start(), slice.end()).unwrap_or_default();
        if slice.end() < self.range.end() { Phase::Show } else { Phase::Open }
    }

    /// Hides some of what the owning guest sees. Yields whether it saw anything, or what cannot be hidden.
    fn hide_some<H: Host>(&mut self, claims: &Claims, host: &H) -> Result<bool, Blocker> {
        if self.shown.is_empty() {
            return Ok(false);
        }
        let Some(guest) = self.guest(claims) else {
            self.shown = FrameRange::default();
            return Ok(true);
        };
        let slice = host.slice_to_hide(guest, self.pool, self.shown);
        if !host.hide(guest, self.pool, slice) {
            return Err(Blocker { frame: slice.first(), cause: Cause::NoTable });
        }
        self.shown = after(self.shown, slice);
        Ok(true)
    }

    /// The operation ends here, since the owner cannot be kept from seeing some of the range: what nobody else may have
    /// stays claimed. A release can be asked for again; in the end it goes with the guest.
    fn end_seen<H: Host>(&self, claims: &Claims, host: &H, blocker: Blocker) {
        claims.report_at(self.place, |report| report.blocker = blocker);
        claims.end(host, self.place, State::Failed);
    }

    /// Ends the isolation, and then the claim.
    fn open<H: Host>(&mut self, claims: &Claims, host: &H) -> Option<Phase> {
        // Who ends a guest first makes its operations orphans, and then clears its windows: either it is seen here,
        // or the range is cleared away there, and found claimed by nobody.
        if let Some(blocker) = Self::end_of(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        if self.is_isolated_after_opening_some(host) {
            return Some(Phase::Open);
        }
        claims.statistics().saw_claimed(self.pool, host.ground().claimed_frames(self.pool));
        claims.end(host, self.place, State::Granted);
        None
    }

    /// Ends the isolation of some pageblocks. Yields whether others are left.
    fn is_isolated_after_opening_some<H: Host>(&mut self, host: &H) -> bool {
        let isolated = self.isolated.take();
        self.isolated = isolated.and_then(|isolated| host.ground().end_isolation_of_last(isolated, ISOLATE));
        self.isolated.is_some()
    }

    /// Undoes a try from its end to its beginning. Then the next range is tried, or the claim is over.
    fn undo<H: Host>(&mut self, claims: &Claims, host: &H, blocker: Blocker) -> Option<Phase> {
        claims.report_at(self.place, |report| {
            report.state = State::Undoing;
            report.ipa = Ipa::default();
        });
        // Hidden before it is given back.
        match self.hide_some(claims, host) {
            Ok(false) => {}
            Ok(true) => return Some(Phase::Undo(blocker)),
            Err(_) if self.is_isolated_after_opening_some(host) => return Some(Phase::Undo(blocker)),
            Err(seen) => {
                self.end_seen(claims, host, seen);
                return None;
            }
        }
        let start = self.range.start();
        if self.taken > start {
            let last = (self.taken - 1) & !(PAGEBLOCK_FRAMES - 1);
            let part = FrameRange::from_numbers(last.max(start), self.taken).unwrap_or_default();
            host.ground().give(part, self.pool, Contents::Dirty);
            self.taken = part.start();
            return Some(Phase::Undo(blocker));
        }
        if self.is_isolated_after_opening_some(host) {
            return Some(Phase::Undo(blocker));
        }
        let (is_sized, pool, frames, align, tries) = claims.report_at(self.place, |report| {
            if let Some(last) = report.tries.last_mut() {
                last.blocker = blocker;
            }
            let (is_sized, align) = match report.wish {
                Wish::Sized { align, .. } => (true, align),
                Wish::Exactly(_) => (false, 1),
            };
            (is_sized, report.pool, report.wish.frames(), align, report.tries.len())
        });
        let end = Self::end_of(claims, self.place);
        if end.is_none() && self.makes_way {
            claims.put_back(self.place);
            return None;
        }
        let is_tried_again = is_sized
            && blocker.cause.is_local()
            && tries < super::operation::MAX_TRIES
            && !self.is_hopeless
            // Whatever is in use of a range needs as many free frames elsewhere: together, no fewer than it has.
            && frames <= host.ground().free_frames();
        if end.is_none() && is_tried_again {
            if blocker.cause.is_of_frame() {
                let _ = self.barred.push(blocker.frame);
            } else {
                let _ = self.tried.push(start);
            }
            self.plan = None;
            let pool = claims.pools().and_then(|pools| pools.get(pool))?;
            claims.report_at(self.place, |report| report.state = State::Choosing);
            let search = Exhaustive::new(pool.range, pool.controller, frames, align);
            return Some(Phase::ChooseAgain(search));
        }
        let blocker = end.unwrap_or(blocker);
        claims.report_at(self.place, |report: &mut Report| {
            report.blocker = blocker;
            report.range = FrameRange::EMPTY;
        });
        let state = match blocker.cause {
            Cause::Cancelled | Cause::OwnerGone => State::Cancelled,
            _ => State::Failed,
        };
        claims.end(host, self.place, state);
        None
    }

    fn verify<H: Host>(&mut self, claims: &Claims, host: &H, next: u64) -> Option<Phase> {
        claims.report_at(self.place, |report| report.range = self.range);
        let mut number = next;
        let end = self.range.end();
        for _ in 0..VERIFY {
            if number >= end {
                break;
            }
            let left = FrameRange::from_numbers(number, number + 1).unwrap_or_default();
            let occupant = host.ground().occupant(left);
            let is_owned = |occupant: &crate::phys::alloc::Occupant| {
                occupant.owner == Some(Owner::Pool(self.pool)) && occupant.frame.number() <= number
            };
            let Some(occupant) = occupant.filter(is_owned) else {
                let blocker = Blocker { frame: left.first(), cause: Cause::NotClaimed };
                claims.report_at(self.place, |report| report.blocker = blocker);
                claims.end(host, self.place, State::Failed);
                return None;
            };
            number = occupant.end();
        }
        if number < end {
            return Some(Phase::Verify(number));
        }
        if let Some(guest) = self.guest(claims) {
            if !host.part(guest, self.pool, self.range) {
                let blocker = Blocker { frame: self.range.first(), cause: Cause::NoTable };
                claims.report_at(self.place, |report| report.blocker = blocker);
                claims.end(host, self.place, State::Failed);
                return None;
            }
            self.shown = self.range;
        }
        Some(Phase::Hide)
    }

    fn hide<H: Host>(&mut self, claims: &Claims, host: &H) -> Option<Phase> {
        let start = self.range.start();
        match self.hide_some(claims, host) {
            Ok(true) => Some(Phase::Hide),
            Ok(false) => Some(Phase::Give { next: start, scrubbed: start }),
            Err(seen) => {
                self.end_seen(claims, host, seen);
                None
            }
        }
    }

    fn give<H: Host>(&mut self, claims: &Claims, host: &H, next: u64, scrubbed: u64) -> Option<Phase> {
        if next >= self.range.end() {
            claims.end(host, self.place, State::Released);
            return None;
        }
        let end = ((next | (PAGEBLOCK_FRAMES - 1)) + 1).min(self.range.end());
        let part = FrameRange::from_numbers(next, end).unwrap_or_default();
        if scrubbed < end {
            let count = (end - scrubbed).min(SCRUB);
            host.scrub(Frame::try_new(scrubbed).unwrap_or_default(), count);
            return Some(Phase::Give { next, scrubbed: scrubbed + count });
        }
        host.ground().give(part, self.pool, Contents::Zeroed);
        let done = end - self.range.start();
        claims.report_at(self.place, |report| report.done = done);
        Some(Phase::Give { next: end, scrubbed: end })
    }
}

/// The first frame of `rest` that `job` has left in use for a reason that another round would not change, and that reason.
fn lasting_reason(ground: &impl Ground, rest: FrameRange, job: &JobReport) -> Option<Blocker> {
    let blockers = Reason::ALL.into_iter().filter_map(|reason| {
        let (frame, cause) = (job.unmoved(reason).frame?, Cause::of_migration(reason));
        let is_in_use = || ground.occupant(FrameRange::try_new(frame, 1).unwrap_or_default()).is_some();
        let is_it = !cause.is_passing() && rest.contains(frame) && is_in_use();
        is_it.then_some(Blocker { frame, cause })
    });
    blockers.min_by_key(|blocker| blocker.frame)
}

/// How many frames guests have from frame number `next` on, and where to go on counting: at most at `end`.
fn used_frames(ground: &impl Ground, next: u64, end: u64) -> (u64, u64) {
    let is_whole = next.is_multiple_of(PAGEBLOCK_FRAMES) && end - next >= PAGEBLOCK_FRAMES;
    let mut glances = [Glance::default(); 16];
    let most = ((end - next) / PAGEBLOCK_FRAMES).min(glances.len() as u64);
    let count = match Frame::try_new(next).filter(|_| is_whole) {
        Some(first) => ground.glances(first, &mut glances[..most as usize]),
        None => 0,
    };
    if count > 0 {
        let used = glances[..count].iter().map(|glance| u64::from(glance.lent())).sum();
        return (used, next + count as u64 * PAGEBLOCK_FRAMES);
    }
    let end = ((next | (PAGEBLOCK_FRAMES - 1)) + 1).min(end);
    let mut part = FrameRange::from_numbers(next, end).unwrap_or_default();
    let mut used = 0;
    while let Some(occupant) = ground.occupant(part) {
        let end = occupant.end().min(part.end());
        if !is_fixed(&occupant) {
            used += end - occupant.frame.number().max(part.start());
        }
        part = FrameRange::from_numbers(end, part.end()).unwrap_or_default();
    }
    (used, end)
}
