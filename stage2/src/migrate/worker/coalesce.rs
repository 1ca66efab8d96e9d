//! Coalesces areas of 4 KiB units into units of 2 MiB in idle time.
//!
//! A job leaves an area in units of 4 KiB if only a part of it had to move, or if no contiguous 2 MiB were free. The
//! guest then needs 512 TLB entries instead of one. Guests with such areas are noted ([`Engine::note_split`]). While no
//! job can run, an idle CPU passes over their RAM:
//! - 512 contiguous, aligned units with the same attributes are promoted at once, by break-before-make.
//! - Units that are scattered behind one controller move into a free block of 2 MiB behind the same controller, in
//!   batches, like those of a job, and are promoted there. The copy costs idle time once, and saves the guest page
//!   walks for good.
//! - Areas behind several controllers stay as they are.
//!
//! A turn looks at some leaves, promotes one area, or moves one batch. A vCPU waits no longer than for a job: for one
//! unit of 4 KiB, or for one change of a leaf's size. Jobs have priority: they start once the area in flight is at
//! rest. If no block was free, the guest gets another pass after a job, a claim or a guest has ended.

use super::{Active, Context, Mover, Turn};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::migrate::engine::Engine;
use crate::migrate::host::{Host, Mobility, Region};
use crate::migrate::plan::{Found, Portion};
use crate::migrate::unit::{Work, area_of};
use crate::owner::{GuestId, MAX_GUESTS};
use crate::phys::placement::Placement;
use crate::table::{Leaf, Level, TableError};

/// The progress of the pass over a guest.
pub(super) struct Coalescing {
    /// The guest's number plus one, or 0 for no guest.
    guest: u8,
    /// The next address to look at.
    next: Ipa,
    /// True while an area moves into a block.
    is_moving: bool,
}

/// The state of an area of 4 KiB units.
enum Area {
    /// One block, which can be promoted at once.
    Block,
    /// Scattered behind this controller.
    Scattered(ControllerId),
    /// Blocked until the next look.
    Busy,
    /// Cannot be coalesced.
    Different,
}

impl Coalescing {
    pub(super) const fn new() -> Self {
        Self { guest: 0, next: Ipa::new_truncate(0), is_moving: false }
    }

    fn guest(&self) -> Option<GuestId> {
        GuestId::try_new(self.guest.checked_sub(1)?)
    }

    /// Returns whether an area is in flight.
    pub(super) const fn is_moving(&self) -> bool {
        self.is_moving
    }

    /// Notes that the memory of `guest` was brought to rest.
    pub(super) fn leave(&mut self, guest: GuestId) {
        if self.guest() == Some(guest) {
            self.is_moving = false;
        }
    }
}

impl Mover {
    /// Moves the next batch of the area in flight.
    pub(super) fn continue_coalescing<H: Host>(&mut self, engine: &Engine, host: &H, state: &mut Coalescing) {
        let space = state.guest().and_then(|guest| host.space(guest));
        let Some(space) = space else {
            // The space was brought to rest when it was closed.
            state.is_moving = false;
            return;
        };
        let context = Context { engine, host, space };
        match space.work() {
            Work::Nothing => {
                state.is_moving = false;
                let area = Ipa::new_truncate(state.next.get() - PAGEBLOCK_SIZE);
                let is_whole =
                    space.with(|stage2| stage2.leaf(area).is_some_and(|leaf| leaf.level() < Level::L3));
                if is_whole {
                    context.counters().count_coalesced(true);
                }
            }
            work => self.continue_work(&context, &mut Active::nobody(space.guest()), work),
        }
    }

    /// Finds the next area, and coalesces it or starts to.
    pub(super) fn coalesce<H: Host>(&mut self, engine: &Engine, host: &H, state: &mut Coalescing) -> Turn {
        if state.is_moving {
            self.continue_coalescing(engine, host, state);
            return Turn::Spare;
        }
        let Some(guest) = state.guest() else {
            let Some(guest) = engine.begin_coalescing() else { return Turn::Idle };
            (state.guest, state.next) = (guest.index() as u8 + 1, Ipa::default());
            return Turn::Spare;
        };
        let Some(space) = host.space(guest) else {
            engine.coalesce_later(guest);
            return Self::pass(engine, state);
        };
        let Some(region) = host.region(guest, state.next) else { return Self::pass(engine, state) };
        let end = region.ipa.get() + region.size;
        if region.largest > Level::L2 || region.mobility != Mobility::Movable {
            if region.mobility == Mobility::InClaim {
                engine.coalesce_later(guest);
            }
            state.next = Ipa::new_truncate(end);
            return Turn::Spare;
        }
        let from = state.next.max(region.ipa);
        let context = Context { engine, host, space };
        let portion = Portion { guest, region, from, end };
        let is_first = |leaf: Leaf| leaf.level() == Level::L3 && leaf.ipa() == area_of(leaf.ipa());
        let area = match space.find(&portion, is_first) {
            Found::Leaf(leaf) => leaf.ipa(),
            Found::None(reached) => {
                state.next = reached;
                return Turn::Spare;
            }
        };
        if let Some(wait) = engine.rate_wait(host, guest) {
            state.next = area;
            return Turn::Wait(wait);
        }
        state.next = Ipa::new_truncate(area.get() + PAGEBLOCK_SIZE);
        if region.holds(area, PAGEBLOCK_SIZE) {
            self.coalesce_area(&context, state, &region, area);
        }
        Turn::Spare
    }

    /// Ends the pass over the guest.
    fn pass(engine: &Engine, state: &mut Coalescing) -> Turn {
        state.guest = 0;
        engine.end_coalescing();
        Turn::Spare
    }

    /// Coalesces an area, or starts to.
    fn coalesce_area<H: Host>(
        &mut self,
        context: &Context<'_, H>,
        state: &mut Coalescing,
        region: &Region,
        area: Ipa,
    ) {
        let (host, guest) = (context.host, context.guest());
        match self.look_at_area(context, area) {
            Area::Block => {
                if self.promote(context, region, Level::L2, area) {
                    context.counters().count_coalesced(false);
                    let gigantic = Ipa::new_truncate(area.get() & !(Level::L1.size() - 1));
                    self.promote(context, region, Level::L1, gigantic);
                }
            }
            Area::Scattered(controller) => {
                match host.allocate(guest, PAGEBLOCK_ORDER, &Placement::only(controller), area) {
                    Some(target) => {
                        context.space.begin_block(area, target);
                        state.is_moving = true;
                    }
                    None => context.engine.coalesce_later(guest),
                }
            }
            Area::Busy => context.engine.coalesce_later(guest),
            Area::Different => {}
        }
    }

    /// Determines the state of an area.
    fn look_at_area<H: Host>(&mut self, context: &Context<'_, H>, area: Ipa) -> Area {
        let host = context.host;
        let can_promote = context.space.with(|stage2| stage2.can_promote(area, Level::L2));
        match can_promote {
            Ok(()) => return Area::Block,
            Err(TableError::NotOneBlock(_)) => {}
            Err(TableError::InMotion(_)) => return Area::Busy,
            Err(_) => return Area::Different,
        }
        let mut first = None;
        let survey = context.space.survey(area, PAGEBLOCK_FRAMES, |leaf| {
            let behind = self.sources.controller(host, Frame::containing(leaf.pa()));
            let like = (behind, leaf.attributes());
            *first.get_or_insert(like) == like
        });
        match first {
            Some((Some(controller), _))
                if survey.present == PAGEBLOCK_FRAMES && survey.selected == survey.present =>
            {
                Area::Scattered(controller)
            }
            _ => Area::Different,
        }
    }
}

const _: () = assert!(MAX_GUESTS <= 32, "guests that were split are bits of a word");
const _: () = assert!(PAGEBLOCK_SIZE == PAGEBLOCK_FRAMES * FRAME_SIZE);
