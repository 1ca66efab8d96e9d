//! The choice of zone and controller for a request, and taking the block.

use super::{AllocError, Allocation, Layout, Memory, MemoryKind, Request};
use crate::addr::{MAX_ORDER, PAGEBLOCK_ORDER};
use crate::controller::{ControllerId, ControllerSet};
use crate::phys::buddy::Taken;
use crate::phys::frame::Meta;
use crate::phys::pageblock::Shape;
use crate::phys::placement::{Placement, Strictness, most_free, next_interleaved};
use crate::phys::zone::Zone;

impl<'a> Memory<'a> {
    /// Allocates a block. Its bytes are whatever was left in it: see [`Allocation::contents`].
    ///
    /// # Errors
    /// Fails if no arena that the request allows has a block of that order.
    pub fn allocate(&self, request: &Request) -> Result<Allocation, AllocError> {
        let Some(layout) = self.layout.get() else { return Err(AllocError::NotBooted) };
        if request.order > MAX_ORDER {
            return Err(AllocError::OrderTooLarge { order: request.order });
        }
        let open = layout.controllers.without_all(self.closed());
        let found = match &request.placement {
            Placement::Any => {
                let zone = request.kind.first_zone();
                let found = self
                    .roomiest(open.intersection(layout.populated[zone as usize]), zone)
                    .and_then(|controller| self.take_from_arena(layout, request, controller, zone));
                match found {
                    Some(found) => return Ok(found),
                    None => self.allocate_by_zone(layout, request, open),
                }
            }
            placement => self.allocate_placed(layout, request, placement, open),
        };
        found.ok_or_else(|| self.refusal(layout, request, open))
    }

    /// Tries the controllers that `placement` names and then, if they are only preferred, the others.
    #[inline(never)]
    fn allocate_placed(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        placement: &Placement,
        open: ControllerSet,
    ) -> Option<Allocation> {
        let (named, strictness) = placement.named();
        let mut candidates = open.intersection(named);
        let found = match placement {
            Placement::Any => None,
            Placement::Listed(list, _) => list
                .as_slice()
                .iter()
                .filter(|controller| open.contains(**controller))
                .find_map(|&controller| self.allocate_behind(layout, request, controller)),
            Placement::Interleave(..) => core::iter::from_fn(|| {
                let controller = next_interleaved(candidates, |controller| {
                    (self.free_for(request, controller), self.resident(request.owner, controller))
                })?;
                candidates = candidates.without(controller);
                Some(controller)
            })
            .find_map(|controller| self.allocate_behind(layout, request, controller)),
        };
        if found.is_none() && strictness == Strictness::Preferred {
            let mut others = open.without_all(named);
            while let Some(controller) = most_free(others, |controller| self.free_for(request, controller)) {
                let found = self.allocate_behind(layout, request, controller);
                if found.is_some() {
                    return found;
                }
                others = others.without(controller);
            }
        }
        found
    }

    /// Tries one zone after the other, and in each zone the controllers with the most free memory first.
    #[cold]
    #[inline(never)]
    fn allocate_by_zone(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        open: ControllerSet,
    ) -> Option<Allocation> {
        let mut zone = request.kind.first_zone();
        loop {
            let mut candidates = open.intersection(layout.populated[zone as usize]);
            while let Some(controller) = self.roomiest(candidates, zone) {
                let found = self.allocate_in(layout, request, controller, zone);
                if found.is_some() {
                    return found;
                }
                candidates = candidates.without(controller);
            }
            if zone == Zone::Normal {
                return None;
            }
            zone = Zone::Normal;
        }
    }

    /// Returns the controller of `candidates` with the most free memory in `zone`.
    #[inline]
    fn roomiest(&self, candidates: ControllerSet, zone: Zone) -> Option<ControllerId> {
        most_free(candidates, |controller| self.arena(zone.arena(controller)).free())
    }

    /// Tries the zones of one controller.
    #[inline(never)]
    fn allocate_behind(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        controller: ControllerId,
    ) -> Option<Allocation> {
        let mut zone = request.kind.first_zone();
        loop {
            let found = self.allocate_in(layout, request, controller, zone);
            if found.is_some() || zone == Zone::Normal {
                return found;
            }
            zone = Zone::Normal;
        }
    }

    /// Tries one arena, after the first choice had no block.
    #[inline(never)]
    fn allocate_in(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        controller: ControllerId,
        zone: Zone,
    ) -> Option<Allocation> {
        self.take_from_arena(layout, request, controller, zone)
    }

    /// Takes a block from one arena.
    #[inline(always)]
    fn take_from_arena(
        &self,
        layout: &Layout<'a>,
        request: &Request,
        controller: ControllerId,
        zone: Zone,
    ) -> Option<Allocation> {
        let frames = 1 << request.order;
        let arena = self.arena(zone.arena(controller));
        if arena.free() < frames {
            return None;
        }
        let wanted = request.kind.migrate_type();
        if zone == Zone::Normal && request.keeps_floor() && !self.is_above_floor(layout, frames) {
            return None;
        }
        let order = request.order;
        let owner = request.owner.index();
        let words = &layout.table.words;
        let mut locked = arena.lock_to_change();
        let Taken { slot, contents } = locked.lists.take(&layout.table, zone, wanted, order)?;
        let word = words.word(slot);
        if order >= PAGEBLOCK_ORDER {
            words.set_word(slot, word.with_head(Shape::Used, order));
        }
        words.entry(slot).set_used(Meta::used(order, owner, request.kind), request.mapping);
        locked.count_taken(owner, frames);
        let frame = layout.table.ram_range_in(word).frame(slot);
        Some(Allocation { frame, order, controller, zone, contents })
    }

    /// Returns whether NORMAL keeps its floor if `frames` frames are taken. CPUs that ask at the same time may together
    /// go below it by the blocks that they take.
    fn is_above_floor(&self, layout: &Layout<'a>, frames: u64) -> bool {
        let free: u64 = layout
            .controllers
            .iter()
            .map(|controller| self.arena(Zone::Normal.arena(controller)).free())
            .sum();
        free >= layout.normal_floor + frames
    }

    /// Returns the number of free frames behind `controller` in the zones that `request` may use.
    fn free_for(&self, request: &Request, controller: ControllerId) -> u64 {
        let free = |zone: Zone| self.arena(zone.arena(controller)).free();
        match request.kind {
            MemoryKind::Unmovable => free(Zone::Normal),
            MemoryKind::Movable => free(Zone::Normal) + free(Zone::Movable),
        }
    }

    #[cold]
    fn refusal(&self, layout: &Layout<'a>, request: &Request, open: ControllerSet) -> AllocError {
        let (named, strictness) = request.placement.named();
        let asked = match strictness {
            Strictness::Strict => named.intersection(layout.controllers),
            Strictness::Preferred => layout.controllers,
        };
        let tried = asked.intersection(open);
        let free = |set: ControllerSet| set.iter().map(|controller| self.free_for(request, controller)).sum();
        AllocError::NoFrames {
            order: request.order,
            kind: request.kind,
            controllers: asked,
            closed: asked.len() - tried.len(),
            free: free(tried),
            free_elsewhere: free(open) - free(tried),
        }
    }
}
