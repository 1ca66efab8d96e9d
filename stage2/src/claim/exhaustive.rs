//! Which range to claim, where the cheapest one could not be emptied: every range of the pool is looked at.
//!
//! A window slides over the pool, from one multiple of the alignment to the next, frame by frame if need be. For the
//! frames in it, tenants are counted by the controllers that they may move to ([`Tenants`]). Of the windows whose tenants
//! have room elsewhere, the one with the fewest wins, and among equals the first.
//!
//! This takes a few hundred instructions for each block of the pool, and about as much for each window. So it is done only
//! after the first range that was chosen has turned out not to do.

use super::host::{Ground, Host};
use super::room::{Piece, Room, Tenants};
use super::search::{Progress, pageblock_at};
use crate::addr::Frame;
use crate::controller::ControllerId;
use crate::range::FrameRange;

/// A search under way.
pub(super) struct Exhaustive {
    pool: FrameRange,
    controller: ControllerId,
    frames: u64,
    align: u64,
    /// The number of the window's first frame.
    start: u64,
    /// What is counted, from one frame number to before another. The window is complete when both are its own.
    tail: u64,
    head: u64,
    tenants: Tenants,
    /// The pageblock that `head` is in, once it was looked at.
    entered: Option<u64>,
    /// Free frames of the pageblocks that are touched: isolated with the range, they are no room.
    free: u64,
    /// Frames in use and start of the best window so far.
    best: Option<(u64, u64)>,
}

impl Exhaustive {
    /// A search for `frames` frames in `pool`, which lies behind `controller`, the first a multiple of `align`.
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

    /// Looks at about `most` more blocks and windows. No range may hold any of the `barred` frames, or begin at
    /// one of those of `tried`.
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

    /// No window may touch what lies before `from`.
    fn restart(&mut self, from: u64) {
        self.start = self.start.max(from.next_multiple_of(self.align));
        (self.tail, self.head) = (self.start, self.start);
        (self.entered, self.free) = (None, 0);
        self.tenants.clear();
    }

    /// Counts the next piece.
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

    /// Takes the first piece that the window has left behind out of the account.
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

    /// Takes note of the window, if it is better than the best so far.
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
