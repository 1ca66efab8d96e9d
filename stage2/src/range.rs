//! Ranges of frames: half-open, in whole frames, never past the 48-bit address limit.

use core::fmt;

use crate::addr::{ADDRESS_LIMIT, FRAME_SHIFT, FRAME_SIZE, Frame, Pa};
use crate::size::Compact;

/// The number of frames below [`ADDRESS_LIMIT`].
const FRAME_LIMIT: u64 = ADDRESS_LIMIT >> FRAME_SHIFT;

/// A half-open range of frames. It may be empty; an empty range overlaps nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameRange {
    start: u64,
    end: u64,
}

impl FrameRange {
    /// The empty range.
    pub const EMPTY: Self = Self { start: 0, end: 0 };

    /// Creates the range of `frames` frames from `first` on, or returns `None` past [`ADDRESS_LIMIT`].
    pub const fn try_new(first: Frame, frames: u64) -> Option<Self> {
        Self::from_numbers(first.number(), first.number().wrapping_add(frames))
    }

    /// Creates the range from frame number `start` to before `end`, or returns `None` if that is not a valid range.
    pub const fn from_numbers(start: u64, end: u64) -> Option<Self> {
        if start <= end && end <= FRAME_LIMIT { Some(Self { start, end }) } else { None }
    }

    /// Returns the whole frames inside `bytes` bytes from `base` on, or `None` past [`ADDRESS_LIMIT`].
    ///
    /// For RAM, which is trimmed to whole frames.
    pub const fn inside(base: u64, bytes: u64) -> Option<Self> {
        match base.checked_add(bytes) {
            Some(end) if end <= ADDRESS_LIMIT => {
                let (start, end) = (base.div_ceil(FRAME_SIZE), end >> FRAME_SHIFT);
                if start <= end { Some(Self { start, end }) } else { Some(Self::EMPTY) }
            }
            _ => None,
        }
    }

    /// Returns the frames that `bytes` bytes from `base` on touch, or `None` past [`ADDRESS_LIMIT`].
    ///
    /// For reservations, which are extended to whole frames.
    pub const fn covering(base: u64, bytes: u64) -> Option<Self> {
        match base.checked_add(bytes) {
            Some(_) if bytes == 0 => Some(Self::EMPTY),
            Some(end) if end <= ADDRESS_LIMIT => {
                Some(Self { start: base >> FRAME_SHIFT, end: end.div_ceil(FRAME_SIZE) })
            }
            _ => None,
        }
    }

    /// Returns the first frame of the range.
    pub const fn first(self) -> Frame {
        Frame::containing(Pa::new_truncate(self.start << FRAME_SHIFT))
    }

    /// Returns the address of the first byte.
    pub const fn base(self) -> Pa {
        Pa::new_truncate(self.start << FRAME_SHIFT)
    }

    /// Returns the number of the first frame.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Returns the number of the frame after the last.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Returns the number of frames.
    pub const fn frames(self) -> u64 {
        self.end - self.start
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.frames() << FRAME_SHIFT
    }

    /// Returns whether the range is empty.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Returns whether `frame` is in the range.
    pub const fn contains(self, frame: Frame) -> bool {
        self.start <= frame.number() && frame.number() < self.end
    }

    /// Returns whether all of `other` is in the range. An empty range always is.
    pub const fn contains_range(self, other: Self) -> bool {
        other.is_empty() || (self.start <= other.start && other.end <= self.end)
    }

    /// Returns whether the two ranges share a frame.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end && !self.is_empty() && !other.is_empty()
    }

    /// Returns the frames that both ranges share.
    pub fn intersection(self, other: Self) -> Self {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        if start < end { Self { start, end } } else { Self::EMPTY }
    }

    /// Returns whether both ends are multiples of `frames`, a power of two.
    pub const fn is_aligned(self, frames: u64) -> bool {
        (self.start | self.end) & (frames - 1) == 0
    }

    /// Returns the largest part of the range whose ends are multiples of `frames`, a power of two.
    pub const fn aligned_inside(self, frames: u64) -> Self {
        let start = self.start.next_multiple_of(frames);
        let end = self.end & !(frames - 1);
        if start < end { Self { start, end } } else { Self::EMPTY }
    }

    /// Returns the smallest range that contains this one and whose ends are multiples of `frames`, a power of two.
    pub const fn aligned_around(self, frames: u64) -> Self {
        if self.is_empty() {
            return Self::EMPTY;
        }
        Self { start: self.start & !(frames - 1), end: self.end.next_multiple_of(frames) }
    }
}

impl FrameRange {
    /// Returns a display of the range in command line syntax, as in `1G@0x40000000`.
    pub fn compact(self) -> impl fmt::Display {
        fmt::from_fn(move |f| write!(f, "{}@{:#x}", Compact(self.bytes()), self.start << FRAME_SHIFT))
    }
}

impl fmt::Display for FrameRange {
    /// Formats the addresses of the first and of the last byte, as in `0x40000000-0x7fffffff`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("empty range");
        }
        write!(f, "{:#x}-{:#x}", self.start << FRAME_SHIFT, (self.end << FRAME_SHIFT) - 1)
    }
}

impl fmt::Debug for FrameRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_trimmed_and_reservations_are_extended() {
        let ram = FrameRange::inside(0x4000_0001, 0x2fff).unwrap();
        assert_eq!((ram.start(), ram.end()), (0x40001, 0x40003));
        let reserved = FrameRange::covering(0x4000_0fff, 2).unwrap();
        assert_eq!((reserved.start(), reserved.end()), (0x40000, 0x40002));
        assert!(FrameRange::inside(0x4000_0001, 0x10).unwrap().is_empty());
        assert!(FrameRange::covering(0x4000_0001, 0).unwrap().is_empty());
    }

    #[test]
    fn ranges_stop_at_the_address_limit() {
        assert_eq!(FrameRange::inside(u64::MAX, 2), None);
        assert_eq!(FrameRange::covering(ADDRESS_LIMIT - 1, 2), None);
        let top = FrameRange::covering(ADDRESS_LIMIT - 1, 1).unwrap();
        assert_eq!(top.frames(), 1);
        assert!(FrameRange::from_numbers(2, 1).is_none());
    }

    #[test]
    fn empty_ranges_overlap_nothing() {
        let some = FrameRange::from_numbers(0, 10).unwrap();
        assert!(!some.overlaps(FrameRange::EMPTY));
        assert!(some.contains_range(FrameRange::EMPTY));
        assert!(some.intersection(FrameRange::from_numbers(10, 12).unwrap()).is_empty());
    }
}
