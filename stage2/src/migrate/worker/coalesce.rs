//! Areas that are split without need become units of 2 MiB again, in time that nobody else wants.
//!
//! A job leaves an area in units of 4 KiB where only a part of it had to move, or where no 2 MiB were free side by side.
//! Its guest then needs 512 entries of the TLB where it needed one. Guests in which that may have happened are noted
//! ([`Engine::note_split`]); once no job can go on, and as long as an idle CPU works, their RAM is gone through:
//! - 512 units that lie side by side, aligned and with the same attributes become one at once, by break-before-make;
//! - if they are scattered behind one controller, they move into a free block of 2 MiB behind the same controller, in
//!   batches, as units of 4 KiB move for a job, and become one there. It is worth the copy: it is paid once, in time that
//!   is left over, and the walks that it saves are the guest's for good. What a job has put behind different controllers
//!   stays as it is.
//!
//! A turn looks at some leaves, promotes one area, or moves one batch. A vCPU waits no longer than for a job's: for one
//! unit of 4 KiB, or for one change of a leaf's size. Jobs come first: an area in flight is brought to rest, and then they
//! begin. Where no block was free, the guest is gone through again after a job, a claim or a guest has ended.

use super::{Active, Hands, Place, Turn};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE};
use crate::controller::ControllerId;
use crate::migrate::engine::Engine;
use crate::migrate::host::{Host, Mobility, Region};
use crate::migrate::plan::{Found, Portion};
use crate::migrate::unit::{Work, area_of};
use crate::owner::{GuestId, MAX_GUESTS};
use crate::phys::placement::Placement;
use crate::table::{Leaf, Level, TableError};

/// How far the guest that is gone through was looked at.
pub(super) struct Coalescing {
    /// The guest's number and one; 0 if none is gone through.
    guest: u8,
    /// Where the next area is looked for.
    next: Ipa,
    /// The area that moves into a block, if one does.
    moving: bool,
}

/// What an area of units of 4 KiB is like.
enum Area {
    /// One block: it can be promoted at once.
    Block,
    /// Scattered behind this controller.
    Scattered(ControllerId),
    /// Something is in the way that may pass.
    Busy,
    /// It has to stay as it is.
    Different,
}

impl Coalescing {
    pub(super) const fn new() -> Self {
        Self { guest: 0, next: Ipa::new_truncate(0), moving: false }
    }

    fn guest(&self) -> Option<GuestId> {
        GuestId::try_new(self.guest.checked_sub(1)?)
    }

    /// Whether an area is in flight.
    pub(super) const fn is_moving(&self) -> bool {
        self.moving
    }

    /// The memory of `guest` was brought to rest.
    pub(super) fn leave(&mut self, guest: GuestId) {
        if self.guest() == Some(guest) {
            self.moving = false;
        }
    }
}

impl Hands {
    /// Brings the area in flight to rest, a batch in a turn.
    pub(super) fn go_on_coalescing<H: Host>(&mut self, engine: &Engine, host: &H, state: &mut Coalescing) {
        let space = state.guest().and_then(|guest| host.space(guest));
        let Some(space) = space else {
            // It was brought to rest when it was closed.
            state.moving = false;
            return;
        };
        let place = Place { engine, host, space };
        match space.work() {
            Work::Nothing => {
                state.moving = false;
                let area = Ipa::new_truncate(state.next.get() - PAGEBLOCK_SIZE);
                let is_whole =
                    space.with(|stage2| stage2.leaf(area).is_some_and(|leaf| leaf.level() < Level::L3));
                if is_whole {
                    place.counters().count_coalesced(true);
                }
            }
            work => self.go_on(&place, &mut Active::nobody(space.guest()), work),
        }
    }

    /// Looks for the next area, and coalesces it or begins to.
    pub(super) fn coalesce<H: Host>(&mut self, engine: &Engine, host: &H, state: &mut Coalescing) -> Turn {
        if state.moving {
            self.go_on_coalescing(engine, host, state);
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
        let place = Place { engine, host, space };
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
            self.coalesce_area(&place, state, &region, area);
        }
        Turn::Spare
    }

    /// The guest was gone through.
    fn pass(engine: &Engine, state: &mut Coalescing) -> Turn {
        state.guest = 0;
        engine.end_coalescing();
        Turn::Spare
    }

    fn coalesce_area<H: Host>(
        &mut self,
        place: &Place<'_, H>,
        state: &mut Coalescing,
        region: &Region,
        area: Ipa,
    ) {
        let (host, guest) = (place.host, place.guest());
        match self.look_at_area(place, area) {
            Area::Block => {
                if self.promote(place, region, Level::L2, area) {
                    place.counters().count_coalesced(false);
                    let gigantic = Ipa::new_truncate(area.get() & !(Level::L1.size() - 1));
                    self.promote(place, region, Level::L1, gigantic);
                }
            }
            Area::Scattered(controller) => {
                match host.allocate(guest, PAGEBLOCK_ORDER, &Placement::only(controller), area) {
                    Some(target) => {
                        place.space.begin_block(area, target);
                        state.moving = true;
                    }
                    None => place.engine.coalesce_later(guest),
                }
            }
            Area::Busy => place.engine.coalesce_later(guest),
            Area::Different => {}
        }
    }

    fn look_at_area<H: Host>(&mut self, place: &Place<'_, H>, area: Ipa) -> Area {
        let host = place.host;
        let can_promote = place.space.with(|stage2| stage2.can_promote(area, Level::L2));
        match can_promote {
            Ok(()) => return Area::Block,
            Err(TableError::NotOneBlock(_)) => {}
            Err(TableError::InMotion(_)) => return Area::Busy,
            Err(_) => return Area::Different,
        }
        let mut first = None;
        let survey = place.space.survey(area, PAGEBLOCK_FRAMES, |leaf| {
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
