//! A check of the allocator's records on the running system.
//!
//! A [`Check`] walks the frame table arena by arena, a bounded number of pageblocks at a time. For each pageblock it
//! holds the arena's lock, so its findings about blocks, free maps and lists are exact whatever other CPUs do:
//!
//! - every frame lies in exactly one block, which lies in one RAM range and one zone, aligned to its size;
//! - every free block is on the right list, linked both ways and merged with its buddies; no block of an isolated
//!   pageblock is on a list;
//! - MOVABLE has movable pageblocks only, and in them only movable memory and what the owner of a pool claimed.
//!
//! At the end of an arena the check compares its counts with the counters: free, isolated, retired and reserved frames,
//! frames of each owner, and the blocks of each list. That is exact if nothing changed in the arena meanwhile. If
//! something did, the check walks the arena again, up to [`ATTEMPTS`] times, and then reports it as busy.
//!
//! The check also looks up each block of a guest in stage 2, where its reverse map says that it is mapped.

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

/// The number of walks over an arena in which something changes.
pub const ATTEMPTS: u8 = 3;

/// A broken rule or a wrong counter.
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
        /// The counter.
        counter: Counted,
        /// The count of the walk, in frames or blocks.
        found: u64,
        /// The value of the counter.
        booked: u64,
    },
    /// Stage 2 does not map a block as its reverse map says.
    ReverseMap {
        /// The block's first frame.
        frame: Frame,
        /// The guest and IPA that should map it.
        mapping: Mapping,
        /// The address that stage 2 maps there.
        found: Option<Pa>,
    },
    /// The zones do not add up to the frames of RAM.
    Ram {
        /// Frames found.
        found: u64,
        /// Frames of RAM.
        present: u64,
    },
}

/// A rule about a frame's records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// The frame is in no block.
    NoBlock,
    /// The block is misaligned, or leaves its RAM range or zone.
    Bounds,
    /// The pageblock names another RAM range.
    RamRange,
    /// The pageblock's count of free frames differs from its bit map.
    FreeMap,
    /// The free block or pageblock is not linked on its list.
    Links,
    /// The free block should have been merged with its buddy.
    NotMerged,
    /// An isolated pageblock is part of a larger free block.
    NotIsolated,
    /// The frame is in MOVABLE, but its type or use does not belong there.
    NotMovable,
    /// The owner does not exist.
    Owner,
}

/// A counter of an arena.
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
                    Rule::NoBlock => "is in no block",
                    Rule::Bounds => "is in a block that is misaligned or leaves its RAM range or zone",
                    Rule::RamRange => "is in a pageblock that names another RAM range",
                    Rule::FreeMap => "is in a pageblock whose count of free frames is wrong",
                    Rule::Links => "is free but not on its list",
                    Rule::NotMerged => "is free and so is its buddy, but they are not merged",
                    Rule::NotIsolated => "is in an isolated pageblock, but in a larger free block",
                    Rule::NotMovable => "is in MOVABLE, but cannot be moved",
                    Rule::Owner => "has an owner that does not exist",
                };
                write!(f, "{} {text}", frame.pa())
            }
            Self::Counter { zone, controller, counter, found, booked } => {
                write!(f, "{zone} behind {controller}: {found} {counter} found, but the counter is {booked}")
            }
            Self::ReverseMap { frame, mapping: Mapping { guest, ipa }, found } => {
                write!(f, "{} should be mapped at {ipa} of {guest}, but stage 2 maps ", frame.pa())?;
                match found {
                    Some(pa) => pa.fmt(f),
                    None => f.write_str("nothing"),
                }
            }
            Self::Ram { found, present } => write!(f, "{present} frames of RAM, but {found} in the zones"),
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

/// The translation of an IPA by stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// Not mapped.
    Nowhere,
    /// Not known now, because the unit is being moved.
    Unknown,
    /// Mapped to this address.
    To(Pa),
}

/// Stage 2 of the guests, as far as the check needs it.
pub trait Translate {
    /// Translates `ipa` of `guest`. Called without a lock of memory.
    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation;
}

impl<F: Fn(GuestId, Ipa) -> Translation> Translate for F {
    fn translate(&self, guest: GuestId, ipa: Ipa) -> Translation {
        self(guest, ipa)
    }
}

/// The progress and the findings of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Frames found, each once.
    pub frames: u64,
    /// Blocks found in stage 2.
    pub mapped_count: u64,
    /// Blocks of guests that are mapped nowhere, or are being moved.
    pub unmapped_count: u64,
    /// Problems found.
    pub problem_count: u64,
    /// Arenas in which something changed during each walk, so that their counters were not compared.
    pub busy_count: u64,
}

/// The counts of a walk over an arena.
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

    /// Returns the number of all frames.
    fn frames(&self) -> u64 {
        let used: u64 = self.used.iter().map(|&frames| u64::from(frames)).sum();
        self.free + self.isolated + self.retired + self.reserved + used
    }
}

/// A walk over all frames: see the module's documentation.
pub struct Check {
    /// The number of the arena that is walked: see [`Zone::arena`].
    arena: usize,
    /// The next frame.
    next: u64,
    attempt: u8,
    /// The arena's change count at the start of the walk.
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
    /// Creates a check before its first step.
    pub const fn new() -> Self {
        let summary =
            Summary { frames: 0, mapped_count: 0, unmapped_count: 0, problem_count: 0, busy_count: 0 };
        Self { arena: 0, next: 0, attempt: 0, changes: 0, tally: Tally::NONE, summary }
    }

    /// Returns the findings so far.
    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// Checks at most `pageblocks` pageblocks of `memory`. Passes problems to `report`, without holding a lock. Returns
    /// whether the check is complete.
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
            let ram_ranges = layout.table.ram_ranges();
            let ram_range = ram_ranges
                .iter()
                .find(|ram_range| ram_range.controller == controller && ram_range.range.end() > self.next);
            let Some(ram_range) = ram_range else {
                if self.finish_arena(memory, zone, controller, report) {
                    return true;
                }
                continue;
            };
            self.look_at(memory, stage2, ram_range, zone, report);
        }
        false
    }
}

impl Check {
    /// Checks the next pageblock of `ram_range`, if it is in `zone`.
    fn look_at(
        &mut self,
        memory: &Memory<'_>,
        stage2: &dyn Translate,
        ram_range: &RamRange,
        zone: Zone,
        report: &mut dyn FnMut(Problem),
    ) {
        let start = self.next.max(ram_range.range.start());
        self.next = ram_range.range.end().min((start | (PAGEBLOCK_FRAMES - 1)) + 1);
        let Some(layout) = memory.layout.get() else { return };
        let Some(part) = FrameRange::from_numbers(start, self.next) else { return };
        if layout.table.words.word(ram_range.slot(start)).zone() != zone {
            return;
        }
        let problem = {
            let locked = memory.arena(self.arena).lock();
            pageblock::look(&layout.table, &locked.lists, ram_range, part, &mut self.tally)
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

    /// Looks up a guest's block in stage 2.
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
            // The source of a unit that has just moved may not be released yet: two blocks have the same mapping.
            Translation::To(pa) if memory.mapping(Frame::containing(pa)) == Some(mapping) => {
                self.summary.unmapped_count += 1;
                return;
            }
            Translation::To(pa) => Some(pa),
            Translation::Nowhere => None,
        };
        // The block may have been moved or freed between the two looks.
        let frame = occupant.frame;
        let own = FrameRange::try_new(frame, 1).unwrap_or_default();
        if memory.occupants(own).next() == Some(occupant) {
            self.found(Problem::ReverseMap { frame, mapping, found }, report);
        }
    }

    /// Compares the counts of the walk with the arena's counters and moves on to the next arena. Returns whether that
    /// was the last.
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
                // The counters are read one by one, so something may have changed between them.
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
        let present = memory.layout.get().map_or(0, |layout| {
            layout.table.ram_ranges().iter().map(|ram_range| ram_range.range.frames()).sum()
        });
        if self.summary.frames != present && self.summary.busy_count == 0 {
            self.found(Problem::Ram { found: self.summary.frames, present }, report);
        }
        true
    }

    /// Returns the count of the walk and the value of the counter.
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

/// Returns the arena's change count.
fn arena_changes(memory: &Memory<'_>, arena: usize) -> u32 {
    memory.arena(arena).lock().lists.changes()
}
