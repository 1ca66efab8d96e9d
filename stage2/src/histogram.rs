//! Histograms of times.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// log2 of the buckets for each power of two. Percentiles are exact to an eighth.
const FINENESS_SHIFT: u32 = 2;
const FINENESS: u64 = 1 << FINENESS_SHIFT;
/// Number of powers of two. Values from 2^40 share the last bucket.
const OCTAVES: usize = 40;
const BUCKETS: usize = OCTAVES << FINENESS_SHIFT;

/// A histogram over powers of two, with four buckets each. Any CPU may record.
pub struct Histogram {
    buckets: [AtomicU32; BUCKETS],
    count: AtomicU64,
    sum: AtomicU64,
    max: AtomicU64,
}

/// A summary of a histogram, in the unit of its values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Distribution {
    /// Number of values.
    pub count: u64,
    /// Mean.
    pub mean: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest value.
    pub max: u64,
}

impl Histogram {
    /// Makes an empty histogram.
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

    /// Returns `(limit, count)` for each power of two with values: `count` values are below `limit` and not below the
    /// previous power of two.
    pub fn octaves(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.chunks(FINENESS as usize).enumerate().filter_map(|(octave, buckets)| {
            let count: u64 = buckets.iter().map(|bucket| u64::from(bucket.load(Relaxed))).sum();
            (count > 0).then_some((limit_of((octave << FINENESS_SHIFT) + FINENESS as usize - 1) + 1, count))
        })
    }

    /// Summarises the histogram. A percentile is the upper end of its bucket, at most the maximum.
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

/// Returns the bucket of `value`: one for each of 0 to 3, then four for each power of two.
fn bucket_of(value: u64) -> usize {
    if value < FINENESS {
        return value as usize;
    }
    let octave = value.ilog2();
    let part = (value >> (octave - FINENESS_SHIFT)) & (FINENESS - 1);
    let bucket = (u64::from(octave - FINENESS_SHIFT + 1) << FINENESS_SHIFT) + part;
    (bucket as usize).min(BUCKETS - 1)
}

/// Returns the largest value of a bucket.
fn limit_of(bucket: usize) -> u64 {
    let (octave, part) = ((bucket >> FINENESS_SHIFT) as u32, bucket as u64 & (FINENESS - 1));
    match octave {
        0 => part,
        _ => ((FINENESS + part + 1) << (octave - 1)) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
