//! Exhaustive search over every range of a pool.
//!
//! A window slides over the pool, from one multiple of the alignment to the next. The tenants in it are counted by the
//! controllers that they may move to ([`Tenants`]). Of the windows whose tenants have room elsewhere, the one with the
//! fewest frames in use wins; the first of equals.
//!
//! The search takes a few hundred instructions per block of the pool, and as many per window. It is therefore done only
//! after the range that [`search`](super::search) chose could not be emptied.

use super::host::{Ground, Host};
use super::room::{Piece, Room, Tenants};
use super::search::{Progress, pageblock_at};
use crate::addr::Frame;
use crate::controller::ControllerId;
use crate::range::FrameRange;

/// State of a search.
pub(super) struct Exhaustive {
    pool: FrameRange,
    controller: ControllerId,
    frames: u64,
    align: u64,
    /// Number of the first frame of the window.
    start: u64,
    /// Frame numbers between which tenants are counted. The window is complete when they are its start and its end.
    tail: u64,
    head: u64,
    tenants: Tenants,
    /// Start of the pageblock that `head` is in, once its free frames are counted.
    entered: Option<u64>,
    /// Free frames of the pageblocks that the window touches. They would be isolated, so tenants cannot move there.
    free: u64,
    /// Frames in use in the best window so far, and its start.
    best: Option<(u64, u64)>,
}

impl Exhaustive {
    /// Begins a search in `pool`, which lies behind `controller`, for `frames` frames that start at a multiple of `align`.
    pub(super) fn new(pool: FrameRange, controller: ControllerId, frames: u64, align: u64) -> Self {
        let start = pool.start().next_multiple_of(align.max(1));
        Self {
            pool,
            controller,
            frames,
            align: align.max(1),
            start,
            tail: start,
            head: start,
            tenants: Tenants::default(),
            entered: None,
            free: 0,
            best: None,
        }
    }

    /// Examines about `most` more pieces and windows. No range may contain a frame of `barred`, or start at one of
    /// `tried`.
    pub(super) fn advance(
        &mut self,
        ground: &impl Ground,
        host: &impl Host,
        barred: &[Frame],
        tried: &[u64],
        most: u64,
    ) -> Progress {
        let room = Room::of(ground);
        for _ in 0..most {
            if self.start + self.frames > self.pool.end() {
                let best = self.best.and_then(|(used, start)| {
                    Some((FrameRange::from_numbers(start, start + self.frames)?, used))
                });
                return Progress::Done(best);
            }
            if self.start >= self.head {
                self.restart(self.start);
            }
            if self.tail < self.start {
                self.shrink(ground, host);
            } else if self.head < self.start + self.frames {
                self.grow(ground, host, barred);
            } else {
                self.judge(&room, tried);
                self.start += self.align;
            }
        }
        Progress::More
    }

    /// Moves the window to the first start at or after `from`.
    fn restart(&mut self, from: u64) {
        self.start = self.start.max(from.next_multiple_of(self.align));
        (self.tail, self.head) = (self.start, self.start);
        (self.entered, self.free) = (None, 0);
        self.tenants.clear();
    }

    /// Adds the next piece to the counts.
    fn grow(&mut self, ground: &impl Ground, host: &impl Host, barred: &[Frame]) {
        let part = pageblock_at(self.head);
        if self.entered != Some(part.start()) {
            let glance = ground.glance(part.first()).filter(|glance| !glance.is_isolated);
            let Some(glance) = glance else { return self.restart(part.end()) };
            self.entered = Some(part.start());
            self.free += u64::from(glance.free);
        }
        let next_barred =
            barred.iter().map(|frame| frame.number()).filter(|number| *number >= self.head).min();
        if next_barred == Some(self.head) {
            return self.restart(self.head + 1);
        }
        let limit = part.end().min(self.start + self.frames).min(next_barred.unwrap_or(u64::MAX));
        self.head = match Piece::at(ground, host, self.head, limit) {
            Piece::Free { end } => end,
            Piece::Fixed { end } => return self.restart(end),
            Piece::Tenant { end, kind, .. } if kind.is_empty() => return self.restart(end),
            Piece::Tenant { end, kind, .. } => {
                self.tenants.add(kind, end - self.head);
                end
            }
        };
    }

    /// Subtracts the first piece before the window from the counts.
    fn shrink(&mut self, ground: &impl Ground, host: &impl Host) {
        let part = pageblock_at(self.tail);
        self.tail = match Piece::at(ground, host, self.tail, part.end().min(self.start)) {
            Piece::Free { end } | Piece::Fixed { end } => end,
            Piece::Tenant { end, kind, .. } => {
                self.tenants.remove(kind, end - self.tail);
                end
            }
        };
        if self.tail >= part.end() {
            let free = ground.glance(part.first()).map_or(0, |glance| glance.free.into());
            self.free = self.free.saturating_sub(free);
        }
    }

    /// Remembers the window if it can be emptied and is better than the best so far.
    fn judge(&mut self, room: &Room, tried: &[u64]) {
        let used = self.tenants.used();
        if self.best.is_none_or(|(least, _)| used < least)
            && !tried.contains(&self.start)
            && self.tenants.missing(&room.less(self.free, self.controller)) == 0
        {
            self.best = Some((used, self.start));
        }
    }
}
