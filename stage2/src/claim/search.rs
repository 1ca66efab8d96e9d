//! Search for the range of a pool that is cheapest to empty.
//!
//! A window of the requested size slides over the pool once, a bounded number of pageblocks per turn. Its cost is the
//! number of its frames that are in use. The window with the lowest cost wins; the lowest address among equals. Windows
//! with claimed, fixed or isolated frames are skipped.
//!
//! A range smaller than a pageblock lies inside one, at any frame. Among equal costs, a pageblock with claimed frames is
//! preferred, so that small claims do not fragment the pool.
//!
//! Usage may change during the search. The result is a good range; later steps verify it.

use super::cause::Bar;
use super::host::Ground;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::owner::Owner;
use crate::phys::alloc::{Glance, Occupant};
use crate::phys::frame::State;
use crate::range::FrameRange;

/// Number of pageblocks whose usage is read under one lock.
const AT_ONCE: usize = 16;
/// Time for a split pageblock, in units of the time for another.
const SPLIT: u64 = 32;

/// Result of a part of a search.
pub(super) enum Progress {
    /// The search is not complete.
    More,
    /// The best range and its number of frames in use, or `None`.
    Done(Option<(FrameRange, u64)>),
}

/// Range that could be claimed. Lower is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: u64,
    is_untouched: bool,
    start: u64,
}

/// Usage of the pageblocks that the window is about to leave, read in groups.
struct Trail {
    first: u64,
    count: usize,
    lent: [u16; AT_ONCE],
}

impl Trail {
    const EMPTY: Self = Self { first: 0, count: 0, lent: [0; AT_ONCE] };

    /// Returns the number of lent frames of the pageblock at `number`. Subtracts the cost of reading from `left`.
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

/// Returns the time for reading the usage of a pageblock, in units of an unsplit one.
fn cost_of(glance: &Glance) -> u64 {
    if glance.is_split { SPLIT } else { 1 }
}

/// State of a search.
pub(super) struct Search {
    pool: FrameRange,
    frames: u64,
    align: u64,
    /// Start of the next pageblock to examine.
    next: u64,
    /// Start of the window, and the number of frames in use from `left_behind` to `next`. `left_behind` lies before the
    /// start until [`Self::leave_behind`] has caught up.
    start: u64,
    used: u64,
    left_behind: u64,
    trail: Trail,
    best: Option<Candidate>,
    /// First pageblock with frames that no range may contain.
    bar: Option<FrameRange>,
    /// Free and lent frames of the pageblocks examined.
    free: u64,
    lent: u64,
}

impl Search {
    /// Begins a search in `pool` for `frames` frames that start at a multiple of `align`.
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

    /// Returns the number of lent frames among those examined.
    pub(super) fn lent_frames(&self) -> u64 {
        self.lent
    }

    /// Returns the percentage of lendable frames that are lent, among those examined.
    pub(super) fn lent_per_cent(&self) -> u8 {
        (self.lent * 100).checked_div(self.lent + self.free).unwrap_or(0) as u8
    }

    /// Returns the first frame that bars ranges, and the reason.
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

    /// Examines more pageblocks, for about the time that `most` unsplit ones take. No range may touch a pageblock for
    /// which `is_barred` holds.
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

    /// Examines the next pageblock.
    fn look(&mut self, ground: &impl Ground, is_barred: &impl Fn(FrameRange) -> bool, glance: Glance) {
        let lent = u64::from(glance.lent());
        self.free += u64::from(glance.free);
        self.lent += lent;
        let number = self.next;
        self.next = (number | (PAGEBLOCK_FRAMES - 1)) + 1;
        if self.best.is_some_and(|best| self.is_best(best, lent)) {
            // No better range starts here. If the search is decided, the state of the window does not matter.
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

    /// Tests whether no range that starts or ends in the next pageblock, with `lent` lent frames, can be better than `best`.
    #[inline]
    fn is_best(&self, best: Candidate, lent: u64) -> bool {
        match self.frames {
            0..PAGEBLOCK_FRAMES => best.used == 0 && !best.is_untouched,
            PAGEBLOCK_FRAMES if self.align <= PAGEBLOCK_FRAMES => best.used <= lent,
            _ => best.used == 0,
        }
    }

    /// Remembers `candidate` if it is better than the best so far.
    fn offer(&mut self, candidate: Candidate) {
        if self.best.is_none_or(|best| candidate < best) {
            self.best = Some(candidate);
        }
    }

    /// Moves the window to the first start at or after `from`.
    fn restart(&mut self, from: u64) {
        self.start = self.start.max(from.next_multiple_of(self.align.max(PAGEBLOCK_FRAMES)));
        (self.used, self.left_behind) = (0, self.start);
    }

    /// Extends the window by `part`. If the window is complete, offers it and advances its start.
    /// [`Self::leave_behind`] then subtracts the pageblocks before the new start.
    fn slide(&mut self, part: FrameRange, glance: Glance) {
        if part.start() >= self.start {
            self.used += u64::from(glance.lent());
        }
        // At most one window ends in `part`, as the next starts at least a pageblock later.
        if self.start + self.frames <= part.end() {
            // Among equal costs the lower address wins, which came first.
            if self.best.is_none_or(|best| self.used < best.used) {
                self.best = Some(Candidate { used: self.used, is_untouched: true, start: self.start });
            }
            self.start += self.align.max(PAGEBLOCK_FRAMES);
            if self.start >= part.end() {
                (self.used, self.left_behind) = (0, self.start);
            }
        }
    }

    /// Subtracts pageblocks before the window from its cost, while `left` lasts.
    fn leave_behind(&mut self, ground: &impl Ground, left: &mut u64) {
        while self.left_behind < self.start && *left > 0 {
            let lent = self.trail.lent(ground, self.left_behind, left);
            self.used = self.used.saturating_sub(lent);
            self.left_behind += PAGEBLOCK_FRAMES;
        }
    }

    /// Offers the best range inside a pageblock, if it can be better than the best so far.
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

/// Returns the pageblock of frame `number`.
pub(super) fn pageblock_at(number: u64) -> FrameRange {
    let start = number & !(PAGEBLOCK_FRAMES - 1);
    FrameRange::from_numbers(start, start + PAGEBLOCK_FRAMES).unwrap_or_default()
}

/// Tests whether a block that is not free cannot be moved either.
pub(super) fn is_fixed(occupant: &Occupant) -> bool {
    occupant.state != State::Used
        || occupant.is_doomed
        || !matches!(occupant.owner, Some(Owner::Guest(_)))
        || occupant.kind == crate::phys::frame::MemoryKind::Unmovable
}

/// Finds the cheapest range of `frames` frames, aligned to `align`, in the pageblock `part`. Returns its start and its
/// number of frames in use.
fn place_inside(ground: &impl Ground, part: FrameRange, frames: u64, align: u64) -> Option<(u64, u64)> {
    const END: usize = PAGEBLOCK_FRAMES as usize + 1;
    // Numbers of used and of fixed frames before each frame.
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

/// Returns the first frame of `occupant` that lies in `range`.
pub(super) fn first_frame(occupant: &Occupant, range: FrameRange) -> Frame {
    Frame::try_new(occupant.frame.number().max(range.start())).unwrap_or(occupant.frame)
}
