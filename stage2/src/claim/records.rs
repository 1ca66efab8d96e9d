//! The operations that there are, waiting ones and past ones, and who owns which pool.

use super::cause::Blocker;
use super::operation::{ClaimId, Claimant, Kind, Report, RequestError, State, Wish};
use crate::migrate::Time;
use crate::owner::{MAX_POOLS, PoolId};
use crate::phys::pool::Pools;
use crate::range::FrameRange;

/// How many operations of the operator's are kept, and may be open.
const OPERATOR: usize = 8;
/// How many of each guest.
const GUEST: usize = 2;
/// How many for guests that start.
const UNITS: usize = 4;
/// A cancelled claim of a guest counts as open until this part of a second after it was queued.
const HOLDS_A_SECOND: u64 = 100;
/// How many in all: those of eight guests with pools have room beside the operator's.
pub const RECORDS: usize = OPERATOR + UNITS + GUEST * 8;

/// The records. All zero bytes at first: a record without a number is empty.
pub(super) struct Records {
    list: [Report; RECORDS],
    last: u32,
    /// Owners of pools that the configuration names nobody for.
    owners: [Owner; MAX_POOLS],
}

/// Who owns a pool for the moment.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
enum Owner {
    #[default]
    Nobody,
    Somebody(Claimant),
}

/// Whether an operation counts as open though it is over: a guest that queues claims and cancels them at once keeps every
/// CPU looking for work, and so can do that only so often.
fn is_held(report: &Report, now: u64, hold: u64) -> bool {
    matches!(report.claimant, Claimant::Guest(_))
        && report.state == State::Cancelled
        && !report.is_orphan
        && now.wrapping_sub(report.submitted) < hold
}

/// The place of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(usize);

impl Place {
    pub(super) const FIRST: Self = Self(0);
}

/// How many operations of `claimant` may be open, and are kept.
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

    /// Who owns `pool`: who the configuration names, or who has claimed of it.
    pub(super) fn owner(&self, pools: &Pools, pool: PoolId) -> Option<Claimant> {
        let bound = pools.get(pool)?.bound.map(Claimant::Guest);
        bound.or(match self.owners[pool.index()] {
            Owner::Nobody => None,
            Owner::Somebody(claimant) => Some(claimant),
        })
    }

    /// Nobody has anything of `pool` any more.
    pub(super) fn disown(&mut self, pool: PoolId) {
        let is_open = self
            .list
            .iter()
            .any(|report| report.id.get() > 0 && report.pool == pool && !report.state.is_over());
        if !is_open {
            self.owners[pool.index()] = Owner::Nobody;
        }
    }

    /// `range` of `pool` is given back: of the claims that were granted it, the last one that still has so much there loses
    /// it.
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

    /// Puts an operation at the end of the queue, in the place of the claimant's own that was over first.
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
        // The claimant's own that was over first; as long as it has fewer than it may, an empty place, or else the one
        // of anybody's that was over first.
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

    /// Takes the operation that waits longest for its turn. Those for guests that start go first: these guests wait for them.
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

    /// Puts the operation that is worked on back into the queue, as if it had not begun.
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

    pub(super) fn all(&self) -> impl Iterator<Item = &Report> {
        self.list.iter().filter(|report| report.id.get() > 0)
    }

    /// The operation `id` of `claimant`.
    pub(super) fn find(&self, claimant: Claimant, id: ClaimId) -> Option<&Report> {
        self.list.iter().find(|report| report.id == id && id.get() > 0 && report.claimant == claimant)
    }

    /// Cancels an operation: yields its state, in which it is over if it had not begun.
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

    /// Nobody waits for the claim `id` of units any more: it ends as soon as it can. Yields what of it has to be released, if
    /// it was granted: it is settled then.
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

    /// What `id`, a unit that was granted and that nobody has fetched yet, has.
    pub(super) fn to_be_fetched(&self, id: ClaimId) -> Option<(PoolId, FrameRange)> {
        let report = self.find(Claimant::Units, id)?;
        report.is_to_be_fetched().then_some((report.pool, report.range))
    }

    /// The unit was fetched.
    pub(super) fn settle(&mut self, id: ClaimId) {
        let report = self.list.iter_mut().find(|report| report.id == id && report.is_to_be_fetched());
        if let Some(report) = report {
            report.is_settled = true;
        }
    }

    /// `claimant` is gone: what waits ends at once, what is under way as soon as it can.
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
