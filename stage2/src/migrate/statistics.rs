//! Counters since boot. Any CPU may read them at any time.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU16, AtomicU64};

use crate::controller::ControllerId;
use crate::histogram::{Distribution, Histogram};
use crate::owner::{GuestId, MAX_GUESTS};
use crate::table::Level;

/// Number of units moved, by size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PairTotals {
    /// Units of 2 MiB.
    pub blocks: u64,
    /// Units of 4 KiB.
    pub pages: u64,
}

impl PairTotals {
    /// Returns the bytes moved.
    pub const fn bytes(&self) -> u64 {
        self.blocks * Level::L2.size() + self.pages * Level::L3.size()
    }
}

struct Moved {
    blocks: AtomicU64,
    pages: AtomicU64,
}

impl Moved {
    const fn new() -> Self {
        Self { blocks: AtomicU64::new(0), pages: AtomicU64::new(0) }
    }

    fn add(&self, level: Level, count: u64) {
        let counter = if level == Level::L3 { &self.pages } else { &self.blocks };
        counter.fetch_add(count, Relaxed);
    }

    fn totals(&self) -> PairTotals {
        PairTotals { blocks: self.blocks.load(Relaxed), pages: self.pages.load(Relaxed) }
    }
}

/// Counters of one guest since boot.
pub struct Counters {
    moved: Moved,
    demotions: AtomicU64,
    promotions: AtomicU64,
    coalesced: AtomicU64,
    gathered: AtomicU64,
    splits: AtomicU64,
    retries: AtomicU64,
    invalidations: AtomicU64,
    copy_ticks: AtomicU64,
    scrub_ticks: AtomicU64,
    wait_ticks: AtomicU64,
    faults: AtomicU64,
    helps: AtomicU64,
    stalls: Histogram,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Units moved.
    pub moved: PairTotals,
    /// Leaves demoted to move by parts.
    pub demotions: u64,
    /// Leaves promoted.
    pub promotions: u64,
    /// Areas coalesced into units of 2 MiB in idle time.
    pub coalesced: u64,
    /// Coalesced areas that were moved into one block first.
    pub gathered: u64,
    /// 2 MiB units split because the guest wrote to them.
    pub splits: u64,
    /// Units that were given up and tried again.
    pub retries: u64,
    /// Completed invalidations, one for a batch.
    pub invalidations: u64,
    /// Ticks that the worker and its helpers spent on copies.
    pub copy_ticks: u64,
    /// Ticks that the worker spent on scrubbing sources.
    pub scrub_ticks: u64,
    /// Ticks that the worker waited for helpers.
    pub wait_ticks: u64,
    /// Faults of the guest on units in flight.
    pub faults: u64,
    /// Copies by helpers.
    pub helps: u64,
    /// Times that such faults stalled the guest, in ticks.
    pub stalls: Distribution,
}

impl Counters {
    /// Makes counters of zero.
    pub const fn new() -> Self {
        Self {
            moved: Moved::new(),
            demotions: AtomicU64::new(0),
            promotions: AtomicU64::new(0),
            coalesced: AtomicU64::new(0),
            gathered: AtomicU64::new(0),
            splits: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            invalidations: AtomicU64::new(0),
            copy_ticks: AtomicU64::new(0),
            scrub_ticks: AtomicU64::new(0),
            wait_ticks: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            helps: AtomicU64::new(0),
            stalls: Histogram::new(),
        }
    }

    /// Reads all counters.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Totals {
            moved: self.moved.totals(),
            demotions: read(&self.demotions),
            promotions: read(&self.promotions),
            coalesced: read(&self.coalesced),
            gathered: read(&self.gathered),
            splits: read(&self.splits),
            retries: read(&self.retries),
            invalidations: read(&self.invalidations),
            copy_ticks: read(&self.copy_ticks),
            scrub_ticks: read(&self.scrub_ticks),
            wait_ticks: read(&self.wait_ticks),
            faults: read(&self.faults),
            helps: read(&self.helps),
            stalls: self.stalls.distribution(),
        }
    }

    /// Returns the histogram of stalls.
    pub const fn stalls(&self) -> &Histogram {
        &self.stalls
    }

    pub(super) fn count_moved(&self, level: Level, count: u64) {
        self.moved.add(level, count);
    }

    pub(super) fn count_demotion(&self) {
        self.demotions.fetch_add(1, Relaxed);
    }

    pub(super) fn count_promotion(&self) {
        self.promotions.fetch_add(1, Relaxed);
    }

    pub(super) fn count_coalesced(&self, is_gathered: bool) {
        self.coalesced.fetch_add(1, Relaxed);
        self.gathered.fetch_add(u64::from(is_gathered), Relaxed);
    }

    pub(super) fn count_split(&self) {
        self.splits.fetch_add(1, Relaxed);
    }

    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn count_invalidation(&self) {
        self.invalidations.fetch_add(1, Relaxed);
    }

    pub(super) fn count_copy(&self, ticks: u64) {
        self.copy_ticks.fetch_add(ticks, Relaxed);
    }

    pub(super) fn count_scrub(&self, ticks: u64) {
        self.scrub_ticks.fetch_add(ticks, Relaxed);
    }

    pub(super) fn count_wait(&self, ticks: u64) {
        self.wait_ticks.fetch_add(ticks, Relaxed);
    }

    pub(super) fn count_help(&self) {
        self.helps.fetch_add(1, Relaxed);
    }

    pub(super) fn count_stall(&self, ticks: u64) {
        self.faults.fetch_add(1, Relaxed);
        self.stalls.record(ticks);
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

/// Number of pairs of controllers that are counted separately: all pairs of 16 controllers.
const PAIRS: usize = 256;
/// Number of slots that are probed for a pair. Longer runs of used slots are rare.
const PROBES: usize = 32;

/// Units moved, by pair of controllers: a hash table without deletion. 64 controllers have 4032 pairs, but few are ever
/// used. Pairs without a slot share one counter.
struct Pairs {
    /// The pair of each slot as [`Pairs::key`], 0 for none.
    keys: [AtomicU16; PAIRS],
    moved: [Moved; PAIRS],
    others: Moved,
}

impl Pairs {
    const fn new() -> Self {
        Self {
            keys: [const { AtomicU16::new(0) }; PAIRS],
            moved: [const { Moved::new() }; PAIRS],
            others: Moved::new(),
        }
    }

    /// Returns the pair as a number other than 0.
    const fn key(from: ControllerId, to: ControllerId) -> u16 {
        (1 + from.index() as u16) << 6 | to.index() as u16
    }

    /// Returns the slots for a pair, in the order of probing. The first slots of 16 controllers' pairs never collide.
    fn slots(from: ControllerId, to: ControllerId) -> impl Iterator<Item = usize> {
        let first = from.index() << 4 ^ from.index() >> 4 ^ to.index();
        (first..first + PROBES).map(|slot| slot % PAIRS)
    }

    /// Returns the counters of a pair that has a slot.
    fn find(&self, from: ControllerId, to: ControllerId) -> Option<&Moved> {
        let key = Self::key(from, to);
        let slot = Self::slots(from, to).find(|&slot| self.keys[slot].load(Relaxed) == key)?;
        Some(&self.moved[slot])
    }

    /// Returns the counters of a pair: those of its slot, which it takes if it has none, or the shared ones.
    fn find_or_add(&self, from: ControllerId, to: ControllerId) -> &Moved {
        let key = Self::key(from, to);
        let has_or_takes = |&slot: &usize| match self.keys[slot].load(Relaxed) {
            0 => match self.keys[slot].compare_exchange(0, key, Relaxed, Relaxed) {
                Ok(_) => true,
                Err(other) => other == key,
            },
            taken => taken == key,
        };
        Self::slots(from, to).find(has_or_takes).map_or(&self.others, |slot| &self.moved[slot])
    }
}

/// All counters: by guest, and by pair of controllers.
pub struct Statistics {
    guests: [Counters; MAX_GUESTS],
    pairs: Pairs,
}

impl Statistics {
    /// Makes statistics of zero.
    pub const fn new() -> Self {
        Self { guests: [const { Counters::new() }; MAX_GUESTS], pairs: Pairs::new() }
    }

    /// Returns the counters of `guest`, over all its lives.
    pub fn guest(&self, guest: GuestId) -> &Counters {
        &self.guests[guest.index() % MAX_GUESTS]
    }

    /// Returns the units moved from one controller to another.
    pub fn pair(&self, from: ControllerId, to: ControllerId) -> PairTotals {
        self.pairs.find(from, to).map_or_else(PairTotals::default, Moved::totals)
    }

    /// Counts `count` moved units of `level`, for the guest and for the pair of source and target.
    pub(super) fn count_moved(
        &self,
        guest: GuestId,
        pair: Option<(ControllerId, ControllerId)>,
        level: Level,
        count: u64,
    ) {
        self.guest(guest).count_moved(level, count);
        if let Some((from, to)) = pair {
            self.pairs.find_or_add(from, to).add(level, count);
        }
    }
}

impl Default for Statistics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::MAX_CONTROLLERS;

    #[test]
    fn pairs_are_counted_separately_until_there_are_too_many() {
        let controllers =
            |count: usize| (0..count.min(MAX_CONTROLLERS) as u8).filter_map(ControllerId::try_new);
        let pairs = Pairs::new();
        for (from, to) in controllers(16).flat_map(|from| controllers(16).map(move |to| (from, to))) {
            pairs.find_or_add(from, to).add(Level::L2, 1 + (from.index() * 16 + to.index()) as u64);
        }
        for (from, to) in controllers(16).flat_map(|from| controllers(16).map(move |to| (from, to))) {
            let blocks = pairs.find(from, to).unwrap().totals().blocks;
            assert_eq!(blocks, 1 + (from.index() * 16 + to.index()) as u64, "{from} {to}");
        }
        // Not all pairs of 64 controllers have a slot, but no unit is lost or counted for another pair.
        let pairs = Pairs::new();
        for (from, to) in controllers(64).flat_map(|from| controllers(64).map(move |to| (from, to))) {
            pairs.find_or_add(from, to).add(Level::L2, 1);
        }
        let all: u64 = pairs.moved.iter().map(|moved| moved.totals().blocks).sum();
        let count = controllers(64).count() as u64;
        assert_eq!(all + pairs.others.totals().blocks, count * count);
        let known = controllers(64).flat_map(|from| controllers(64).map(move |to| (from, to)));
        assert!(known.filter_map(|(from, to)| pairs.find(from, to)).all(|moved| moved.totals().blocks == 1));
    }

    #[test]
    fn units_are_counted_by_guest_and_by_pair() {
        let statistics = Statistics::new();
        let [a, b, c] = [0, 1, 2].map(|number| ControllerId::try_new(number).unwrap());
        let guest = GuestId::try_new(3).unwrap();
        statistics.count_moved(guest, Some((a, b)), Level::L2, 2);
        statistics.count_moved(guest, Some((a, c)), Level::L3, 5);
        statistics.count_moved(guest, None, Level::L3, 1);
        assert_eq!(statistics.pair(a, b), PairTotals { blocks: 2, pages: 0 });
        assert_eq!(statistics.pair(a, c).bytes(), 5 << 12);
        assert_eq!(statistics.pair(b, a), PairTotals::default());
        assert_eq!(statistics.guest(guest).totals().moved, PairTotals { blocks: 2, pages: 6 });
    }
}
