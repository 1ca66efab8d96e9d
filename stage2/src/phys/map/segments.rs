//! RAM, reservations and marks combined into segments.

use super::{BootMap, MovableMark, Reservation, ReservationKind};
use crate::addr::Frame;
use crate::controller::ControllerId;
use crate::range::FrameRange;

/// A range of RAM with the same properties throughout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The frames.
    pub range: FrameRange,
    /// The controller that the frames are behind.
    pub controller: ControllerId,
    /// The purpose of the reservation. If reservations overlap, `no-map` wins, else the one that starts first.
    pub reservation: Option<ReservationKind>,
    /// The reason why the frames are movable.
    pub movable: Option<MovableMark>,
    /// The pool of the frames, by its index in [`BootMap::pools`].
    pub pool: Option<u8>,
}

impl Segment {
    /// Returns whether an early allocation may use these frames.
    pub fn is_free_normal(&self) -> bool {
        self.reservation.is_none() && self.movable.is_none() && self.pool.is_none()
    }
}

/// An iterator over the segments of a map, in ascending order.
#[derive(Clone, Debug)]
pub struct Segments<'m> {
    map: &'m BootMap,
    next: u64,
}

impl<'m> Segments<'m> {
    pub(super) fn new(map: &'m BootMap) -> Self {
        Self { map, next: 0 }
    }
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let (ram, controller) = self.map.ram.at_or_after(self.next)?;
        let start = ram.start().max(self.next);
        let first = Frame::try_new(start)?;
        let mut end = ram.end();

        let mut movable = None;
        if let Some((marked, mark)) = self.map.marks.at_or_after(start) {
            if marked.contains(first) {
                movable = Some(mark);
                end = end.min(marked.end());
            } else {
                end = end.min(marked.start());
            }
        }

        let mut pool = None;
        for (index, other) in self.map.pools.iter().enumerate() {
            if other.range.contains(first) {
                pool = Some(index as u8);
                end = end.min(other.range.end());
            } else if other.range.start() > start {
                end = end.min(other.range.start());
            }
        }

        let mut found: Option<&Reservation> = None;
        for reservation in &self.map.reservations {
            if reservation.range.contains(first) {
                end = end.min(reservation.range.end());
                if found.is_none_or(|known| !known.kind.is_no_map() && reservation.kind.is_no_map()) {
                    found = Some(reservation);
                }
            } else if reservation.range.start() > start {
                // Sorted by start, so none of the rest begins earlier.
                end = end.min(reservation.range.start());
                break;
            }
        }

        self.next = end;
        let range = FrameRange::from_numbers(start, end)?;
        Some(Segment { range, controller, reservation: found.map(|r| r.kind), movable, pool })
    }
}
