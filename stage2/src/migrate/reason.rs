//! Memory that did not move, with the reasons.

use core::fmt;

use crate::addr::{Frame, Ipa};
use crate::owner::GuestId;

/// The reason why memory did not move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Mapped 1:1.
    PinnedInPlace,
    /// DMA window: a device may access it at any time.
    DmaWindow,
    /// Excluded by the guest's configuration.
    OptedOut,
    /// Claimed by the owner of a pool.
    Claimed,
    /// In a pool that is being claimed from.
    InClaim,
    /// Strict placement that allows only the controllers to be left.
    Placement,
    /// No free frame behind the target.
    NoFrame,
    /// No frame for a translation table that moving by parts needs.
    NoTable,
    /// Changed meanwhile: unmapped or resized by something else.
    Busy,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::PinnedInPlace,
        Self::DmaWindow,
        Self::OptedOut,
        Self::Claimed,
        Self::InClaim,
        Self::Placement,
        Self::NoFrame,
        Self::NoTable,
        Self::Busy,
    ];

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PinnedInPlace => "pinned 1:1",
            Self::DmaWindow => "DMA window",
            Self::OptedOut => "the guest opted out",
            Self::Claimed => "claimed by a pool's owner",
            Self::InClaim => "in a pool that is being claimed",
            Self::Placement => "its placement allows no other controller",
            Self::NoFrame => "no frame on the target",
            Self::NoTable => "no frame for a translation table",
            Self::Busy => "changed meanwhile",
        })
    }
}

/// Memory that did not move for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unmoved {
    /// Number of leaves.
    pub leaf_count: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// The first leaf.
    pub first: Option<(GuestId, Ipa)>,
    /// The first of its frames that was to be cleared, if known.
    pub(crate) frame: Option<Frame>,
}

impl Unmoved {
    /// Adds `leaf_count` leaves from `ipa`.
    pub(super) fn add(&mut self, guest: GuestId, ipa: Ipa, leaf_count: u64, bytes: u64) {
        self.leaf_count += leaf_count;
        self.bytes += bytes;
        self.first.get_or_insert((guest, ipa));
    }

    /// Adds leaves like [`Self::add`]; `frame` is the first of their frames that was to be cleared.
    pub(super) fn add_at(&mut self, frame: Frame, guest: GuestId, ipa: Ipa, leaf_count: u64, bytes: u64) {
        self.frame.get_or_insert(frame);
        self.add(guest, ipa, leaf_count, bytes);
    }
}
