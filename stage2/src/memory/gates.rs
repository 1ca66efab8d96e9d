//! Which controllers take allocations, and where that leaves no choice.

use super::Kind;
use crate::controller::ControllerSet;
use crate::sync::{Counter, Ordering::Relaxed};
use crate::zone::{ARENAS, Zone};

/// For each [`Kind`] the zone to look in first, and the controllers that have some of it.
pub(super) type First = [(Zone, ControllerSet); 2];

/// From the bottom: a bit for each controller that takes no allocations; for each kind a byte with the number, one added,
/// of the arena that is first for every request of that kind that names no controllers, zero where that is not always the
/// same one.
///
/// All in one word, so that one never contradicts the other.
pub(super) struct Gates(Counter);

const ARENA_SHIFT: u32 = 16;
const ARENA_BITS: u32 = 8;

impl Gates {
    /// All open; no arena is known.
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self(Counter::new(0))
    }

    /// All open; no arena is known.
    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self(Counter::new(0))
    }

    /// The controllers that take no allocations.
    #[inline]
    pub(super) fn closed(&self) -> ControllerSet {
        ControllerSet::from_bits(self.0.load(Relaxed) as u16)
    }

    /// The arena that is first for requests of `kind` that name no controllers, where that is always the same one, and no
    /// floor has to be kept there.
    #[inline]
    pub(super) fn sole_arena(&self, kind: Kind) -> Option<usize> {
        let arena = self.0.load(Relaxed) >> (ARENA_SHIFT + ARENA_BITS * kind as u32) & 0xff;
        (arena as usize).checked_sub(1).map(|arena| arena % ARENAS)
    }

    /// Makes `change` to the set of closed controllers. `first` is `None` before boot.
    pub(super) fn change(&self, first: Option<&First>, change: impl Fn(ControllerSet) -> ControllerSet) {
        let update = |word: u32| {
            let closed = change(ControllerSet::from_bits(word as u16));
            let arenas = [Kind::Unmovable, Kind::Movable].map(|kind| {
                let (zone, populated) = (*first?)[kind as usize];
                let keeps_floor = kind == Kind::Movable && zone == Zone::Normal;
                let only = populated.without_all(closed).only().filter(|_| !keeps_floor)?;
                Some(zone.arena(only) as u32 + 1)
            });
            let [unmovable, movable] = arenas.map(Option::unwrap_or_default);
            let arenas = unmovable | movable << ARENA_BITS;
            Some(u32::from(closed.bits()) | arenas << ARENA_SHIFT)
        };
        // The closure always yields a word, so this never fails.
        _ = self.0.fetch_update(Relaxed, Relaxed, update);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::controller::ControllerId;

    #[test]
    fn an_arena_is_known_where_one_open_controller_has_the_zone() {
        let [zero, one] = [0, 1].map(|number| ControllerId::try_new(number).unwrap());
        let both = ControllerSet::EMPTY.with(zero).with(one);
        let first = [(Zone::Normal, both), (Zone::Movable, ControllerSet::EMPTY.with(one))];
        let gates = Gates::new();
        let arenas = |gates: &Gates| [Kind::Unmovable, Kind::Movable].map(|kind| gates.sole_arena(kind));
        assert_eq!(arenas(&gates), [None, None]);
        gates.change(Some(&first), |closed| closed);
        assert_eq!(arenas(&gates), [None, Some(Zone::Movable.arena(one))]);
        gates.change(Some(&first), |closed| closed.with(one));
        assert_eq!(
            (gates.closed(), arenas(&gates)),
            (both.without(zero), [Some(Zone::Normal.arena(zero)), None])
        );
        gates.change(Some(&first), |closed| closed.without(one));
        assert_eq!(arenas(&gates), [None, Some(Zone::Movable.arena(one))]);
        // Movable requests that begin in NORMAL have its floor to keep.
        let normal = [(Zone::Normal, ControllerSet::EMPTY.with(zero)); 2];
        gates.change(Some(&normal), |closed| closed);
        assert_eq!(arenas(&gates), [Some(Zone::Normal.arena(zero)), None]);
    }
}
