//! What did not move, and why.

use core::fmt;

use crate::addr::{Frame, Ipa};
use crate::owner::GuestId;

/// Why something did not move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// It is mapped 1:1.
    PinnedInPlace,
    /// Its guest's configuration says no.
    OptedOut,
    /// The owner of a pool has claimed it.
    Claimed,
    /// It lies in a pool of which a claim is under way.
    InClaim,
    /// Its placement is strict, and names no other controllers than those it is to leave.
    Placement,
    /// The target has no frame for it.
    NoFrame,
    /// There is no frame for a translation table that is needed to move it by parts.
    NoTable,
    /// It changed while it was looked at: something else unmaps or resizes it.
    Busy,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 8] = [
        Self::PinnedInPlace,
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

/// What did not move for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unmoved {
    /// How many leaves.
    pub leaf_count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of them.
    pub first: Option<(GuestId, Ipa)>,
    /// The first frame of what it lies on that was to be cleared, where that is known.
    pub(crate) frame: Option<Frame>,
}

impl Unmoved {
    pub(super) fn add(&mut self, guest: GuestId, ipa: Ipa, leaf_count: u64, bytes: u64) {
        self.leaf_count += leaf_count;
        self.bytes += bytes;
        self.first.get_or_insert((guest, ipa));
    }

    /// As [`Self::add`], where the first frame of it that was to be cleared is `frame`.
    pub(super) fn add_at(&mut self, frame: Frame, guest: GuestId, ipa: Ipa, leaf_count: u64, bytes: u64) {
        self.frame.get_or_insert(frame);
        self.add(guest, ipa, leaf_count, bytes);
    }
}
