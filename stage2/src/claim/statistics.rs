//! Statistics of claims since boot.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::cause::Cause;
use super::operation::{Kind, Report, State};
use crate::addr::FRAME_SIZE;
use crate::histogram::{Distribution, Histogram};
use crate::migrate::PairTotals;
use crate::owner::{MAX_POOLS, PoolId};

/// Size classes: largest size in bytes, and name.
pub const SIZE_CLASSES: [(u64, &str); 4] =
    [(2 << 20, "to 2 MiB"), (64 << 20, "to 64 MiB"), (256 << 20, "to 256 MiB"), (u64::MAX, "larger")];
/// Classes of the percentage of a pool that was lent: highest percentage, and name.
pub const FULLNESS_CLASSES: [(u8, &str); 4] =
    [(0, "0 %"), (50, "to 50 %"), (95, "to 95 %"), (100, "to 100 %")];

/// Counters, initially all zero bytes.
pub struct Statistics {
    tried: AtomicU64,
    granted: AtomicU64,
    released: AtomicU64,
    cancelled: AtomicU64,
    retries: AtomicU64,
    failed: [AtomicU64; Cause::COUNT],
    moved_blocks: AtomicU64,
    moved_pages: AtomicU64,
    granted_bytes: AtomicU64,
    latency: [[Histogram; FULLNESS_CLASSES.len()]; SIZE_CLASSES.len()],
    high_claimed: [AtomicU64; MAX_POOLS],
    high_lent: [AtomicU64; MAX_POOLS],
}

/// Snapshot of [`Statistics`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Claims that began.
    pub tried: u64,
    /// Claims that were granted.
    pub granted: u64,
    /// Bytes that were granted.
    pub granted_bytes: u64,
    /// Claims that failed.
    pub failed: u64,
    /// Claims that were cancelled.
    pub cancelled: u64,
    /// Completed releases: of a range, of all of a pool, or because the owner stopped.
    pub released: u64,
    /// Tries beyond the first of each claim.
    pub retries: u64,
    /// Units migrated for claims.
    pub moved: PairTotals,
}

impl Statistics {
    /// Creates counters of zero.
    pub(super) const fn new() -> Self {
        Self {
            tried: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            released: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            failed: [const { AtomicU64::new(0) }; Cause::COUNT],
            moved_blocks: AtomicU64::new(0),
            moved_pages: AtomicU64::new(0),
            granted_bytes: AtomicU64::new(0),
            latency: [const { [const { Histogram::new() }; FULLNESS_CLASSES.len()] }; SIZE_CLASSES.len()],
            high_claimed: [const { AtomicU64::new(0) }; MAX_POOLS],
            high_lent: [const { AtomicU64::new(0) }; MAX_POOLS],
        }
    }

    /// Returns the present counters.
    pub fn totals(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Totals {
            tried: read(&self.tried),
            granted: read(&self.granted),
            granted_bytes: read(&self.granted_bytes),
            failed: self.failed.iter().map(read).sum(),
            cancelled: read(&self.cancelled),
            released: read(&self.released),
            retries: read(&self.retries),
            moved: PairTotals { blocks: read(&self.moved_blocks), pages: read(&self.moved_pages) },
        }
    }

    /// Returns the number of claims that failed for the cause with this [`Cause::index`].
    pub fn failed(&self, cause: usize) -> u64 {
        self.failed.get(cause).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Returns the latency of granted claims in ticks, by classes of size and of lent percentage.
    pub fn latency(&self, size: usize, fullness: usize) -> Distribution {
        let histogram = self.latency.get(size).and_then(|row| row.get(fullness));
        histogram.map(Histogram::distribution).unwrap_or_default()
    }

    /// Returns the maximum number of frames that the owner of `pool` had.
    pub fn high_claimed(&self, pool: PoolId) -> u64 {
        self.high_claimed[pool.index()].load(Relaxed)
    }

    /// Returns the maximum number of lent frames of `pool` among all observations.
    pub fn high_lent(&self, pool: PoolId) -> u64 {
        self.high_lent[pool.index()].load(Relaxed)
    }

    /// Records an observation of lent frames of `pool`.
    pub fn saw_lent(&self, pool: PoolId, frames: u64) {
        self.high_lent[pool.index()].fetch_max(frames, Relaxed);
    }

    /// Records the number of frames that the owner of `pool` has.
    pub(super) fn saw_claimed(&self, pool: PoolId, frames: u64) {
        self.high_claimed[pool.index()].fetch_max(frames, Relaxed);
    }

    pub(super) fn count_tried(&self) {
        self.tried.fetch_add(1, Relaxed);
    }

    pub(super) fn count_cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    /// Counts a release of a range or of all of a pool.
    pub(super) fn count_released(&self) {
        self.released.fetch_add(1, Relaxed);
    }

    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub(super) fn count_moved(&self, moved: PairTotals) {
        self.moved_blocks.fetch_add(moved.blocks, Relaxed);
        self.moved_pages.fetch_add(moved.pages, Relaxed);
    }

    /// Counts the end of an operation.
    pub(super) fn count_end(&self, report: &Report) {
        match report.state {
            State::Granted => {
                self.granted.fetch_add(1, Relaxed);
                self.granted_bytes.fetch_add(report.range.bytes(), Relaxed);
                let bytes = report.range.frames() * FRAME_SIZE;
                let size = SIZE_CLASSES.iter().position(|class| bytes <= class.0).unwrap_or(0);
                let full =
                    FULLNESS_CLASSES.iter().position(|class| report.lent_per_cent <= class.0).unwrap_or(0);
                self.latency[size][full].record(report.ended.wrapping_sub(report.submitted));
            }
            State::Cancelled => self.count_cancelled(),
            State::Released => self.count_released(),
            State::Failed if report.kind == Kind::Claim => {
                self.failed[report.blocker.cause.index()].fetch_add(1, Relaxed);
            }
            _ => {}
        }
    }
}
