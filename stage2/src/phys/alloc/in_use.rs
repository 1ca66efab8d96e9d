//! The blocks in a range that are not free: what a claim must move, and what it cannot move.

use super::Memory;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::owner::Owner;
use crate::phys::frame::{Mapping, MemoryKind, State};
use crate::range::FrameRange;

/// A block that is not free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Occupant {
    /// The first frame, which may lie below the range in question.
    pub frame: Frame,
    /// log2 of the number of frames.
    pub order: u8,
    /// The state: used, reserved or retired.
    pub state: State,
    /// The owner, if the block is in use.
    pub owner: Option<Owner>,
    /// The guest and IPA that map its first frame, if the block is in use and they are known.
    pub mapping: Option<Mapping>,
    /// The kind of memory; unmovable if the block is not in use.
    pub kind: MemoryKind,
    /// True if the block holds doomed frames.
    pub is_doomed: bool,
}

impl Occupant {
    /// Returns the number of the frame after the last.
    pub const fn end(&self) -> u64 {
        self.frame.number() + (1 << self.order)
    }
}

/// An iterator over the blocks in a range that are not free: see [`Memory::occupants`].
pub struct Occupants<'m, 'a> {
    memory: &'m Memory<'a>,
    next: u64,
    end: u64,
}

impl Iterator for Occupants<'_, '_> {
    type Item = Occupant;

    fn next(&mut self) -> Option<Occupant> {
        while self.next < self.end {
            let last = (self.next | (PAGEBLOCK_FRAMES - 1)) + 1;
            let part = FrameRange::from_numbers(self.next, last.min(self.end))?;
            if let Some(occupant) = self.memory.occupant_in(part) {
                self.next = occupant.end();
                return Some(occupant);
            }
            self.next = part.end();
        }
        None
    }
}

impl<'a> Memory<'a> {
    /// Returns the blocks in `range` that are not free, in ascending order. Each is read under its arena's lock when
    /// the iterator reaches it. Addresses that are not RAM are skipped.
    pub fn occupants(&self, range: FrameRange) -> Occupants<'_, 'a> {
        Occupants { memory: self, next: range.start(), end: range.end() }
    }

    /// Returns the first block that is not free in `part`, which lies in one pageblock.
    fn occupant_in(&self, part: FrameRange) -> Option<Occupant> {
        let mut number = part.start();
        while number < part.end() {
            // At the edge of a RAM range, part of a pageblock may not be RAM.
            let Some(record) = self.record(Frame::try_new(number)?) else {
                number += 1;
                continue;
            };
            let _locked = record.lock();
            while number < part.end().min(record.ram_range.range.end()) {
                let head = record.table().head(record.ram_range, number)?;
                if head.state == State::Free {
                    number = head.end();
                    continue;
                }
                let entry = record.table().words.entry(record.ram_range.slot(head.number));
                let is_used = head.state == State::Used;
                let meta = entry.meta();
                return Some(Occupant {
                    frame: Frame::try_new(head.number)?,
                    order: head.order,
                    state: head.state,
                    owner: if is_used { meta.owner() } else { None },
                    mapping: if is_used { entry.mapping() } else { None },
                    kind: if is_used { meta.kind() } else { MemoryKind::Unmovable },
                    is_doomed: is_used && meta.holds_doomed(),
                });
            }
        }
        None
    }
}
