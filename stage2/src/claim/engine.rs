//! Claims as a whole: what hyp and the console call.

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

/// Frames that are scrubbed and given back in a turn, for an owner that is gone.
const RECLAIM: u64 = 64;
/// Pageblocks that are looked at for them in a turn.
const LOOK: u64 = 64;

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The time is up; there is more to do.
    More,
    /// Migration has to do its part first: let it.
    Waiting,
    /// Migration does nothing for the claim until somebody resumes its job, or makes room in the queue: look again later.
    Stalled,
    /// There is nothing to do.
    Idle,
    /// Another CPU is at it.
    Busy,
}

impl Step {
    /// What a step of claims and then one of migration come to together, where `patience` are the ticks after which a
    /// claim that is stalled is looked at again.
    pub const fn and_migration(self, migration: migrate::Step, patience: u64) -> migrate::Step {
        use migrate::Step as Both;
        match (self, migration) {
            // The claim's job is over: the claim goes on.
            (Self::More, _) | (Self::Waiting | Self::Stalled | Self::Busy, Both::Spare) => Both::More,
            (Self::Waiting, Both::Idle) => Both::More,
            (Self::Stalled, Both::Idle) => Both::Wait(patience),
            (Self::Busy, Both::Idle) => Both::Busy,
            (_, other) => other,
        }
    }
}

/// All pools and claims of the machine. All zero bytes at first, so a static costs no room in the image.
pub struct Claims {
    pools: Once<Pools>,
    worker: SpinMutex<Worker>,
    records: SpinMutex<Records>,
    statistics: Aside<Statistics>,
    /// Pools whose owner is gone, a bit each: what is claimed of them is to be given back.
    abandoned: AtomicU32,
    /// Those of them of which something was given back already.
    reclaimed: AtomicU32,
}

impl Default for Claims {
    fn default() -> Self {
        Self::new()
    }
}

impl Claims {
    /// Without a pool.
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

    /// Says which pools there are. Once, at boot.
    pub fn set_pools(&self, pools: Pools) {
        self.pools.call_once(|| pools);
    }

    /// The pools; `None` before [`Self::set_pools`].
    pub fn pools(&self) -> Option<&Pools> {
        self.pools.get()
    }

    /// The counters.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn records(&self) -> SpinMutexGuard<'_, Records> {
        self.records.lock()
    }

    // Operations. Each call returns at once.

    /// Returns who has operations or memory of `pool` at present.
    #[cfg(test)]
    pub(crate) fn owner(&self, pool: PoolId) -> Option<Claimant> {
        self.records().owner(self.pools()?, pool)
    }

    /// Queues a claim.
    ///
    /// # Errors
    /// Where the pool belongs to somebody else, the wish is none, or too many operations are open.
    pub fn claim(
        &self,
        time: &impl Time,
        claimant: Claimant,
        pool: PoolId,
        wish: Wish,
    ) -> Result<ClaimId, RequestError> {
        self.submit(time, Kind::Claim, claimant, pool, wish)
    }

    /// Queues a release of `range`, which may be any part of what was claimed.
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

    /// Ends a claim that is not over: what it did is undone.
    ///
    /// # Errors
    /// [`RequestError::NoSuchClaim`], [`RequestError::IsOver`], [`RequestError::IsRelease`].
    pub fn cancel<H: Host>(&self, host: &H, claimant: Claimant, id: ClaimId) -> Result<(), RequestError> {
        let mut records = self.records();
        if records.cancel(claimant, id, host.now())? == State::Cancelled {
            self.statistics.count_cancelled();
            Self::disown_where_nothing_is_left(&mut records, host, claimant, id);
            // Who waits for its end does not see who cancelled it.
            if let Some(report) = records.find(claimant, id) {
                host.note(report);
            }
        }
        Ok(())
    }

    /// The operation `id` ended before it had begun: the pool is nobody's, if nothing else of it is anybody's.
    fn disown_where_nothing_is_left<H: Host>(
        records: &mut Records,
        host: &H,
        claimant: Claimant,
        id: ClaimId,
    ) {
        let pool = records.find(claimant, id).map(|report| report.pool);
        if let Some(pool) = pool.filter(|pool| host.ground().claimed_frames(*pool) == 0) {
            records.disown(pool);
        }
    }

    /// How an operation of `claimant` stands.
    pub fn report(&self, claimant: Claimant, id: ClaimId) -> Option<Report> {
        self.records().find(claimant, id).cloned()
    }

    /// The first operation with a number above `after`, whoever's it is.
    pub fn report_after(&self, after: ClaimId) -> Option<Report> {
        let records = self.records();
        records.all().filter(|report| report.id > after).min_by_key(|report| report.id).cloned()
    }

    /// Makes what `id`, a claim of [`Claimant::Units`], was granted a guest's RAM: one movable block, at `mapping`. Yields its
    /// first frame; `None` where `id` is no such claim, or was fetched already. Until it is adopted or declined, a unit that
    /// was granted is kept.
    ///
    /// # Errors
    /// Where the range is no unit. It is declined then: see [`Self::decline`].
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

    /// Nobody waits for `id`, a claim of [`Claimant::Units`], any more: it ends as soon as it can, and what it was granted, or
    /// is by then, is given back.
    pub fn decline<H: Host>(&self, host: &H, id: ClaimId) {
        let mut records = self.records();
        match records.decline(id, host.now()) {
            Some((pool, range)) => self.give_back(&mut records, host, pool, range),
            None => Self::disown_where_nothing_is_left(&mut records, host, Claimant::Units, id),
        }
    }

    /// Queues the release of a unit whose record is settled.
    fn give_back(&self, records: &mut Records, time: &impl Time, pool: PoolId, range: FrameRange) {
        if let Some(pools) = self.pools() {
            // There is room: that of the settled record, if no other.
            let wish = Wish::Exactly(range);
            let _ = records.submit(pools, Kind::Release, pool, Claimant::Units, wish, time);
        }
    }

    /// Gives back all that `claimant` has of `pool` and that no guest sees: for an owner without windows.
    ///
    /// # Errors
    /// [`RequestError::NoSuchPool`]; [`RequestError::NotOwner`] where the pool is somebody else's.
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

    /// `guest` stops or resets: what it asked for ends, and all that it claimed is given back. No vCPU of the guest may
    /// run. Clear its windows after this call and before one runs again.
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

    /// Works for at most about `ticks`. One CPU at a time.
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

    /// Scrubs and gives back some of what an owner that is gone had, from frame number `next` on. Yields whether there
    /// was anything to do. Only between operations.
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

    pub(super) fn start_next(&self, time: &impl Time) -> Option<(Place, Report)> {
        let mut records = self.records();
        let place = records.start_next(time.now())?;
        let report = records.get(place).clone();
        Some((place, report))
    }

    /// Whether a claim for a guest that starts waits for its turn.
    pub(super) fn has_units_waiting(&self) -> bool {
        let is_it = |report: &Report| report.claimant == Claimant::Units && report.state == State::Queued;
        self.records().all().any(is_it)
    }

    /// Puts the operation being worked on back into the queue.
    pub(super) fn put_back(&self, place: Place) {
        self.records().put_back(place);
    }

    /// Looks at, or changes, the report of the operation being worked on.
    pub(super) fn report_at<R>(&self, place: Place, f: impl FnOnce(&mut Report) -> R) -> R {
        f(self.records().get_mut(place))
    }

    /// The operation being worked on is over.
    pub(super) fn end<H: Host>(&self, host: &H, place: Place, state: State) {
        let mut records = self.records();
        let report = records.get_mut(place);
        report.state = state;
        report.ended = host.now();
        let (pool, range) = (report.pool, report.range);
        self.statistics.count_end(report);
        host.note(report);
        // Its waiter left meanwhile.
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

/// The first frames of `range` that the owner of `pool` has, some of them.
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
