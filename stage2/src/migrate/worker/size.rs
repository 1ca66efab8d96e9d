//! Demotes leaves before their parts move, and promotes them afterwards.

use super::{Active, Context, Mover};
use crate::addr::{Frame, Ipa, PAGEBLOCK_SIZE};
use crate::migrate::host::{Host, Region};
use crate::migrate::plan::Portion;
use crate::migrate::reason::Reason;
use crate::table::{Leaf, Level, TableError};

/// Returns whether 1 GiB ends at `reached`.
fn ends_gigantic(reached: Ipa) -> bool {
    reached.is_aligned(Level::L1.size()) && reached.get() > 0
}

impl Mover {
    /// Demotes a leaf and its block. The job continues with the parts.
    pub(super) fn demote<H: Host>(
        &self,
        context: &Context<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        let (host, guest) = (context.host, context.guest());
        let (frame, order) = (Frame::containing(leaf.pa()), leaf.level().order());
        if !host.divide(guest, frame, order) {
            return active.skip(context, portion, leaf, Reason::Busy);
        }
        let reason = match context.space.with(|stage2| stage2.demote(leaf.ipa())) {
            Ok(_) => {
                context.engine.note_split(guest);
                return context.counters().count_demotion();
            }
            Err(TableError::OutOfTables { .. }) => Reason::NoTable,
            Err(_) => Reason::Busy,
        };
        host.unite(guest, frame, order, leaf.ipa());
        active.skip(context, portion, leaf, reason);
    }

    /// Notes that the area at `ipa` is done. The job continues after it.
    pub(super) fn arrived<H: Host>(&self, context: &Context<'_, H>, active: &mut Active, ipa: Ipa) {
        active.retries = 0;
        let reached = Ipa::new_truncate(ipa.get() + PAGEBLOCK_SIZE);
        if ends_gigantic(reached)
            && let Some(region) = context.host.region(context.guest(), ipa)
        {
            self.promote_gigantic(context, &region, reached);
        }
        active.reach(context, ipa, reached);
    }

    /// Promotes the 1 GiB that ends at `reached`, if one does.
    pub(super) fn promote_gigantic<H: Host>(&self, context: &Context<'_, H>, region: &Region, reached: Ipa) {
        if ends_gigantic(reached) {
            let base = Ipa::new_truncate(reached.get() - Level::L1.size());
            self.promote(context, region, Level::L1, base);
        }
    }

    /// Promotes the leaves from `base` to one of `level`, and their blocks to one, if possible. Returns whether it did.
    pub(super) fn promote<H: Host>(
        &self,
        context: &Context<'_, H>,
        region: &Region,
        level: Level,
        base: Ipa,
    ) -> bool {
        if region.largest > level || !region.holds(base, level.size()) {
            return false;
        }
        let (host, guest, order) = (context.host, context.guest(), level.order());
        let is_promoted = context.space.with(|stage2| {
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
            context.counters().count_promotion();
        }
        is_promoted
    }
}
