//! The operations that there are, waiting ones and past ones, and who owns which pool.

use super::operation::{ClaimId, Claimant, Kind, Report, RequestError, State, Wish};
use crate::owner::{MAX_POOLS, PoolId};
use crate::pool::Pools;
use crate::range::FrameRange;

/// How many operations of the operator's are kept, and may be open.
const OPERATOR: usize = 8;
/// How many of each guest.
const GUEST: usize = 2;
/// How many for guests that start.
const UNITS: usize = 4;
/// How many in all: those of eight guests with pools have room beside the operator's.
const RECORDS: usize = OPERATOR + UNITS + GUEST * 8;

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

    /// Puts an operation at the end of the queue, in the place of the claimant's own that was over first.
    pub(super) fn submit(
        &mut self,
        pools: &Pools,
        kind: Kind,
        pool: PoolId,
        claimant: Claimant,
        wish: Wish,
        now: u64,
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
        let is_full = self.list.iter().filter(|report| is_own(report)).count() >= quota(claimant);
        // The claimant's own that was over first; as long as it has fewer than it may, an empty place, or else the one
        // of anybody's that was over first.
        let can_go = |report: &&mut Report| match report.id.get() {
            0 => !is_full,
            _ => report.state.is_over() && (!is_full || is_own(report)),
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

    /// The operation that waits longest for its turn.
    pub(super) fn start_next(&mut self, now: u64) -> Option<Place> {
        let waiting = self.list.iter_mut().enumerate();
        let waiting = waiting.filter(|(_, report)| report.id.get() > 0 && report.state == State::Queued);
        let (place, report) = waiting.min_by_key(|(_, report)| report.id)?;
        report.started = now;
        report.state = match report.kind {
            Kind::Claim => State::Choosing,
            Kind::Release => State::Releasing,
        };
        Some(Place(place))
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
