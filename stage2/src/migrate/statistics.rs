//! Counters since boot, and how long guests were stalled. Readable at any time, by any CPU.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use crate::controller::ControllerId;
use crate::owner::{GuestId, MAX_GUESTS};
use crate::table::Level;

/// Buckets to a power of two: percentiles are exact to an eighth.
const FINENESS_SHIFT: u32 = 2;
const FINENESS: u64 = 1 << FINENESS_SHIFT;
/// Values from 2^40 ticks on share the last bucket.
const OCTAVES: usize = 40;
const BUCKETS: usize = OCTAVES << FINENESS_SHIFT;

/// A histogram over powers of two, each in four parts.
pub struct Histogram {
    buckets: [AtomicU32; BUCKETS],
    count: AtomicU64,
    sum: AtomicU64,
    max: AtomicU64,
}

/// A histogram in a few numbers, in ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Distribution {
    /// How many values.
    pub count: u64,
    /// Their mean.
    pub mean: u64,
    /// Half of them are at most this.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

impl Histogram {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self {
            buckets: [const { AtomicU32::new(0) }; BUCKETS],
            count: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }

    /// Adds a value.
    pub fn record(&self, value: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(value)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add(value, Relaxed);
        self.max.fetch_max(value, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    /// How many values fell below each power of two: `(limit, count)`, without empty ones.
    pub fn octaves(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.chunks(FINENESS as usize).enumerate().filter_map(|(octave, buckets)| {
            let count: u64 = buckets.iter().map(|bucket| u64::from(bucket.load(Relaxed))).sum();
            (count > 0).then_some((limit_of((octave << FINENESS_SHIFT) + FINENESS as usize - 1) + 1, count))
        })
    }

    /// Count, mean, percentiles, maximum. A percentile is the upper end of its bucket, at most the maximum.
    pub fn distribution(&self) -> Distribution {
        let (count, max) = (self.count.load(Relaxed), self.max.load(Relaxed));
        let counts = || self.buckets.iter().map(|bucket| u64::from(bucket.load(Relaxed)));
        let total: u64 = counts().sum();
        let percentile = |per_cent: u64| {
            let rank = (total * per_cent).div_ceil(100);
            let mut seen = 0;
            let bucket = counts().position(|count| {
                seen += count;
                seen >= rank
            });
            bucket.map_or(max, limit_of).min(max)
        };
        let mean = self.sum.load(Relaxed).checked_div(count).unwrap_or(0);
        if total == 0 {
            return Distribution::default();
        }
        Distribution { count, mean, p50: percentile(50), p99: percentile(99), max }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// The bucket of `value`: 0 to 3 have one each, then four to a power of two.
fn bucket_of(value: u64) -> usize {
    if value < FINENESS {
        return value as usize;
    }
    let octave = value.ilog2();
    let part = (value >> (octave - FINENESS_SHIFT)) & (FINENESS - 1);
    let bucket = (u64::from(octave - FINENESS_SHIFT + 1) << FINENESS_SHIFT) + part;
    (bucket as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn limit_of(bucket: usize) -> u64 {
    let (octave, part) = ((bucket >> FINENESS_SHIFT) as u32, bucket as u64 & (FINENESS - 1));
    match octave {
        0 => part,
        _ => ((FINENESS + part + 1) << (octave - 1)) - 1,
    }
}

/// Units moved, by size, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PairTotals {
    /// Units of 2 MiB.
    pub blocks: u64,
    /// Units of 4 KiB.
    pub pages: u64,
}

impl PairTotals {
    /// Bytes moved.
    pub const fn bytes(&self) -> u64 {
        self.blocks * Level::L2.size() + self.pages * Level::L3.size()
    }

    fn plus(self, other: Self) -> Self {
        Self { blocks: self.blocks + other.blocks, pages: self.pages + other.pages }
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

/// What migration did in one guest since boot.
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
    /// Leaves demoted to be moved by parts.
    pub demotions: u64,
    /// Leaves promoted.
    pub promotions: u64,
    /// Areas that were made units of 2 MiB again in idle time.
    pub coalesced: u64,
    /// Those of them that were moved into one block for that.
    pub gathered: u64,
    /// 2 MiB units split because the guest wrote to them.
    pub splits: u64,
    /// Units that were given up and tried again.
    pub retries: u64,
    /// Invalidations completed, one for a batch.
    pub invalidations: u64,
    /// Ticks that the worker and its helpers copied.
    pub copy_ticks: u64,
    /// Ticks that the worker scrubbed what units had left.
    pub scrub_ticks: u64,
    /// Ticks that the worker waited for helpers.
    pub wait_ticks: u64,
    /// Faults of the guest on units in flight.
    pub faults: u64,
    /// Copies that a vCPU's CPU did itself, rather than wait.
    pub helps: u64,
    /// How long such faults stalled the guest.
    pub stalls: Distribution,
}

impl Counters {
    /// All zero.
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

    /// All counters now.
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

    /// The stalls in full.
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

/// Pairs of controllers that are told apart: all of those of 16 controllers.
const PAIRS: usize = 256;
/// Places that are looked at for a pair. Under load, as many as this are rarely taken side by side.
const PROBES: usize = 32;

/// Units moved by pair of controllers: a hash table without deletion, since 64 controllers have 4032 pairs, of which few
/// are ever in use. A pair without a place in it is counted with all others of its kind.
struct Pairs {
    /// For each place the pair that has it: see [`Pairs::key`]. 0 for none.
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

    /// The pair as a number other than 0.
    const fn key(from: ControllerId, to: ControllerId) -> u16 {
        (1 + from.index() as u16) << 6 | to.index() as u16
    }

    /// The places that a pair may have, in the order in which they are tried. Those of 16 controllers never collide.
    fn places(from: ControllerId, to: ControllerId) -> impl Iterator<Item = usize> {
        let first = from.index() << 4 ^ from.index() >> 4 ^ to.index();
        (first..first + PROBES).map(|place| place % PAIRS)
    }

    fn find(&self, from: ControllerId, to: ControllerId) -> Option<&Moved> {
        let key = Self::key(from, to);
        let place = Self::places(from, to).find(|&place| self.keys[place].load(Relaxed) == key)?;
        Some(&self.moved[place])
    }

    fn find_or_add(&self, from: ControllerId, to: ControllerId) -> &Moved {
        let key = Self::key(from, to);
        let has_or_takes = |&place: &usize| match self.keys[place].load(Relaxed) {
            0 => match self.keys[place].compare_exchange(0, key, Relaxed, Relaxed) {
                Ok(_) => true,
                Err(other) => other == key,
            },
            taken => taken == key,
        };
        Self::places(from, to).find(has_or_takes).map_or(&self.others, |place| &self.moved[place])
    }

    /// Adds up the pairs that `is_wanted`.
    fn sum(&self, is_wanted: impl Fn(ControllerId, ControllerId) -> bool) -> PairTotals {
        let ids = |key: u16| {
            let pair = key.checked_sub(1 << 6)?;
            Some((ControllerId::try_new((pair >> 6) as u8)?, ControllerId::try_new((pair & 0x3f) as u8)?))
        };
        let is_pair = |key: u16| ids(key).is_some_and(|(from, to)| is_wanted(from, to));
        let wanted = self.keys.iter().zip(&self.moved).filter(|(key, _)| is_pair(key.load(Relaxed)));
        wanted.map(|(_, moved)| moved.totals()).fold(PairTotals::default(), PairTotals::plus)
    }
}

/// All that is counted: by guest, and by pair of controllers.
pub struct Statistics {
    guests: [Counters; MAX_GUESTS],
    pairs: Pairs,
}

impl Statistics {
    /// All zero.
    pub const fn new() -> Self {
        Self { guests: [const { Counters::new() }; MAX_GUESTS], pairs: Pairs::new() }
    }

    /// What was done in `guest`, in all its lives.
    pub fn guest(&self, guest: GuestId) -> &Counters {
        &self.guests[guest.index() % MAX_GUESTS]
    }

    /// Returns the units moved from one controller to another.
    pub fn pair(&self, from: ControllerId, to: ControllerId) -> PairTotals {
        self.pairs.find(from, to).map_or_else(PairTotals::default, Moved::totals)
    }

    /// Returns the units moved to `controller`.
    pub fn incoming(&self, controller: ControllerId) -> PairTotals {
        self.pairs.sum(|_, to| to == controller)
    }

    /// Returns the units moved away from `controller`.
    pub fn outgoing(&self, controller: ControllerId) -> PairTotals {
        self.pairs.sum(|from, _| from == controller)
    }

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
    fn buckets_meet_without_a_gap() {
        let mut last = 0;
        for value in (0..5000u64).chain((12..40).flat_map(|shift| [(1 << shift) - 1, 1 << shift])) {
            let bucket = bucket_of(value);
            assert!(value <= limit_of(bucket), "{value}");
            assert!(bucket == 0 || value > limit_of(bucket - 1), "{value}");
            assert!(value < 5000 || bucket >= last);
            last = bucket;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_close() {
        let histogram = Histogram::new();
        assert_eq!(histogram.distribution(), Distribution::default());
        (1..=1000).for_each(|value| histogram.record(value));
        let found = histogram.distribution();
        assert_eq!((found.count, found.mean, found.max), (1000, 500, 1000));
        assert!((500..=575).contains(&found.p50), "{found:?}");
        assert!((990..=1000).contains(&found.p99), "{found:?}");
        let octaves: Vec<_> = histogram.octaves().collect();
        assert_eq!(octaves.last(), Some(&(1024, 489)));
        assert_eq!(octaves.iter().map(|(_, count)| count).sum::<u64>(), 1000);
    }

    #[test]
    fn each_pair_of_many_controllers_counts_for_itself_until_there_are_too_many() {
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
        // Of 64 controllers not all pairs have a place, but nothing is lost and none counts for another.
        let pairs = Pairs::new();
        for (from, to) in controllers(64).flat_map(|from| controllers(64).map(move |to| (from, to))) {
            pairs.find_or_add(from, to).add(Level::L2, 1);
        }
        let all = pairs.sum(|_, _| true).blocks;
        let count = controllers(64).count() as u64;
        assert_eq!(all + pairs.others.totals().blocks, count * count);
        let known = controllers(64).flat_map(|from| controllers(64).map(move |to| (from, to)));
        assert!(known.filter_map(|(from, to)| pairs.find(from, to)).all(|moved| moved.totals().blocks == 1));
    }

    #[test]
    fn pairs_add_up_to_what_a_controller_sends_and_gets() {
        let statistics = Statistics::new();
        let [a, b, c] = [0, 1, 2].map(|number| ControllerId::try_new(number).unwrap());
        let guest = GuestId::try_new(3).unwrap();
        statistics.count_moved(guest, Some((a, b)), Level::L2, 2);
        statistics.count_moved(guest, Some((a, c)), Level::L3, 5);
        statistics.count_moved(guest, None, Level::L3, 1);
        assert_eq!(statistics.outgoing(a), PairTotals { blocks: 2, pages: 5 });
        assert_eq!(statistics.incoming(b).bytes(), 4 << 20);
        assert_eq!(statistics.incoming(a), PairTotals::default());
        assert_eq!(statistics.guest(guest).totals().moved, PairTotals { blocks: 2, pages: 6 });
    }
}
