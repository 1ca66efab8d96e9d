//! What is left over: blocks to be scrubbed and released, and reserves.

use super::{Active, Hands, Place, is_before};
use crate::addr::{Frame, Ipa, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE};
use crate::migrate::engine::Engine;
use crate::migrate::host::{Frames, Host, SOME};
use crate::migrate::plan::{self, Portion};
use crate::migrate::unit::frame_at;
use crate::owner::GuestId;
use crate::phys::frame::Contents;
use crate::sync::relax;
use crate::table::Level;

/// Unused blocks of a reserve that are released in a turn.
const UNRESERVE: usize = 16;
/// Areas in 1 GiB.
const AREAS: usize = 512;

/// A block that is no guest's memory any more, until it is scrubbed and released.
pub(super) struct Debt {
    guest: GuestId,
    frame: Frame,
    order: u8,
    scrubbed: u64,
}

/// Blocks side by side for all areas of 1 GiB, so that it can be one leaf again.
pub(super) struct Reserve {
    guest: GuestId,
    ipa: u64,
    base: Frame,
    /// Areas whose block was taken.
    used: [u64; AREAS / 64],
    /// Areas whose block was released, if it was not used.
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

impl Hands {
    /// Notes a block of 2 MiB to scrub and release. There is always room: debts are paid before anything is
    /// begun, and no turn leaves more than one.
    pub(super) fn owe(&mut self, guest: GuestId, frame: Frame) {
        let _ = self.debts.push(Debt { guest, frame, order: PAGEBLOCK_ORDER, scrubbed: 0 });
    }

    /// Whether anything is owed.
    #[inline(always)]
    pub(super) fn is_in_debt(&self) -> bool {
        !self.debts.is_empty()
    }

    /// Scrubs some of what is owed, and releases it at the end. Yields whether anything was owed.
    pub(super) fn pay_debt<H: Host>(&mut self, engine: &Engine, host: &H) -> bool {
        let deadline = self.deadline;
        let Some(debt) = self.debts.last_mut() else { return false };
        let started = host.now();
        let size = 1 << debt.order;
        while debt.scrubbed < size {
            let count = SOME.min(size - debt.scrubbed);
            host.scrub(frame_at(debt.frame, debt.scrubbed), count);
            debt.scrubbed += count;
            // Where CPUs take turns, whoever waits has one.
            relax();
            if !is_before(host, deadline) {
                break;
            }
        }
        engine.statistics().guest(debt.guest).count_scrub(host.now().wrapping_sub(started));
        if debt.scrubbed == size {
            host.release(debt.guest, debt.frame, debt.order, Contents::Zeroed);
            self.debts.pop();
        }
        true
    }

    /// A block of 2 MiB for the area at `ipa`: of the reserve, or a new one.
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

    /// Takes 1 GiB for the leaf at `ipa`, if there is as much in one piece.
    pub(super) fn reserve<H: Host>(
        &mut self,
        place: &Place<'_, H>,
        active: &Active,
        portion: &Portion,
        ipa: Ipa,
    ) {
        if self.reserve.get().is_some() {
            return;
        }
        let (host, guest, order) = (place.host, portion.guest, Level::L1.order());
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

    /// Whether there is no reserve, or one for the GiB of `ipa`.
    pub(super) fn is_reserve_for(&self, guest: GuestId, ipa: Ipa) -> bool {
        self.reserve.get().is_none_or(|reserve| reserve.index_of(guest, ipa).is_some())
    }

    /// Gives back some of what of the reserve was not used. Yields whether there was a reserve.
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
