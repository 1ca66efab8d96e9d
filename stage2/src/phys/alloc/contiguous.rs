//! The search for contiguous memory that belongs to nobody in particular.
//!
//! It keeps out of designated blocks and pools: these are emptied for their owners only, by name. What it finds may be in
//! use by what can move.

use super::isolation::{check_movable, refusal};
use super::reshape::pageblocks;
use super::{Isolated, Memory, MemoryKind, Requester};
use crate::addr::Frame;
use crate::controller::ControllerSet;
use crate::owner::Owner;
use crate::phys::frame::Contents;
use crate::phys::zone::Zone;
use crate::range::FrameRange;

/// What is searched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// How many frames; not 0.
    pub frames: u64,
    /// The first frame's number is a multiple of this, a power of two.
    pub alignment: u64,
    /// What will be put there: what cannot move goes to NORMAL only.
    pub kind: MemoryKind,
    /// Behind which controllers.
    pub controllers: ControllerSet,
}

impl Memory<'_> {
    /// The lowest window from frame number `from` on that could be isolated by [`Requester::Anyone`]: in one RAM range and
    /// zone, outside designated blocks and pools, without what is pinned, reserved or retired. What is in use there can
    /// be moved. Looks at each pageblock at most once for each multiple of the alignment in it.
    pub fn find_contiguous(&self, wanted: &Wanted, from: u64) -> Option<FrameRange> {
        let layout = self.layout.get()?;
        let align = |number: u64| number.checked_next_multiple_of(wanted.alignment.max(1));
        let regions = layout.table.regions().iter();
        for region in regions.filter(|region| wanted.controllers.contains(region.controller)) {
            let mut start = align(from.max(region.range.start()))?;
            while let Some(window) = FrameRange::from_numbers(start, start.checked_add(wanted.frames)?)
                .filter(|window| region.range.contains_range(*window) && !window.is_empty())
            {
                match self.obstacle(wanted, window) {
                    None => return Some(window),
                    Some(obstacle) => start = align(obstacle + 1)?,
                }
            }
        }
        None
    }

    /// The last frame of the first pageblock that must not be isolated, or the first that stands in the way in it.
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
                // What begins here may do.
                return part.start().checked_sub(1);
            }
            check_movable(&record, part).err().map(|(frame, _)| frame.number())
        })
    }

    /// Takes the lowest window of free frames for `owner`, which pins it, and yields it with what is known of its bytes.
    /// Nothing is moved for it; given back by [`Self::release_range`].
    pub fn take_contiguous(&self, wanted: &Wanted, owner: Owner) -> Option<(FrameRange, Contents)> {
        // What is taken is pinned.
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
