//! The queue of jobs.

use heapless::Vec;

use super::{JobId, JobReport, JobState, MAX_JOBS, Request, RequestError};
use crate::addr::Ipa;
use crate::owner::GuestId;

/// The position of a job in its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in super::super) struct Cursor {
    /// The guest's number.
    pub(in super::super) guest: u8,
    /// The next IPA in the guest.
    pub(in super::super) next: Ipa,
    /// For a job by frames: the end of the current tenant in the guest's IPA.
    pub(in super::super) end: Ipa,
    /// For a job by frames: the number of the tenant's first frame.
    pub(in super::super) tenant: u64,
    /// For a job by frames: the number of the next frame after the tenant.
    pub(in super::super) frame: u64,
    /// For a job by frames: a guest whose memory could not be reached, and the number of its first frame that was
    /// passed over.
    pub(in super::super) away: Option<(GuestId, u64)>,
    /// True once the total is known.
    pub(in super::super) is_counted: bool,
    /// For a job by guests: the guests that are done, a bit each.
    pub(in super::super) done: u32,
    /// Number of times that the job went back to a guest whose memory was not there before.
    pub(in super::super) return_count: u8,
}

/// A job: its report, and its position while it is not running.
#[derive(Clone, Copy)]
struct Job {
    report: JobReport,
    cursor: Cursor,
}

/// All jobs, including finished ones that are still listed.
pub(in super::super) struct Jobs {
    list: Vec<Job, MAX_JOBS>,
    /// The last number given out.
    last: u32,
}

impl Jobs {
    pub(in super::super) const fn new() -> Self {
        Self { list: Vec::new(), last: 0 }
    }

    /// Queues a job. If the list is full, it replaces the oldest job that is over.
    pub(in super::super) fn submit(&mut self, request: Request) -> Result<JobId, RequestError> {
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

    /// Returns the reports of all jobs.
    pub(in super::super) fn reports(&self) -> impl Iterator<Item = &JobReport> {
        self.list.iter().map(|job| &job.report)
    }

    /// Returns the report of a job.
    pub(in super::super) fn report(&mut self, id: JobId) -> Option<&mut JobReport> {
        // The job asked for most often is the running one, which is among the last.
        self.list.iter_mut().rev().map(|job| &mut job.report).find(|report| report.id == id)
    }

    /// Returns the report of a job that is not over.
    fn open(&mut self, id: JobId) -> Result<&mut JobReport, RequestError> {
        let report = self.report(id).ok_or(RequestError::NoSuchJob(id))?;
        if report.state.is_over() { Err(RequestError::JobIsOver(id)) } else { Ok(report) }
    }

    /// Pauses a job, or asks the worker to.
    pub(in super::super) fn pause(&mut self, id: JobId) -> Result<(), RequestError> {
        let report = self.open(id)?;
        report.state = match report.state {
            JobState::Queued => JobState::Paused,
            JobState::Running => JobState::Pausing,
            other => other,
        };
        Ok(())
    }

    /// Resumes a job.
    pub(in super::super) fn resume(&mut self, id: JobId) -> Result<(), RequestError> {
        let report = self.open(id)?;
        report.state = match report.state {
            JobState::Paused => JobState::Queued,
            JobState::Pausing => JobState::Running,
            other => other,
        };
        Ok(())
    }

    /// Cancels a job, or asks the worker to.
    pub(in super::super) fn cancel(&mut self, id: JobId, now: u64) -> Result<(), RequestError> {
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

    /// Cancels the jobs that are about `guest` alone.
    pub(in super::super) fn cancel_guest(&mut self, guest: GuestId, now: u64) {
        for job in &mut self.list {
            let report = &mut job.report;
            if report.request.guest() == Some(guest) && !report.state.is_over() {
                report.is_abandoned = report.state != JobState::Cancelling;
                report.state = JobState::Cancelled;
                report.ended = now;
            }
        }
    }

    /// Starts the job that has waited longest. Jobs that clear frames precede others. Jobs that wait for a guest that
    /// `is_away` are passed over.
    pub(in super::super) fn start_next(
        &mut self,
        now: u64,
        is_away: impl Fn(GuestId) -> bool,
    ) -> Option<(JobId, Request, Cursor)> {
        let waiting = self.list.iter_mut().filter(|job| job.report.is_ready(&is_away));
        // Somebody waits for exactly these frames: a pool's owner for a claim, or the retirement of a failing frame.
        let job = waiting.min_by_key(|job| (job.report.request.frames().is_none(), job.report.id))?;
        job.report.state = JobState::Running;
        job.report.waits_for = None;
        if job.report.started == 0 {
            job.report.started = now;
        }
        Some((job.report.id, job.report.request, job.cursor))
    }

    /// Returns whether [`Self::start_next`] would return a job.
    pub(in super::super) fn has_ready(&self, is_away: impl Fn(GuestId) -> bool) -> bool {
        self.reports().any(|report| report.is_ready(&is_away))
    }

    /// Returns whether a job is queued. If [`Self::start_next`] returns none, all queued jobs wait for guests.
    pub(in super::super) fn has_queued(&self) -> bool {
        self.reports().any(|report| report.state == JobState::Queued)
    }

    /// Returns whether a job that clears frames is ready and `request` does not clear frames.
    pub(in super::super) fn is_overtaken(
        &self,
        request: &Request,
        is_away: impl Fn(GuestId) -> bool,
    ) -> bool {
        let is_urgent = |report: &JobReport| report.request.frames().is_some() && report.is_ready(&is_away);
        request.frames().is_none() && self.reports().any(is_urgent)
    }

    /// Ends the work on a job, in the state that the worker chose: over, paused, or queued again. A pause, cancellation
    /// or resumption that the operator has asked for since takes precedence. Returns the resulting state, or `None` if
    /// there is no such job.
    pub(in super::super) fn stop(
        &mut self,
        id: JobId,
        state: JobState,
        cursor: Cursor,
        now: u64,
    ) -> Option<JobState> {
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
    use super::super::Scope;
    use super::*;
    use crate::addr::Ipa;
    use crate::controller::ControllerId;
    use crate::range::FrameRange;

    fn request() -> Request {
        Request::evacuate(ControllerId::default())
    }

    fn is_away(guest: GuestId) -> bool {
        guest.index() == 7
    }

    #[test]
    fn jobs_run_in_order() {
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
        assert!(!jobs.is_overtaken(&running, is_away), "a paused job waits for the operator");
        jobs.resume(b).unwrap();
        let cursor = Cursor { guest: 3, ..Cursor::default() };
        jobs.stop(a, JobState::Queued, cursor, 9);
        assert_eq!(jobs.start_next(10, is_away).map(|job| job.0), Some(b));
        assert!(!jobs.is_overtaken(&running, is_away));
        jobs.stop(b, JobState::Finished, Cursor::default(), 11);
        let (id, _, goes_on) = jobs.start_next(12, is_away).unwrap();
        assert_eq!((id, goes_on, jobs.report(a).unwrap().started), (a, cursor, 5));
        // A request by the operator at that very moment counts.
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
    fn a_running_job_stops_only_when_no_unit_is_in_flight() {
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
    fn an_order_given_while_a_job_is_being_paused_counts() {
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
            // The worker has seen the request to pause, and has not paused the job yet.
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
        assert_eq!(ends.map(|end| end.1), [false, false, true], "two were cancelled by the operator");
        assert_eq!(jobs.report(other).unwrap().state, JobState::Queued);
    }

    #[test]
    fn the_queue_is_bounded_and_drops_the_oldest() {
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
