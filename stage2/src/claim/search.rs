//! Which range to claim: the one that is cheapest to empty.
//!
//! The pool is gone through once from its start, a bounded number of pageblocks in a turn. Windows of the size wanted
//! slide over it; the cost of one is the number of its frames that are in use. The lowest cost wins, at the same cost the
//! lowest address. A window with claimed, fixed or isolated frames is passed over.
//!
//! A range smaller than a pageblock lies inside one, and is placed frame by frame; at the same cost one with claimed
//! frames is preferred, so that small claims do not cut up the pool.
//!
//! What is in use may change while the search goes on: it finds a good range, and the steps that follow it verify.

use super::cause::Bar;
use super::host::Ground;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::owner::Owner;
use crate::phys::alloc::{Glance, Occupant};
use crate::phys::frame::State;
use crate::range::FrameRange;

/// Pageblocks that are looked at under one lock.
const AT_ONCE: usize = 16;
/// A split pageblock takes about as long as so many others.
const SPLIT: u64 = 32;

/// What a search came to so far.
pub(super) enum Progress {
    /// There is more to look at.
    More,
    /// This range, with so many frames in use; or none.
    Done(Option<(FrameRange, u64)>),
}

/// A range that could be claimed. Lower is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: u64,
    is_untouched: bool,
    start: u64,
}

/// Pageblocks that a window is about to leave behind, looked at some at a time.
struct Trail {
    first: u64,
    count: usize,
    lent: [u16; AT_ONCE],
}

impl Trail {
    const EMPTY: Self = Self { first: 0, count: 0, lent: [0; AT_ONCE] };

    /// How many frames of the pageblock at `number` are lent; takes what it costs to know off `left`.
    fn lent(&mut self, ground: &impl Ground, number: u64, left: &mut u64) -> u64 {
        let index = (number.wrapping_sub(self.first) / PAGEBLOCK_FRAMES) as usize;
        if index < self.count {
            return self.lent[index].into();
        }
        let mut glances = [Glance::default(); AT_ONCE];
        self.first = number;
        self.count = ground.glances(pageblock_at(number).first(), &mut glances);
        let cost: u64 = glances.iter().take(self.count.max(1)).map(cost_of).sum();
        *left = left.saturating_sub(cost);
        self.lent = glances.map(Glance::lent);
        if self.count > 0 { self.lent[0].into() } else { 0 }
    }
}

/// How long it takes to look at a pageblock.
fn cost_of(glance: &Glance) -> u64 {
    if glance.is_split { SPLIT } else { 1 }
}

/// A search under way.
pub(super) struct Search {
    pool: FrameRange,
    frames: u64,
    align: u64,
    /// The pageblock to look at next.
    next: u64,
    /// Where the window starts, and its frames in use as far as they were looked at: those from `left_behind` on, which
    /// may be before its start.
    start: u64,
    used: u64,
    left_behind: u64,
    trail: Trail,
    best: Option<Candidate>,
    /// The first pageblock that no range may touch, or that has frames which no range may.
    bar: Option<FrameRange>,
    /// Frames of the pool looked at that are free, and that are lent.
    free: u64,
    lent: u64,
}

impl Search {
    /// A search for `frames` frames in `pool`, the first a multiple of `align`.
    pub(super) fn new(pool: FrameRange, frames: u64, align: u64) -> Self {
        let step = if frames < PAGEBLOCK_FRAMES { PAGEBLOCK_FRAMES } else { align.max(PAGEBLOCK_FRAMES) };
        let start = pool.start().next_multiple_of(step);
        Self {
            pool,
            frames,
            align,
            next: pool.start(),
            start,
            used: 0,
            left_behind: start,
            trail: Trail::EMPTY,
            best: None,
            bar: None,
            free: 0,
            lent: 0,
        }
    }

    /// Frames that are lent, of what was looked at.
    pub(super) fn lent_frames(&self) -> u64 {
        self.lent
    }

    /// How much of what can be lent is, of what was looked at, in per cent.
    pub(super) fn lent_per_cent(&self) -> u8 {
        (self.lent * 100).checked_div(self.lent + self.free).unwrap_or(0) as u8
    }

    /// The first frame that kept the search out of a pageblock, and what it is.
    pub(super) fn bar(&self, ground: &impl Ground) -> (Option<Frame>, Bar) {
        let Some(part) = self.bar else { return (None, Bar::Nothing) };
        let mut left = part;
        while let Some(occupant) = ground.occupant(left) {
            if is_fixed(&occupant) {
                return (Some(first_frame(&occupant, part)), Bar::of(&occupant));
            }
            left = FrameRange::from_numbers(occupant.end(), part.end()).unwrap_or_default();
        }
        let is_isolated = ground.glance(part.first()).is_some_and(|glance| glance.is_isolated);
        (Some(part.first()), if is_isolated { Bar::Isolated } else { Bar::Tried })
    }

    /// Looks at more pageblocks, for about as long as it takes to look at `most` that are not split. `is_barred` says
    /// which not to touch.
    pub(super) fn advance(
        &mut self,
        ground: &impl Ground,
        is_barred: impl Fn(FrameRange) -> bool,
        most: u64,
    ) -> Progress {
        let mut left = most;
        while self.next < self.pool.end() {
            self.leave_behind(ground, &mut left);
            if left == 0 {
                return Progress::More;
            }
            let mut glances = [Glance::default(); AT_ONCE];
            let rest = (self.pool.end() - self.next).div_ceil(PAGEBLOCK_FRAMES);
            let most = (rest.min(left) as usize).min(AT_ONCE);
            let count = ground.glances(pageblock_at(self.next).first(), &mut glances[..most]).max(1);
            for glance in &glances[..count] {
                self.look(ground, &is_barred, *glance);
                left = left.saturating_sub(cost_of(glance));
                self.leave_behind(ground, &mut left);
                if self.left_behind < self.start {
                    return Progress::More;
                }
            }
        }
        let best = self.best.and_then(|best| {
            Some((FrameRange::from_numbers(best.start, best.start + self.frames)?, best.used))
        });
        Progress::Done(best)
    }

    /// Takes note of what the next pageblock is used for.
    fn look(&mut self, ground: &impl Ground, is_barred: &impl Fn(FrameRange) -> bool, glance: Glance) {
        let lent = u64::from(glance.lent());
        self.free += u64::from(glance.free);
        self.lent += lent;
        let number = self.next;
        self.next = (number | (PAGEBLOCK_FRAMES - 1)) + 1;
        if self.best.is_some_and(|best| self.is_best(best, lent)) {
            // No range begins here; where that is of no more interest, this harms nobody.
            (self.start, self.left_behind) = (self.next, self.next);
            return;
        }
        let part = pageblock_at(number);
        let is_barred = glance.is_isolated || is_barred(part);
        if self.bar.is_none() && (is_barred || glance.claimed + glance.fixed > 0) {
            self.bar = Some(part);
        }
        if self.frames < PAGEBLOCK_FRAMES {
            if !is_barred {
                self.look_inside(ground, part, glance);
            }
        } else if is_barred || glance.claimed + glance.fixed > 0 {
            self.restart(part.end());
        } else {
            self.slide(part, glance);
        }
    }

    /// Whether no range that begins or ends in the next pageblock, of which `lent` frames are lent, can be better.
    #[inline]
    fn is_best(&self, best: Candidate, lent: u64) -> bool {
        match self.frames {
            0..PAGEBLOCK_FRAMES => best.used == 0 && !best.is_untouched,
            PAGEBLOCK_FRAMES if self.align <= PAGEBLOCK_FRAMES => best.used <= lent,
            _ => best.used == 0,
        }
    }

    fn offer(&mut self, candidate: Candidate) {
        if self.best.is_none_or(|best| candidate < best) {
            self.best = Some(candidate);
        }
    }

    /// No window may touch what lies before `from`.
    fn restart(&mut self, from: u64) {
        self.start = self.start.max(from.next_multiple_of(self.align.max(PAGEBLOCK_FRAMES)));
        (self.used, self.left_behind) = (0, self.start);
    }

    /// The window grows by `part`; where it is full, it is offered and slides on. What it leaves behind then is looked at
    /// again by [`Self::leave_behind`], before anything else.
    fn slide(&mut self, part: FrameRange, glance: Glance) {
        if part.start() >= self.start {
            self.used += u64::from(glance.lent());
        }
        // The next window ends in another part: it starts at least a pageblock later.
        if self.start + self.frames <= part.end() {
            // At the same cost the lower address wins, which was there first.
            if self.best.is_none_or(|best| self.used < best.used) {
                self.best = Some(Candidate { used: self.used, is_untouched: true, start: self.start });
            }
            self.start += self.align.max(PAGEBLOCK_FRAMES);
            if self.start >= part.end() {
                (self.used, self.left_behind) = (0, self.start);
            }
        }
    }

    /// Takes what lies before the window out of its account, for as long as `left` lasts.
    fn leave_behind(&mut self, ground: &impl Ground, left: &mut u64) {
        while self.left_behind < self.start && *left > 0 {
            let lent = self.trail.lent(ground, self.left_behind, left);
            self.used = self.used.saturating_sub(lent);
            self.left_behind += PAGEBLOCK_FRAMES;
        }
    }

    /// Offers the best place inside a pageblock, if it can be better than the best so far.
    fn look_inside(&mut self, ground: &impl Ground, part: FrameRange, glance: Glance) {
        if u64::from(glance.free) == PAGEBLOCK_FRAMES {
            let start = part.start().next_multiple_of(self.align);
            if start + self.frames <= part.end() {
                self.offer(Candidate { used: 0, is_untouched: true, start });
            }
            return;
        }
        let is_untouched = glance.claimed == 0;
        let least = self.frames.saturating_sub(glance.free.into());
        let bound = Candidate { used: least, is_untouched, start: part.start() };
        if self.best.is_some_and(|best| best < bound) {
            return;
        }
        if let Some((start, used)) = place_inside(ground, part, self.frames, self.align) {
            self.offer(Candidate { used, is_untouched, start });
        }
    }
}

/// The pageblock of frame `number`.
pub(super) fn pageblock_at(number: u64) -> FrameRange {
    let start = number & !(PAGEBLOCK_FRAMES - 1);
    FrameRange::from_numbers(start, start + PAGEBLOCK_FRAMES).unwrap_or_default()
}

/// Whether a block can neither be moved away nor was free.
pub(super) fn is_fixed(occupant: &Occupant) -> bool {
    occupant.state != State::Used
        || occupant.is_doomed
        || !matches!(occupant.owner, Some(Owner::Guest(_)))
        || occupant.mobility == crate::phys::frame::Mobility::Pinned
}

/// The cheapest place for `frames` frames, aligned to `align`, inside the pageblock `part`: its start, and how many of
/// its frames are in use.
fn place_inside(ground: &impl Ground, part: FrameRange, frames: u64, align: u64) -> Option<(u64, u64)> {
    const END: usize = PAGEBLOCK_FRAMES as usize + 1;
    // How many frames before each are in use, and how many fixed.
    let (mut used, mut fixed) = ([0_u16; END], [0_u16; END]);
    let mut left = part;
    while let Some(occupant) = ground.occupant(left) {
        let (start, end) = (occupant.frame.number().max(part.start()), occupant.end().min(part.end()));
        for number in start..end {
            let index = (number - part.start()) as usize + 1;
            used[index] = 1;
            fixed[index] = u16::from(is_fixed(&occupant));
        }
        left = FrameRange::from_numbers(end, part.end())?;
    }
    for index in 1..END {
        used[index] += used[index - 1];
        fixed[index] += fixed[index - 1];
    }
    let first = part.start().next_multiple_of(align);
    let places = (first..part.end()).step_by(align as usize).take_while(|start| start + frames <= part.end());
    let costs = places.filter_map(|start| {
        let (from, to) = ((start - part.start()) as usize, (start + frames - part.start()) as usize);
        (fixed[from] == fixed[to]).then_some((start, u64::from(used[to] - used[from])))
    });
    costs.min_by_key(|(_, cost)| *cost)
}

/// The first block of `range` that is not free, if it is one that cannot be moved: the frame of it that lies in
/// `range`.
pub(super) fn first_frame(occupant: &Occupant, range: FrameRange) -> Frame {
    Frame::try_new(occupant.frame.number().max(range.start())).unwrap_or(occupant.frame)
}
