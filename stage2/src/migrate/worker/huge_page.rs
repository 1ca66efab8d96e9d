//! Units of 2 MiB.

use super::{Active, Hands, Place};
use crate::addr::PAGEBLOCK_ORDER;
use crate::migrate::host::Host;
use crate::migrate::plan::{self, Next, Portion};
use crate::migrate::reason::{Reason, Unmoved};
use crate::migrate::space::Copied;
use crate::migrate::unit::Work;
use crate::phys::frame::Contents;
use crate::sync::relax;
use crate::table::{Leaf, Level};

/// How often a unit that was given up is tried again.
const RETRIES: u8 = 3;

impl Hands {
    pub(super) fn begin_whole<H: Host>(
        &mut self,
        place: &Place<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        let host = place.host;
        let Some(target) = self.target_block(host, active, portion, leaf.ipa()) else {
            // By parts it fits where no 2 MiB are side by side.
            let needed = plan::frames_to_move(&active.request, leaf);
            if plan::free_frames(host, &active.request, plan::placement_of(&active.request, portion))
                >= needed
            {
                return self.demote(place, active, portion, leaf);
            }
            return active.skip(place, portion, leaf, Reason::NoFrame);
        };
        if place.space.begin_whole(leaf.ipa(), target).is_err() {
            host.release(portion.guest, target, PAGEBLOCK_ORDER, Contents::Dirty);
            return active.skip(place, portion, leaf, Reason::Busy);
        }
        place.counters().count_invalidation();
        if self.goes_on(host) {
            self.copy_whole(place, active);
        }
    }

    pub(super) fn copy_whole<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active) {
        let goes_on = || self.goes_on(place.host);
        let copied = place.space.copy_whole(place.host, place.counters(), goes_on);
        if copied == Copied::Changed {
            self.settle(place, active);
        }
    }

    /// Leaves the unit being copied where it is.
    pub(super) fn roll_back<H: Host>(&mut self, place: &Place<'_, H>) {
        match place.space.roll_back() {
            Some(target) => self.owe(place.guest(), target),
            // A helper is at it, and soon done.
            None => relax(),
        }
    }

    /// Takes up what a unit has left over, if it has moved or was given up.
    pub(super) fn settle<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active) {
        let (host, guest) = (place.host, place.guest());
        match place.space.take_leftover() {
            Some(Work::Switched { ipa, source, target }) => {
                self.owe(guest, source);
                let pair = self.sources.controller(host, source).zip(self.targets.controller(host, target));
                place.engine.statistics().count_moved(guest, pair, Level::L2, 1);
                place.counters().count_invalidation();
                active.count_moved(place, Level::L2, 1);
                host.has_moved(guest, ipa, target);
                self.arrived(place, active, ipa);
            }
            Some(Work::GivenUp { target }) => {
                self.owe(guest, target);
                place.counters().count_retry();
                active.retries += 1;
                if active.retries > RETRIES {
                    Self::give_up(place, active);
                }
            }
            _ => {}
        }
    }

    /// Passes over the unit at the cursor: the guest writes to it, and there is no memory to split it.
    fn give_up<H: Host>(place: &Place<'_, H>, active: &mut Active) {
        let mut missed = Unmoved::default();
        let next = plan::next_portion(place.host, &active.request, &mut active.cursor, &mut missed);
        let Next::Portion(portion) = next else { return };
        if portion.guest != place.guest() {
            return;
        }
        let leaf = place.space.with(|stage2| stage2.leaf(portion.from));
        if let Some(leaf) = leaf {
            active.skip(place, &portion, leaf, Reason::NoTable);
        }
    }
}
