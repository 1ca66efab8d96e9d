//! Memory whose contents are no longer known: its modules may have been replaced, or may have lost power.

use super::Memory;
use super::reshape::pageblocks;
use crate::phys::pageblock::Shape;
use crate::range::FrameRange;

impl Memory<'_> {
    /// Marks the free frames of the first pageblock of `range` as dirty, so that they are scrubbed before anyone gets
    /// them. Returns the rest of the range, for callers that work in slices. Takes one lock and a few steps.
    ///
    /// A free block that begins before `range` keeps its mark: callers name all RAM behind a controller.
    pub fn forget_some(&self, range: FrameRange) -> FrameRange {
        let Some(part) = pageblocks(range).next() else { return FrameRange::EMPTY };
        if let Some(record) = self.record(part.first()) {
            let words = record.table().words;
            let _locked = record.lock_to_change();
            let word = words.word(record.slot);
            if word.is_split() || word.shape() == Shape::Free {
                words.free_map(record.slot.pageblock()).forget(word.is_split());
            }
        }
        FrameRange::from_numbers(part.end(), range.end()).unwrap_or_default()
    }
}
