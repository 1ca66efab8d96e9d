//! Claims as a whole: what hyp and the console call.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::ground::{Ground, Host};
use super::operation::{ClaimId, Claimant, Kind, Report, RequestError, State, Wish};
use super::records::{Place, Records};
use super::statistics::Statistics;
use super::worker::{Turn, Worker};
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::frame::{Contents, Mapping};
use crate::memory::{BlockError, Memory};
use crate::migrate::{Engine, Time};
use crate::owner::{GuestId, Owner, PoolId};
use crate::pool::Pools;
use crate::range::FrameRange;

/// Frames that are scrubbed and given back in a turn, for an owner that is gone.
const RECLAIM: u64 = 64;

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The time is up; there is more to do.
    More,
    /// Migration has to do its part first: let it.
    Waiting,
    /// There is nothing to do.
    Idle,
    /// Another CPU is at it.
    Busy,
}

/// All pools and claims of the machine. All zero bytes at first, so a static costs no room in the image.
pub struct Claims {
    pools: Once<Pools>,
    worker: SpinMutex<Worker>,
    records: SpinMutex<Records>,
    statistics: Statistics,
    /// Pools whose owner is gone, a bit each: what is claimed of them is to be given back.
    abandoned: AtomicU32,
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
            statistics: Statistics::new(),
            abandoned: AtomicU32::new(0),
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
    pub const fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn records(&self) -> SpinMutexGuard<'_, Records> {
        self.records.lock()
    }

    // Operations. Each call returns at once.

    /// Who owns `pool` at present.
    pub fn owner(&self, pool: PoolId) -> Option<Claimant> {
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
        self.records().submit(pools, kind, pool, claimant, wish, time.now())
    }

    /// Ends a claim that is not over: what it did is undone.
    ///
    /// # Errors
    /// [`RequestError::NoSuchClaim`], [`RequestError::IsOver`], [`RequestError::IsRelease`].
    pub fn cancel(&self, time: &impl Time, claimant: Claimant, id: ClaimId) -> Result<(), RequestError> {
        if self.records().cancel(claimant, id, time.now())? == State::Cancelled {
            self.statistics.count_cancelled();
        }
        Ok(())
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

    /// Makes what was granted to [`Claimant::Units`] a guest's RAM: one movable block, at `mapping`.
    ///
    /// # Errors
    /// Where the range is no unit that was granted.
    pub fn adopt(
        &self,
        memory: &Memory<'_>,
        pool: PoolId,
        range: FrameRange,
        mapping: Mapping,
    ) -> Result<(), BlockError> {
        let order = range.frames().checked_ilog2().unwrap_or(0) as u8;
        memory.adopt(range.first(), order, pool, mapping)?;
        if memory.claimed_frames(pool) == 0 {
            self.records().disown(pool);
        }
        Ok(())
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
            if let Some(part) = claimed_part(ground, if left.is_empty() { pool.range } else { left }, id) {
                host.scrub(part.first(), part.frames());
                *next = part.end();
                return ground.give(part, id, Contents::Zeroed);
            }
        }
        *next = 0;
        self.abandoned.fetch_and(!(1 << bit), Ordering::Relaxed);
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
        let pool = report.pool;
        self.statistics.count_end(report);
        host.note(report);
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
