//! Records of queued, active and past operations, and of the owners of pools.

use super::cause::Blocker;
use super::operation::{ClaimId, Claimant, Kind, Report, RequestError, State, Wish};
use crate::migrate::Time;
use crate::owner::{MAX_POOLS, PoolId};
use crate::phys::pool::Pools;
use crate::range::FrameRange;

/// Maximum number of records, and of open operations, of the operator.
const OPERATOR: usize = 8;
/// The limit for each guest.
const GUEST: usize = 2;
/// The limit for guests that start.
const UNITS: usize = 4;
/// Reciprocal of the seconds for which a cancelled claim of a guest counts as open, from its request on.
const HOLDS_A_SECOND: u64 = 100;
/// Number of records: enough for the operator, guests that start, and eight guests that own pools.
pub const RECORDS: usize = OPERATOR + UNITS + GUEST * 8;

/// The records. A record with number 0 is empty, so the initial value is all zero bytes.
pub(super) struct Records {
    list: [Report; RECORDS],
    last: u32,
    /// Present owners of the pools for which the configuration names none.
    owners: [Owner; MAX_POOLS],
}

/// Present owner of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
enum Owner {
    #[default]
    Nobody,
    Somebody(Claimant),
}

/// Tests whether an operation that is over still counts as open. This limits how often a guest can queue a claim and
/// cancel it at once, which keeps every CPU looking for work.
fn is_held(report: &Report, now: u64, hold: u64) -> bool {
    matches!(report.claimant, Claimant::Guest(_))
        && report.state == State::Cancelled
        && !report.is_orphan
        && now.wrapping_sub(report.submitted) < hold
}

/// Index of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(usize);

impl Place {
    pub(super) const FIRST: Self = Self(0);
}

/// Returns the maximum number of records, and of open operations, of `claimant`.
const fn quota(claimant: Claimant) -> usize {
    match claimant {
        Claimant::Operator => OPERATOR,
        Claimant::Guest(_) => GUEST,
        Claimant::Units => UNITS,
    }
}

const EMPTY: Report = Report::empty();

impl Records {
    pub(super) const fn new() -> Self {
        Self { list: [EMPTY; RECORDS], last: 0, owners: [Owner::Nobody; MAX_POOLS] }
    }

    /// Returns the owner of `pool`: the guest that the configuration names, or the claimant that has claims of it.
    pub(super) fn owner(&self, pools: &Pools, pool: PoolId) -> Option<Claimant> {
        let bound = pools.get(pool)?.bound.map(Claimant::Guest);
        bound.or(match self.owners[pool.index()] {
            Owner::Nobody => None,
            Owner::Somebody(claimant) => Some(claimant),
        })
    }

    /// Clears the owner of `pool`, of which nothing is claimed any more, unless operations on it are open.
    pub(super) fn disown(&mut self, pool: PoolId) {
        let is_open = self
            .list
            .iter()
            .any(|report| report.id.get() > 0 && report.pool == pool && !report.state.is_over());
        if !is_open {
            self.owners[pool.index()] = Owner::Nobody;
        }
    }

    /// Counts `range` of `pool` as given back, for the claims that were granted it: the latest first, each up to what it
    /// still has.
    pub(super) fn count_returned(&mut self, pool: PoolId, range: FrameRange) {
        let mut left = range.frames();
        let mut before = u32::MAX;
        while left > 0 {
            let granted = self.list.iter_mut().filter(|report| {
                let id = report.id.get();
                id > 0 && id < before && report.pool == pool && report.state == State::Granted
            });
            let Some(report) = granted.max_by_key(|report| report.id) else { return };
            before = report.id.get();
            let held = report.range.frames() - report.returned;
            let gone = report.range.intersection(range).frames().min(held).min(left);
            report.returned += gone;
            left -= gone;
        }
    }

    /// Adds an operation to the end of the queue. It replaces the claimant's oldest record of an operation that is over.
    pub(super) fn submit(
        &mut self,
        pools: &Pools,
        kind: Kind,
        pool: PoolId,
        claimant: Claimant,
        wish: Wish,
        time: &impl Time,
    ) -> Result<ClaimId, RequestError> {
        let definition = pools.get(pool).ok_or(RequestError::NoSuchPool)?;
        check_wish(wish, definition.range)?;
        if claimant == Claimant::Units && definition.unit_order.is_none() {
            return Err(RequestError::NotNamed);
        }
        match self.owner(pools, pool) {
            Some(owner) if owner != claimant => return Err(RequestError::NotOwner { owner }),
            None if matches!(claimant, Claimant::Guest(_)) => return Err(RequestError::NotNamed),
            _ => {}
        }
        let is_own = |report: &Report| report.id.get() > 0 && report.claimant == claimant;
        let (now, hold) = (time.now(), time.ticks_per_second() / HOLDS_A_SECOND);
        let is_kept = |report: &Report| {
            !report.state.is_over() || report.is_to_be_fetched() || is_held(report, now, hold)
        };
        let is_full = self.list.iter().filter(|report| is_own(report)).count() >= quota(claimant);
        // A claimant at its limit replaces a record of its own. Others take an empty record, or replace the oldest record
        // of any claimant.
        let can_go = |report: &&mut Report| match report.id.get() {
            0 => !is_full,
            _ => !is_kept(report) && (!is_full || is_own(report)),
        };
        let place = self.list.iter_mut().filter(can_go).min_by_key(|report| report.id);
        let place = place.ok_or(RequestError::TooManyOpen)?;
        self.last += 1;
        let id = ClaimId::new(self.last);
        *place = Report { id, kind, pool, claimant, wish, submitted: now, ..Report::empty() };
        if definition.bound.is_none() {
            self.owners[pool.index()] = Owner::Somebody(claimant);
        }
        Ok(id)
    }

    /// Starts the oldest operation of the queue. Operations for guests that start go first, because these guests wait.
    pub(super) fn start_next(&mut self, now: u64) -> Option<Place> {
        let waiting = self.list.iter_mut().enumerate();
        let waiting = waiting.filter(|(_, report)| report.id.get() > 0 && report.state == State::Queued);
        let is_later = |report: &Report| report.claimant != Claimant::Units;
        let (place, report) = waiting.min_by_key(|(_, report)| (is_later(report), report.id))?;
        report.started = now;
        report.state = match report.kind {
            Kind::Claim => State::Choosing,
            Kind::Release => State::Releasing,
        };
        Some(Place(place))
    }

    /// Returns the operation in progress to the queue, as if it had not begun.
    pub(super) fn put_back(&mut self, place: Place) {
        let report = self.get_mut(place);
        report.state = State::Queued;
        report.range = FrameRange::EMPTY;
        report.blocker = Blocker::NOTHING;
        report.done = 0;
        report.is_resumed = true;
        let _ = report.tries.pop();
    }

    pub(super) fn get(&self, place: Place) -> &Report {
        &self.list[place.0]
    }

    pub(super) fn get_mut(&mut self, place: Place) -> &mut Report {
        &mut self.list[place.0]
    }

    /// Returns all operations.
    pub(super) fn all(&self) -> impl Iterator<Item = &Report> {
        self.list.iter().filter(|report| report.id.get() > 0)
    }

    /// Returns operation `id` of `claimant`.
    pub(super) fn find(&self, claimant: Claimant, id: ClaimId) -> Option<&Report> {
        self.list.iter().find(|report| report.id == id && id.get() > 0 && report.claimant == claimant)
    }

    /// Cancels an operation, and returns its state. An operation that has not begun is over at once.
    pub(super) fn cancel(
        &mut self,
        claimant: Claimant,
        id: ClaimId,
        now: u64,
    ) -> Result<State, RequestError> {
        let is_it = |report: &&mut Report| report.id == id && id.get() > 0 && report.claimant == claimant;
        let report = self.list.iter_mut().find(is_it);
        let report = report.ok_or(RequestError::NoSuchClaim(id))?;
        match (report.kind, report.state) {
            (_, state) if state.is_over() => return Err(RequestError::IsOver(id)),
            (Kind::Release, _) => return Err(RequestError::IsRelease(id)),
            (_, State::Queued) => {
                report.state = State::Cancelled;
                report.started = now;
                report.ended = now;
            }
            _ => report.is_cancelled = true,
        }
        Ok(report.state)
    }

    /// Ends claim `id` of units as soon as possible. If it was granted, settles it and returns the pool and the range to
    /// release.
    pub(super) fn decline(&mut self, id: ClaimId, now: u64) -> Option<(PoolId, FrameRange)> {
        let is_it = |report: &&mut Report| report.id == id && report.claimant == Claimant::Units;
        let report = self.list.iter_mut().find(is_it)?;
        if report.is_to_be_fetched() {
            report.is_settled = true;
            return Some((report.pool, report.range));
        }
        if report.state == State::Queued {
            report.state = State::Cancelled;
            report.ended = now;
        }
        report.is_orphan = true;
        None
    }

    /// Returns pool and range of the granted unit `id` that was neither adopted nor declined.
    pub(super) fn to_be_fetched(&self, id: ClaimId) -> Option<(PoolId, FrameRange)> {
        let report = self.find(Claimant::Units, id)?;
        report.is_to_be_fetched().then_some((report.pool, report.range))
    }

    /// Records that the unit was adopted.
    pub(super) fn settle(&mut self, id: ClaimId) {
        let report = self.list.iter_mut().find(|report| report.id == id && report.is_to_be_fetched());
        if let Some(report) = report {
            report.is_settled = true;
        }
    }

    /// Ends the operations of a claimant that stops: queued ones at once, the one in progress as soon as possible.
    pub(super) fn orphan(&mut self, claimant: Claimant, now: u64) {
        for report in self.list.iter_mut().filter(|report| report.claimant == claimant) {
            report.is_orphan = true;
            if report.id.get() > 0 && report.state == State::Queued {
                report.state = State::Cancelled;
                report.ended = now;
            }
        }
    }
}

/// Checks a wish against the range of the pool.
fn check_wish(wish: Wish, pool: FrameRange) -> Result<(), RequestError> {
    let frames = wish.frames();
    if frames == 0 {
        return Err(RequestError::Empty);
    }
    match wish {
        Wish::Sized { align, .. } if !align.is_power_of_two() || align > 1 << 36 => {
            Err(RequestError::BadAlignment { align })
        }
        _ if frames > pool.frames() => Err(RequestError::TooLarge { frames, pool: pool.frames() }),
        Wish::Exactly(range) if !pool.contains_range(range) => Err(RequestError::OutsidePool { range, pool }),
        _ => Ok(()),
    }
}
