//! Settings that the operator can change while jobs run.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// The settings of migration. Each may change at any time.
///
/// A setting is stored as its exclusive or with the default. So the defaults are zeroes, and a static takes no room in
/// the image.
#[derive(Debug)]
pub struct Policy {
    slice_ns: AtomicU64,
    share_per_cent: AtomicU32,
    rate_bytes: AtomicU64,
    stall_frames: AtomicU32,
}

impl Policy {
    /// Default for the longest slice: 100 µs.
    pub const SLICE_NS: u64 = 100_000;
    /// Default for the share of a guest's time: 10 %.
    pub const SHARE_PER_CENT: u32 = 10;
    /// Default for the stall bound: 16 frames, about 5,000 instructions of copying.
    pub const STALL_FRAMES: u16 = 16;

    /// Makes the default settings, without a rate limit.
    pub const fn new() -> Self {
        Self {
            slice_ns: AtomicU64::new(0),
            share_per_cent: AtomicU32::new(0),
            rate_bytes: AtomicU64::new(0),
            stall_frames: AtomicU32::new(0),
        }
    }

    /// Returns the longest time that the worker holds a CPU, in nanoseconds.
    pub fn slice_ns(&self) -> u64 {
        self.slice_ns.load(Relaxed) ^ Self::SLICE_NS
    }

    /// Sets the longest slice; at least 10 µs.
    pub fn set_slice_ns(&self, slice_ns: u64) {
        self.slice_ns.store(slice_ns.max(10_000) ^ Self::SLICE_NS, Relaxed);
    }

    /// Returns the share of a guest's time that the worker may take, in per cent, from 1 to 100.
    pub fn share_per_cent(&self) -> u32 {
        self.share_per_cent.load(Relaxed) ^ Self::SHARE_PER_CENT
    }

    /// Sets the share, clamped to 1 to 100.
    pub fn set_share_per_cent(&self, share_per_cent: u32) {
        self.share_per_cent.store(share_per_cent.clamp(1, 100) ^ Self::SHARE_PER_CENT, Relaxed);
    }

    /// Returns the limit for all jobs together in bytes per second; 0 for no limit.
    pub fn rate_bytes(&self) -> u64 {
        self.rate_bytes.load(Relaxed)
    }

    /// Sets the limit for all jobs; 0 for no limit.
    pub fn set_rate_bytes(&self, rate_bytes: u64) {
        self.rate_bytes.store(rate_bytes, Relaxed);
    }

    /// Returns the stall bound: a guest that writes to a 2 MiB unit waits or helps if at most this many frames are left
    /// to copy. With more left, the unit is split.
    pub fn stall_frames(&self) -> u16 {
        self.stall_frames.load(Relaxed) as u16 ^ Self::STALL_FRAMES
    }

    /// Sets the stall bound, at most 512 frames: then no unit is ever split.
    pub fn set_stall_frames(&self, stall_frames: u16) {
        self.stall_frames.store((stall_frames.min(512) ^ Self::STALL_FRAMES).into(), Relaxed);
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}
