//! Proof, on the running system, that the books are right.
//!
//! A [`Check`] walks the frame table arena by arena, a bounded number of pageblocks at a time. For each pageblock it
//! holds the arena's lock, so that what it says of blocks, free maps and lists is exact whatever other CPUs do:
//!
//! - every frame lies in exactly one block, which lies in one RAM range and one zone, aligned to its size;
//! - free blocks are on the list that they belong on, linked both ways, merged as far as they go, and none of an
//!   isolated pageblock is on any;
//! - MOVABLE has movable pageblocks only, and in them only what can be moved or was claimed by the owner of a pool.
//!
//! What the walk counts is compared with the counters when an arena is through: free, isolated, retired, reserved, used
//! by each owner, and what each list has. That is exact where nothing changed in the arena meanwhile; where something
//! did, the arena is walked again, up to [`ATTEMPTS`] times, and said to be busy after that.
//!
//! Then each block of a guest's is looked up where its reverse map says that it appears.

use core::fmt;

use super::{Memory, Occupant};
use crate::addr::{Frame, Ipa, MAX_ORDER, PAGEBLOCK_FRAMES, Pa};
use crate::controller::ControllerId;
use crate::owner::{GuestId, OWNERS, Owner};
use crate::phys::frame::{Mapping, RamRange};
use crate::phys::pageblock::{LISTS, MigrateType};
use crate::phys::zone::Zone;
use crate::range::FrameRange;

mod pageblock;
#[cfg(test)]
mod tests;

/// How often an arena in which something changes is walked.
pub const ATTEMPTS: u8 = 3;

/// Something that is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// A frame or a pageblock breaks a rule.
    Frame {
        /// The frame.
        frame: Frame,
        /// The rule.
        rule: Rule,
    },
    /// A counter of an arena is wrong.
    Counter {
        /// The arena's zone.
        zone: Zone,
        /// The arena's controller.
        controller: ControllerId,
        /// Which.
        counter: Counted,
        /// What the walk found, in frames or blocks.
        found: u64,
        /// What the counter says.
        booked: u64,
    },
    /// Where a block appears, by the reverse map, stage 2 has something else.
    ReverseMap {
        /// The block's first frame.
        frame: Frame,
        /// Where it should appear.
        mapping: Mapping,
        /// What is there.
        found: Option<Pa>,
    },
    /// The zones together have not as many frames as there is RAM.
    Ram {
        /// Frames found.
        found: u64,
        /// Frames of RAM.
        present: u64,
    },
}

/// A rule that the books of a frame can break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// It lies in no block.
    NoBlock,
    /// Its block is not aligned, or reaches out of its RAM range or zone.
    Bounds,
    /// Its pageblock does not know its RAM range.
    RamRange,
    /// Its pageblock's count of free frames is not what the bits say.
    FreeMap,
    /// Its free block or pageblock is not linked where it should be.
    Links,
    /// Its free block should have merged with its buddy.
    NotMerged,
    /// An isolated pageblock is part of a larger free block.
    NotIsolated,
    /// In MOVABLE, and of a type or use that does not belong there.
    NotMovable,
    /// Its owner's number belongs to nobody.
    Owner,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// Free frames.
    Free,
    /// Free frames of isolated pageblocks.
    Isolated,
    /// Retired frames.
    Retired,
    /// Reserved frames.
    Reserved,
    /// Frames in use.
    Used(Owner),
    /// Isolated pageblocks.
    IsolatedPageblocks,
    /// Free blocks, or split pageblocks, on a list.
    List(MigrateType, u8),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { frame, rule } => {
                let text = match rule {
                    Rule::NoBlock => "lies in no block",
                    Rule::Bounds => "lies in a block that is misaligned or leaves its RAM range or zone",
                    Rule::RamRange => "lies in a pageblock that names another RAM range",
                    Rule::FreeMap => "lies in a pageblock whose count of free frames is wrong",
                    Rule::Links => "is free but not on its list",
                    Rule::NotMerged => "is free and so is its buddy, but they are two blocks",
                    Rule::NotIsolated => "lies in an isolated pageblock, but in a larger free block",
                    Rule::NotMovable => "lies in MOVABLE, but cannot be moved",
                    Rule::Owner => "belongs to nobody that there is",
                };
                write!(f, "{} {text}", frame.pa())
            }
            Self::Counter { zone, controller, counter, found, booked } => {
                write!(f, "{zone} behind {controller}: {found} {counter} found, {booked} in the books")
            }
            Self::ReverseMap { frame, mapping: Mapping { guest, ipa }, found } => {
                write!(f, "{} should appear at {ipa} of {guest}, where there is ", frame.pa())?;
                match found {
                    Some(pa) => pa.fmt(f),
                    None => f.write_str("nothing"),
                }
            }
            Self::Ram { found, present } => write!(f, "{present} frames of RAM, {found} in the zones"),
        }
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free frames"),
            Self::Isolated => f.write_str("free frames of isolated pageblocks"),
            Self::Retired => f.write_str("retired frames"),
            Self::Reserved => f.write_str("reserved frames"),
            Self::Used(owner) => write!(f, "frames of {owner}"),
            Self::IsolatedPageblocks => f.write_str("isolated pageblocks"),
            Self::List(migrate_type, order) => write!(f, "{migrate_type} blocks of order {order}"),
        }
    }
}

/// What stage 2 has at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// Nothing.
    Nowhere,
    /// Nobody can say now: it is being moved.
    Unknown,
    /// This.
    To(Pa),
}

/// Stage 2 of the guests, as far as the check needs it.
pub trait Translate {
    /// What `guest` has at `ipa`. Called without a lock of memory.
    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation;
}

impl<F: Fn(GuestId, Ipa) -> Translation> Translate for F {
    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation {
        self(guest, ipa)
    }
}

/// How much of a check is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Frames found, each once.
    pub frames: u64,
    /// Blocks that were looked up in stage 2.
    pub mapped_count: u64,
    /// Blocks of guests' that appear nowhere, or are being moved.
    pub unmapped_count: u64,
    /// Problems found.
    pub problem_count: u64,
    /// Arenas in which something changed during each walk: their counters are not compared.
    pub busy_count: u64,
}

/// What a walk over an arena has counted.
struct Tally {
    free: u64,
    isolated: u64,
    retired: u64,
    reserved: u64,
    isolated_pageblocks: u64,
    used: [u32; OWNERS],
    lists: [[u32; MAX_ORDER as usize + 1]; LISTS],
}

impl Tally {
    const NONE: Self = Self {
        free: 0,
        isolated: 0,
        retired: 0,
        reserved: 0,
        isolated_pageblocks: 0,
        used: [0; OWNERS],
        lists: [[0; MAX_ORDER as usize + 1]; LISTS],
    };

    /// All frames.
    fn frames(&self) -> u64 {
        let used: u64 = self.used.iter().map(|&frames| u64::from(frames)).sum();
        self.free + self.isolated + self.retired + self.reserved + used
    }
}

/// A walk over all frames: see the module.
pub struct Check {
    /// Zone and controller that are walked, as [`Zone::arena`] counts.
    arena: usize,
    /// The next frame.
    next: u64,
    attempt: u8,
    /// The arena's number of changes when the walk over it began.
    changes: u32,
    tally: Tally,
    summary: Summary,
}

impl Default for Check {
    fn default() -> Self {
        Self::new()
    }
}

impl Check {
    /// A check before its first step.
    pub const fn new() -> Self {
        let summary =
            Summary { frames: 0, mapped_count: 0, unmapped_count: 0, problem_count: 0, busy_count: 0 };
        Self { arena: 0, next: 0, attempt: 0, changes: 0, tally: Tally::NONE, summary }
    }

    /// What has been found up to here.
    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// Looks at no more than `pageblocks` pageblocks of `memory`. Gives what is wrong to `report`, without holding a
    /// lock. Yields whether all is done.
    pub fn step(
        &mut self,
        memory: &Memory<'_>,
        stage2: &dyn Translate,
        pageblocks: u32,
        report: &mut dyn FnMut(Problem),
    ) -> bool {
        let Some(layout) = memory.layout.get() else { return true };
        for _ in 0..pageblocks {
            if self.arena >= memory.arena_count() {
                return true;
            }
            let (zone, controller) = Zone::of_arena(self.arena);
            if self.next == 0 {
                self.changes = arena_changes(memory, self.arena);
                self.tally = Tally::NONE;
            }
            let regions = layout.table.regions();
            let region = regions
                .iter()
                .find(|region| region.controller == controller && region.range.end() > self.next);
            let Some(region) = region else {
                if self.finish_arena(memory, zone, controller, report) {
                    return true;
                }
                continue;
            };
            self.look_at(memory, stage2, region, zone, report);
        }
        false
    }
}

impl Check {
    /// Looks at the next pageblock of `region`, if it is of `zone`.
    fn look_at(
        &mut self,
        memory: &Memory<'_>,
        stage2: &dyn Translate,
        region: &RamRange,
        zone: Zone,
        report: &mut dyn FnMut(Problem),
    ) {
        let start = self.next.max(region.range.start());
        self.next = region.range.end().min((start | (PAGEBLOCK_FRAMES - 1)) + 1);
        let Some(layout) = memory.layout.get() else { return };
        let Some(part) = FrameRange::from_numbers(start, self.next) else { return };
        if layout.table.words.word(region.slot(start)).zone() != zone {
            return;
        }
        let problem = {
            let locked = memory.arena(self.arena).lock();
            pageblock::look(&layout.table, &locked.lists, region, part, &mut self.tally)
        };
        if self.attempt > 0 {
            return;
        }
        if let Some((number, rule)) = problem {
            self.found(Problem::Frame { frame: Frame::try_new(number).unwrap_or_default(), rule }, report);
        }
        for occupant in memory.occupants(part).filter(|occupant| occupant.frame.number() >= start) {
            self.look_up(memory, stage2, occupant, report);
        }
    }

    /// Looks a guest's block up where it should appear.
    fn look_up(
        &mut self,
        memory: &Memory<'_>,
        stage2: &dyn Translate,
        occupant: Occupant,
        report: &mut dyn FnMut(Problem),
    ) {
        let Some(Owner::Guest(_)) = occupant.owner else { return };
        let Some(mapping) = occupant.mapping else {
            self.summary.unmapped_count += 1;
            return;
        };
        let found = match stage2.translate(mapping.guest, mapping.ipa) {
            Translation::To(pa) if pa == occupant.frame.pa() => {
                self.summary.mapped_count += 1;
                return;
            }
            Translation::Unknown => {
                self.summary.unmapped_count += 1;
                return;
            }
            // Of a unit that has just moved, the source may not have been released yet: two blocks that say the same.
            Translation::To(pa) if memory.mapping(Frame::containing(pa)) == Some(mapping) => {
                self.summary.unmapped_count += 1;
                return;
            }
            Translation::To(pa) => Some(pa),
            Translation::Nowhere => None,
        };
        // It may have been moved, or freed, between the two looks.
        let frame = occupant.frame;
        let own = FrameRange::try_new(frame, 1).unwrap_or_default();
        if memory.occupants(own).next() == Some(occupant) {
            self.found(Problem::ReverseMap { frame, mapping, found }, report);
        }
    }

    /// Compares what the walk over the arena has counted with its counters, and goes on to the next arena. Yields whether
    /// that was the last.
    fn finish_arena(
        &mut self,
        memory: &Memory<'_>,
        zone: Zone,
        controller: ControllerId,
        report: &mut dyn FnMut(Problem),
    ) -> bool {
        self.next = 0;
        if arena_changes(memory, self.arena) != self.changes {
            self.attempt += 1;
            if self.attempt < ATTEMPTS {
                return false;
            }
            self.summary.busy_count += 1;
        } else {
            let counters = Owner::all().map(Counted::Used).chain(OTHERS).chain(all_lists());
            for counter in counters {
                let (found, booked) = self.compare(memory, counter);
                if found == booked {
                    continue;
                }
                // The counters are read one by one: something may have come between.
                if arena_changes(memory, self.arena) != self.changes {
                    self.summary.busy_count += 1;
                    break;
                }
                self.found(Problem::Counter { zone, controller, counter, found, booked }, report);
            }
        }
        self.summary.frames += self.tally.frames();
        self.attempt = 0;
        self.arena += 1;
        if self.arena < memory.arena_count() {
            return false;
        }
        let present = memory
            .layout
            .get()
            .map_or(0, |layout| layout.table.regions().iter().map(|region| region.range.frames()).sum());
        if self.summary.frames != present && self.summary.busy_count == 0 {
            self.found(Problem::Ram { found: self.summary.frames, present }, report);
        }
        true
    }

    /// What the walk found, and what the counter says.
    fn compare(&self, memory: &Memory<'_>, counter: Counted) -> (u64, u64) {
        let arena = memory.arena(self.arena);
        let tally = &self.tally;
        match counter {
            Counted::Free => (tally.free, arena.free()),
            Counted::Isolated => (tally.isolated, arena.isolated()),
            Counted::Retired => (tally.retired, arena.retired()),
            Counted::Reserved => {
                let present = memory.layout.get().map_or(0, |layout| layout.extents[self.arena].present);
                (tally.reserved, present.wrapping_sub(arena.managed()))
            }
            Counted::Used(owner) => (tally.used[owner.index()].into(), arena.used(owner)),
            Counted::IsolatedPageblocks => (tally.isolated_pageblocks, arena.lock().lists.isolated().into()),
            Counted::List(migrate_type, order) => {
                let list = migrate_type as usize;
                let booked = arena.lock().lists.count(list, order);
                (tally.lists[list][order as usize].into(), booked.into())
            }
        }
    }

    fn found(&mut self, problem: Problem, report: &mut dyn FnMut(Problem)) {
        self.summary.problem_count += 1;
        report(problem);
    }
}

const OTHERS: [Counted; 5] =
    [Counted::Free, Counted::Isolated, Counted::Retired, Counted::Reserved, Counted::IsolatedPageblocks];

fn all_lists() -> impl Iterator<Item = Counted> {
    let orders = |migrate_type| (0..=MAX_ORDER).map(move |order| Counted::List(migrate_type, order));
    MigrateType::ALL.into_iter().flat_map(orders)
}

/// A number that differs after every change.
fn arena_changes(memory: &Memory<'_>, arena: usize) -> u32 {
    memory.arena(arena).lock().lists.changes()
}
