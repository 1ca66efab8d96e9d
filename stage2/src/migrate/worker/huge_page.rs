//! Moves units of 2 MiB.

use super::{Active, Context, Mover};
use crate::addr::PAGEBLOCK_ORDER;
use crate::migrate::host::Host;
use crate::migrate::plan::{self, Next, Portion};
use crate::migrate::reason::{Reason, Unmoved};
use crate::migrate::space::Copied;
use crate::migrate::unit::Work;
use crate::phys::frame::Contents;
use crate::sync::relax;
use crate::table::{Leaf, Level};

/// Number of times that a unit that was given up is tried again.
const RETRIES: u8 = 3;

impl Mover {
    /// Protects the unit of `leaf` and starts to copy it.
    pub(super) fn begin_huge<H: Host>(
        &mut self,
        context: &Context<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        let host = context.host;
        let Some(target) = self.target_block(host, active, portion, leaf.ipa()) else {
            // The parts fit even if no 2 MiB are contiguous.
            let needed = plan::frames_to_move(&active.request, leaf);
            if plan::free_frames(host, &active.request, plan::placement_of(&active.request, portion))
                >= needed
            {
                return self.demote(context, active, portion, leaf);
            }
            return active.skip(context, portion, leaf, Reason::NoFrame);
        };
        if context.space.begin_huge(leaf.ipa(), target).is_err() {
            host.release(portion.guest, target, PAGEBLOCK_ORDER, Contents::Dirty);
            return active.skip(context, portion, leaf, Reason::Busy);
        }
        context.counters().count_invalidation();
        if self.may_continue(host) {
            self.copy_huge(context, active);
        }
    }

    /// Continues to copy the unit in flight.
    pub(super) fn copy_huge<H: Host>(&mut self, context: &Context<'_, H>, active: &mut Active) {
        let may_continue = || self.may_continue(context.host);
        let copied = context.space.copy_huge(context.host, context.counters(), may_continue);
        if copied == Copied::Changed {
            self.settle(context, active);
        }
    }

    /// Rolls the unit back that is being copied: it stays at its source.
    pub(super) fn roll_back<H: Host>(&mut self, context: &Context<'_, H>) {
        match context.space.roll_back() {
            Some(target) => self.scrub_later(context.guest(), target),
            // A helper copies, and will be done soon.
            None => relax(),
        }
    }

    /// Accounts for a unit that is complete or given up, and schedules its source or target for scrubbing.
    pub(super) fn settle<H: Host>(&mut self, context: &Context<'_, H>, active: &mut Active) {
        let (host, guest) = (context.host, context.guest());
        match context.space.take_leftover() {
            Some(Work::Switched { ipa, source, target }) => {
                self.scrub_later(guest, source);
                let pair = self.sources.controller(host, source).zip(self.targets.controller(host, target));
                context.engine.statistics().count_moved(guest, pair, Level::L2, 1);
                context.counters().count_invalidation();
                active.count_moved(context, Level::L2, 1);
                host.has_moved(guest, ipa, target);
                self.arrived(context, active, ipa);
            }
            Some(Work::GivenUp { target }) => {
                self.scrub_later(guest, target);
                context.counters().count_retry();
                active.retries += 1;
                if active.retries > RETRIES {
                    Self::give_up(context, active);
                }
            }
            _ => {}
        }
    }

    /// Skips the unit at the cursor: the guest writes to it, and there is no memory to split it.
    fn give_up<H: Host>(context: &Context<'_, H>, active: &mut Active) {
        let mut missed = Unmoved::default();
        let next = plan::next_portion(context.host, &active.request, &mut active.cursor, &mut missed);
        let Next::Portion(portion) = next else { return };
        if portion.guest != context.guest() {
            return;
        }
        let leaf = context.space.with(|stage2| stage2.leaf(portion.from));
        if let Some(leaf) = leaf {
            active.skip(context, &portion, leaf, Reason::NoTable);
        }
    }
}
