//! Migration as a whole: what hyp and the console call.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::host::{Frames, Host, Time};
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

/// Whose time a step takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payer {
    /// Nobody's: the CPU had nothing to do.
    Idle,
    /// A guest's, one of whose vCPUs could have run.
    Guest(GuestId),
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The time is up; there is more to do.
    More,
    /// There is nothing to do.
    Idle,
    /// The time is up; there is more to do, but nothing that is worth a guest's time: no job can go on.
    Spare,
    /// The limit of the rate is reached, or all jobs wait for guests: nothing to do for this many ticks.
    Wait(u64),
    /// Another CPU is the worker.
    Busy,
}

/// What a job found no frames for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// The bytes that have no place.
    pub bytes: u64,
    /// The controllers behind which so much is free, which all regions that it is about allow, and behind which it does not
    /// lie already.
    pub fits: ControllerSet,
}

/// Migration. One for the machine; a static costs no room in the image.
pub struct Engine {
    worker: SpinMutex<Worker>,
    pub(super) jobs: SpinMutex<Jobs>,
    /// What all jobs move.
    pub(super) rate: Pacer,
    /// What is moved of each guest.
    pub(super) guest_rates: Aside<[Pacer; MAX_GUESTS]>,
    /// The time taken from each guest.
    shares: Aside<[Pacer; MAX_GUESTS]>,
    policy: Policy,
    statistics: Aside<Statistics>,
    /// Guests with areas that may have to be coalesced, a bit each.
    split: AtomicU32,
    /// The one of them that is gone through, or none.
    coalescing: AtomicU32,
    /// Those with areas that could not be coalesced, but maybe once more memory is free.
    split_for_later: AtomicU32,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// Without a job.
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

    /// The settings.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The counters.
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

    /// Pauses a job once the unit in flight has arrived.
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

    /// Ends a job once no unit is in flight. What has moved stays.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn cancel(&self, time: &impl Time, id: JobId) -> Result<(), RequestError> {
        self.lock_jobs().cancel(id, time.now())
    }

    /// How a job stands.
    pub fn job(&self, id: JobId) -> Option<JobReport> {
        self.lock_jobs().report(id).copied()
    }

    /// The first job with a number above `after`, to go through all of them.
    pub fn job_after(&self, after: JobId) -> Option<JobReport> {
        let jobs = self.lock_jobs();
        jobs.reports().filter(|report| report.id > after).min_by_key(|report| report.id).copied()
    }

    /// What `report` says that no frame was found for: how much, and behind which other controllers that much is
    /// free, and allowed by the regions' own placement.
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

    /// The longest slice, in ticks.
    pub fn slice_ticks(&self, time: &impl Time) -> u64 {
        scaled(self.policy.slice_ns(), time.ticks_per_second(), NANOSECONDS)
    }

    /// The ticks that may be taken from `guest` now without going above its share: a slice or nothing.
    pub fn allowance(&self, time: &impl Time, guest: GuestId) -> u64 {
        let wait = self.shares[guest.index() % MAX_GUESTS].wait(time.now(), 0);
        if wait == 0 { self.slice_ticks(time) } else { 0 }
    }

    /// Works on the jobs for at most `ticks`, and for at most a slice. One CPU at a time: another gets
    /// [`Step::Busy`] at once.
    ///
    /// A slice may end late by what can not be interrupted: a batch of 4 KiB units, the frames of a larger one that are
    /// copied between two looks at the time, or a change of a leaf's size, each in the order of 10,000 instructions.
    pub fn step<H: Host>(&self, host: &H, ticks: u64, payer: Payer) -> Step {
        let Some(mut worker) = self.worker.try_lock() else { return Step::Busy };
        let started = host.now();
        let slice = ticks.min(self.slice_ticks(host));
        worker.begin_step(started, started.saturating_add(slice));
        let step = loop {
            match worker.turn(self, host, payer) {
                Turn::Worked | Turn::Spare if worker.goes_on(host) => {}
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

    /// How long the limits of the rate keep `guest`'s memory from being moved, in ticks, if they do.
    pub(super) fn rate_wait(&self, time: &impl Time, guest: GuestId) -> Option<u64> {
        let pacers = [&self.rate, &self.guest_rates[guest.index() % MAX_GUESTS]];
        pacers.into_iter().map(|pacer| pacer.wait(time.now(), 0)).max().filter(|wait| *wait > 0)
    }

    // Work for idle CPUs.

    /// Whether an idle CPU would find something to do in [`Self::step`], beside jobs.
    pub fn has_spare_work(&self) -> bool {
        self.split.load(Acquire) | self.coalescing.load(Relaxed) != 0
    }

    /// Memory was freed: areas for which there was no block may find one now.
    pub fn note_freed(&self) {
        if self.split_for_later.load(Relaxed) != 0 {
            self.split.fetch_or(self.split_for_later.swap(0, Relaxed), Relaxed);
        }
    }

    /// An area of `guest` was split, and may stay so.
    #[inline]
    pub(super) fn note_split(&self, guest: GuestId) {
        let bit = 1 << guest.index();
        if self.split.load(Relaxed) & bit == 0 {
            self.split.fetch_or(bit, Relaxed);
        }
    }

    /// Takes a guest to go through.
    pub(super) fn begin_coalescing(&self) -> Option<GuestId> {
        let split = self.split.load(Relaxed);
        let guest = GuestId::try_new(split.trailing_zeros() as u8).filter(|_| split != 0)?;
        // In this order: at any time one of the words says that there is work.
        self.coalescing.store(1 << guest.index(), Relaxed);
        self.split.fetch_and(!(1 << guest.index()), Release);
        Some(guest)
    }

    /// The guest was gone through.
    pub(super) fn end_coalescing(&self) {
        self.coalescing.store(0, Relaxed);
    }

    /// `guest` is to be gone through again once memory was freed.
    pub(super) fn coalesce_later(&self, guest: GuestId) {
        self.split_for_later.fetch_or(1 << guest.index(), Relaxed);
    }

    /// Charges `ticks` that were spent on other work of the same kind to who pays for them.
    pub fn charge(&self, time: &impl Time, payer: Payer, ticks: u64) {
        if let Payer::Guest(guest) = payer {
            self.charge_share(time, guest, ticks);
        }
    }

    fn charge_share(&self, time: &impl Time, guest: GuestId, ticks: u64) {
        let cost = scaled(ticks, 100, self.policy.share_per_cent().into());
        self.shares[guest.index() % MAX_GUESTS].charge(time.now(), cost);
    }

    /// Answers a guest's access that trapped at `ipa`: waits for a unit in flight, helps it along, or
    /// splits it. The stall counts towards the guest's share.
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

    /// Brings `space` to rest before its guest's memory goes: the unit in flight arrives or stays, nothing
    /// is left over, and jobs about this guest alone are cancelled. No vCPU of the guest may run, and
    /// [`Guests::space`](super::Guests::space) must not yield it any more. Takes up to the time of moving
    /// one 2 MiB area, and of the slice that another CPU may be in.
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
