//! The worker: performs migration in short turns.
//!
//! A turn scrubs a pending block, continues the area in flight, or finds the job's next unit and starts it. No state is
//! kept on a stack between turns.

mod coalesce;
mod huge_page;
mod leftover;
mod pages;
mod size;

use heapless::Vec;

use self::coalesce::Coalescing;
use self::leftover::{PendingScrub, Reserve};
use super::copier::Time;
use super::engine::{Engine, Payer};
use super::host::Host;
use super::job::{Cursor, JobId, JobReport, JobState, Request};
use super::plan::{self, Found, Next, Portion, SpanCache};
use super::reason::{Reason, Unmoved};
use super::space::Space;
use super::statistics::Counters;
use super::unit::Work;
use crate::addr::{FRAME_SIZE, Frame, Ipa};
use crate::controller::ControllerSet;
use crate::owner::{GuestId, MAX_GUESTS};
use crate::range::FrameRange;
use crate::scale::scaled;
use crate::table::{Leaf, Level};

/// The result of a turn.
pub(super) enum Turn {
    /// Work was done.
    Worked,
    /// Work was done that only idle CPUs do; no job can run.
    Spare,
    /// There is nothing to do.
    Idle,
    /// Nothing can be done for this many ticks: the rate limit is reached, or all jobs wait for guests.
    Wait(u64),
}

/// The result of a turn of a job: the job continues, or stops in a state.
enum Outcome {
    Turn(Turn),
    Stop(JobState),
}

/// Number of slices between two looks at absent guests.
const WAIT_SLICES: u64 = 10;

/// The number of no job.
const NOBODY: JobId = JobId::new(0);

const WORKED: Outcome = Outcome::Turn(Turn::Worked);

/// The engine, the machine and the guest's address space of a turn.
struct Context<'a, H: Host> {
    engine: &'a Engine,
    host: &'a H,
    space: &'a Space<H::Tables, H::Tlb>,
}

impl<H: Host> Context<'_, H> {
    const fn guest(&self) -> GuestId {
        self.space.guest()
    }

    fn counters(&self) -> &Counters {
        self.engine.statistics().guest(self.guest())
    }
}

/// The running job.
struct Active {
    id: JobId,
    request: Request,
    cursor: Cursor,
    /// The region that `is_exhausted` refers to.
    region: Option<(GuestId, Ipa)>,
    /// True if the target has no free frame left.
    is_exhausted: bool,
    /// Number of times that the current unit was tried again.
    retries: u8,
    /// Bytes that may still move within the request's limit.
    left_bytes: u64,
}

impl Active {
    const fn new(id: JobId, request: Request, cursor: Cursor) -> Self {
        Self { id, request, cursor, region: None, is_exhausted: false, retries: 0, left_bytes: u64::MAX }
    }

    /// Makes a stand-in for a job, to bring a guest to rest after the job has left it.
    fn nobody(guest: GuestId) -> Self {
        let request = Request::retire(FrameRange::EMPTY);
        let cursor = Cursor { guest: guest.index() as u8, is_counted: true, ..Cursor::default() };
        Self::new(NOBODY, request, cursor)
    }

    /// Updates the job's report.
    fn report(&self, engine: &Engine, f: impl FnOnce(&mut JobReport)) {
        if let Some(report) = engine.lock_jobs().report(self.id) {
            f(report);
        }
    }

    /// Notes that an area of the guest stays split, unless coalescing itself left it so: that would repeat for ever.
    fn note_split<H: Host>(&self, context: &Context<'_, H>) {
        if self.id != NOBODY {
            context.engine.note_split(context.guest());
        }
    }

    /// Counts moved units, and charges them to the rate limits.
    fn count_moved<H: Host>(&self, context: &Context<'_, H>, level: Level, count: u64) {
        let (engine, host, guest) = (context.engine, context.host, context.guest());
        self.report(engine, |report| report.count_moved(level, count));
        let pacers = [
            (&engine.rate, engine.policy().rate_bytes()),
            (&engine.guest_rates[guest.index() % MAX_GUESTS], host.rate_bytes(guest)),
        ];
        for (pacer, rate) in pacers.into_iter().filter(|(_, rate)| *rate > 0) {
            pacer.charge(host.now(), scaled(count * level.size(), host.ticks_per_second(), rate));
        }
    }

    /// Returns the final state of a job with nothing left to look at: it is complete, or its guest has stopped
    /// meanwhile.
    fn end<H: Host>(&self, engine: &Engine, host: &H) -> JobState {
        let is_gone = self.request.guest().is_some_and(|guest| host.space(guest).is_none());
        let mut state = JobState::Finished;
        if is_gone {
            self.report(engine, |report| {
                let is_whole = report.total_bytes > 0 && report.scanned_bytes >= report.total_bytes;
                if !is_whole {
                    report.is_abandoned = true;
                    state = JobState::Cancelled;
                }
            });
        }
        state
    }

    /// Advances the cursor.
    fn reach<H: Host>(&mut self, context: &Context<'_, H>, from: Ipa, to: Ipa) {
        self.cursor.next = to;
        let bytes = to.get().saturating_sub(from.get());
        if bytes > 0 && self.request.frames().is_none() {
            // Memory that the job goes back to may be seen twice, or may not be part of the total.
            self.report(context.engine, |report| {
                report.scanned_bytes += bytes;
                report.total_bytes = report.total_bytes.max(report.scanned_bytes);
            });
        }
    }

    /// Counts memory of a portion that cannot move. It lies behind the controllers in `behind`.
    fn count_unmoved<H: Host>(
        &self,
        context: &Context<'_, H>,
        portion: &Portion,
        reason: Reason,
        unmoved: &Unmoved,
        behind: ControllerSet,
    ) {
        self.report(context.engine, |report| {
            report.count_unmoved(reason, unmoved);
            if reason == Reason::NoFrame {
                report.stuck.add(behind, &portion.region.placement);
            }
        });
    }

    /// Counts all RAM of `guest` as unmoved: it could never be reached.
    fn miss<H: Host>(&self, engine: &Engine, host: &H, guest: GuestId) {
        let mut unmoved = Unmoved::default();
        let mut at = Ipa::default();
        while let Some(region) = host.region(guest, at) {
            unmoved.add(guest, region.ipa, 1, region.size);
            at = Ipa::new_truncate(region.ipa.get() + region.size);
        }
        self.report(engine, |report| report.count_unmoved(Reason::Busy, &unmoved));
    }

    /// Skips `leaf`, which cannot move.
    fn skip<H: Host>(&mut self, context: &Context<'_, H>, portion: &Portion, leaf: Leaf, reason: Reason) {
        let end = (leaf.ipa().get() + leaf.size()).min(portion.end);
        let mut unmoved = Unmoved::default();
        let frame = plan::first_to_move(&self.request, leaf);
        unmoved.add_at(frame, portion.guest, leaf.ipa(), 1, end.saturating_sub(portion.from.get()));
        let behind = context.host.span_of(Frame::containing(leaf.pa())).map(|span| span.controller);
        self.count_unmoved(context, portion, reason, &unmoved, behind.into_iter().collect());
        self.retries = 0;
        self.reach(context, portion.from, Ipa::new_truncate(end));
    }
}

/// An optional value. `None` is all zeroes, so that a static engine takes no room in the image.
struct Slot<T>(Vec<T, 1>);

impl<T> Slot<T> {
    const fn empty() -> Self {
        Self(Vec::new())
    }

    fn take(&mut self) -> Option<T> {
        self.0.pop()
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn put(&mut self, value: T) {
        self.0.clear();
        // Cannot fail: there is room for one.
        let _ = self.0.push(value);
    }

    fn get(&self) -> Option<&T> {
        self.0.first()
    }

    fn get_mut(&mut self) -> Option<&mut T> {
        self.0.first_mut()
    }
}

/// The worker's state between turns.
pub(super) struct Worker {
    active: Slot<Active>,
    mover: Mover,
    coalescing: Coalescing,
    /// The job that time is charged to.
    last: Option<JobId>,
    /// The time of the last charge.
    since: u64,
}

/// The worker's state besides the job, which can be borrowed at the same time.
struct Mover {
    reserve: Slot<Reserve>,
    pending_scrubs: Vec<PendingScrub, 4>,
    sources: SpanCache,
    targets: SpanCache,
    /// The end of the current step.
    deadline: u64,
}

/// Returns whether `deadline` is ahead and this CPU has nothing more urgent to do.
fn is_before(time: &impl Time, deadline: u64) -> bool {
    time.now() < deadline && !time.is_wanted()
}

impl Worker {
    pub(super) const fn new() -> Self {
        let mover = Mover {
            reserve: Slot::empty(),
            pending_scrubs: Vec::new(),
            sources: SpanCache::new(),
            targets: SpanCache::new(),
            deadline: 0,
        };
        Self { active: Slot::empty(), mover, coalescing: Coalescing::new(), last: None, since: 0 }
    }

    /// Starts a step that is to end at `deadline`.
    pub(super) fn begin_step(&mut self, now: u64, deadline: u64) {
        self.since = now;
        self.mover.deadline = deadline;
    }

    /// Returns whether the current step may continue.
    pub(super) fn may_continue(&self, time: &impl Time) -> bool {
        self.mover.may_continue(time)
    }

    /// Performs one turn in `payer`'s time.
    pub(super) fn turn<H: Host>(&mut self, engine: &Engine, host: &H, payer: Payer) -> Turn {
        if self.mover.has_pending_scrub() && self.mover.scrub_pending(engine, host) {
            return Turn::Worked;
        }
        let Some(active) = self.active.get_mut() else { return self.start_next(engine, host, payer) };
        match self.mover.advance(engine, host, active) {
            Outcome::Turn(turn) => turn,
            Outcome::Stop(state) => {
                // An evacuation has not finished while memory is left behind the controller.
                if state == JobState::Finished
                    && let Some(controllers) = active.request.evacuated()
                {
                    let claimed = host.claimed_frames(controllers) * FRAME_SIZE;
                    if let Some(report) = engine.lock_jobs().report(active.id) {
                        report.count_claimed(claimed);
                    }
                }
                let left = engine.lock_jobs().stop(active.id, state, active.cursor, host.now());
                let left = left.unwrap_or(state);
                host.has_reached(active.id, left);
                if left.is_over() {
                    engine.note_freed();
                }
                self.active.clear();
                Turn::Worked
            }
        }
    }

    /// Starts the next job, or coalesces if no job can run.
    fn start_next<H: Host>(&mut self, engine: &Engine, host: &H, payer: Payer) -> Turn {
        let is_moving = self.coalescing.is_moving();
        let next = {
            let mut jobs = engine.lock_jobs();
            let is_away = |guest| plan::is_away(host, guest);
            // An area in flight is completed first: no job starts meanwhile.
            let next = if is_moving { None } else { jobs.start_next(host.now(), is_away) };
            next.ok_or(if is_moving && jobs.has_ready(is_away) {
                Turn::Worked
            } else if jobs.has_queued() {
                // All jobs wait for guests, which will not take long.
                Turn::Wait(WAIT_SLICES * engine.slice_ticks(host))
            } else {
                Turn::Idle
            })
        };
        let (id, request, cursor) = match next {
            Ok(next) => next,
            Err(Turn::Worked) => {
                self.mover.continue_coalescing(engine, host, &mut self.coalescing);
                return Turn::Worked;
            }
            Err(Turn::Idle) if payer == Payer::Idle => {
                // Coalescing is charged to no job.
                self.charge(engine, host);
                self.last = None;
                return self.mover.coalesce(engine, host, &mut self.coalescing);
            }
            Err(turn) => return turn,
        };
        let mut active = Active::new(id, request, cursor);
        if !active.cursor.is_counted {
            active.cursor.is_counted = true;
            let bytes = plan::total_bytes(host, &request);
            active.report(engine, |report| report.total_bytes = bytes);
        }
        host.has_reached(id, JobState::Running);
        self.charge(engine, host);
        self.last = Some(id);
        self.active.put(active);
        Turn::Worked
    }

    /// Charges the time since the last charge to the job that used it.
    pub(super) fn charge<H: Host>(&mut self, engine: &Engine, host: &H) {
        let now = host.now();
        let ticks = now.wrapping_sub(self.since);
        self.since = now;
        let Some(id) = self.last else { return };
        if let Some(report) = engine.lock_jobs().report(id) {
            report.worked_ticks += ticks;
        }
    }

    /// Brings `space` to rest: see [`Engine::abandon`].
    pub(super) fn abandon<H: Host>(&mut self, engine: &Engine, host: &H, space: &Space<H::Tables, H::Tlb>) {
        let guest = space.guest();
        let context = Context { engine, host, space };
        // The job may have left the guest already, since the guest is gone.
        let is_here = |active: &&mut Active| active.cursor.guest == guest.index() as u8;
        let mut job = self.active.take();
        let mut nobody = Active::nobody(guest);
        let active = job.as_mut().filter(is_here).unwrap_or(&mut nobody);
        self.mover.deadline = u64::MAX;
        loop {
            while self.mover.scrub_pending(engine, host) {}
            match space.work() {
                Work::Nothing => break,
                Work::Huge(_) => self.mover.roll_back(&context),
                work => self.mover.continue_work(&context, active, work),
            }
        }
        self.coalescing.leave(guest);
        if self.mover.reserve.get().is_some_and(|reserve| reserve.guest() == guest) {
            while self.mover.unreserve(host) {}
        }
        if let Some(active) = job.filter(|active| active.request.guest() != Some(guest)) {
            self.active.put(active);
        }
    }
}

impl Mover {
    fn may_continue(&self, time: &impl Time) -> bool {
        is_before(time, self.deadline)
    }

    /// Performs one turn of a job.
    fn advance<H: Host>(&mut self, engine: &Engine, host: &H, active: &mut Active) -> Outcome {
        let mut now = (JobState::Cancelled, 0);
        active.report(engine, |report| now = (report.state, report.moved.bytes()));
        let (state, moved_bytes) = now;
        active.left_bytes = active.request.limit_bytes.saturating_sub(moved_bytes);
        if let Some(guest) = GuestId::try_new(active.cursor.guest)
            && let Some(space) = host.space(guest)
        {
            let context = Context { engine, host, space };
            match space.work() {
                Work::Nothing => {}
                Work::Huge(_) if state == JobState::Cancelling => {
                    self.roll_back(&context);
                    return WORKED;
                }
                work => {
                    self.continue_work(&context, active, work);
                    return WORKED;
                }
            }
        }
        let stop = match state {
            JobState::Cancelling | JobState::Cancelled => Some(JobState::Cancelled),
            JobState::Pausing => Some(JobState::Paused),
            _ if active.left_bytes == 0 => Some(JobState::Finished),
            // A claim precedes the operator's jobs: this one continues afterwards.
            _ if engine.lock_jobs().is_overtaken(&active.request, |guest| plan::is_away(host, guest)) => {
                Some(JobState::Queued)
            }
            _ => None,
        };
        match stop {
            Some(_) if self.unreserve(host) => WORKED,
            Some(state) => Outcome::Stop(state),
            None => self.next_unit(engine, host, active),
        }
    }

    /// Continues the work in flight.
    fn continue_work<H: Host>(&mut self, context: &Context<'_, H>, active: &mut Active, work: Work) {
        match work {
            Work::Nothing => {}
            Work::Huge(_) => self.copy_huge(context, active),
            Work::Switched { .. } | Work::GivenUp { .. } => self.settle(context, active),
            Work::Block(block) => self.move_block(context, active, block),
        }
    }

    /// Finds the job's next unit and starts it.
    fn next_unit<H: Host>(&mut self, engine: &Engine, host: &H, active: &mut Active) -> Outcome {
        let mut missed = Unmoved::default();
        let next = plan::next_portion(host, &active.request, &mut active.cursor, &mut missed);
        if missed.leaf_count > 0 {
            active.report(engine, |report| report.count_unmoved(Reason::Busy, &missed));
        }
        if let Some(bytes) = plan::cleared_bytes(&active.request, &active.cursor) {
            let bytes = if matches!(next, Next::End) { u64::MAX } else { bytes };
            active.report(engine, |report| report.scanned_bytes = bytes.min(report.total_bytes));
        }
        let portion = match next {
            Next::Portion(mut portion) => {
                if let Some(end) = active.request.aim(portion.from) {
                    portion.end = portion.end.min(end);
                    // The next area has another target.
                    active.region = None;
                }
                portion
            }
            Next::Later => return WORKED,
            Next::Wait(_) if self.unreserve(host) => return WORKED,
            // Other jobs may run meanwhile.
            Next::Wait(guest) => {
                active.report(engine, |report| report.waits_for = Some(guest));
                return Outcome::Stop(JobState::Queued);
            }
            Next::Missed(guest) => {
                active.miss(engine, host, guest);
                return WORKED;
            }
            Next::End if self.unreserve(host) => return WORKED,
            Next::End => return Outcome::Stop(active.end(engine, host)),
        };
        let guest = portion.guest;
        if !self.is_reserve_for(guest, portion.from) && self.unreserve(host) {
            return WORKED;
        }
        if let Some(wait) = engine.rate_wait(host, guest) {
            return Outcome::Turn(Turn::Wait(wait));
        }
        let Some(space) = host.space(guest) else { return WORKED };
        let context = Context { engine, host, space };
        let region = Some((guest, portion.region.ipa));
        if active.region != region {
            active.region = region;
            active.is_exhausted = false;
        }
        match self.find(&context, active, &portion) {
            Found::None(reached) => active.reach(&context, portion.from, reached),
            Found::Leaf(leaf) => {
                let from = leaf.ipa().max(portion.from);
                active.reach(&context, portion.from, from);
                self.begin(&context, active, &Portion { from, ..portion }, leaf);
            }
        }
        WORKED
    }

    /// Finds the next leaf to move, and counts selected leaves that cannot move.
    fn find<H: Host>(&mut self, context: &Context<'_, H>, active: &Active, portion: &Portion) -> Found {
        let obstacle = plan::obstacle(&active.request, &portion.region);
        let reason = obstacle.or(active.is_exhausted.then_some(Reason::NoFrame));
        let (mut unmoved, mut behind) = (Unmoved::default(), ControllerSet::EMPTY);
        let found = context.space.find(portion, |leaf| {
            let is_selected =
                plan::is_selected(&active.request.select, context.host, &mut self.sources, leaf);
            if is_selected && reason.is_some() {
                let frame = plan::first_to_move(&active.request, leaf);
                unmoved.add_at(frame, portion.guest, leaf.ipa(), 1, leaf.size());
                let controller = self.sources.controller(context.host, Frame::containing(leaf.pa()));
                behind = controller.map_or(behind, |controller| behind.with(controller));
            }
            is_selected && reason.is_none()
        });
        if let Some(reason) = reason.filter(|_| unmoved.leaf_count > 0) {
            active.count_unmoved(context, portion, reason, &unmoved, behind);
        }
        found
    }

    /// Starts to move `leaf`, or demotes it to move its parts.
    fn begin<H: Host>(
        &mut self,
        context: &Context<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        match leaf.level() {
            Level::L3 => self.begin_pages(context, active, portion, leaf),
            Level::L2
                if portion.holds(leaf.ipa(), leaf.size())
                    && plan::moves_as_one(&active.request, leaf, active.left_bytes) =>
            {
                self.begin_huge(context, active, portion, leaf);
            }
            Level::L2 => self.demote(context, active, portion, leaf),
            _ => {
                if portion.region.largest == Level::L1
                    && portion.holds(leaf.ipa(), leaf.size())
                    && plan::moves_as_one(&active.request, leaf, active.left_bytes)
                {
                    self.reserve(context, active, portion, leaf.ipa());
                }
                self.demote(context, active, portion, leaf);
            }
        }
    }
}
