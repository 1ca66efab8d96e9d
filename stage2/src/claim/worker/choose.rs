//! Choice of a range, and the count of its tenants.

use super::{Active, Phase};
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::claim::cause::{Blocker, Cause};
use crate::claim::engine::Claims;
use crate::claim::exhaustive::Exhaustive;
use crate::claim::host::{Ground, Host};
use crate::claim::operation::{State, Try, Wish};
use crate::claim::room::{Piece, Room, Tenants};
use crate::claim::search::{Progress, Search, is_fixed, pageblock_at};
use crate::phys::alloc::Glance;
use crate::range::FrameRange;

/// Maximum number of pageblocks examined in a turn, fewer if some are split.
const LOOK: u64 = 64;
/// Maximum number of pieces and windows examined in a turn.
const PIECES: u64 = 64;

impl Active {
    /// Continues the search for the cheapest range.
    pub(super) fn choose<H: Host>(&mut self, claims: &Claims, host: &H, mut search: Search) -> Option<Phase> {
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        let barred = &self.barred;
        let is_barred = |part: FrameRange| barred.iter().any(|frame| part.contains(*frame));
        let found = match search.advance(host.ground(), is_barred, LOOK) {
            Progress::More => return Some(Phase::Choose(search)),
            Progress::Done(found) => found,
        };
        let lent = search.lent_per_cent();
        claims.statistics().saw_lent(self.pool, search.lent_frames());
        let is_exact = claims.report_at(self.place, |report| {
            if report.tries.is_empty() {
                report.lent_per_cent = lent;
            }
            matches!(report.wish, Wish::Exactly(_))
        });
        if is_exact {
            return Some(Phase::Count { next: self.range.start(), used: 0 });
        }
        let Some((range, used)) = found else {
            let (frame, bar) = search.bar(host.ground());
            let frame = frame.unwrap_or(self.pool_range(claims).first());
            self.bar = Blocker { frame, cause: Cause::NoRange(bar) };
            return Some(self.choose_elsewhere(claims, host).unwrap_or(Phase::Undo(self.bar)));
        };
        self.range = range;
        Some(self.begin_try(claims, used))
    }

    /// Continues to count the frames in use. Once the range is isolated, their number can only fall.
    pub(super) fn count<H: Host>(&mut self, claims: &Claims, host: &H, next: u64, used: u64) -> Phase {
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Phase::Undo(blocker);
        }
        let ground = host.ground();
        let (more, next) = used_frames(ground, next, self.range.end());
        let used = used + more;
        if next < self.range.end() {
            return Phase::Count { next, used };
        }
        if self.isolated.is_none() {
            return self.begin_try(claims, used);
        }
        let missing = used.saturating_sub(ground.free_frames());
        if missing > 0 {
            let cause = Cause::NoFrame { missing };
            return Phase::Undo(Blocker { frame: self.range.first(), cause });
        }
        let ground = host.ground();
        match used {
            0 => self.begin_take(claims),
            _ if Room::of(ground).is_ample(used, ground.controllers()) => self.begin_move(claims),
            _ => self.begin_weigh(),
        }
    }

    /// Begins to examine the ranges that the first search skips, because they do not consist of whole pageblocks. `None`
    /// if there are none, or if there is too little free memory for any range.
    pub(super) fn choose_elsewhere<H: Host>(&self, claims: &Claims, host: &H) -> Option<Phase> {
        let pool = claims.pools().and_then(|pools| pools.get(self.pool))?;
        let Wish::Sized { frames, align } = claims.report_at(self.place, |report| report.wish) else {
            return None;
        };
        let is_of_pageblocks =
            frames.is_multiple_of(PAGEBLOCK_FRAMES) && align.is_multiple_of(PAGEBLOCK_FRAMES);
        if is_of_pageblocks || frames > host.ground().free_frames() {
            return None;
        }
        Some(Phase::ChooseAgain(Exhaustive::new(pool.range, pool.controller, frames, align)))
    }

    /// Continues to examine every range.
    pub(super) fn choose_again<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        mut search: Exhaustive,
    ) -> Phase {
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Phase::Undo(blocker);
        }
        match search.advance(host.ground(), host, &self.barred, &self.tried, PIECES) {
            Progress::More => Phase::ChooseAgain(search),
            Progress::Done(Some((range, used))) => {
                self.range = range;
                self.begin_try(claims, used)
            }
            // The claim fails for the reason of its last try.
            Progress::Done(None) => {
                self.is_hopeless = true;
                let last =
                    claims.report_at(self.place, |report| report.tries.last().map(|last| last.blocker));
                Phase::Undo(last.unwrap_or(self.bar))
            }
        }
    }

    /// Begins to count tenants by the controllers that they may move to.
    pub(super) fn begin_weigh(&self) -> Phase {
        Phase::Weigh { next: self.range.start(), tenants: Tenants::default() }
    }

    /// Continues to count tenants by the controllers that they may move to. At the end, plans the next job, or gives up
    /// the range before any tenant moves.
    pub(super) fn weigh<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        mut next: u64,
        mut tenants: Tenants,
    ) -> Phase {
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Phase::Undo(blocker);
        }
        let (ground, end) = (host.ground(), self.range.end());
        for _ in 0..PIECES {
            if next >= end {
                break;
            }
            let frame = Frame::try_new(next).unwrap_or_default();
            next = match Piece::at(ground, host, next, pageblock_at(next).end().min(end)) {
                Piece::Free { end } => end,
                Piece::Tenant { kind, why, .. } if kind.is_empty() => {
                    return Phase::Undo(Blocker { frame, cause: why });
                }
                Piece::Tenant { end, kind, .. } => {
                    tenants.add(kind, end - next);
                    end
                }
                // Frames that were claimed or retired meanwhile are found when frames are taken.
                Piece::Fixed { end } => end,
            };
        }
        if next < end {
            return Phase::Weigh { next, tenants };
        }
        let room = Room::of(ground);
        let missing = tenants.missing(&room);
        if missing > 0 {
            return Phase::Undo(Blocker { frame: self.range.first(), cause: Cause::NoFrame { missing } });
        }
        self.plan = if tenants.need_no_plan(&room) { None } else { tenants.next_move(&room) };
        if tenants.used() == 0 { self.begin_take(claims) } else { self.begin_move(claims) }
    }

    /// Begins a try with `range`, of which `used` frames are in use.
    pub(super) fn begin_try(&mut self, claims: &Claims, used: u64) -> Phase {
        let range = self.range;
        let is_first = claims.report_at(self.place, |report| {
            report.range = range;
            report.state = State::Isolating;
            report.done = 0;
            let is_first = report.tries.is_empty();
            let _ = report.tries.push(Try { range, used, blocker: Blocker::default() });
            is_first
        });
        if !is_first {
            claims.statistics().count_retry();
        }
        self.taken = range.start();
        self.rounds = 0;
        Phase::Isolate(range.start())
    }
}

/// Counts frames that guests use, from frame number `next` on and before `end`. Returns the count and the frame number
/// at which to continue.
fn used_frames(ground: &impl Ground, next: u64, end: u64) -> (u64, u64) {
    let is_whole = next.is_multiple_of(PAGEBLOCK_FRAMES) && end - next >= PAGEBLOCK_FRAMES;
    let mut glances = [Glance::default(); 16];
    let most = ((end - next) / PAGEBLOCK_FRAMES).min(glances.len() as u64);
    let count = match Frame::try_new(next).filter(|_| is_whole) {
        Some(first) => ground.glances(first, &mut glances[..most as usize]),
        None => 0,
    };
    if count > 0 {
        let used = glances[..count].iter().map(|glance| u64::from(glance.lent())).sum();
        return (used, next + count as u64 * PAGEBLOCK_FRAMES);
    }
    let end = ((next | (PAGEBLOCK_FRAMES - 1)) + 1).min(end);
    let mut part = FrameRange::from_numbers(next, end).unwrap_or_default();
    let mut used = 0;
    while let Some(occupant) = ground.occupant(part) {
        let end = occupant.end().min(part.end());
        if !is_fixed(&occupant) {
            used += end - occupant.frame.number().max(part.start());
        }
        part = FrameRange::from_numbers(end, part.end()).unwrap_or_default();
    }
    (used, end)
}
