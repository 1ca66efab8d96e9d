//! Undoing a try.

use super::{Active, Phase};
use crate::addr::{Ipa, PAGEBLOCK_FRAMES};
use crate::claim::cause::{Blocker, Cause};
use crate::claim::engine::Claims;
use crate::claim::exhaustive::Exhaustive;
use crate::claim::host::{Ground, Host, after};
use crate::claim::operation::{MAX_TRIES, Report, State, Wish};
use crate::phys::frame::Contents;
use crate::range::FrameRange;

/// Maximum number of pageblocks whose isolation ends in a turn. The frames of each are visited.
const OPEN: u64 = 4;

impl Active {
    /// Undoes the steps of a try in reverse order. Then tries the next range, or ends the claim.
    pub(super) fn undo<H: Host>(&mut self, claims: &Claims, host: &H, blocker: Blocker) -> Option<Phase> {
        claims.report_at(self.place, |report| {
            report.state = State::Undoing;
            report.ipa = Ipa::default();
        });
        // The range is hidden before its frames are freed.
        match self.hide_some(claims, host) {
            Ok(false) => {}
            Ok(true) => return Some(Phase::Undo(blocker)),
            Err(_) if self.open_some(host) => return Some(Phase::Undo(blocker)),
            Err(seen) => {
                self.end_seen(claims, host, seen);
                return None;
            }
        }
        let start = self.range.start();
        if self.taken > start {
            let last = (self.taken - 1) & !(PAGEBLOCK_FRAMES - 1);
            let part = FrameRange::from_numbers(last.max(start), self.taken).unwrap_or_default();
            host.ground().give(part, self.pool, Contents::Dirty);
            self.taken = part.start();
            return Some(Phase::Undo(blocker));
        }
        if self.open_some(host) {
            return Some(Phase::Undo(blocker));
        }
        let (is_sized, pool, frames, align, tries) = claims.report_at(self.place, |report| {
            if let Some(last) = report.tries.last_mut() {
                last.blocker = blocker;
            }
            let (is_sized, align) = match report.wish {
                Wish::Sized { align, .. } => (true, align),
                Wish::Exactly(_) => (false, 1),
            };
            (is_sized, report.pool, report.wish.frames(), align, report.tries.len())
        });
        let end = Self::cancellation(claims, self.place);
        if end.is_none() && self.makes_way {
            claims.put_back(self.place);
            return None;
        }
        let is_tried_again = is_sized
            && blocker.cause.is_local()
            && tries < MAX_TRIES
            && !self.is_hopeless
            // Free frames in the range and free frames for its tenants elsewhere are at least as many as the range has.
            && frames <= host.ground().free_frames();
        if end.is_none() && is_tried_again {
            if blocker.cause.is_of_frame() {
                let _ = self.barred.push(blocker.frame);
            } else {
                let _ = self.tried.push(start);
            }
            self.plan = None;
            let pool = claims.pools().and_then(|pools| pools.get(pool))?;
            claims.report_at(self.place, |report| report.state = State::Choosing);
            let search = Exhaustive::new(pool.range, pool.controller, frames, align);
            return Some(Phase::ChooseAgain(search));
        }
        let blocker = end.unwrap_or(blocker);
        claims.report_at(self.place, |report: &mut Report| {
            report.blocker = blocker;
            report.range = FrameRange::EMPTY;
        });
        let state = match blocker.cause {
            Cause::Cancelled | Cause::OwnerGone => State::Cancelled,
            _ => State::Failed,
        };
        claims.end(host, self.place, state);
        None
    }

    /// Unmaps the next slice from the owner's window. Returns false if nothing was mapped.
    ///
    /// # Errors
    /// The first frame that could not be unmapped.
    pub(super) fn hide_some<H: Host>(&mut self, claims: &Claims, host: &H) -> Result<bool, Blocker> {
        if self.shown.is_empty() {
            return Ok(false);
        }
        let Some(guest) = self.guest(claims) else {
            self.shown = FrameRange::default();
            return Ok(true);
        };
        let slice = host.slice_to_hide(guest, self.pool, self.shown);
        if !host.hide(guest, self.pool, slice) {
            return Err(Blocker { frame: slice.first(), cause: Cause::NoTable });
        }
        self.shown = after(self.shown, slice);
        Ok(true)
    }

    /// Ends the operation because a part of the range cannot be unmapped from the owner's window. The range stays claimed,
    /// as nobody else may have it. The owner can release it again; otherwise it is reclaimed when the guest stops.
    pub(super) fn end_seen<H: Host>(&self, claims: &Claims, host: &H, blocker: Blocker) {
        claims.report_at(self.place, |report| report.blocker = blocker);
        claims.end(host, self.place, State::Failed);
    }

    /// Ends the isolation of the last few pageblocks. Returns whether others are still isolated.
    pub(super) fn open_some<H: Host>(&mut self, host: &H) -> bool {
        let isolated = self.isolated.take();
        self.isolated = isolated.and_then(|isolated| host.ground().end_isolation_of_last(isolated, OPEN));
        self.isolated.is_some()
    }
}
