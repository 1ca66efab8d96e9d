//! Release of a claimed range.

use super::{Active, Phase, SCRUB};
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::claim::cause::{Blocker, Cause};
use crate::claim::engine::Claims;
use crate::claim::host::{Ground, Host};
use crate::claim::operation::State;
use crate::owner::Owner;
use crate::phys::alloc::Occupant;
use crate::phys::frame::Contents;
use crate::range::FrameRange;

/// Maximum number of blocks verified in a turn. Each may be a single frame.
const VERIFY: usize = 64;

impl Active {
    /// Verifies that the claimant owns the next frames of the range.
    pub(super) fn verify<H: Host>(&mut self, claims: &Claims, host: &H, next: u64) -> Option<Phase> {
        claims.report_at(self.place, |report| report.range = self.range);
        let mut number = next;
        let end = self.range.end();
        for _ in 0..VERIFY {
            if number >= end {
                break;
            }
            let left = FrameRange::from_numbers(number, number + 1).unwrap_or_default();
            let occupant = host.ground().occupant(left);
            let is_owned = |occupant: &Occupant| {
                occupant.owner == Some(Owner::Pool(self.pool)) && occupant.frame.number() <= number
            };
            let Some(occupant) = occupant.filter(is_owned) else {
                let blocker = Blocker { frame: left.first(), cause: Cause::NotClaimed };
                claims.report_at(self.place, |report| report.blocker = blocker);
                claims.end(host, self.place, State::Failed);
                return None;
            };
            number = occupant.end();
        }
        if number < end {
            return Some(Phase::Verify(number));
        }
        if let Some(guest) = self.guest(claims) {
            if !host.part(guest, self.pool, self.range) {
                let blocker = Blocker { frame: self.range.first(), cause: Cause::NoTable };
                claims.report_at(self.place, |report| report.blocker = blocker);
                claims.end(host, self.place, State::Failed);
                return None;
            }
            self.shown = self.range;
        }
        Some(Phase::Hide)
    }

    /// Unmaps the next slice of the range from the owner's window.
    pub(super) fn hide<H: Host>(&mut self, claims: &Claims, host: &H) -> Option<Phase> {
        let start = self.range.start();
        match self.hide_some(claims, host) {
            Ok(true) => Some(Phase::Hide),
            Ok(false) => Some(Phase::Give { next: start, scrubbed: start }),
            Err(seen) => {
                self.end_seen(claims, host, seen);
                None
            }
        }
    }

    /// Scrubs the next frames of a pageblock, or frees the pageblock's part of the range once it is scrubbed.
    pub(super) fn give<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        next: u64,
        scrubbed: u64,
    ) -> Option<Phase> {
        if next >= self.range.end() {
            claims.end(host, self.place, State::Released);
            return None;
        }
        let end = ((next | (PAGEBLOCK_FRAMES - 1)) + 1).min(self.range.end());
        let part = FrameRange::from_numbers(next, end).unwrap_or_default();
        if scrubbed < end {
            let count = (end - scrubbed).min(SCRUB);
            host.scrub(Frame::try_new(scrubbed).unwrap_or_default(), count);
            return Some(Phase::Give { next, scrubbed: scrubbed + count });
        }
        host.ground().give(part, self.pool, Contents::Zeroed);
        let done = end - self.range.start();
        claims.report_at(self.place, |report| report.done = done);
        Some(Phase::Give { next: end, scrubbed: end })
    }
}
