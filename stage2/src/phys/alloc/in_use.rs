//! Who stands in a range: what a claim has to move away, and what it cannot.

use super::Memory;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::owner::Owner;
use crate::phys::frame::{Mapping, MemoryKind, State};
use crate::range::FrameRange;

/// A block that is not free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Occupant {
    /// Its first frame, which may lie below the range asked about.
    pub frame: Frame,
    /// log2 of its frames.
    pub order: u8,
    /// Used, reserved or retired.
    pub state: State,
    /// Its owner, if it is in use.
    pub owner: Option<Owner>,
    /// Where its first frame appears, if it is in use and that is known.
    pub mapping: Option<Mapping>,
    /// Whether it can be moved elsewhere.
    pub kind: MemoryKind,
    /// Whether it holds frames that are to be retired.
    pub is_doomed: bool,
}

impl Occupant {
    /// The number of the frame after its last.
    pub const fn end(&self) -> u64 {
        self.frame.number() + (1 << self.order)
    }
}

/// The blocks that are not free in a range, ascending: see [`Memory::occupants`].
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
    /// The blocks that are not free in `range`, ascending, each seen under its arena's lock at the moment at which it is
    /// asked for. What is no RAM is passed over.
    pub fn occupants(&self, range: FrameRange) -> Occupants<'_, 'a> {
        Occupants { memory: self, next: range.start(), end: range.end() }
    }

    /// The first block that is not free in `part`, which lies in one pageblock.
    fn occupant_in(&self, part: FrameRange) -> Option<Occupant> {
        let mut number = part.start();
        while number < part.end() {
            // At an edge of a region some of a pageblock may be no RAM.
            let Some(record) = self.record(Frame::try_new(number)?) else {
                number += 1;
                continue;
            };
            let _locked = record.lock();
            while number < part.end().min(record.region.range.end()) {
                let head = record.table().head(record.region, number)?;
                if head.state == State::Free {
                    number = head.end();
                    continue;
                }
                let entry = record.table().words.entry(record.region.slot(head.number));
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
