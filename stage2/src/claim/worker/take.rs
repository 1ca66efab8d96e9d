//! Taking the frames of an empty range, and showing them to the owner.

use super::{Active, Phase, ROUNDS, SCRUB};
use crate::addr::PAGEBLOCK_FRAMES;
use crate::claim::cause::{Blocker, Cause};
use crate::claim::engine::Claims;
use crate::claim::host::{Ground, Host, slice_of};
use crate::claim::operation::{Claimant, State};
use crate::phys::frame::Contents;
use crate::range::FrameRange;

impl Active {
    /// Takes the next pageblock of the range, or scrubs and cleans frames of the last one.
    pub(super) fn take<H: Host>(
        &mut self,
        claims: &Claims,
        host: &H,
        left: FrameRange,
        contents: Contents,
    ) -> Option<Phase> {
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        let claimant = claims.report_at(self.place, |report| report.claimant);
        if !left.is_empty() {
            let count = left.frames().min(SCRUB);
            if contents == Contents::Dirty {
                host.scrub(left.first(), count);
            }
            if matches!(claimant, Claimant::Guest(_)) {
                host.clean(left.first(), count);
            }
            let left = FrameRange::from_numbers(left.start() + count, left.end()).unwrap_or_default();
            return Some(Phase::Take { left, contents });
        }
        if self.taken >= self.range.end() {
            return Some(Phase::Show);
        }
        let end = ((self.taken | (PAGEBLOCK_FRAMES - 1)) + 1).min(self.range.end());
        let part = FrameRange::from_numbers(self.taken, end).unwrap_or_default();
        let Some(isolated) = &self.isolated else { return Some(Phase::Undo(Blocker::default())) };
        match host.ground().take(isolated, part, self.pool) {
            Ok(contents) => {
                self.taken = end;
                let done = self.range.frames() + self.taken - self.range.start();
                claims.report_at(self.place, |report| report.done = done);
                let is_ready = contents == Contents::Zeroed && !matches!(claimant, Claimant::Guest(_));
                Some(Phase::Take { left: if is_ready { FrameRange::EMPTY } else { part }, contents })
            }
            Err(error) => {
                // The frame is still in use. Another round of migration may free it.
                self.rounds += 1;
                if self.rounds > ROUNDS {
                    return Some(Phase::Undo(Blocker { frame: error.frame, cause: Cause::Busy }));
                }
                Some(self.begin_move(claims))
            }
        }
    }

    /// Maps the next slice of the range into the owner's window.
    pub(super) fn show<H: Host>(&mut self, claims: &Claims, host: &H) -> Phase {
        let Some(guest) = self.guest(claims) else { return Phase::Open };
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Phase::Undo(blocker);
        }
        if self.shown.is_empty() {
            // Every frame has been scrubbed, and no tenant reaches one any more.
            host.invalidate_instructions();
        }
        let shown = self.shown.end().max(self.range.start());
        let slice = slice_of(FrameRange::from_numbers(shown, self.range.end()).unwrap_or_default());
        let Some(ipa) = host.show(guest, self.pool, slice) else {
            let cause = Cause::NoWindow;
            return Phase::Undo(Blocker { frame: slice.first(), cause });
        };
        if self.shown.is_empty() {
            claims.report_at(self.place, |report| report.ipa = ipa);
        }
        self.shown = FrameRange::from_numbers(self.range.start(), slice.end()).unwrap_or_default();
        if slice.end() < self.range.end() { Phase::Show } else { Phase::Open }
    }

    /// Ends the isolation of the next pageblocks. Grants the claim once none is left.
    pub(super) fn open<H: Host>(&mut self, claims: &Claims, host: &H) -> Option<Phase> {
        // A guest that stops first makes its operations orphans, and then clears its windows. Either the orphan is seen
        // here, or the range is reclaimed after the claim is granted.
        if let Some(blocker) = Self::cancellation(claims, self.place) {
            return Some(Phase::Undo(blocker));
        }
        if self.open_some(host) {
            return Some(Phase::Open);
        }
        claims.statistics().saw_claimed(self.pool, host.ground().claimed_frames(self.pool));
        claims.end(host, self.place, State::Granted);
        None
    }
}
