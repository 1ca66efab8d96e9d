//! A look at a pageblock: how much of it is free, lent, claimed, fixed.

use super::Memory;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::frame::{Meta, Mobility, State};
use crate::owner::Owner;
use crate::pageblock::Shape;

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
        let first = Frame::try_new(frame.number() & !(PAGEBLOCK_FRAMES - 1))?;
        let place = self.place(first)?;
        let (table, words) = (place.table(), place.table().words);
        let _locked = place.arena.lock();
        let word = words.word(place.slot);
        let mut glance = Glance { is_isolated: word.is_isolated(), ..Glance::default() };
        if word.shape() != Shape::Split {
            let head = table.head(place.region, first.number())?;
            let meta = words.entry(place.region.slot(head.number)).meta();
            let whole = PAGEBLOCK_FRAMES as u16;
            match head.state {
                State::Free => glance.free = whole,
                State::Used => glance.count(meta, whole),
                State::Reserved | State::Retired => glance.fixed = whole,
            }
            return Some(glance);
        }
        glance.free = words.free_map(place.slot.pageblock()).info().count() as u16;
        if u64::from(glance.free) == PAGEBLOCK_FRAMES {
            return Some(glance);
        }
        for offset in 0..PAGEBLOCK_FRAMES {
            let meta = words.entry(place.slot.add(offset)).meta();
            match meta.state() {
                Some(State::Used) => glance.count(meta, 1 << meta.order()),
                Some(State::Reserved | State::Retired) => glance.fixed += 1 << meta.order(),
                _ => {}
            }
        }
        Some(glance)
    }
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
