//! Units at rest behind one controller, linked through their own entries of the frame table.

use super::UnitSize;
use crate::addr::Frame;
use crate::memory::Memory;
use crate::range::FrameRange;

/// A chain of units. Under the pools' lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    first: Option<Frame>,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { first: None };

    /// Puts a unit in front.
    pub(super) fn push(&mut self, memory: &Memory<'_>, frame: Frame) {
        memory.set_links(frame, None, self.first);
        if let Some(next) = self.first {
            let (_, after) = memory.links(next);
            memory.set_links(next, Some(frame), after);
        }
        self.first = Some(frame);
    }

    /// Takes out the first unit for which `is_wanted`.
    pub(super) fn pop(
        &mut self,
        memory: &Memory<'_>,
        size: UnitSize,
        mut is_wanted: impl FnMut(FrameRange) -> bool,
    ) -> Option<Frame> {
        let mut at = self.first;
        while let Some(frame) = at {
            let span = FrameRange::try_new(frame, size.frames()).unwrap_or_default();
            if is_wanted(span) {
                self.unlink(memory, frame);
                return Some(frame);
            }
            (_, at) = memory.links(frame);
        }
        None
    }

    /// Takes a unit out.
    pub(super) fn unlink(&mut self, memory: &Memory<'_>, frame: Frame) {
        let (previous, next) = memory.links(frame);
        match previous {
            Some(previous) => {
                let (before, _) = memory.links(previous);
                memory.set_links(previous, before, next);
            }
            None => self.first = next,
        }
        if let Some(next) = next {
            let (_, after) = memory.links(next);
            memory.set_links(next, previous, after);
        }
    }
}
