//! An allocator that knows the owner of each block, and fails on every mismatch.

use std::collections::BTreeMap;

use crate::addr::Frame;
use crate::controller::{ControllerId, ControllerSet};
use crate::owner::GuestId;
use crate::range::FrameRange;

/// The blocks in use.
pub(in super::super) trait Books {
    /// Returns order and owner of the block that starts at `frame`.
    fn block(&self, frame: Frame) -> Option<(u8, GuestId)>;
    /// Returns the number of frames in use.
    fn used_frames(&self) -> u64;
}

pub(in super::super) struct Allocator {
    controllers: Vec<FrameRange>,
    /// First frame of each block in use: order and owner.
    used: BTreeMap<u64, (u8, GuestId)>,
    /// For each controller, a frame below which none is free.
    full_below: Vec<u64>,
    closed: ControllerSet,
    /// Orders whose allocations fail.
    pub(in super::super) forbidden_orders: Vec<u8>,
    /// Number of allocations that succeed before one fails, once.
    pub(in super::super) fail_after: Option<u64>,
    pub(in super::super) retired: Vec<FrameRange>,
}

impl Books for Allocator {
    fn block(&self, frame: Frame) -> Option<(u8, GuestId)> {
        self.used.get(&frame.number()).copied()
    }

    fn used_frames(&self) -> u64 {
        self.used.values().map(|(order, _)| 1 << order).sum()
    }
}

impl Allocator {
    pub(super) fn new(controllers: Vec<FrameRange>) -> Self {
        Self {
            full_below: controllers.iter().map(|frames| frames.start()).collect(),
            controllers,
            used: BTreeMap::new(),
            closed: ControllerSet::EMPTY,
            forbidden_orders: Vec::new(),
            fail_after: None,
            retired: Vec::new(),
        }
    }

    pub(in super::super) fn close(&mut self, controller: ControllerId) {
        self.closed = self.closed.with(controller);
    }

    fn is_free(&self, first: u64, order: u8) -> bool {
        let end = first + (1 << order);
        let range = FrameRange::from_numbers(first, end).unwrap();
        let before = self.used.range(..end).next_back();
        before.is_none_or(|(start, (order, _))| start + (1 << order) <= first)
            && !self.retired.iter().any(|retired| retired.overlaps(range))
    }

    pub(super) fn allocate(&mut self, guest: GuestId, order: u8, from: ControllerSet) -> Option<Frame> {
        match &mut self.fail_after {
            Some(0) => {
                self.fail_after = None;
                return None;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        if self.forbidden_orders.contains(&order) {
            return None;
        }
        let allowed = |number: &usize| {
            let controller = ControllerId::try_new(*number as u8).unwrap();
            from.contains(controller) && !self.closed.contains(controller)
        };
        let size = 1u64 << order;
        let found = (0..self.controllers.len()).filter(allowed).find_map(|number| {
            let frames = self.controllers[number].aligned_inside(size);
            let mut first = frames.start().max(self.full_below[number] & !(size - 1));
            while first + size <= frames.end() {
                if self.is_free(first, order) {
                    return Some((number, first));
                }
                // After the block in the way, or step by step around retired frames.
                let next = self.used.range(..first + size).next_back();
                let past = next.map_or(0, |(start, (order, _))| start + (1 << order));
                first = past.max(first + size).next_multiple_of(size);
            }
            None
        });
        let (number, found) = found?;
        if order == 0 {
            self.full_below[number] = found + 1;
        }
        self.used.insert(found, (order, guest));
        Frame::try_new(found)
    }

    /// Returns first frame, order and owner of the blocks that overlap `frames`.
    pub(in super::super) fn blocks_in(&self, frames: FrameRange) -> impl Iterator<Item = (u64, u8, GuestId)> {
        let before = self.used.range(..frames.start()).next_back();
        let before = before.filter(move |(first, (order, _))| **first + (1 << order) > frames.start());
        let blocks = before.into_iter().chain(self.used.range(frames.start()..frames.end()));
        blocks.map(|(first, (order, guest))| (*first, *order, *guest))
    }

    #[track_caller]
    pub(super) fn release(&mut self, guest: GuestId, frame: Frame, order: u8) {
        let found = self.used.remove(&frame.number());
        assert_eq!(found, Some((order, guest)), "release of {frame:?}");
        for (frames, full_below) in self.controllers.iter().zip(&mut self.full_below) {
            if frames.contains(frame) {
                *full_below = frame.number().min(*full_below);
            }
        }
    }

    #[track_caller]
    pub(super) fn divide(&mut self, guest: GuestId, frame: Frame, order: u8) -> bool {
        self.release(guest, frame, order);
        for index in 0..512u64 {
            self.used.insert(frame.number() + (index << (order - 9)), (order - 9, guest));
        }
        true
    }

    pub(super) fn unite(&mut self, guest: GuestId, frame: Frame, order: u8) -> bool {
        let parts = (0..512u64).map(|index| frame.number() + (index << (order - 9)));
        if parts.clone().any(|part| self.used.get(&part) != Some(&(order - 9, guest))) {
            return false;
        }
        parts.for_each(|part| _ = self.used.remove(&part));
        self.used.insert(frame.number(), (order, guest));
        true
    }

    pub(super) fn free_frames(&self, from: ControllerSet) -> u64 {
        let free = |number: usize| {
            let range = self.controllers[number];
            let used = self.used.iter().filter(|(first, _)| range.contains(Frame::try_new(**first).unwrap()));
            range.frames() - used.map(|(_, (order, _))| 1u64 << order).sum::<u64>()
        };
        let allowed = |number: &usize| {
            let controller = ControllerId::try_new(*number as u8).unwrap();
            from.contains(controller) && !self.closed.contains(controller)
        };
        (0..self.controllers.len()).filter(allowed).map(free).sum()
    }
}
