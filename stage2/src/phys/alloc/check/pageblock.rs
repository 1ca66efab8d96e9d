//! The rules within one pageblock.

use super::{Rule, Tally};
use crate::addr::{MAX_ORDER, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::owner::Owner;
use crate::phys::buddy::FreeLists;
use crate::phys::frame::{FrameTable, MemoryKind, Meta, RamRange, State};
use crate::phys::pageblock::{MigrateType, Pageblock, Shape};
use crate::phys::zone::Zone;
use crate::range::FrameRange;

/// The first broken rule and the number of the frame.
type Broken = Option<(u64, Rule)>;

/// Checks `part`, the part of a pageblock in `ram_range`, and counts the blocks that begin there. Called under the arena's
/// lock. Returns the first broken rule.
pub(super) fn look(
    table: &FrameTable<'_>,
    lists: &FreeLists,
    ram_range: &RamRange,
    part: FrameRange,
    tally: &mut Tally,
) -> Broken {
    let number = part.start();
    let word = table.words.word(ram_range.slot(number));
    tally.isolated_pageblocks += u64::from(word.is_isolated());
    let by_shape = match word.shape() {
        Shape::Split => look_at_split(table, lists, ram_range, part, tally),
        Shape::Part => {
            let head = table.head(ram_range, number).filter(|head| head.end() >= part.end());
            head.is_none().then_some((number, Rule::NoBlock))
        }
        shape => look_at_head(table, lists, ram_range, number, shape, tally),
    };
    let is_of_ram_range = word.ram_range() == usize::from(ram_range.index);
    let by_word = (!is_of_ram_range).then_some(Rule::RamRange).or_else(|| rule_of_zone(word));
    by_shape.or(by_word.map(|rule| (number, rule)))
}

fn rule_of_zone(word: Pageblock) -> Option<Rule> {
    let is_right = match word.zone() {
        Zone::Movable => word.migrate_type() == MigrateType::Movable,
        Zone::Normal => word.block().is_none(),
    };
    (!is_right).then_some(Rule::NotMovable)
}

/// Returns the rule that a block in use breaks by its owner or zone.
fn rule_of_use(word: Pageblock, meta: Meta) -> Option<Rule> {
    match meta.owner() {
        None => Some(Rule::Owner),
        Some(Owner::Pool(_)) => None,
        Some(_) if word.zone() == Zone::Movable && meta.kind() == MemoryKind::Unmovable => {
            Some(Rule::NotMovable)
        }
        Some(_) => None,
    }
}

/// Checks the head of a block of at least a pageblock.
fn look_at_head(
    table: &FrameTable<'_>,
    lists: &FreeLists,
    ram_range: &RamRange,
    number: u64,
    shape: Shape,
    tally: &mut Tally,
) -> Broken {
    let slot = ram_range.slot(number);
    let word = table.words.word(slot);
    let (order, frames) = (word.order(), 1u64 << word.order());
    let meta = table.words.entry(slot).meta();
    match shape {
        Shape::Free if word.is_isolated() => tally.isolated += frames,
        Shape::Free => {
            tally.free += frames;
            tally.lists[word.list()][order as usize] += 1;
        }
        Shape::Used => tally.used[meta.owner_index() % tally.used.len()] += frames as u32,
        _ => tally.reserved += frames,
    }
    let is_part = |number: u64| {
        let other = table.words.word(ram_range.slot(number));
        let is_alike = if shape == Shape::Free { other.is_like(word) } else { other.zone() == word.zone() };
        other.shape() == Shape::Part && is_alike
    };
    let is_in_bounds = number.is_multiple_of(frames)
        && ram_range.has(number + frames - 1)
        && (number + PAGEBLOCK_FRAMES..number + frames).step_by(PAGEBLOCK_FRAMES as usize).all(is_part);
    let rule = if !is_in_bounds {
        Some(Rule::Bounds)
    } else if shape == Shape::Used {
        let is_right = meta.state() == Some(State::Used) && meta.order() == order;
        if is_right { rule_of_use(word, meta) } else { Some(Rule::NoBlock) }
    } else if shape != Shape::Free {
        None
    } else if word.is_isolated() {
        (order > PAGEBLOCK_ORDER).then_some(Rule::NotIsolated)
    } else if !lists.is_linked(&table.words, slot.pageblock(), word.list(), order) {
        Some(Rule::Links)
    } else {
        let buddy = number ^ frames;
        let merges = order < MAX_ORDER
            && ram_range.has(buddy)
            && word.is_buddy(table.words.word(ram_range.slot(buddy)));
        merges.then_some(Rule::NotMerged)
    };
    rule.map(|rule| (number, rule))
}

/// Checks a split pageblock.
fn look_at_split(
    table: &FrameTable<'_>,
    lists: &FreeLists,
    ram_range: &RamRange,
    part: FrameRange,
    tally: &mut Tally,
) -> Broken {
    let first = ram_range.slot(part.start());
    let (word, map) = (table.words.word(first), table.words.free_map(first.pageblock()));
    let mut broken = None;
    let mut note = |number, rule| broken = broken.or(Some((number, rule)));
    if !map.is_consistent() {
        note(part.start(), Rule::FreeMap);
    }
    let info = map.info();
    if info.count() > 0 && !word.is_isolated() {
        tally.lists[word.list()][info.class() as usize] += 1;
        if !lists.is_linked(&table.words, first.pageblock(), word.list(), info.class()) {
            note(part.start(), Rule::Links);
        }
    }
    let mut number = part.start();
    while number < part.end() {
        let Some(head) = table.head(ram_range, number) else {
            note(number, Rule::NoBlock);
            number += 1;
            continue;
        };
        let frames = head.end() - head.number;
        let offset = ram_range.slot(number).offset();
        let is_whole = head.number == number && head.end() <= part.end();
        let overlaps = head.state != State::Free
            && (offset..offset + frames as u32).any(|at| map.is_free(at % PAGEBLOCK_FRAMES as u32));
        if !is_whole || overlaps {
            note(number, Rule::Bounds);
        }
        let meta = table.words.entry(ram_range.slot(number)).meta();
        match head.state {
            State::Free if word.is_isolated() => tally.isolated += frames,
            State::Free => tally.free += frames,
            State::Reserved => tally.reserved += frames,
            State::Retired => tally.retired += frames,
            State::Used => {
                tally.used[meta.owner_index() % tally.used.len()] += frames as u32;
                if let Some(rule) = rule_of_use(word, meta) {
                    note(number, rule);
                }
            }
        }
        number = head.end().max(number + 1);
    }
    broken
}
