//! Entry points for hyp and the console.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::host::{Ground, Host};
use super::operation::{ClaimId, Claimant, Kind, Report, RequestError, State, Wish};
use super::records::{Place, Records};
use super::statistics::Statistics;
use super::worker::{Turn, Worker};
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::migrate::{self, Engine, Time};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::alloc::{BlockError, Memory};
use crate::phys::frame::{Contents, Mapping};
use crate::phys::pool::Pools;
use crate::range::FrameRange;
use crate::sync::{Aside, aside};

/// Maximum number of frames of an absent owner that are scrubbed and freed in a turn.
const RECLAIM: u64 = 64;
/// Maximum number of pageblocks searched for such frames in a turn.
const LOOK: u64 = 64;

/// Result of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There is more work, but the time is up.
    More,
    /// The operation waits for migration, which should run next.
    Waiting,
    /// The operation waits for migration, whose job is paused or whose queue is full. Try again later.
    Stalled,
    /// There is no work.
    Idle,
    /// Another CPU is inside [`Claims::step`].
    Busy,
}

impl Step {
    /// Combines the results of a step of claims and of the step of migration after it. A stalled claim is tried again
    /// after `patience` ticks.
    pub const fn and_migration(self, migration: migrate::Step, patience: u64) -> migrate::Step {
        use migrate::Step as Both;
        match (self, migration) {
            // The claim's job is over, so the claim can continue.
            (Self::More, _) | (Self::Waiting | Self::Stalled | Self::Busy, Both::Spare) => Both::More,
            (Self::Waiting, Both::Idle) => Both::More,
            (Self::Stalled, Both::Idle) => Both::Wait(patience),
            (Self::Busy, Both::Idle) => Both::Busy,
            (_, other) => other,
        }
    }
}

/// All pools and claims of the machine. Initially all zero bytes, so that it lies in .bss.
pub struct Claims {
    pools: Once<Pools>,
    worker: SpinMutex<Worker>,
    records: SpinMutex<Records>,
    statistics: Aside<Statistics>,
    /// Bit mask of the pools whose claimed frames have to be reclaimed, because the owner stopped or asked for it.
    abandoned: AtomicU32,
    /// Bit mask of the abandoned pools that had frames to reclaim.
    reclaimed: AtomicU32,
}

impl Default for Claims {
    fn default() -> Self {
        Self::new()
    }
}

impl Claims {
    /// Creates claims without pools.
    pub const fn new() -> Self {
        Self {
            pools: Once::new(),
            worker: SpinMutex::new(Worker::new()),
            records: SpinMutex::new(Records::new()),
            statistics: aside(Statistics::new()),
            abandoned: AtomicU32::new(0),
            reclaimed: AtomicU32::new(0),
        }
    }

    /// Sets the pools, once at boot.
    pub fn set_pools(&self, pools: Pools) {
        self.pools.call_once(|| pools);
    }

    /// Returns the pools, or `None` before [`Self::set_pools`].
    pub fn pools(&self) -> Option<&Pools> {
        self.pools.get()
    }

    /// Returns the counters.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn records(&self) -> SpinMutexGuard<'_, Records> {
        self.records.lock()
    }

    // Requests. They only change the records.

    /// Returns the present owner of `pool`.
    #[cfg(test)]
    pub(crate) fn owner(&self, pool: PoolId) -> Option<Claimant> {
        self.records().owner(self.pools()?, pool)
    }

    /// Queues a claim.
    ///
    /// # Errors
    /// [`RequestError`] if there is no such pool, the claimant does not own it, the wish does not fit the pool, or too many
    /// operations are open.
    pub fn claim(
        &self,
        time: &impl Time,
        claimant: Claimant,
        pool: PoolId,
        wish: Wish,
    ) -> Result<ClaimId, RequestError> {
        self.submit(time, Kind::Claim, claimant, pool, wish)
    }

    /// Queues a release of `range`, which may be any part of the claimed ranges.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn release(
        &self,
        time: &impl Time,
        claimant: Claimant,
        pool: PoolId,
        range: FrameRange,
    ) -> Result<ClaimId, RequestError> {
        self.submit(time, Kind::Release, claimant, pool, Wish::Exactly(range))
    }

    fn submit(
        &self,
        time: &impl Time,
        kind: Kind,
        claimant: Claimant,
        pool: PoolId,
        wish: Wish,
    ) -> Result<ClaimId, RequestError> {
        let pools = self.pools().ok_or(RequestError::NoSuchPool)?;
        self.records().submit(pools, kind, pool, claimant, wish, time)
    }

    /// Cancels a claim that is not over, and undoes its steps.
    ///
    /// # Errors
    /// [`RequestError::NoSuchClaim`], [`RequestError::IsOver`], [`RequestError::IsRelease`].
    pub fn cancel<H: Host>(&self, host: &H, claimant: Claimant, id: ClaimId) -> Result<(), RequestError> {
        let mut records = self.records();
        if records.cancel(claimant, id, host.now())? == State::Cancelled {
            self.statistics.count_cancelled();
            Self::disown_if_unused(&mut records, host, claimant, id);
            // The waiter for the claim may be another than the canceller.
            if let Some(report) = records.find(claimant, id) {
                host.note(report);
            }
        }
        Ok(())
    }

    /// Clears the owner of the pool of `id`, which ended before it began, if the owner has nothing else of the pool.
    fn disown_if_unused<H: Host>(records: &mut Records, host: &H, claimant: Claimant, id: ClaimId) {
        let pool = records.find(claimant, id).map(|report| report.pool);
        if let Some(pool) = pool.filter(|pool| host.ground().claimed_frames(*pool) == 0) {
            records.disown(pool);
        }
    }

    /// Returns the report of an operation of `claimant`.
    pub fn report(&self, claimant: Claimant, id: ClaimId) -> Option<Report> {
        self.records().find(claimant, id).cloned()
    }

    /// Returns the report of the first operation of any claimant with a number above `after`.
    pub fn report_after(&self, after: ClaimId) -> Option<Report> {
        let records = self.records();
        records.all().filter(|report| report.id > after).min_by_key(|report| report.id).cloned()
    }

    /// Turns the unit that claim `id` of [`Claimant::Units`] was granted into one movable block of a guest's RAM, at
    /// `mapping`. Returns its first frame. `None` if `id` is not such a claim, or is already settled.
    ///
    /// A granted unit is kept until it is adopted or declined.
    ///
    /// # Errors
    /// [`BlockError`] if the range is not a unit. It is then declined.
    pub fn adopt<H: Host>(
        &self,
        host: &H,
        memory: &Memory<'_>,
        id: ClaimId,
        mapping: Mapping,
    ) -> Option<Result<Frame, BlockError>> {
        let (pool, range) = self.records().to_be_fetched(id)?;
        let order = range.frames().checked_ilog2().unwrap_or(0) as u8;
        if let Err(error) = memory.adopt(range.first(), order, pool, mapping) {
            self.decline(host, id);
            return Some(Err(error));
        }
        let mut records = self.records();
        records.settle(id);
        if memory.claimed_frames(pool) == 0 {
            records.disown(pool);
        }
        Some(Ok(range.first()))
    }

    /// Ends claim `id` of [`Claimant::Units`] as soon as possible. Releases the unit if it was granted, or is granted
    /// nevertheless.
    pub fn decline<H: Host>(&self, host: &H, id: ClaimId) {
        let mut records = self.records();
        match records.decline(id, host.now()) {
            Some((pool, range)) => self.give_back(&mut records, host, pool, range),
            None => Self::disown_if_unused(&mut records, host, Claimant::Units, id),
        }
    }

    /// Queues the release of a unit whose record is settled.
    fn give_back(&self, records: &mut Records, time: &impl Time, pool: PoolId, range: FrameRange) {
        if let Some(pools) = self.pools() {
            // The settled record can be replaced, so there is room.
            let wish = Wish::Exactly(range);
            let _ = records.submit(pools, Kind::Release, pool, Claimant::Units, wish, time);
        }
    }

    /// Releases all frames of `pool` that `claimant` has. The claimant must have no window.
    ///
    /// # Errors
    /// [`RequestError::NoSuchPool`]; [`RequestError::NotOwner`] if another claimant owns the pool.
    pub fn release_all(&self, claimant: Claimant, pool: PoolId) -> Result<(), RequestError> {
        let pools = self.pools().ok_or(RequestError::NoSuchPool)?;
        pools.get(pool).ok_or(RequestError::NoSuchPool)?;
        match self.records().owner(pools, pool) {
            Some(owner) if owner != claimant => return Err(RequestError::NotOwner { owner }),
            _ => {}
        }
        self.abandoned.fetch_or(1 << pool.index(), Ordering::Relaxed);
        Ok(())
    }

    /// Ends the operations of `guest`, which stops or resets, and releases all that it claimed.
    ///
    /// No vCPU of the guest may run. The caller clears the guest's windows after this call and before a vCPU runs again.
    pub fn abandon(&self, time: &impl Time, guest: GuestId) {
        let Some(pools) = self.pools() else { return };
        let claimant = Claimant::Guest(guest);
        let mut records = self.records();
        records.orphan(claimant, time.now());
        for (id, _) in pools.iter() {
            if records.owner(pools, id) == Some(claimant) {
                self.abandoned.fetch_or(1 << id.index(), Ordering::Relaxed);
            }
        }
    }

    // Work.

    /// Works on operations for about `ticks`. Returns [`Step::Busy`] if another CPU does.
    pub fn step<H: Host>(&self, host: &H, engine: &Engine, ticks: u64) -> Step {
        let Some(mut worker) = self.worker.try_lock() else { return Step::Busy };
        let started = host.now();
        loop {
            let before = worker.place().map(|place| (place, host.now()));
            let turn = worker.turn(self, host, engine);
            if let Some((place, began)) = before {
                let ticks = host.now().wrapping_sub(began);
                self.report_at(place, |report| report.own_ticks += ticks);
            }
            match turn {
                Turn::Worked if host.now().wrapping_sub(started) < ticks && !host.is_wanted() => {}
                Turn::Worked => return Step::More,
                Turn::Waiting => return Step::Waiting,
                Turn::Stalled => return Step::Stalled,
                Turn::Idle => return Step::Idle,
            }
        }
    }

    /// Scrubs and frees some frames of a pool in `abandoned`, from frame number `next` on. Returns whether there was
    /// anything to do. Called between operations only.
    pub(super) fn reclaim_some<H: Host>(&self, host: &H, next: &mut u64) -> bool {
        let abandoned = self.abandoned.load(Ordering::Relaxed);
        if abandoned == 0 {
            return false;
        }
        let bit = abandoned.trailing_zeros();
        let pool = self.pools().and_then(|pools| pools.iter().nth(bit as usize));
        let ground = host.ground();
        if let Some((id, pool)) = pool
            && ground.claimed_frames(id) > 0
        {
            let left = FrameRange::from_numbers(*next, pool.range.end()).unwrap_or_default();
            let left = left.intersection(pool.range);
            let left = if left.is_empty() { pool.range } else { left };
            let end = left.end().min((left.start() & !(PAGEBLOCK_FRAMES - 1)) + LOOK * PAGEBLOCK_FRAMES);
            let part = FrameRange::from_numbers(left.start(), end).unwrap_or_default();
            if let Some(part) = claimed_part(ground, part, id) {
                host.scrub(part.first(), part.frames());
                *next = part.end();
                self.records().count_returned(id, part);
                self.reclaimed.fetch_or(1 << bit, Ordering::Relaxed);
                return ground.give(part, id, Contents::Zeroed);
            }
            if end < left.end() {
                *next = end;
                return true;
            }
        }
        *next = 0;
        self.abandoned.fetch_and(!(1 << bit), Ordering::Relaxed);
        if self.reclaimed.fetch_and(!(1 << bit), Ordering::Relaxed) & 1 << bit != 0 {
            self.statistics.count_released();
        }
        if let Some((id, _)) = pool {
            self.records().disown(id);
        }
        true
    }

    /// Starts the next operation of the queue.
    pub(super) fn start_next(&self, time: &impl Time) -> Option<(Place, Report)> {
        let mut records = self.records();
        let place = records.start_next(time.now())?;
        let report = records.get(place).clone();
        Some((place, report))
    }

    /// Tests whether a claim for a guest that starts is in the queue.
    pub(super) fn has_units_waiting(&self) -> bool {
        let is_it = |report: &Report| report.claimant == Claimant::Units && report.state == State::Queued;
        self.records().all().any(is_it)
    }

    /// Returns the operation in progress to the queue.
    pub(super) fn put_back(&self, place: Place) {
        self.records().put_back(place);
    }

    /// Calls `f` with the report of the operation in progress.
    pub(super) fn report_at<R>(&self, place: Place, f: impl FnOnce(&mut Report) -> R) -> R {
        f(self.records().get_mut(place))
    }

    /// Ends the operation in progress in `state`.
    pub(super) fn end<H: Host>(&self, host: &H, place: Place, state: State) {
        let mut records = self.records();
        let report = records.get_mut(place);
        report.state = state;
        report.ended = host.now();
        let (pool, range) = (report.pool, report.range);
        self.statistics.count_end(report);
        host.note(report);
        // The starting guest was stopped meanwhile.
        let declined = (report.is_orphan && report.is_to_be_fetched()).then_some(report.id);
        if let Some((pool, range)) = declined.and_then(|id| records.decline(id, host.now())) {
            self.give_back(&mut records, host, pool, range);
        }
        if state == State::Released {
            records.count_returned(pool, range);
        }
        if host.ground().claimed_frames(pool) == 0 {
            records.disown(pool);
        }
    }
}

/// Returns the first frames of `range` that the owner of `pool` has, up to [`RECLAIM`].
fn claimed_part(ground: &impl Ground, range: FrameRange, pool: PoolId) -> Option<FrameRange> {
    let mut number = range.start();
    while number < range.end() {
        let start = number & !(PAGEBLOCK_FRAMES - 1);
        let glance = ground.glance(Frame::try_new(start)?)?;
        let end = (start + PAGEBLOCK_FRAMES).min(range.end());
        if glance.claimed == 0 {
            number = end;
            continue;
        }
        while let Some(occupant) = ground.occupant(FrameRange::from_numbers(number, end)?) {
            if occupant.owner == Some(Owner::Pool(pool)) {
                let first = occupant.frame.number().max(number);
                return FrameRange::from_numbers(first, occupant.end().min(first + RECLAIM));
            }
            number = occupant.end();
        }
        number = end;
    }
    None
}
