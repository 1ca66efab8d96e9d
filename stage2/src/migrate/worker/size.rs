//! Leaves that become smaller to be moved, and larger after it.

use super::{Active, Hands, Place};
use crate::addr::{Frame, Ipa, PAGEBLOCK_SIZE};
use crate::migrate::host::{Host, Region};
use crate::migrate::plan::Portion;
use crate::migrate::reason::Reason;
use crate::table::{Leaf, Level, TableError};

/// Whether a GiB ends at `reached`.
fn ends_gigantic(reached: Ipa) -> bool {
    reached.is_aligned(Level::L1.size()) && reached.get() > 0
}

impl Hands {
    /// Demotes a leaf and the block behind it; the job goes on with the parts.
    pub(super) fn demote<H: Host>(
        &self,
        place: &Place<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        let (host, guest) = (place.host, place.guest());
        let (frame, order) = (Frame::containing(leaf.pa()), leaf.level().order());
        if !host.divide(guest, frame, order) {
            return active.skip(place, portion, leaf, Reason::Busy);
        }
        let reason = match place.space.with(|stage2| stage2.demote(leaf.ipa())) {
            Ok(_) => {
                place.engine.note_split(guest);
                return place.counters().count_demotion();
            }
            Err(TableError::OutOfTables { .. }) => Reason::NoTable,
            Err(_) => Reason::Busy,
        };
        host.unite(guest, frame, order, leaf.ipa());
        active.skip(place, portion, leaf, reason);
    }

    /// The area at `ipa` is done: the job goes on behind it.
    pub(super) fn arrived<H: Host>(&self, place: &Place<'_, H>, active: &mut Active, ipa: Ipa) {
        active.retries = 0;
        let reached = Ipa::new_truncate(ipa.get() + PAGEBLOCK_SIZE);
        if ends_gigantic(reached)
            && let Some(region) = place.host.region(place.guest(), ipa)
        {
            self.promote_gigantic(place, &region, reached);
        }
        active.reach(place, ipa, reached);
    }

    /// Promotes the GiB that ends at `reached`, if one does.
    pub(super) fn promote_gigantic<H: Host>(&self, place: &Place<'_, H>, region: &Region, reached: Ipa) {
        if ends_gigantic(reached) {
            let base = Ipa::new_truncate(reached.get() - Level::L1.size());
            self.promote(place, region, Level::L1, base);
        }
    }

    /// Makes one leaf of `level` of those from `base` on, and one block of theirs, if they allow it. Returns whether they did.
    pub(super) fn promote<H: Host>(
        &self,
        place: &Place<'_, H>,
        region: &Region,
        level: Level,
        base: Ipa,
    ) -> bool {
        if region.largest > level || !region.holds(base, level.size()) {
            return false;
        }
        let (host, guest, order) = (place.host, place.guest(), level.order());
        let is_promoted = place.space.with(|stage2| {
            let Ok(()) = stage2.can_promote(base, level) else { return false };
            let Some(first) = stage2.leaf(base) else { return false };
            let frame = Frame::containing(first.pa());
            if !host.unite(guest, frame, order, base) {
                return false;
            }
            let is_promoted = stage2.promote(base, level).is_ok();
            if !is_promoted {
                host.divide(guest, frame, order);
            }
            is_promoted
        });
        if is_promoted {
            place.counters().count_promotion();
        }
        is_promoted
    }
}
