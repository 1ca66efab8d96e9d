//! What the quick ways to a block hand on.

use core::num::NonZeroU64;

use super::Allocation;
use crate::addr::{FRAME_SHIFT, Frame, Pa};
use crate::frame::Contents;
use crate::zone::{ARENAS, Zone};

/// A block just allocated, in one word, so that it is handed on in a register: its arena, what is known of its bytes, and
/// the number of its first frame.
#[derive(Clone, Copy)]
pub(super) struct Handed(NonZeroU64);

impl Handed {
    const ZEROED_SHIFT: u32 = ARENAS.trailing_zeros();
    /// Set in all of them.
    const SOME: u64 = 1 << (Self::ZEROED_SHIFT + 1);
    const NUMBER_SHIFT: u32 = Self::ZEROED_SHIFT + 2;

    #[inline]
    pub(super) const fn new(number: u64, arena: usize, contents: Contents) -> Option<Self> {
        let zeroed = matches!(contents, Contents::Zeroed) as u64;
        let word = number << Self::NUMBER_SHIFT | Self::SOME | zeroed << Self::ZEROED_SHIFT | arena as u64;
        match NonZeroU64::new(word) {
            Some(word) => Some(Self(word)),
            None => None,
        }
    }

    /// As the block of `order` that was asked for.
    #[inline]
    pub(super) fn allocation(self, order: u8) -> Allocation {
        let word = self.0.get();
        let (zone, controller) = Zone::of_arena(word as usize % ARENAS);
        let contents = if word >> Self::ZEROED_SHIFT & 1 == 0 { Contents::Dirty } else { Contents::Zeroed };
        let frame = Frame::containing(Pa::new_truncate(word >> Self::NUMBER_SHIFT << FRAME_SHIFT));
        Allocation { frame, order, controller, zone, contents }
    }
}
