//! The usage of pageblocks: how many frames are free, lent, claimed and fixed.

use super::Memory;
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE, Pa};
use crate::owner::Owner;
use crate::phys::frame::{MemoryKind, Meta, Slot, State, Table};
use crate::phys::pageblock::Shape;

/// The number of frames in a pageblock.
const WHOLE: u16 = PAGEBLOCK_FRAMES as u16;

/// The usage of the 512 frames of a pageblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Glance {
    /// Free frames.
    pub free: u16,
    /// Frames claimed by the owner of a pool.
    pub claimed: u16,
    /// Frames that are reserved, retired, or in use and unmovable.
    pub fixed: u16,
    /// True if the pageblock is isolated.
    pub is_isolated: bool,
    /// True if the pageblock is split into smaller blocks. Reading such a pageblock takes some thousand instructions.
    pub is_split: bool,
}

impl Glance {
    /// Returns the number of frames in use that can be moved.
    #[inline]
    pub const fn lent(self) -> u16 {
        PAGEBLOCK_FRAMES as u16 - self.free - self.claimed - self.fixed
    }
}

impl Memory<'_> {
    /// Returns the usage of the pageblock of `frame`, or `None` if that is not RAM. Takes one pass over the pageblock's
    /// entries if it is split, and a few steps otherwise.
    pub fn glance(&self, frame: Frame) -> Option<Glance> {
        let mut glance = [Glance::default()];
        (self.glances(frame, &mut glance) == 1).then_some(glance[0])
    }

    /// Writes the usage of consecutive pageblocks, from the pageblock of `frame` on, to `glances`. Stops after the
    /// first split pageblock and at the end of the RAM range or zone. Returns the number written, 0 if `frame` is not
    /// RAM. Takes one lock, a few steps for each pageblock, and one pass over the entries of a split one.
    pub fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize {
        let first = Frame::containing(Pa::new_truncate(frame.pa().get() & !(PAGEBLOCK_SIZE - 1)));
        let Some(record) = self.record(first) else { return 0 };
        let (table, words, ram_range) = (record.table(), record.table().words, record.ram_range);
        let _locked = record.lock();
        let zone = words.word(record.slot).zone();
        // The end of the last block of at least a pageblock, and the usage of its pageblocks.
        let mut last = (0, Glance::default());
        let mut number = first.number();
        for (index, glance) in glances.iter_mut().enumerate() {
            let slot = ram_range.slot(number);
            let word = match ram_range.has(number) {
                true => words.word(slot),
                false => return index,
            };
            if word.zone() != zone {
                return index;
            }
            if word.is_split() {
                *glance = split(words, slot);
                return index + 1;
            }
            if number >= last.0 {
                // The block nearly always begins here.
                let (state, slot, end) = match word.shape() {
                    Shape::Free => (State::Free, slot, number + (1 << word.order())),
                    Shape::Used => (State::Used, slot, number + (1 << word.order())),
                    _ => match table.head(ram_range, number) {
                        Some(head) => (head.state, ram_range.slot(head.number), head.end()),
                        None => return index,
                    },
                };
                last = (end, whole(words, state, slot));
            }
            *glance = Glance { is_isolated: word.is_isolated(), ..last.1 };
            number += PAGEBLOCK_FRAMES;
        }
        glances.len()
    }
}

/// Returns the usage of each pageblock of a block in `state` whose head is at `slot`.
#[inline]
fn whole(words: Table<'_>, state: State, slot: Slot) -> Glance {
    let mut glance = Glance::default();
    match state {
        State::Free => glance.free = WHOLE,
        State::Used => glance.count(words.entry(slot).meta(), WHOLE),
        State::Reserved | State::Retired => glance.fixed = WHOLE,
    }
    glance
}

/// Returns the usage of the split pageblock at `slot`.
fn split(words: Table<'_>, slot: Slot) -> Glance {
    let is_isolated = words.word(slot).is_isolated();
    let mut glance = Glance { is_isolated, is_split: true, ..Glance::default() };
    glance.free = words.free_map(slot.pageblock()).info().count() as u16;
    let mut offset = 0;
    // Frames in use not counted yet. Once it is 0, the rest is free.
    let mut left = WHOLE - glance.free;
    while left > 0 && offset < PAGEBLOCK_FRAMES {
        let meta = words.entry(slot.add(offset)).meta();
        let frames = 1 << meta.order();
        match meta.state() {
            Some(State::Used) => glance.count(meta, frames),
            Some(State::Reserved | State::Retired) => glance.fixed += frames,
            _ => {
                offset += 1;
                continue;
            }
        }
        left = left.saturating_sub(frames);
        offset += u64::from(frames);
    }
    glance
}

impl Glance {
    /// Counts `frames` frames in use.
    #[inline]
    fn count(&mut self, meta: Meta, frames: u16) {
        if meta.kind() == MemoryKind::Movable {
            return;
        }
        match meta.owner() {
            // Claimed frames are unmovable.
            Some(Owner::Pool(_)) => self.claimed += frames,
            _ => self.fixed += frames,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ControllerId;
    use crate::phys::alloc::tests::{BASE, guest, words};
    use crate::phys::alloc::{MemoryKind, Request, Requester};
    use crate::phys::frame::Contents;
    use crate::phys::map::BootMap;
    use crate::phys::placement::Placement;
    use crate::range::FrameRange;

    #[test]
    fn reading_many_pageblocks_equals_reading_each() {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::default(), BASE, 62 << 20).unwrap();
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let request =
            |order, kind| Request { order, kind, owner: guest(0), placement: Placement::Any, mapping: None };
        for (order, kind) in [
            (0, MemoryKind::Movable),
            (11, MemoryKind::Movable),
            (9, MemoryKind::Unmovable),
            (3, MemoryKind::Unmovable),
        ] {
            let _held = memory.allocate(&request(order, kind)).unwrap();
        }
        let page = memory.allocate(&request(0, MemoryKind::Movable)).unwrap().frame;
        memory.free(page, 0, guest(0), Contents::Dirty).unwrap();
        let isolated = FrameRange::covering(BASE + (30 << 20), 1 << 20).unwrap();
        let isolated = memory.isolate(isolated, Requester::Anyone).unwrap();
        let first = BASE >> 12;
        let one = |number: u64| memory.glance(Frame::try_new(number).unwrap());
        let mut looks = Vec::new();
        let mut number = first;
        loop {
            let mut glances = [Glance::default(); 7];
            let count = memory.glances(Frame::try_new(number).unwrap(), &mut glances);
            if count == 0 {
                break;
            }
            for glance in &glances[..count] {
                // Any frame of the pageblock finds it.
                assert_eq!(one(number), Some(*glance));
                assert_eq!(one(number + 511).or(one(number)), Some(*glance));
                assert_eq!(glance.free + glance.lent() + glance.claimed + glance.fixed, 512);
                looks.push(*glance);
                number += 512;
            }
        }
        let sum = |of: fn(&Glance) -> u16| looks.iter().map(|glance| u64::from(of(glance))).sum::<u64>();
        assert_eq!(sum(|glance| glance.lent()), 1 + 2048);
        assert_eq!(sum(|glance| glance.fixed), 512 + 8);
        assert_eq!(looks.iter().filter(|glance| glance.is_isolated).count(), 1);
        assert!((1..=2).contains(&looks.iter().filter(|glance| glance.is_split).count()), "{looks:?}");
        memory.end_isolation(isolated);
    }
}
