//! Blocks that units leave behind, which are scrubbed and released, and reserves of target blocks.

use super::{Active, Context, Mover, is_before};
use crate::addr::{Frame, Ipa, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE};
use crate::migrate::copier::SOME;
use crate::migrate::engine::Engine;
use crate::migrate::host::{Frames, Host};
use crate::migrate::plan::{self, Portion};
use crate::migrate::unit::frame_at;
use crate::owner::GuestId;
use crate::phys::frame::Contents;
use crate::sync::relax;
use crate::table::Level;

/// Number of unused blocks of a reserve that are released in a turn.
const UNRESERVE: usize = 16;
/// Number of areas in 1 GiB.
const AREAS: usize = 512;

/// A block that no guest reaches any more, until it is scrubbed and released.
pub(super) struct PendingScrub {
    guest: GuestId,
    frame: Frame,
    order: u8,
    scrubbed: u64,
}

/// Contiguous target blocks for all areas of 1 GiB, so that it can be promoted to one leaf again.
pub(super) struct Reserve {
    guest: GuestId,
    ipa: u64,
    base: Frame,
    /// Areas whose block was taken, a bit each.
    used: [u64; AREAS / 64],
    /// Number of areas whose block was released unless it was used.
    released: usize,
}

impl Reserve {
    pub(super) const fn guest(&self) -> GuestId {
        self.guest
    }

    fn index_of(&self, guest: GuestId, ipa: Ipa) -> Option<usize> {
        let offset = ipa.get().checked_sub(self.ipa)?;
        let index = (offset / PAGEBLOCK_SIZE) as usize;
        (guest == self.guest && index < AREAS).then_some(index)
    }

    fn block(&self, index: usize) -> Frame {
        frame_at(self.base, (index as u64) << PAGEBLOCK_ORDER)
    }

    fn is_used(&self, index: usize) -> bool {
        self.used[index / 64] & 1 << (index % 64) != 0
    }

    /// Takes the block for the area at `ipa`, once.
    fn take(&mut self, guest: GuestId, ipa: Ipa) -> Option<Frame> {
        let index = self.index_of(guest, ipa).filter(|index| !self.is_used(*index))?;
        self.used[index / 64] |= 1 << (index % 64);
        Some(self.block(index))
    }
}

impl Mover {
    /// Schedules a block of 2 MiB to be scrubbed and released. There is always room: pending blocks are scrubbed before
    /// anything else starts, and no turn leaves more than one.
    pub(super) fn scrub_later(&mut self, guest: GuestId, frame: Frame) {
        let _ = self.pending_scrubs.push(PendingScrub { guest, frame, order: PAGEBLOCK_ORDER, scrubbed: 0 });
    }

    /// Returns whether blocks are to be scrubbed.
    #[inline(always)]
    pub(super) fn has_pending_scrub(&self) -> bool {
        !self.pending_scrubs.is_empty()
    }

    /// Scrubs part of a pending block, and releases it once all of it is zero. Returns whether there was one.
    pub(super) fn scrub_pending<H: Host>(&mut self, engine: &Engine, host: &H) -> bool {
        let deadline = self.deadline;
        let Some(pending) = self.pending_scrubs.last_mut() else { return false };
        let started = host.now();
        let size = 1 << pending.order;
        loop {
            let count = SOME.min(size - pending.scrubbed);
            host.scrub(frame_at(pending.frame, pending.scrubbed), count);
            pending.scrubbed += count;
            if pending.scrubbed == size {
                break;
            }
            // CPUs that take turns, as in an emulator, have theirs.
            relax();
            if !is_before(host, deadline) {
                break;
            }
        }
        engine.statistics().guest(pending.guest).count_scrub(host.now().wrapping_sub(started));
        if pending.scrubbed == size {
            host.release(pending.guest, pending.frame, pending.order, Contents::Zeroed);
            self.pending_scrubs.pop();
        }
        true
    }

    /// Returns a target block for the area at `ipa`: from the reserve, or a new one.
    pub(super) fn target_block<H: Host>(
        &mut self,
        host: &H,
        active: &Active,
        portion: &Portion,
        ipa: Ipa,
    ) -> Option<Frame> {
        let reserved = self.reserve.get_mut().and_then(|reserve| reserve.take(portion.guest, ipa));
        reserved.or_else(|| {
            let placement = plan::placement_of(&active.request, portion);
            plan::allocate(host, &active.request, placement, (portion.guest, ipa), PAGEBLOCK_ORDER)
        })
    }

    /// Reserves 1 GiB for the leaf at `ipa`, if that much is free and contiguous.
    pub(super) fn reserve<H: Host>(
        &mut self,
        context: &Context<'_, H>,
        active: &Active,
        portion: &Portion,
        ipa: Ipa,
    ) {
        if self.reserve.get().is_some() {
            return;
        }
        let (host, guest, order) = (context.host, portion.guest, Level::L1.order());
        let placement = plan::placement_of(&active.request, portion);
        let Some(base) = plan::allocate(host, &active.request, placement, (guest, ipa), order) else {
            return;
        };
        if host.divide(guest, base, order) {
            self.reserve.put(Reserve { guest, ipa: ipa.get(), base, used: [0; AREAS / 64], released: 0 });
        } else {
            host.release(guest, base, order, Contents::Dirty);
        }
    }

    /// Returns whether there is no reserve, or one for the 1 GiB of `ipa`.
    pub(super) fn is_reserve_for(&self, guest: GuestId, ipa: Ipa) -> bool {
        self.reserve.get().is_none_or(|reserve| reserve.index_of(guest, ipa).is_some())
    }

    /// Releases part of the unused reserve. Returns whether there was a reserve.
    pub(super) fn unreserve(&mut self, host: &impl Frames) -> bool {
        let Some(reserve) = self.reserve.get_mut() else { return false };
        let end = (reserve.released + UNRESERVE).min(AREAS);
        for index in (reserve.released..end).filter(|index| !reserve.is_used(*index)) {
            host.release(reserve.guest, reserve.block(index), PAGEBLOCK_ORDER, Contents::Dirty);
        }
        reserve.released = end;
        if end == AREAS {
            self.reserve.take();
        }
        true
    }
}
