//! Retiring frames: free frames at once, frames in use when they are freed.
//!
//! A frame in use is *doomed*: a mark in its own entry, and another in the head of its block, so that the block, or the
//! pieces it is split into until then, is freed with care. A retired frame is a block of its own. It never merges and
//! is never allocated again.

use super::reshape::pageblocks;
use super::{FrameRecord, Memory};
use crate::phys::arena::FrameUse;
use crate::phys::frame::{Head, Meta, State};
use crate::range::FrameRange;

/// The outcome for the frames of a retired range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retired {
    /// Frames that were free and are now retired.
    pub now: u64,
    /// Frames in use, retired when freed. [`Memory::occupants`] tells their owners.
    pub doomed: u64,
    /// Frames that had been retired before.
    pub before: u64,
    /// Frames reserved since boot, or not RAM: these stay as they are.
    pub untouched: u64,
}

impl Memory<'_> {
    /// Retires all of `range`.
    #[cfg(test)]
    pub(crate) fn retire(&self, mut range: FrameRange) -> Retired {
        let mut done = Retired::default();
        while !range.is_empty() {
            range = self.retire_some(range, &mut done);
        }
        done
    }

    /// Retires the first part of `range`, at most a pageblock, skips what is not RAM before it, and counts both in
    /// `done`. Returns the rest of the range, for callers that work in slices.
    pub fn retire_some(&self, range: FrameRange, done: &mut Retired) -> FrameRange {
        let ram_ranges = self.layout.get().map_or(&[][..], |layout| layout.table.ram_ranges());
        let inside = ram_ranges.iter().map(|ram_range| range.intersection(ram_range.range));
        let first = inside.filter(|inside| !inside.is_empty()).min_by_key(|inside| inside.start());
        let Some(part) = first.and_then(|inside| pageblocks(inside).next()) else {
            done.untouched += range.frames();
            return FrameRange::EMPTY;
        };
        done.untouched += part.start() - range.start();
        let mut number = part.start();
        while number < part.end() {
            number = self.retire_from(number, part, done);
        }
        FrameRange::from_numbers(part.end(), range.end()).unwrap_or_default()
    }

    /// Retires the frames of `part`, which lies in one pageblock, from frame `number` to the end of its block. Returns
    /// the number of the frame after.
    fn retire_from(&self, number: u64, part: FrameRange, done: &mut Retired) -> u64 {
        let frame = FrameRange::from_numbers(number, number + 1).unwrap_or_default().first();
        let Some(record) = self.record(frame) else {
            done.untouched += 1;
            return number + 1;
        };
        let mut locked = record.lock_to_change();
        let Some(head) = record.table().head(record.ram_range, number) else {
            done.untouched += 1;
            return number + 1;
        };
        let end = head.end().min(part.end());
        let frames = end - number;
        match head.state {
            State::Reserved => done.untouched += frames,
            State::Retired => done.before += frames,
            State::Used => {
                done.doomed += frames;
                doom(&record, head, number, end);
            }
            State::Free => {
                done.now += frames;
                for number in number..end {
                    let slot = record.ram_range.slot(number);
                    locked.lists.withdraw(record.table(), slot, 0);
                    record.table().words.entry(slot).set_meta(Meta::retired(0));
                }
                let isolation = record.table().words.word(record.slot).isolation();
                locked.count_moved(FrameUse::free_in(isolation), FrameUse::Retired, frames);
            }
        }
        end
    }

    /// Returns whether a frame in use is doomed.
    pub(super) fn is_doomed(record: &FrameRecord<'_, '_>) -> bool {
        let words = record.table().words;
        words.word(record.slot).is_touched() && words.entry(record.slot).meta().is_doomed()
    }
}

/// Marks the frames `start` to before `end`, in one pageblock, of the block in use `head` as doomed.
fn doom(record: &FrameRecord<'_, '_>, head: Head, start: u64, end: u64) {
    let words = record.table().words;
    words.touch_used(record.slot);
    for number in start..end {
        let entry = words.entry(record.ram_range.slot(number));
        entry.set_meta(entry.meta().with_doomed());
    }
    let first = words.entry(record.ram_range.slot(head.number));
    first.set_meta(first.meta().with_holding_doomed());
}
