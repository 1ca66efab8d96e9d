//! The real allocator, with injected failures.

use std::cell::Cell;

use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::claim::Ground;
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::PoolId;
use crate::phys::alloc::{Glance, IsolateError, Isolated, Memory, Occupant, TakeError};
use crate::phys::frame::Contents;
use crate::range::FrameRange;

/// Operation that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FailingStep {
    Isolate,
    Take,
    Show,
    Hide,
    Allocate,
}

/// The allocator, with injected failures.
pub(crate) struct FaultyGround {
    pub(crate) memory: &'static Memory<'static>,
    /// Operation that fails, and how often it succeeds before.
    pub(crate) fails: Cell<Option<(FailingStep, u32)>>,
    /// Set if the operation fails more than once.
    pub(crate) is_stubborn: Cell<bool>,
    /// Number of pageblocks examined, isolated or opened.
    pub(crate) touched: Cell<u64>,
}

impl FaultyGround {
    fn touch(&self, pageblocks: u64) {
        self.touched.set(self.touched.get() + pageblocks);
    }

    /// Tests whether `step` is to fail now.
    pub(crate) fn fails(&self, step: FailingStep) -> bool {
        match self.fails.get() {
            Some((what, 0)) if what == step => {
                if !self.is_stubborn.get() {
                    self.fails.set(None);
                }
                true
            }
            Some((what, left)) if what == step => {
                self.fails.set(Some((what, left - 1)));
                false
            }
            _ => false,
        }
    }
}

impl Ground for FaultyGround {
    fn glance(&self, frame: Frame) -> Option<Glance> {
        self.touch(1);
        self.memory.glance(frame)
    }
    fn glances(&self, frame: Frame, glances: &mut [Glance]) -> usize {
        let count = self.memory.glances(frame, glances);
        // A split pageblock takes as long as many others.
        glances[..count].iter().for_each(|glance| self.touch(if glance.is_split { 32 } else { 1 }));
        count
    }
    fn occupant(&self, range: FrameRange) -> Option<Occupant> {
        Ground::occupant(self.memory, range)
    }
    fn isolate(&self, range: FrameRange, pool: PoolId) -> Result<Isolated, IsolateError> {
        if self.fails(FailingStep::Isolate) {
            let (frame, reason) = (range.first(), crate::phys::alloc::IsolateReason::Isolated);
            return Err(IsolateError { range, frame, reason });
        }
        Ground::isolate(self.memory, range, pool)
    }
    fn isolate_on(&self, isolated: &mut Isolated, end: u64, pool: PoolId) -> Result<(), IsolateError> {
        if self.fails(FailingStep::Isolate) {
            let (range, reason) = (isolated.range(), crate::phys::alloc::IsolateReason::Isolated);
            return Err(IsolateError { range, frame: range.first(), reason });
        }
        Ground::isolate_on(self.memory, isolated, end, pool)
    }
    fn end_isolation_of_last(&self, isolated: Isolated, most: u64) -> Option<Isolated> {
        let before = isolated.range().frames();
        let rest = Ground::end_isolation_of_last(self.memory, isolated, most);
        self.touch((before - rest.as_ref().map_or(0, |rest| rest.range().frames())) / PAGEBLOCK_FRAMES);
        rest
    }
    fn take(&self, isolated: &Isolated, range: FrameRange, pool: PoolId) -> Result<Contents, TakeError> {
        if self.fails(FailingStep::Take) {
            return Err(TakeError { frame: range.first() });
        }
        Ground::take(self.memory, isolated, range, pool)
    }
    fn give(&self, range: FrameRange, pool: PoolId, contents: Contents) -> bool {
        let is_given = Ground::give(self.memory, range, pool, contents);
        assert!(is_given, "{range} was not the owner's");
        is_given
    }
    fn claimed_frames(&self, pool: PoolId) -> u64 {
        Ground::claimed_frames(self.memory, pool)
    }
    fn free_frames(&self) -> u64 {
        Ground::free_frames(self.memory)
    }
    fn free_frames_behind(&self, controller: ControllerId) -> u64 {
        Ground::free_frames_behind(self.memory, controller)
    }
    fn controllers(&self) -> ControllerSet {
        Ground::controllers(self.memory)
    }
}
