//! The search for contiguous memory outside designated blocks and pools, which only their owners may claim. The range
//! found may be in use by movable memory.

use super::isolation::{check_movable, refusal};
use super::reshape::pageblocks;
use super::{Isolated, Memory, MemoryKind, Requester};
use crate::addr::Frame;
use crate::controller::ControllerSet;
use crate::owner::Owner;
use crate::phys::frame::Contents;
use crate::phys::zone::Zone;
use crate::range::FrameRange;

/// The properties of the range to find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The number of frames; not 0.
    pub frames: u64,
    /// The alignment of the first frame number, a power of two.
    pub alignment: u64,
    /// The kind of memory to be put there. Unmovable memory goes to NORMAL only.
    pub kind: MemoryKind,
    /// The controllers that may be used.
    pub controllers: ControllerSet,
}

impl Memory<'_> {
    /// Returns the lowest range from frame number `from` on that [`Requester::Anyone`] may isolate: in one RAM range
    /// and zone, outside designated blocks and pools, and without unmovable, reserved or retired frames. Movable blocks
    /// in it can be moved. Reads each pageblock at most once for each multiple of the alignment in it.
    pub fn find_contiguous(&self, wanted: &Wanted, from: u64) -> Option<FrameRange> {
        let layout = self.layout.get()?;
        let align = |number: u64| number.checked_next_multiple_of(wanted.alignment.max(1));
        let ram_ranges = layout.table.ram_ranges().iter();
        for ram_range in ram_ranges.filter(|ram_range| wanted.controllers.contains(ram_range.controller)) {
            let mut start = align(from.max(ram_range.range.start()))?;
            while let Some(window) = FrameRange::from_numbers(start, start.checked_add(wanted.frames)?)
                .filter(|window| ram_range.range.contains_range(*window) && !window.is_empty())
            {
                match self.obstacle(wanted, window) {
                    None => return Some(window),
                    Some(obstacle) => start = align(obstacle + 1)?,
                }
            }
        }
        None
    }

    /// Returns the last frame of the first pageblock of `window` that cannot be isolated, or the first frame in the way
    /// in it.
    fn obstacle(&self, wanted: &Wanted, window: FrameRange) -> Option<u64> {
        let mut first_zone = None;
        pageblocks(window).find_map(|part| {
            let last = part.end() - 1;
            let Some(record) = self.record(part.first()) else { return Some(last) };
            let _locked = record.lock();
            let word = record.table().words.word(record.slot);
            let zone = word.zone();
            let is_wrong_zone = zone == Zone::Movable && wanted.kind == MemoryKind::Unmovable;
            if is_wrong_zone || refusal(word, Requester::Anyone).is_some() {
                return Some(last);
            }
            if *first_zone.get_or_insert(zone) != zone {
                // A range that begins here may be suitable.
                return part.start().checked_sub(1);
            }
            check_movable(&record, part).err().map(|(frame, _)| frame.number())
        })
    }

    /// Allocates the lowest suitable range of free frames to `owner`, as unmovable memory. Returns it and the state of
    /// its bytes. Nothing is moved. [`Self::release_range`] frees it.
    pub fn take_contiguous(&self, wanted: &Wanted, owner: Owner) -> Option<(FrameRange, Contents)> {
        // The owner's memory is unmovable.
        let wanted = &Wanted { kind: MemoryKind::Unmovable, ..*wanted };
        let mut from = 0;
        loop {
            let window = self.find_contiguous(wanted, from)?;
            from = match self.occupants(window).next() {
                Some(occupant) => occupant.end(),
                None => match self.isolate(window, Requester::Anyone) {
                    Ok(isolated) => match self.take_all(isolated, owner) {
                        Ok(contents) => return Some((window, contents)),
                        Err(frame) => frame.number() + 1,
                    },
                    Err(error) => error.frame.number() + 1,
                },
            };
        }
    }

    fn take_all(&self, isolated: Isolated, owner: Owner) -> Result<Contents, Frame> {
        let taken = self.take_isolated(&isolated, isolated.range(), owner);
        self.end_isolation(isolated);
        taken.map_err(|error| error.frame)
    }
}
