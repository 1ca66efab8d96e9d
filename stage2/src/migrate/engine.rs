//! The interface to migration for hyp and the console.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::copier::Time;
use super::host::{Frames, Host};
use super::job::{JobId, JobReport, Jobs, Request, RequestError};
use super::pacer::Pacer;
use super::policy::Policy;
use super::reason::Reason;
use super::space::{Fault, Space, Verdict};
use super::statistics::Statistics;
use super::worker::{Turn, Worker};
use crate::addr::{FRAME_SIZE, Ipa};
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::{GuestId, MAX_GUESTS};
use crate::phys::placement::Placement;
use crate::scale::scaled;
use crate::sync::{Aside, aside, relax};

const NANOSECONDS: u64 = 1_000_000_000;

/// The owner of the time that a step takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payer {
    /// Nobody: the CPU was idle.
    Idle,
    /// A guest with a vCPU that could have run.
    Guest(GuestId),
}

/// The result of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The time is up and work is left.
    More,
    /// There is nothing to do.
    Idle,
    /// The time is up, no job can run, and work for idle CPUs is left.
    Spare,
    /// The rate limit is reached, or all jobs wait for guests: nothing to do for this many ticks.
    Wait(u64),
    /// Another CPU is the worker.
    Busy,
}

/// The memory of a job for which there were no frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// Bytes without a target.
    pub bytes: u64,
    /// Controllers with that much free memory that all of the regions allow, except a controller that has all of it
    /// already.
    pub fits: ControllerSet,
}

/// The migration engine, one for the machine. All zero bytes at first, so a static costs no room in the image.
pub struct Engine {
    worker: SpinMutex<Worker>,
    pub(super) jobs: SpinMutex<Jobs>,
    /// Paces the sum of all jobs.
    pub(super) rate: Pacer,
    /// Pace each guest's moves.
    pub(super) guest_rates: Aside<[Pacer; MAX_GUESTS]>,
    /// Pace the time taken from each guest.
    shares: Aside<[Pacer; MAX_GUESTS]>,
    policy: Policy,
    statistics: Aside<Statistics>,
    /// Guests with areas to coalesce, a bit each.
    split: AtomicU32,
    /// The guest that is being coalesced: its bit, or 0.
    coalescing: AtomicU32,
    /// Guests with areas that could not be coalesced yet: tried again once memory is freed.
    split_for_later: AtomicU32,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// Makes an engine without jobs.
    pub const fn new() -> Self {
        Self {
            worker: SpinMutex::new(Worker::new()),
            jobs: SpinMutex::new(Jobs::new()),
            rate: Pacer::new(),
            guest_rates: aside([const { Pacer::new() }; MAX_GUESTS]),
            shares: aside([const { Pacer::new() }; MAX_GUESTS]),
            policy: Policy::new(),
            statistics: aside(Statistics::new()),
            split: AtomicU32::new(0),
            coalescing: AtomicU32::new(0),
            split_for_later: AtomicU32::new(0),
        }
    }

    /// Returns the settings.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the counters.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    // Jobs. Each call returns at once.

    /// Queues a job.
    ///
    /// # Errors
    /// [`RequestError::Misaligned`], [`RequestError::QueueFull`].
    pub fn submit(&self, request: Request) -> Result<JobId, RequestError> {
        self.lock_jobs().submit(request)
    }

    /// Pauses a job, once the unit in flight has arrived.
    ///
    /// # Errors
    /// [`RequestError::NoSuchJob`], [`RequestError::JobIsOver`].
    pub fn pause(&self, id: JobId) -> Result<(), RequestError> {
        self.lock_jobs().pause(id)
    }

    /// Puts a paused job back into the queue.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resume(&self, id: JobId) -> Result<(), RequestError> {
        self.lock_jobs().resume(id)
    }

    /// Cancels a job, once no unit is in flight. Memory that has moved stays at its target.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn cancel(&self, time: &impl Time, id: JobId) -> Result<(), RequestError> {
        self.lock_jobs().cancel(id, time.now())
    }

    /// Returns a job's report.
    pub fn job(&self, id: JobId) -> Option<JobReport> {
        self.lock_jobs().report(id).copied()
    }

    /// Returns the report of the first job with a number above `after`, to iterate over all jobs.
    pub fn job_after(&self, after: JobId) -> Option<JobReport> {
        let jobs = self.lock_jobs();
        jobs.reports().filter(|report| report.id > after).min_by_key(|report| report.id).copied()
    }

    /// Returns how much of a job's memory found no frames, and which other controllers have that much free and are
    /// allowed by the placement of the regions.
    pub fn shortage(&self, host: &impl Frames, report: &JobReport) -> Shortage {
        let bytes = report.unmoved(Reason::NoFrame).bytes;
        let stuck = report.stuck;
        let has_room = |controller: &ControllerId| {
            let is_there_already = stuck.behind.only() == Some(*controller);
            bytes > 0
                && !is_there_already
                && host.free_frames(&Placement::only(*controller)) * FRAME_SIZE >= bytes
        };
        Shortage { bytes, fits: stuck.allowed.iter().filter(has_room).collect() }
    }

    pub(super) fn lock_jobs(&self) -> SpinMutexGuard<'_, Jobs> {
        loop {
            if let Some(jobs) = self.jobs.try_lock() {
                return jobs;
            }
            relax();
        }
    }

    // Work.

    /// Returns the longest slice in ticks.
    pub fn slice_ticks(&self, time: &impl Time) -> u64 {
        scaled(self.policy.slice_ns(), time.ticks_per_second(), NANOSECONDS)
    }

    /// Returns the ticks that may be taken from `guest` now within its share: a slice or 0.
    pub fn allowance(&self, time: &impl Time, guest: GuestId) -> u64 {
        let wait = self.shares[guest.index() % MAX_GUESTS].wait(time.now(), 0);
        if wait == 0 { self.slice_ticks(time) } else { 0 }
    }

    /// Works on the jobs for at most `ticks`, and for at most a slice. While one CPU is here, others get [`Step::Busy`]
    /// at once.
    ///
    /// A slice may end late by one uninterruptible action, in the order of 10,000 instructions: a batch of 4 KiB units,
    /// the frames of a 2 MiB unit that are copied between two looks at the time, or a change of a leaf's size.
    pub fn step<H: Host>(&self, host: &H, ticks: u64, payer: Payer) -> Step {
        let Some(mut worker) = self.worker.try_lock() else { return Step::Busy };
        let started = host.now();
        let slice = ticks.min(self.slice_ticks(host));
        worker.begin_step(started, started.saturating_add(slice));
        let step = loop {
            match worker.turn(self, host, payer) {
                Turn::Worked | Turn::Spare if worker.may_continue(host) => {}
                Turn::Worked => break Step::More,
                Turn::Spare => break Step::Spare,
                Turn::Idle => break Step::Idle,
                Turn::Wait(wait) => break Step::Wait(wait),
            }
        };
        let spent = host.now().wrapping_sub(started);
        worker.charge(self, host);
        if let Payer::Guest(guest) = payer {
            self.charge_share(host, guest, spent);
        }
        step
    }

    /// Returns the ticks until the rate limits allow `guest`'s memory to move; `None` if they do now.
    pub(super) fn rate_wait(&self, time: &impl Time, guest: GuestId) -> Option<u64> {
        let pacers = [&self.rate, &self.guest_rates[guest.index() % MAX_GUESTS]];
        pacers.into_iter().map(|pacer| pacer.wait(time.now(), 0)).max().filter(|wait| *wait > 0)
    }

    // Work for idle CPUs.

    /// Returns whether [`Self::step`] has work for an idle CPU besides jobs.
    pub fn has_spare_work(&self) -> bool {
        self.split.load(Acquire) | self.coalescing.load(Relaxed) != 0
    }

    /// Notes that memory was freed: areas that found no block are tried again.
    pub fn note_freed(&self) {
        if self.split_for_later.load(Relaxed) != 0 {
            self.split.fetch_or(self.split_for_later.swap(0, Relaxed), Relaxed);
        }
    }

    /// Notes that an area of `guest` was split and may stay split.
    #[inline]
    pub(super) fn note_split(&self, guest: GuestId) {
        let bit = 1 << guest.index();
        if self.split.load(Relaxed) & bit == 0 {
            self.split.fetch_or(bit, Relaxed);
        }
    }

    /// Selects a guest to coalesce.
    pub(super) fn begin_coalescing(&self) -> Option<GuestId> {
        let split = self.split.load(Relaxed);
        let guest = GuestId::try_new(split.trailing_zeros() as u8).filter(|_| split != 0)?;
        // In this order: at any time one of the two words shows that there is work.
        self.coalescing.store(1 << guest.index(), Relaxed);
        self.split.fetch_and(!(1 << guest.index()), Release);
        Some(guest)
    }

    /// Ends the pass over the selected guest.
    pub(super) fn end_coalescing(&self) {
        self.coalescing.store(0, Relaxed);
    }

    /// Schedules another pass over `guest`, once memory is freed.
    pub(super) fn coalesce_later(&self, guest: GuestId) {
        self.split_for_later.fetch_or(1 << guest.index(), Relaxed);
    }

    /// Charges `ticks` of other work of the same kind to `payer`.
    pub fn charge(&self, time: &impl Time, payer: Payer, ticks: u64) {
        if let Payer::Guest(guest) = payer {
            self.charge_share(time, guest, ticks);
        }
    }

    fn charge_share(&self, time: &impl Time, guest: GuestId, ticks: u64) {
        let cost = scaled(ticks, 100, self.policy.share_per_cent().into());
        self.shares[guest.index() % MAX_GUESTS].charge(time.now(), cost);
    }

    /// Handles a guest's access that trapped at `ipa`: waits for a unit in flight, copies it, or splits it. The stall
    /// counts towards the guest's share.
    pub fn fault<H: Host>(&self, host: &H, guest: GuestId, ipa: Ipa, fault: Fault) -> Verdict {
        let Some(space) = host.space(guest) else { return Verdict::NotOurs };
        let started = host.now();
        let counters = self.statistics.guest(guest);
        let verdict = space.fault(host, ipa, fault, self.policy.stall_frames(), counters);
        if verdict == Verdict::Retry {
            self.charge_share(host, guest, host.now().wrapping_sub(started));
        }
        verdict
    }

    /// Brings `space` to rest before its guest's memory is freed: completes or undoes the unit in flight, releases what
    /// is left over, and cancels the jobs about this guest alone. No vCPU of the guest may run, and
    /// [`Guests::space`](super::Guests::space) must no longer return the space. Takes up to the time of
    /// moving one 2 MiB area, after the slice that another CPU may be in.
    pub fn abandon<H: Host>(&self, host: &H, space: &Space<H::Tables, H::Tlb>) {
        let mut worker = loop {
            if let Some(worker) = self.worker.try_lock() {
                break worker;
            }
            relax();
        };
        worker.abandon(self, host, space);
        self.lock_jobs().cancel_guest(space.guest(), host.now());
    }
}
