//! The search for a contiguous range of NORMAL memory behind one controller.

use super::{BootMap, Segment};
use crate::addr::PAGEBLOCK_FRAMES;
use crate::controller::ControllerId;
use crate::range::FrameRange;

impl BootMap {
    /// Returns the highest range of `pageblocks` whole pageblocks of NORMAL behind `controller` that is outside all
    /// reservations, blocks and pools.
    ///
    /// # Errors
    /// Returns the number of pageblocks in the longest such range.
    pub fn highest_pageblocks(&self, controller: ControllerId, pageblocks: u64) -> Result<FrameRange, u64> {
        let (mut found, mut longest) = (None, 0);
        for segment in self.segments().filter(Segment::is_free_normal) {
            let free = segment.range.aligned_inside(PAGEBLOCK_FRAMES);
            if segment.controller != controller || free.is_empty() {
                continue;
            }
            longest = longest.max(free.frames() / PAGEBLOCK_FRAMES);
            let frames = pageblocks.checked_mul(PAGEBLOCK_FRAMES).filter(|frames| *frames <= free.frames());
            // Segments ascend, so a later one lies higher.
            found =
                frames.and_then(|frames| FrameRange::from_numbers(free.end() - frames, free.end())).or(found);
        }
        found.ok_or(longest)
    }

    /// Returns the number of free frames of NORMAL outside pools.
    pub fn free_normal_frames(&self) -> u64 {
        self.segments().filter(Segment::is_free_normal).map(|segment| segment.range.frames()).sum()
    }
}
