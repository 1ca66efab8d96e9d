//! What the operator can set, while jobs run.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// How migration behaves. Every setting may change at any time.
///
/// A setting is kept as its difference (exclusive or) from the default, so that the defaults are zeroes and a static
/// takes no room in the image.
#[derive(Debug)]
pub struct Policy {
    slice_ns: AtomicU64,
    share_per_cent: AtomicU32,
    rate_bytes: AtomicU64,
    stall_frames: AtomicU32,
}

impl Policy {
    /// The longest slice by default: 100 µs.
    pub const SLICE_NS: u64 = 100_000;
    /// The share of a guest's time by default: 10 %.
    pub const SHARE_PER_CENT: u32 = 10;
    /// What a guest may wait for by default: 16 frames, about 5,000 instructions of copying.
    pub const STALL_FRAMES: u16 = 16;

    /// The defaults, without a limit to the rate.
    pub const fn new() -> Self {
        Self {
            slice_ns: AtomicU64::new(0),
            share_per_cent: AtomicU32::new(0),
            rate_bytes: AtomicU64::new(0),
            stall_frames: AtomicU32::new(0),
        }
    }

    /// The longest time that the worker holds a CPU, in nanoseconds.
    pub fn slice_ns(&self) -> u64 {
        self.slice_ns.load(Relaxed) ^ Self::SLICE_NS
    }

    /// Sets the longest slice; at least 10 µs.
    pub fn set_slice_ns(&self, slice_ns: u64) {
        self.slice_ns.store(slice_ns.max(10_000) ^ Self::SLICE_NS, Relaxed);
    }

    /// The share of a guest's time that the worker may take, in per cent, from 1 to 100.
    pub fn share_per_cent(&self) -> u32 {
        self.share_per_cent.load(Relaxed) ^ Self::SHARE_PER_CENT
    }

    /// Sets the share, cut to 1 to 100.
    pub fn set_share_per_cent(&self, share_per_cent: u32) {
        self.share_per_cent.store(share_per_cent.clamp(1, 100) ^ Self::SHARE_PER_CENT, Relaxed);
    }

    /// Bytes a second that all jobs together may move; 0 is no limit.
    pub fn rate_bytes(&self) -> u64 {
        self.rate_bytes.load(Relaxed)
    }

    /// Sets the rate; 0 is no limit.
    pub fn set_rate_bytes(&self, rate_bytes: u64) {
        self.rate_bytes.store(rate_bytes, Relaxed);
    }

    /// How many frames of a 2 MiB unit may be left to copy for a guest that writes to it to wait, or to
    /// help; with more left the unit is split.
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
