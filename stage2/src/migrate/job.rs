//! Jobs: what is to move, how far it got, and the queue.

use core::fmt;

use heapless::Vec;

use super::reason::{Reason, Unmoved};
use super::statistics::PairTotals;
use crate::addr::{FRAME_SIZE, Ipa, PAGEBLOCK_SIZE};
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::GuestId;
use crate::phys::placement::{Placement, Strictness, Turns};
use crate::range::FrameRange;
use crate::size::Compact;
use crate::table::Level;

/// How many jobs are kept, the finished ones among them.
pub const MAX_JOBS: usize = 16;

/// The number of a job, counted from 1 since boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(u32);

impl JobId {
    /// Job `number`, which need not exist.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// Where a job looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// In all guests.
    Everything,
    /// In all RAM of one.
    Guest(GuestId),
    /// In a range of one's IPA: its start and its bytes.
    Range(GuestId, Ipa, u64),
}

/// Which leaves a job moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    /// Those that lie behind these controllers.
    Behind(ControllerSet),
    /// Those that touch these frames.
    Touching(FrameRange),
}

/// What is to be moved where.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Where to look.
    pub scope: Scope,
    /// What to move.
    pub select: Select,
    /// Where to; `None`: where the region's own placement says.
    pub to: Option<Placement>,
    /// The job ends when this is moved.
    pub limit_bytes: u64,
    /// Whether what a region's own placement does not allow there stays.
    pub keeps_placement: bool,
    /// Behind which controller each 2 MiB shall lie, where they take turns: `select` and `to` follow.
    pub turns: Option<Turns>,
    /// Whether guests that are starting are passed over, instead of waited for.
    pub skips_starting: bool,
    /// Of a job by frames: only what may lie behind just these controllers moves. Not a frame more than `limit_bytes` moves
    /// then, and nothing outside the frames moves along.
    pub(crate) of_kind: Option<ControllerSet>,
}

impl Request {
    /// Everything in `scope` to `target`.
    pub const fn migrate(scope: Scope, target: ControllerId) -> Self {
        Self {
            scope,
            select: Select::Behind(ControllerSet::ALL.without(target)),
            to: Some(Placement::only(target)),
            limit_bytes: u64::MAX,
            keeps_placement: false,
            turns: None,
            skips_starting: false,
            of_kind: None,
        }
    }

    /// Everything behind `controller` to where its placement says. Close the controller first.
    pub const fn evacuate(controller: ControllerId) -> Self {
        Self {
            scope: Scope::Everything,
            select: Select::Behind(ControllerSet::EMPTY.with(controller)),
            to: None,
            limit_bytes: u64::MAX,
            keeps_placement: false,
            turns: None,
            skips_starting: false,
            of_kind: None,
        }
    }

    /// What in `scope` lies behind none of the controllers that `placement` names, to those.
    pub fn pin(scope: Scope, placement: Placement) -> Self {
        let (named, _) = placement.named();
        let others = named.iter().fold(ControllerSet::ALL, ControllerSet::without);
        Self {
            scope,
            select: Select::Behind(others),
            to: Some(placement),
            limit_bytes: u64::MAX,
            keeps_placement: false,
            turns: None,
            skips_starting: false,
            of_kind: None,
        }
    }

    /// What in `scope` does not lie where `turns` say, to there: `set` are the controllers that take turns.
    pub const fn spread(scope: Scope, set: ControllerSet, turns: Turns) -> Self {
        Self {
            scope,
            select: Select::Behind(ControllerSet::ALL),
            to: Some(Placement::Interleave(set, Strictness::Strict)),
            limit_bytes: u64::MAX,
            keeps_placement: false,
            turns: Some(turns),
            skips_starting: false,
            of_kind: None,
        }
    }

    /// Where controllers take turns, aims at the one whose turn it is at `ipa`. Yields the end of its 2 MiB.
    pub(super) fn aim(&mut self, ipa: Ipa) -> Option<u64> {
        let target = self.turns.as_ref()?.at(ipa);
        self.select = Select::Behind(ControllerSet::ALL.without(target));
        self.to = Some(Placement::only(target));
        Some((ipa.get() & !(PAGEBLOCK_SIZE - 1)) + PAGEBLOCK_SIZE)
    }

    /// What stands on `frames`, to where its placement says. Keep the allocator from handing them out
    /// first.
    pub const fn retire(frames: FrameRange) -> Self {
        Self {
            scope: Scope::Everything,
            select: Select::Touching(frames),
            to: None,
            limit_bytes: u64::MAX,
            keeps_placement: false,
            turns: None,
            skips_starting: false,
            of_kind: None,
        }
    }

    /// The same request, which does not wait for guests that are starting: for the sake of one that starts, and so waits
    /// itself.
    pub const fn without_starting(self) -> Self {
        Self { skips_starting: true, ..self }
    }

    /// As [`Self::retire`], of the tenants that may lie behind just the controllers of `kind`: `count` frames, to `target`.
    pub(crate) const fn retire_some(
        frames: FrameRange,
        kind: ControllerSet,
        target: ControllerId,
        count: u64,
    ) -> Self {
        Self {
            to: Some(Placement::only(target)),
            limit_bytes: count * FRAME_SIZE,
            of_kind: Some(kind),
            ..Self::retire(frames)
        }
    }

    /// `bytes` of what in `scope` may lie there, from one controller to another.
    pub const fn shift(scope: Scope, from: ControllerId, to: ControllerId, bytes: u64) -> Self {
        Self {
            scope,
            select: Select::Behind(ControllerSet::EMPTY.with(from)),
            to: Some(Placement::only(to)),
            limit_bytes: bytes,
            keeps_placement: true,
            turns: None,
            skips_starting: false,
            of_kind: None,
        }
    }

    /// The guest, if it is about one.
    pub const fn guest(&self) -> Option<GuestId> {
        match self.scope {
            Scope::Everything => None,
            Scope::Guest(guest) | Scope::Range(guest, ..) => Some(guest),
        }
    }

    /// The frames that it clears, if it goes by those and not by guests: it then asks the reverse map who is
    /// there, and looks at nothing else.
    pub(super) const fn frames(&self) -> Option<FrameRange> {
        match (self.scope, self.select) {
            (Scope::Everything, Select::Touching(frames)) => Some(frames),
            _ => None,
        }
    }

    /// The range of IPA that it looks at in a guest: start and end.
    pub(super) const fn range(&self) -> (u64, u64) {
        match self.scope {
            Scope::Range(_, ipa, size) => (ipa.get(), ipa.get().saturating_add(size)),
            Scope::Everything | Scope::Guest(_) => (0, u64::MAX),
        }
    }

    const fn check(&self) -> Result<(), RequestError> {
        match self.scope {
            Scope::Range(_, ipa, size) if size == 0 || (size | ipa.get()) & (FRAME_SIZE - 1) != 0 => {
                Err(RequestError::Misaligned { ipa, size })
            }
            _ => Ok(()),
        }
    }
}

/// Why a request was refused, or a job not found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestError {
    /// The range is empty or not made of whole frames.
    Misaligned {
        /// Where it starts.
        ipa: Ipa,
        /// Its bytes.
        size: u64,
    },
    /// As many jobs as there is room for are waiting, running or paused.
    QueueFull,
    /// There is no such job.
    NoSuchJob(JobId),
    /// The job is over.
    JobIsOver(JobId),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Misaligned { ipa, size } => {
                write!(f, "{}@{ipa}: not a range of whole 4 KiB frames", Compact(size))
            }
            Self::QueueFull => write!(f, "{MAX_JOBS} jobs are waiting, running or paused: cancel one"),
            Self::NoSuchJob(id) => write!(f, "{id}: no such job"),
            Self::JobIsOver(id) => write!(f, "{id}: over already"),
        }
    }
}

impl core::error::Error for RequestError {}

/// How a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// The job waits for its turn, or for a guest: see [`JobReport::waits_for`].
    Queued,
    /// It is being worked on.
    Running,
    /// It is being worked on until the unit in flight has arrived, then paused.
    Pausing,
    /// It waits to be resumed.
    Paused,
    /// It is being worked on until no unit is in flight, then over.
    Cancelling,
    /// Over; everything that was selected has moved.
    Finished,
    /// Over; some of what was selected stays where it was, as [`JobReport::unmoved`] lists with the reasons.
    Incomplete,
    /// It was cancelled. What had moved stays where it is.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Incomplete | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Finished => "finished",
            Self::Incomplete => "incomplete",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Of what there was no frame for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    /// The controllers that it lies behind.
    pub(super) behind: ControllerSet,
    /// Those that all of its regions allow.
    pub(super) allowed: ControllerSet,
}

impl Stuck {
    pub(super) fn add(&mut self, behind: ControllerSet, placement: &Placement) {
        self.behind = self.behind.union(behind);
        if let (named, Strictness::Strict) = placement.named() {
            self.allowed = self.allowed.intersection(named);
        }
    }
}

/// How far a job got.
#[derive(Clone, Copy, Debug)]
pub struct JobReport {
    /// Its number.
    pub id: JobId,
    /// What was asked for.
    pub request: Request,
    /// How it stands.
    pub state: JobState,
    /// The bytes of IPA, or of frames, that it looks at, known once it has begun.
    pub total_bytes: u64,
    /// Those that it has looked at: the rest of `total_bytes` is what is left.
    pub scanned_bytes: u64,
    /// Units moved.
    pub moved: PairTotals,
    /// What did not move, by [`Reason::ALL`].
    pub unmoved: [Unmoved; Reason::ALL.len()],
    /// Where that lies of it for which there was no frame.
    pub(super) stuck: Stuck,
    /// Whether it was cancelled because its guest stopped or was reset, not by the operator.
    pub is_abandoned: bool,
    /// The guest that a queued job waits for: it starts, is reset or stops, and has memory that the job is about.
    pub waits_for: Option<GuestId>,
    /// When it began, in ticks.
    pub started: u64,
    /// When it ended, in ticks.
    pub ended: u64,
    /// Ticks that the worker spent on it.
    pub worked_ticks: u64,
}

impl JobReport {
    const fn new(id: JobId, request: Request) -> Self {
        Self {
            id,
            request,
            state: JobState::Queued,
            total_bytes: 0,
            scanned_bytes: 0,
            moved: PairTotals { blocks: 0, pages: 0 },
            unmoved: [Unmoved { leaf_count: 0, bytes: 0, first: None, frame: None }; Reason::ALL.len()],
            stuck: Stuck { behind: ControllerSet::EMPTY, allowed: ControllerSet::ALL },
            is_abandoned: false,
            waits_for: None,
            started: 0,
            ended: 0,
            worked_ticks: 0,
        }
    }

    /// Whether it is in the queue, and does not wait for a guest that `is_away`.
    fn is_ready(&self, is_away: impl Fn(GuestId) -> bool) -> bool {
        self.state == JobState::Queued && !self.waits_for.is_some_and(is_away)
    }

    /// What did not move for `reason`.
    pub const fn unmoved(&self, reason: Reason) -> Unmoved {
        self.unmoved[reason.index()]
    }

    /// The bytes that did not move, for all reasons.
    pub fn unmoved_bytes(&self) -> u64 {
        self.unmoved.iter().map(|unmoved| unmoved.bytes).sum()
    }

    /// Tells if memory was left behind that the request asked to move.
    fn has_fallen_short(&self) -> bool {
        self.unmoved_bytes() > 0 && self.moved.bytes() < self.request.limit_bytes
    }

    pub(super) fn count_moved(&mut self, level: Level, count: u64) {
        if level == Level::L3 {
            self.moved.pages += count;
        } else {
            self.moved.blocks += count;
        }
    }

    pub(super) fn count_unmoved(&mut self, reason: Reason, more: &Unmoved) {
        let unmoved = &mut self.unmoved[reason.index()];
        unmoved.leaf_count += more.leaf_count;
        unmoved.bytes += more.bytes;
        unmoved.first = unmoved.first.or(more.first);
        unmoved.frame = unmoved.frame.or(more.frame);
    }
}

/// Where a job goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Cursor {
    /// The number of the guest.
    pub(super) guest: u8,
    /// Where in its IPA.
    pub(super) next: Ipa,
    /// Of a job by frames: the end of the tenant, the number of its first frame, and that of the frame past it.
    pub(super) end: Ipa,
    pub(super) tenant: u64,
    pub(super) frame: u64,
    /// Of a job by frames: a guest that could not be reached, and the number of the first frame that was passed over for
    /// that reason.
    pub(super) away: Option<(GuestId, u64)>,
    /// Whether the total was added up.
    pub(super) is_counted: bool,
    /// Of a job by guests: those that it is through with, a bit each.
    pub(super) done: u32,
    /// How often it has gone back to a guest whose memory was not there before.
    pub(super) return_count: u8,
}

#[derive(Clone, Copy)]
struct Job {
    report: JobReport,
    cursor: Cursor,
}

/// The jobs that there are, waiting ones and past ones.
pub(super) struct Jobs {
    list: Vec<Job, MAX_JOBS>,
    last: u32,
}

impl Jobs {
    pub(super) const fn new() -> Self {
        Self { list: Vec::new(), last: 0 }
    }

    /// Puts a job at the end of the queue, in the place of the job that was over first.
    pub(super) fn submit(&mut self, request: Request) -> Result<JobId, RequestError> {
        request.check()?;
        let id = JobId(self.last + 1);
        let job = Job { report: JobReport::new(id, request), cursor: Cursor::default() };
        if let Err(job) = self.list.push(job) {
            let past = self.list.iter_mut().filter(|job| job.report.state.is_over());
            *past.min_by_key(|job| job.report.id).ok_or(RequestError::QueueFull)? = job;
        }
        self.last += 1;
        Ok(id)
    }

    pub(super) fn reports(&self) -> impl Iterator<Item = &JobReport> {
        self.list.iter().map(|job| &job.report)
    }

    pub(super) fn report(&mut self, id: JobId) -> Option<&mut JobReport> {
        // What is asked for most is worked on, and among the last.
        self.list.iter_mut().rev().map(|job| &mut job.report).find(|report| report.id == id)
    }

    fn open(&mut self, id: JobId) -> Result<&mut JobReport, RequestError> {
        let report = self.report(id).ok_or(RequestError::NoSuchJob(id))?;
        if report.state.is_over() { Err(RequestError::JobIsOver(id)) } else { Ok(report) }
    }

    pub(super) fn pause(&mut self, id: JobId) -> Result<(), RequestError> {
        let report = self.open(id)?;
        report.state = match report.state {
            JobState::Queued => JobState::Paused,
            JobState::Running => JobState::Pausing,
            other => other,
        };
        Ok(())
    }

    pub(super) fn resume(&mut self, id: JobId) -> Result<(), RequestError> {
        let report = self.open(id)?;
        report.state = match report.state {
            JobState::Paused => JobState::Queued,
            JobState::Pausing => JobState::Running,
            other => other,
        };
        Ok(())
    }

    pub(super) fn cancel(&mut self, id: JobId, now: u64) -> Result<(), RequestError> {
        let report = self.open(id)?;
        report.state = match report.state {
            JobState::Queued | JobState::Paused => {
                report.ended = now;
                JobState::Cancelled
            }
            _ => JobState::Cancelling,
        };
        Ok(())
    }

    /// Cancels what is about `guest` alone.
    pub(super) fn cancel_guest(&mut self, guest: GuestId, now: u64) {
        for job in &mut self.list {
            let report = &mut job.report;
            if report.request.guest() == Some(guest) && !report.state.is_over() {
                report.is_abandoned = report.state != JobState::Cancelling;
                report.state = JobState::Cancelled;
                report.ended = now;
            }
        }
    }

    /// Takes the job that waits longest for its turn; those that clear frames go before the others. Passes over jobs that
    /// wait for a guest that `is_away`.
    pub(super) fn start_next(
        &mut self,
        now: u64,
        is_away: impl Fn(GuestId) -> bool,
    ) -> Option<(JobId, Request, Cursor)> {
        let waiting = self.list.iter_mut().filter(|job| job.report.is_ready(&is_away));
        // Who needs just these frames waits for them: an owner for its claim, a failing frame to be left.
        let job = waiting.min_by_key(|job| (job.report.request.frames().is_none(), job.report.id))?;
        job.report.state = JobState::Running;
        job.report.waits_for = None;
        if job.report.started == 0 {
            job.report.started = now;
        }
        Some((job.report.id, job.report.request, job.cursor))
    }

    /// Whether [`Self::start_next`] has a job.
    pub(super) fn has_ready(&self, is_away: impl Fn(GuestId) -> bool) -> bool {
        self.reports().any(|report| report.is_ready(&is_away))
    }

    /// Whether any job is in the queue: all of them wait for guests if [`Self::start_next`] has none.
    pub(super) fn has_queued(&self) -> bool {
        self.reports().any(|report| report.state == JobState::Queued)
    }

    /// Whether a job that clears frames could go on while `request`, which does not, is worked on.
    pub(super) fn is_overtaken(&self, request: &Request, is_away: impl Fn(GuestId) -> bool) -> bool {
        let is_urgent = |report: &JobReport| report.request.frames().is_some() && report.is_ready(&is_away);
        request.frames().is_none() && self.reports().any(is_urgent)
    }

    /// Puts a job aside, paused or over, or back into the queue, as the worker decided when it last looked at the job.
    /// What the operator has asked for since then takes precedence: a pause, a cancellation, or a resumption. Returns the
    /// state that the job is left in; `None` if there is no such job.
    pub(super) fn stop(&mut self, id: JobId, state: JobState, cursor: Cursor, now: u64) -> Option<JobState> {
        let job = self.list.iter_mut().find(|job| job.report.id == id)?;
        job.cursor = cursor;
        let state = match (state, job.report.state) {
            (JobState::Finished, _) if job.report.has_fallen_short() => JobState::Incomplete,
            (state, _) if state.is_over() => state,
            (_, JobState::Cancelling) => JobState::Cancelled,
            (_, JobState::Pausing) => JobState::Paused,
            // Resumed while it was being paused.
            (JobState::Paused, JobState::Running) => JobState::Queued,
            (state, _) => state,
        };
        job.report.state = state;
        if state.is_over() {
            job.report.ended = now;
        }
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::evacuate(ControllerId::default())
    }

    fn is_away(guest: GuestId) -> bool {
        guest.index() == 7
    }

    #[test]
    fn jobs_run_in_turn() {
        let mut jobs = Jobs::new();
        let [a, b, c] = [(); 3].map(|()| jobs.submit(request()).unwrap());
        jobs.pause(a).unwrap();
        assert_eq!(jobs.start_next(5, is_away).map(|job| job.0), Some(b));
        jobs.stop(b, JobState::Finished, Cursor::default(), 9);
        assert_eq!(jobs.report(b).unwrap().ended, 9);
        jobs.resume(a).unwrap();
        assert_eq!(jobs.start_next(5, is_away).map(|job| job.0), Some(a));
        assert_eq!(jobs.start_next(5, is_away).map(|job| job.0), Some(c));
        assert_eq!(jobs.start_next(5, is_away).map(|job| job.0), None);
    }

    #[test]
    fn jobs_that_clear_frames_go_first() {
        let mut jobs = Jobs::new();
        let [a, b] = [(); 2].map(|()| jobs.submit(request()).unwrap());
        let first = FrameRange::from_numbers(0, 1).unwrap();
        let [c, d] = [(); 2].map(|()| jobs.submit(Request::retire(first)).unwrap());
        let order: std::vec::Vec<_> =
            core::iter::from_fn(|| jobs.start_next(5, is_away)).map(|job| job.0).collect();
        assert_eq!(order, [c, d, a, b]);
    }

    #[test]
    fn a_job_that_clears_frames_overtakes_one_that_does_not() {
        let mut jobs = Jobs::new();
        let a = jobs.submit(request()).unwrap();
        let (_, running, _) = jobs.start_next(5, is_away).unwrap();
        jobs.submit(request()).unwrap();
        assert!(!jobs.is_overtaken(&running, is_away));
        let clearing = Request::retire(FrameRange::from_numbers(0, 1).unwrap());
        let b = jobs.submit(clearing).unwrap();
        assert!(jobs.is_overtaken(&running, is_away) && !jobs.is_overtaken(&clearing, is_away));
        jobs.pause(b).unwrap();
        assert!(!jobs.is_overtaken(&running, is_away), "a paused one waits for the operator");
        jobs.resume(b).unwrap();
        let cursor = Cursor { guest: 3, ..Cursor::default() };
        jobs.stop(a, JobState::Queued, cursor, 9);
        assert_eq!(jobs.start_next(10, is_away).map(|job| job.0), Some(b));
        assert!(!jobs.is_overtaken(&running, is_away));
        jobs.stop(b, JobState::Finished, Cursor::default(), 11);
        let (id, _, goes_on) = jobs.start_next(12, is_away).unwrap();
        assert_eq!((id, goes_on, jobs.report(a).unwrap().started), (a, cursor, 5));
        // What the operator wants of it in that very moment counts.
        jobs.pause(a).unwrap();
        jobs.stop(a, JobState::Queued, cursor, 13);
        assert_eq!(jobs.report(a).unwrap().state, JobState::Paused);
        jobs.resume(a).unwrap();
        jobs.start_next(14, is_away).unwrap();
        jobs.cancel(a, 15).unwrap();
        jobs.stop(a, JobState::Queued, cursor, 16);
        assert_eq!((jobs.report(a).unwrap().state, jobs.report(a).unwrap().ended), (JobState::Cancelled, 16));
    }

    #[test]
    fn a_job_that_waits_for_a_guest_lets_others_go_first() {
        let mut jobs = Jobs::new();
        let clearing = Request::retire(FrameRange::from_numbers(0, 1).unwrap());
        let [a, b] = [clearing, request()].map(|request| jobs.submit(request).unwrap());
        assert_eq!(jobs.start_next(1, is_away).map(|job| job.0), Some(a));
        jobs.report(a).unwrap().waits_for = GuestId::try_new(7);
        jobs.stop(a, JobState::Queued, Cursor::default(), 2);
        let (next, running, _) = jobs.start_next(3, is_away).unwrap();
        assert_eq!((next, jobs.start_next(4, is_away).is_some(), jobs.has_queued()), (b, false, true));
        assert!(!jobs.is_overtaken(&running, is_away));
        // The guest is there.
        assert!(jobs.is_overtaken(&running, |_| false));
        assert_eq!(jobs.start_next(5, |_| false).map(|job| job.0), Some(a));
        assert_eq!(jobs.report(a).unwrap().waits_for, None);
    }

    #[test]
    fn a_running_job_stops_at_a_clean_unit_only() {
        let mut jobs = Jobs::new();
        let id = jobs.submit(request()).unwrap();
        jobs.start_next(1, is_away).unwrap();
        jobs.pause(id).unwrap();
        assert_eq!(jobs.report(id).unwrap().state, JobState::Pausing);
        jobs.resume(id).unwrap();
        assert_eq!(jobs.report(id).unwrap().state, JobState::Running);
        jobs.cancel(id, 2).unwrap();
        assert_eq!(jobs.report(id).unwrap().state, JobState::Cancelling);
        jobs.pause(id).unwrap();
        assert_eq!(jobs.report(id).unwrap().state, JobState::Cancelling);
        jobs.stop(id, JobState::Cancelled, Cursor::default(), 3);
        assert_eq!(jobs.cancel(id, 4), Err(RequestError::JobIsOver(id)));
        assert_eq!(jobs.pause(JobId::new(77)), Err(RequestError::NoSuchJob(JobId::new(77))));
    }

    #[test]
    fn what_the_operator_asks_for_while_a_job_is_being_paused_counts() {
        type Order = fn(&mut Jobs, JobId) -> Result<(), RequestError>;
        let cases: [(&[Order], JobState); 5] = [
            (&[], JobState::Paused),
            (&[|jobs, id| jobs.cancel(id, 2)], JobState::Cancelled),
            (&[Jobs::resume], JobState::Queued),
            (&[Jobs::resume, Jobs::pause], JobState::Paused),
            (&[Jobs::resume, |jobs, id| jobs.cancel(id, 2)], JobState::Cancelled),
        ];
        for (orders, expected) in cases {
            let mut jobs = Jobs::new();
            let id = jobs.submit(request()).unwrap();
            jobs.start_next(1, is_away).unwrap();
            jobs.pause(id).unwrap();
            // The worker has seen that it is to pause the job, and has not done so yet.
            orders.iter().for_each(|order| order(&mut jobs, id).unwrap());
            assert_eq!(jobs.stop(id, JobState::Paused, Cursor::default(), 3), Some(expected));
            let report = jobs.report(id).unwrap();
            assert_eq!((report.state, report.ended), (expected, if expected.is_over() { 3 } else { 0 }));
        }
    }

    #[test]
    fn a_job_whose_guest_is_gone_says_so() {
        let mut jobs = Jobs::new();
        let guest = GuestId::default();
        let ids = [(); 3]
            .map(|()| jobs.submit(Request::migrate(Scope::Guest(guest), ControllerId::default())).unwrap());
        let other = jobs.submit(request()).unwrap();
        jobs.start_next(1, is_away).unwrap();
        jobs.cancel(ids[0], 2).unwrap();
        jobs.cancel(ids[1], 2).unwrap();
        jobs.cancel_guest(guest, 3);
        let ends = ids.map(|id| jobs.report(id).map(|report| (report.state, report.is_abandoned)).unwrap());
        assert_eq!(ends.map(|end| end.0), [JobState::Cancelled; 3]);
        assert_eq!(ends.map(|end| end.1), [false, false, true], "two were the operator's wish");
        assert_eq!(jobs.report(other).unwrap().state, JobState::Queued);
    }

    #[test]
    fn the_queue_is_bounded_and_forgets_the_oldest() {
        let mut jobs = Jobs::new();
        let ids: std::vec::Vec<_> = (0..MAX_JOBS).map(|_| jobs.submit(request()).unwrap()).collect();
        assert_eq!(jobs.submit(request()), Err(RequestError::QueueFull));
        jobs.cancel(ids[3], 0).unwrap();
        jobs.cancel(ids[1], 0).unwrap();
        let id = jobs.submit(request()).unwrap();
        assert_eq!(id.get(), MAX_JOBS as u32 + 1);
        assert!(jobs.report(ids[1]).is_none() && jobs.report(ids[3]).is_some());
    }

    #[test]
    fn ranges_are_of_whole_frames() {
        let guest = GuestId::default();
        let scope = Scope::Range(guest, Ipa::new_truncate(0x1000), 0x800);
        let refused = Jobs::new().submit(Request::migrate(scope, ControllerId::default()));
        assert!(matches!(refused, Err(RequestError::Misaligned { .. })));
    }
}
