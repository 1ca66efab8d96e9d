//! The allocator as migration uses it.

use super::{Memory, MemoryKind, Request, Tenant};
use crate::addr::{Frame, Ipa};
use crate::controller::ControllerSet;
use crate::migrate::{Frames, Span};
use crate::owner::{GuestId, Owner, PoolId};
use crate::phys::frame::{Contents, Mapping};
use crate::phys::placement::{Placement, Strictness};
use crate::phys::zone::Zone;
use crate::range::FrameRange;
use crate::sync::Ordering::Relaxed;

impl Frames for Memory<'_> {
    fn allocate(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        let request = Request {
            order,
            kind: MemoryKind::Movable,
            owner: Owner::Guest(guest),
            placement: *placement,
            mapping: Some(Mapping { guest, ipa }),
        };
        Memory::allocate(self, &request).ok().map(|allocation| allocation.frame)
    }

    fn allocate_run(&self, guest: GuestId, order: u8, placement: &Placement, ipa: Ipa) -> Option<Frame> {
        self.allocate_pages(&Request {
            order,
            kind: MemoryKind::Movable,
            owner: Owner::Guest(guest),
            placement: *placement,
            mapping: Some(Mapping { guest, ipa }),
        })
    }

    fn release_run(&self, guest: GuestId, first: Frame, count: u64, contents: Contents) {
        self.free_pages(first, count, Owner::Guest(guest), contents);
    }

    /// Frees a block. If it is not the guest's, nothing changes and [`Memory::refused_count`] grows.
    fn release(&self, guest: GuestId, frame: Frame, order: u8, contents: Contents) {
        self.free_or_count(frame, order, Owner::Guest(guest), contents);
    }

    fn divide(&self, guest: GuestId, frame: Frame, order: u8) -> bool {
        Memory::divide(self, frame, order, Owner::Guest(guest)).is_ok()
    }

    fn unite(&self, guest: GuestId, frame: Frame, order: u8, ipa: Ipa) -> bool {
        let mapping = Some(Mapping { guest, ipa });
        Memory::unite(self, frame, order, Owner::Guest(guest), mapping).is_ok()
    }

    fn span_of(&self, frame: Frame) -> Option<Span> {
        let ram_range = self.layout.get()?.table.ram_range_of(frame)?;
        Some(Span { controller: ram_range.controller, frames: ram_range.range })
    }

    fn tenant(&self, frames: FrameRange) -> Option<Tenant> {
        self.tenant_in(frames)
    }

    fn claimed_frames(&self, controllers: ControllerSet) -> u64 {
        let pools = || (0..=u8::MAX).map_while(PoolId::try_new).map(Owner::Pool);
        let behind = |controller| pools().map(move |pool| self.resident(pool, controller)).sum::<u64>();
        controllers.iter().map(behind).sum()
    }

    fn free_frames(&self, placement: &Placement) -> u64 {
        let Some(layout) = self.layout.get() else { return 0 };
        let (named, strictness) = placement.named();
        let open = layout.controllers.without_all(self.closed());
        let wanted = match strictness {
            Strictness::Strict => open.intersection(named),
            Strictness::Preferred => open,
        };
        let free = |zone: Zone, controllers: ControllerSet| -> u64 {
            controllers.iter().map(|controller| self.arena(zone.arena(controller)).free()).sum()
        };
        let above_floor = free(Zone::Normal, layout.controllers).saturating_sub(layout.normal_floor);
        free(Zone::Movable, wanted) + free(Zone::Normal, wanted).min(above_floor)
    }
}

impl Memory<'_> {
    /// Frees a block, or counts the failure.
    pub(super) fn free_or_count(&self, frame: Frame, order: u8, owner: Owner, contents: Contents) {
        if self.free(frame, order, owner, contents).is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
    }

    /// Returns the number of refused frees of migration. Anything but 0 is a bug in Ballast.
    pub fn refused_count(&self) -> u32 {
        self.refused.load(Relaxed)
    }
}
