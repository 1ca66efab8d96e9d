//! The traits through which migration reaches this CPU: time, copies and cache maintenance.

use crate::addr::Frame;
use crate::owner::GuestId;

/// The architected counter, and this CPU's other duties.
pub trait Time {
    /// Returns the counter in ticks.
    fn now(&self) -> u64;

    /// Returns the ticks per second; not 0.
    fn ticks_per_second(&self) -> u64;

    /// Returns whether this CPU has something more urgent to do. A step then ends after the current turn.
    fn is_wanted(&self) -> bool {
        false
    }
}

/// Number of frames that are copied or scrubbed between two looks at the time.
pub const SOME: u64 = 48;

/// Copies and cache maintenance.
pub trait Copier {
    /// Copies `count` frames of `guest`'s memory from `source` to `target`.
    ///
    /// Cleans and invalidates the source first, since the guest may have written past the caches, with caches off or by
    /// a Non-cacheable mapping. Cleans the target to the point of coherency and completes that by DSB ISH, since only
    /// the CPU that issued the maintenance can complete it (Arm ARM, "A64 Cache maintenance instructions").
    fn copy(&self, guest: GuestId, source: Frame, target: Frame, count: u64);

    /// Copies frames like [`Self::copy`], [`SOME`] at a time, until `goes_on` returns false. Returns the number copied.
    fn copy_some(
        &self,
        guest: GuestId,
        source: Frame,
        target: Frame,
        count: u64,
        mut goes_on: impl FnMut() -> bool,
    ) -> u64 {
        let mut copied = 0;
        while copied < count {
            let pair = source.checked_add(copied).zip(target.checked_add(copied));
            let Some((source, target)) = pair else { break };
            let some = (count - copied).min(SOME);
            self.copy(guest, source, target, some);
            copied += some;
            if !goes_on() {
                break;
            }
        }
        copied
    }

    /// Copies up to `count` frames one by one: each frame for which `claim(index)` returns true, and then calls
    /// `done(index)`.
    fn copy_each(
        &self,
        guest: GuestId,
        source: Frame,
        target: Frame,
        count: usize,
        mut claim: impl FnMut(usize) -> bool,
        mut done: impl FnMut(usize),
    ) {
        for index in 0..count {
            let pair = source.checked_add(index as u64).zip(target.checked_add(index as u64));
            if let Some((source, target)) = pair
                && claim(index)
            {
                self.copy(guest, source, target, 1);
                done(index);
            }
        }
    }

    /// Zeroes `count` frames from `frame`.
    fn scrub(&self, frame: Frame, count: u64);

    /// Makes copied instructions visible to the fetches of all CPUs: DSB ISH; IC IALLUIS unless CTR_EL0.DIC; DSB ISH;
    /// ISB. The first DSB also completes the copies and their cleaning.
    fn synchronise_fetches(&self);
}
