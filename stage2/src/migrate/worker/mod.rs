//! The worker: what one turn of migration does. Every turn is short.
//!
//! A turn pays a debt (scrubs what was left over), or goes on with the area in flight, or finds the job's next
//! unit and begins with it. Nothing is kept on a stack between turns.

mod coalesce;
mod huge_page;
mod leftover;
mod pages;
mod size;

use heapless::Vec;

use self::coalesce::Coalescing;
use self::leftover::{Debt, Reserve};
use super::engine::{Engine, Payer};
use super::host::{Host, Time};
use super::job::{Cursor, JobId, JobReport, JobState, Request};
use super::plan::{self, Found, Next, Portion, SpanCache};
use super::reason::{Reason, Unmoved};
use super::space::Space;
use super::statistics::Counters;
use super::unit::Work;
use crate::addr::{Frame, Ipa};
use crate::controller::ControllerSet;
use crate::owner::{GuestId, MAX_GUESTS};
use crate::range::FrameRange;
use crate::scale::scaled;
use crate::table::{Leaf, Level};

/// What a turn came to.
pub(super) enum Turn {
    /// Something was done.
    Worked,
    /// Something was done that only idle CPUs do, and no job can go on.
    Spare,
    /// There is nothing to do.
    Idle,
    /// The limit of the rate is reached, for this many ticks.
    Wait(u64),
}

/// How a job goes on after a turn.
enum Outcome {
    Turn(Turn),
    Stop(JobState),
}

/// Slices between two looks at guests that are coming.
const WAIT_SLICES: u64 = 10;

/// Stands for no job.
const NOBODY: JobId = JobId::new(0);

const WORKED: Outcome = Outcome::Turn(Turn::Worked);

/// Where a turn takes place.
struct Place<'a, H: Host> {
    engine: &'a Engine,
    host: &'a H,
    space: &'a Space<H::Tables, H::Tlb>,
}

impl<H: Host> Place<'_, H> {
    const fn guest(&self) -> GuestId {
        self.space.guest()
    }

    fn counters(&self) -> &Counters {
        self.engine.statistics().guest(self.guest())
    }
}

/// The job being worked on.
struct Active {
    id: JobId,
    request: Request,
    cursor: Cursor,
    /// The region that `is_exhausted` is about.
    region: Option<(GuestId, Ipa)>,
    /// Whether the target has no frame left.
    is_exhausted: bool,
    /// How often the present unit was tried again.
    retries: u8,
    /// Bytes that may still move.
    left_bytes: u64,
}

impl Active {
    const fn new(id: JobId, request: Request, cursor: Cursor) -> Self {
        Self { id, request, cursor, region: None, is_exhausted: false, retries: 0, left_bytes: u64::MAX }
    }

    /// In the name of no job: to bring a guest to rest that jobs have left.
    fn nobody(guest: GuestId) -> Self {
        let request = Request::retire(FrameRange::EMPTY);
        let cursor = Cursor { guest: guest.index() as u8, is_counted: true, ..Cursor::default() };
        Self::new(NOBODY, request, cursor)
    }

    /// Changes what is known of the job.
    fn report(&self, engine: &Engine, f: impl FnOnce(&mut JobReport)) {
        if let Some(report) = engine.lock_jobs().report(self.id) {
            f(report);
        }
    }

    /// Notes that the guest has an area that stays split. What coalescing itself leaves so would only come again.
    fn note_split<H: Host>(&self, place: &Place<'_, H>) {
        if self.id != NOBODY {
            place.engine.note_split(place.guest());
        }
    }

    /// Counts what has moved, and charges it to the rates.
    fn count_moved<H: Host>(&self, place: &Place<'_, H>, level: Level, count: u64) {
        let (engine, host, guest) = (place.engine, place.host, place.guest());
        self.report(engine, |report| report.count_moved(level, count));
        let pacers = [
            (&engine.rate, engine.policy().rate_bytes()),
            (&engine.guest_rates[guest.index() % MAX_GUESTS], host.rate_bytes(guest)),
        ];
        for (pacer, rate) in pacers.into_iter().filter(|(_, rate)| *rate > 0) {
            pacer.charge(host.now(), scaled(count * level.size(), host.ticks_per_second(), rate));
        }
    }

    /// There is nothing more to look at: at the job's end, or because its guest has stopped meanwhile and is no longer to be
    /// seen.
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

    /// Moves the cursor on.
    fn reach<H: Host>(&mut self, place: &Place<'_, H>, from: Ipa, to: Ipa) {
        self.cursor.next = to;
        let bytes = to.get().saturating_sub(from.get());
        if bytes > 0 && self.request.frames().is_none() {
            // What it goes back to may be seen twice, or not have been there when it was counted.
            self.report(place.engine, |report| {
                report.scanned_bytes += bytes;
                report.total_bytes = report.total_bytes.max(report.scanned_bytes);
            });
        }
    }

    /// Counts what cannot move of a portion; `behind` is where it lies.
    fn count_unmoved<H: Host>(
        &self,
        place: &Place<'_, H>,
        portion: &Portion,
        reason: Reason,
        unmoved: &Unmoved,
        behind: ControllerSet,
    ) {
        self.report(place.engine, |report| {
            report.count_unmoved(reason, unmoved);
            if reason == Reason::NoFrame {
                report.stuck.add(behind, &portion.region.placement);
            }
        });
    }

    /// Counts what of `guest` was never seen at rest.
    fn miss<H: Host>(&self, engine: &Engine, host: &H, guest: GuestId) {
        let mut unmoved = Unmoved::default();
        let mut at = Ipa::default();
        while let Some(region) = host.region(guest, at) {
            unmoved.add(guest, region.ipa, 1, region.size);
            at = Ipa::new_truncate(region.ipa.get() + region.size);
        }
        self.report(engine, |report| report.count_unmoved(Reason::Busy, &unmoved));
    }

    /// Passes over `leaf`, which cannot move.
    fn skip<H: Host>(&mut self, place: &Place<'_, H>, portion: &Portion, leaf: Leaf, reason: Reason) {
        let end = (leaf.ipa().get() + leaf.size()).min(portion.end);
        let mut unmoved = Unmoved::default();
        let frame = plan::first_to_move(&self.request, leaf);
        unmoved.add_at(frame, portion.guest, leaf.ipa(), 1, end.saturating_sub(portion.from.get()));
        let behind = place.host.span_of(Frame::containing(leaf.pa())).map(|span| span.controller);
        self.count_unmoved(place, portion, reason, &unmoved, behind.into_iter().collect());
        self.retries = 0;
        self.reach(place, portion.from, Ipa::new_truncate(end));
    }
}

/// An optional value whose absence is all zeroes, so that a static engine takes no room in the image.
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
        // It has room for one.
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
    hands: Hands,
    coalescing: Coalescing,
    /// The job that time goes into, and since when.
    last: Option<JobId>,
    since: u64,
}

/// What the worker has in its hands, besides the job: apart from it, so that neither has to be moved aside while it is
/// worked on.
struct Hands {
    reserve: Slot<Reserve>,
    debts: Vec<Debt, 4>,
    sources: SpanCache,
    targets: SpanCache,
    /// When the present step is to end.
    deadline: u64,
}

/// Whether there is time left before `deadline`, and nothing else for this CPU to do.
fn is_before(time: &impl Time, deadline: u64) -> bool {
    time.now() < deadline && !time.is_wanted()
}

impl Worker {
    pub(super) const fn new() -> Self {
        let hands = Hands {
            reserve: Slot::empty(),
            debts: Vec::new(),
            sources: SpanCache::new(),
            targets: SpanCache::new(),
            deadline: 0,
        };
        Self { active: Slot::empty(), hands, coalescing: Coalescing::new(), last: None, since: 0 }
    }

    /// A step begins that is to end at `deadline`.
    pub(super) fn begin_step(&mut self, now: u64, deadline: u64) {
        self.since = now;
        self.hands.deadline = deadline;
    }

    /// Whether the step that began last is to go on.
    pub(super) fn goes_on(&self, time: &impl Time) -> bool {
        self.hands.goes_on(time)
    }

    /// Does the next thing, in time that is `payer`'s.
    pub(super) fn turn<H: Host>(&mut self, engine: &Engine, host: &H, payer: Payer) -> Turn {
        if self.hands.is_in_debt() && self.hands.pay_debt(engine, host) {
            return Turn::Worked;
        }
        let Some(active) = self.active.get_mut() else { return self.start_next(engine, host, payer) };
        match self.hands.advance(engine, host, active) {
            Outcome::Turn(turn) => turn,
            Outcome::Stop(state) => {
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

    fn start_next<H: Host>(&mut self, engine: &Engine, host: &H, payer: Payer) -> Turn {
        let is_moving = self.coalescing.is_moving();
        let next = {
            let mut jobs = engine.lock_jobs();
            let is_away = |guest| plan::is_away(host, guest);
            // An area in flight arrives first: no job begins meanwhile.
            let next = if is_moving { None } else { jobs.start_next(host.now(), is_away) };
            next.ok_or(if is_moving && jobs.has_ready(is_away) {
                Turn::Worked
            } else if jobs.has_queued() {
                // Each waits for a guest, which will not take long.
                Turn::Wait(WAIT_SLICES * engine.slice_ticks(host))
            } else {
                Turn::Idle
            })
        };
        let (id, request, cursor) = match next {
            Ok(next) => next,
            Err(Turn::Worked) => {
                self.hands.go_on_coalescing(engine, host, &mut self.coalescing);
                return Turn::Worked;
            }
            Err(Turn::Idle) if payer == Payer::Idle => {
                // The time goes into no job.
                self.charge(engine, host);
                self.last = None;
                return self.hands.coalesce(engine, host, &mut self.coalescing);
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

    /// Charges the time since then, or since the last charge, to the job that it went into.
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
        let place = Place { engine, host, space };
        // The job may have left the guest already, since it is no longer to be seen.
        let is_here = |active: &&mut Active| active.cursor.guest == guest.index() as u8;
        let mut job = self.active.take();
        let mut nobody = Active::nobody(guest);
        let active = job.as_mut().filter(is_here).unwrap_or(&mut nobody);
        self.hands.deadline = u64::MAX;
        loop {
            while self.hands.pay_debt(engine, host) {}
            match space.work() {
                Work::Nothing => break,
                Work::Whole(_) => self.hands.roll_back(&place),
                work => self.hands.go_on(&place, active, work),
            }
        }
        self.coalescing.leave(guest);
        if self.hands.reserve.get().is_some_and(|reserve| reserve.guest() == guest) {
            while self.hands.unreserve(host) {}
        }
        if let Some(active) = job.filter(|active| active.request.guest() != Some(guest)) {
            self.active.put(active);
        }
    }
}

impl Hands {
    fn goes_on(&self, time: &impl Time) -> bool {
        is_before(time, self.deadline)
    }

    fn advance<H: Host>(&mut self, engine: &Engine, host: &H, active: &mut Active) -> Outcome {
        let mut now = (JobState::Cancelled, 0);
        active.report(engine, |report| now = (report.state, report.moved.bytes()));
        let (state, moved_bytes) = now;
        active.left_bytes = active.request.limit_bytes.saturating_sub(moved_bytes);
        if let Some(guest) = GuestId::try_new(active.cursor.guest)
            && let Some(space) = host.space(guest)
        {
            let place = Place { engine, host, space };
            match space.work() {
                Work::Nothing => {}
                Work::Whole(_) if state == JobState::Cancelling => {
                    self.roll_back(&place);
                    return WORKED;
                }
                work => {
                    self.go_on(&place, active, work);
                    return WORKED;
                }
            }
        }
        let stop = match state {
            JobState::Cancelling | JobState::Cancelled => Some(JobState::Cancelled),
            JobState::Pausing => Some(JobState::Paused),
            _ if active.left_bytes == 0 => Some(JobState::Finished),
            // An owner's claim goes before the operator's convenience: this one goes on afterwards.
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

    /// Goes on with what is under way.
    fn go_on<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active, work: Work) {
        match work {
            Work::Nothing => {}
            Work::Whole(_) => self.copy_whole(place, active),
            Work::Switched { .. } | Work::GivenUp { .. } => self.settle(place, active),
            Work::Block(block) => self.move_block(place, active, block),
        }
    }

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
                    // The next 2 MiB have another target.
                    active.region = None;
                }
                portion
            }
            Next::Later => return WORKED,
            Next::Wait(_) if self.unreserve(host) => return WORKED,
            // Others may go on meanwhile.
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
        let place = Place { engine, host, space };
        let region = Some((guest, portion.region.ipa));
        if active.region != region {
            active.region = region;
            active.is_exhausted = false;
        }
        match self.find(&place, active, &portion) {
            Found::None(reached) => active.reach(&place, portion.from, reached),
            Found::Leaf(leaf) => {
                let from = leaf.ipa().max(portion.from);
                active.reach(&place, portion.from, from);
                self.begin(&place, active, &Portion { from, ..portion }, leaf);
            }
        }
        WORKED
    }

    /// Looks for the next leaf to move, and counts those that would have to but cannot.
    fn find<H: Host>(&mut self, place: &Place<'_, H>, active: &Active, portion: &Portion) -> Found {
        let obstacle = plan::obstacle(&active.request, &portion.region);
        let reason = obstacle.or(active.is_exhausted.then_some(Reason::NoFrame));
        let (mut unmoved, mut behind) = (Unmoved::default(), ControllerSet::EMPTY);
        let found = place.space.find(portion, |leaf| {
            let is_selected = plan::is_selected(&active.request.select, place.host, &mut self.sources, leaf);
            if is_selected && reason.is_some() {
                let frame = plan::first_to_move(&active.request, leaf);
                unmoved.add_at(frame, portion.guest, leaf.ipa(), 1, leaf.size());
                let controller = self.sources.controller(place.host, Frame::containing(leaf.pa()));
                behind = controller.map_or(behind, |controller| behind.with(controller));
            }
            is_selected && reason.is_none()
        });
        if let Some(reason) = reason.filter(|_| unmoved.leaf_count > 0) {
            active.count_unmoved(place, portion, reason, &unmoved, behind);
        }
        found
    }

    fn begin<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active, portion: &Portion, leaf: Leaf) {
        match leaf.level() {
            Level::L3 => self.begin_pages(place, active, portion, leaf),
            Level::L2
                if portion.holds(leaf.ipa(), leaf.size())
                    && plan::moves_whole(&active.request, leaf, active.left_bytes) =>
            {
                self.begin_whole(place, active, portion, leaf);
            }
            Level::L2 => self.demote(place, active, portion, leaf),
            _ => {
                if portion.region.largest == Level::L1
                    && portion.holds(leaf.ipa(), leaf.size())
                    && plan::moves_whole(&active.request, leaf, active.left_bytes)
                {
                    self.reserve(place, active, portion, leaf.ipa());
                }
                self.demote(place, active, portion, leaf);
            }
        }
    }
}
