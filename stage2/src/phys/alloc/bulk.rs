//! Runs of single frames, for the migration of 4 KiB units.

use super::reshape::cut_used;
use super::{Memory, MemoryKind, Request, boot};
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::owner::Owner;
use crate::phys::frame::{Contents, Meta};
use crate::range::FrameRange;

impl Memory<'_> {
    /// Allocates `1 << order` adjacent movable frames, each a block of its own, mapped from `mapping` on. `order` must
    /// be below a pageblock's.
    pub(super) fn allocate_pages(&self, request: &Request) -> Option<Frame> {
        if request.order >= PAGEBLOCK_ORDER || request.kind != MemoryKind::Movable {
            return None;
        }
        let first = self.allocate(request).ok()?.frame;
        let record = self.record(first)?;
        let (words, number, count) = (record.table().words, first.number(), 1 << request.order);
        let _locked = record.arena.lock_to_change();
        let meta = words.entry(record.slot).meta();
        if meta.holds_doomed() {
            let head = record.table().head(record.ram_range, number)?;
            cut_used(
                record.table(),
                record.ram_range,
                head,
                &mut (number..number + count).map(|number| (number, 0)),
            );
            return Some(first);
        }
        for index in 0..count {
            let mapping = request.mapping.and_then(|mapping| mapping.offset(index));
            words.entry(record.slot.add(index)).set_used(meta.as_piece(0), mapping);
        }
        Some(first)
    }

    /// Frees `count` adjacent single-frame blocks of `owner` from `first` on, within a pageblock.
    pub(super) fn free_pages(&self, first: Frame, count: u64, owner: Owner, contents: Contents) {
        if !self.free_whole_run(first, count, owner, contents) {
            for frame in (0..count).filter_map(|index| first.checked_add(index)) {
                self.free_or_count(frame, 0, owner, contents);
            }
        }
    }

    /// Frees the run at once if all its frames are as expected. Returns false, with nothing changed, if not.
    fn free_whole_run(&self, first: Frame, count: u64, owner: Owner, contents: Contents) -> bool {
        let (number, index) = (first.number(), owner.index());
        let Some(record) = self.record(first) else { return false };
        let fits = number % PAGEBLOCK_FRAMES + count <= PAGEBLOCK_FRAMES && count > 0;
        if !fits || !record.ram_range.has(number + count - 1) {
            return false;
        }
        let words = record.table().words;
        let mut locked = record.lock_to_change();
        let entries = || (0..count).map(|index| words.entry(record.slot.add(index)));
        let is_plain = words.word(record.slot).is_split_and_open()
            && entries().all(|entry| entry.meta().is_plainly_used_as(0, index));
        let Some(range) = FrameRange::from_numbers(number, number + count).filter(|_| is_plain) else {
            return false;
        };
        entries().for_each(|entry| entry.set_meta(Meta::NONE));
        locked.count_given(index, count);
        for (number, order) in boot::blocks(range) {
            let slot = record.ram_range.slot(number);
            locked.lists.give(record.table(), slot, number, order, contents);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ipa;
    use crate::controller::ControllerId;
    use crate::owner::GuestId;
    use crate::phys::alloc::tests::{BASE, guest, words};
    use crate::phys::frame::Mapping;
    use crate::phys::map::BootMap;
    use crate::phys::placement::Placement;

    #[test]
    fn runs_of_pages_are_allocated_and_freed() {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::default(), BASE, 4 << 20).unwrap();
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let before = memory.controller_totals(ControllerId::default());
        let mapping = Mapping { guest: GuestId::default(), ipa: Ipa::new_truncate(0x4000_0000) };
        let request = Request {
            order: 5,
            kind: MemoryKind::Movable,
            owner: guest(0),
            placement: Placement::Any,
            mapping: Some(mapping),
        };
        let first = memory.allocate_pages(&request).unwrap();
        for index in 0..32 {
            let info = memory.frame_info(first.checked_add(index).unwrap()).unwrap();
            assert_eq!((info.order, info.owner), (0, Some(guest(0))));
            assert_eq!(info.mapping, mapping.offset(index));
        }
        // One frame is freed alone: the others are then freed one by one, and that one is not freed twice.
        memory.free(first.checked_add(7).unwrap(), 0, guest(0), Contents::Dirty).unwrap();
        memory.free_pages(first, 32, guest(0), Contents::Zeroed);
        assert_eq!(memory.refused_count(), 1);
        assert_eq!(memory.controller_totals(ControllerId::default()), before);
        let again = memory.allocate_pages(&request).unwrap();
        memory.free_pages(again, 32, guest(0), Contents::Zeroed);
        assert_eq!(memory.refused_count(), 1);
        assert_eq!(memory.controller_totals(ControllerId::default()), before);
        assert!(memory.allocate_pages(&Request { order: 9, ..request }).is_none());
    }
}
