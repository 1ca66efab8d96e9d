//! A look at a pageblock: how much of it is free, lent, claimed, fixed.

use super::Memory;
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_SIZE, Pa};
use crate::frame::{Meta, Mobility, Slot, State, Table};
use crate::owner::Owner;

/// The frames of a pageblock.
const WHOLE: u16 = PAGEBLOCK_FRAMES as u16;

/// What the 512 frames of a pageblock are used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Glance {
    /// Free frames.
    pub free: u16,
    /// Frames that the owner of a pool has claimed.
    pub claimed: u16,
    /// Frames that are reserved, retired, or in use and cannot be moved.
    pub fixed: u16,
    /// Whether the pageblock is isolated.
    pub is_isolated: bool,
    /// Whether it is made of smaller blocks: such a look takes some thousand instructions.
    pub is_split: bool,
}

impl Glance {
    /// Frames in use that can be moved.
    pub const fn lent(self) -> u16 {
        PAGEBLOCK_FRAMES as u16 - self.free - self.claimed - self.fixed
    }
}

impl Memory<'_> {
    /// What the pageblock of `frame` is used for; `None` where that is no RAM. At most one pass over the pageblock's
    /// entries, where it is split; otherwise a few steps.
    pub fn glance(&self, frame: Frame) -> Option<Glance> {
        let mut glance = [Glance::default()];
        (self.glances(frame, &mut glance) == 1).then_some(glance[0])
    }

    /// What the pageblocks from that of `frame` on are used for, one after the other: as many as `glances` has room for, at
    /// most up to the first that is split, and not beyond the RAM range or the zone. Yields how many; none where `frame` is
    /// no RAM. One lock for all, and a few steps for each, but for one pass over the entries of the one that is split.
    pub fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize {
        let first = Frame::containing(Pa::new_truncate(frame.pa().get() & !(PAGEBLOCK_SIZE - 1)));
        let Some(place) = self.place(first) else { return 0 };
        let (table, words, region) = (place.table(), place.table().words, place.region);
        let _locked = place.arena.lock();
        let zone = words.word(place.slot).zone();
        // Of the block of at least a pageblock that was looked at last: its end, and what its pageblocks are used for.
        let mut last = (0, Glance::default());
        let mut number = first.number();
        for (index, glance) in glances.iter_mut().enumerate() {
            let slot = region.slot(number);
            let word = match region.has(number) {
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
                let Some(head) = table.head(region, number) else { return index };
                let mut whole = Glance::default();
                match head.state {
                    State::Free => whole.free = WHOLE,
                    State::Used => whole.count(words.entry(region.slot(head.number)).meta(), WHOLE),
                    State::Reserved | State::Retired => whole.fixed = WHOLE,
                }
                last = (head.end(), whole);
            }
            *glance = Glance { is_isolated: word.is_isolated(), ..last.1 };
            number += PAGEBLOCK_FRAMES;
        }
        glances.len()
    }
}

/// What the split pageblock at `slot` is used for.
fn split(words: Table<'_>, slot: Slot) -> Glance {
    let is_isolated = words.word(slot).is_isolated();
    let mut glance = Glance { is_isolated, is_split: true, ..Glance::default() };
    glance.free = words.free_map(slot.pageblock()).info().count() as u16;
    let mut offset = 0;
    // What is counted already: then the rest is free.
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
    fn count(&mut self, meta: Meta, frames: u16) {
        match (meta.owner(), meta.mobility()) {
            (Some(Owner::Pool(_)), _) => self.claimed += frames,
            (_, Mobility::Pinned) => self.fixed += frames,
            (_, Mobility::Movable) => {}
        }
    }
}
