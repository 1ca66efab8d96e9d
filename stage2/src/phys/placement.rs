//! Placement: the controllers that an allocation may use, and the order in which they are tried.
//!
//! Placement is deterministic: the same requests in the same state of memory give the same result. Interleaving has no
//! state of its own. The next unit goes to the controller with the highest quotient of capacity (free frames plus the
//! owner's frames there) and the owner's units there plus one; among equals, to the lowest number. For one owner this
//! is the D'Hondt sequence: round robin over controllers with equal capacity, in proportion over unequal ones.

use crate::addr::{Ipa, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE};
use crate::controller::{ControllerId, ControllerSet, MAX_CONTROLLERS};

/// Controllers in order of preference, each at most once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControllerList {
    list: [ControllerId; MAX_CONTROLLERS],
    length: u8,
    set: ControllerSet,
}

impl ControllerList {
    /// Creates a list of one controller.
    pub const fn one(controller: ControllerId) -> Self {
        Self { list: [controller; MAX_CONTROLLERS], length: 1, set: ControllerSet::EMPTY.with(controller) }
    }

    /// Creates a list of `controllers`, each at most once.
    pub fn new(controllers: &[ControllerId]) -> Self {
        let mut list =
            Self { list: [ControllerId::default(); MAX_CONTROLLERS], length: 0, set: ControllerSet::EMPTY };
        for &controller in controllers {
            if list.set.contains(controller) {
                continue;
            }
            if let Some(place) = list.list.get_mut(list.length as usize) {
                *place = controller;
                list.length += 1;
                list.set = list.set.with(controller);
            }
        }
        list
    }

    /// Returns the controllers in order of preference.
    pub fn as_slice(&self) -> &[ControllerId] {
        self.list.get(..self.length as usize).unwrap_or(&[])
    }

    /// Returns the most preferred controller.
    #[inline]
    pub fn first(&self) -> Option<ControllerId> {
        self.as_slice().first().copied()
    }

    /// Returns the controllers as a set.
    pub const fn set(&self) -> ControllerSet {
        self.set
    }
}

/// The behaviour when the named controllers are full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// The request fails.
    Strict,
    /// The other controllers are tried, the one with the most free memory first.
    Preferred,
}

/// The controllers that an allocation may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Any controller, the one with the most free memory first.
    Any,
    /// The listed controllers, in this order.
    Listed(ControllerList, Strictness),
    /// The controllers of the set, in units of 2 MiB in proportion to their free memory.
    Interleave(ControllerSet, Strictness),
}

impl Placement {
    /// Returns a placement on `controller` only.
    pub const fn only(controller: ControllerId) -> Self {
        Self::Listed(ControllerList::one(controller), Strictness::Strict)
    }

    /// Returns a placement on `controller` and, once it is full, on the others.
    #[cfg(test)]
    pub(crate) const fn prefer(controller: ControllerId) -> Self {
        Self::Listed(ControllerList::one(controller), Strictness::Preferred)
    }

    /// Returns whether memory behind `controller` is allowed.
    pub fn allows(&self, controller: ControllerId) -> bool {
        let (named, strictness) = self.named();
        strictness == Strictness::Preferred || named.contains(controller)
    }

    /// Returns the named controllers, and whether others may be used when these are full.
    pub const fn named(&self) -> (ControllerSet, Strictness) {
        match self {
            Self::Any => (ControllerSet::ALL, Strictness::Preferred),
            Self::Listed(list, strictness) => (list.set(), *strictness),
            Self::Interleave(set, strictness) => (*set, *strictness),
        }
    }
}

/// The number of 2 MiB units after which [`Turns`] repeat.
const TURNS: usize = 64;

/// The controller of each 2 MiB of guests' address space, in proportion to the memory behind each controller. Used to
/// spread memory that is already allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turns([ControllerId; TURNS]);

impl Turns {
    /// Returns the turns of the controllers of `set`, in proportion to `frames`, the capacity of each. Returns `None`
    /// if there are no controllers, or no frames.
    pub fn new(set: ControllerSet, frames: impl Fn(ControllerId) -> u64) -> Option<Self> {
        let open: ControllerSet = set.iter().filter(|controller| frames(*controller) > 0).collect();
        let mut turns = [ControllerId::default(); TURNS];
        let mut held = [0u64; MAX_CONTROLLERS];
        for turn in &mut turns {
            let next = next_interleaved(open, |controller| {
                let held = held[controller.index()] << PAGEBLOCK_ORDER;
                // Scaled, so that only the proportion matters.
                ((frames(controller) << 14).saturating_sub(held), held)
            })?;
            held[next.index()] += 1;
            *turn = next;
        }
        Some(Self(turns))
    }

    /// Returns the controller for `ipa`.
    pub const fn at(&self, ipa: Ipa) -> ControllerId {
        self.0[(ipa.get() / PAGEBLOCK_SIZE) as usize % TURNS]
    }
}

/// Returns the controller of `candidates` with the most free frames, in whole pageblocks; the lowest number among
/// equals.
#[inline]
pub(crate) fn most_free(
    candidates: ControllerSet,
    free: impl Fn(ControllerId) -> u64,
) -> Option<ControllerId> {
    match candidates.only() {
        Some(only) => Some(only),
        None => most_free_of_several(candidates, free),
    }
}

#[inline(never)]
fn most_free_of_several(
    candidates: ControllerSet,
    free: impl Fn(ControllerId) -> u64,
) -> Option<ControllerId> {
    let mut best: Option<(ControllerId, u64)> = None;
    for controller in candidates.iter() {
        let free = free(controller) >> PAGEBLOCK_ORDER;
        if best.is_none_or(|(_, most)| free > most) {
            best = Some((controller, free));
        }
    }
    best.map(|(controller, _)| controller)
}

/// Returns the controller of `candidates` for the next interleaved unit. `frames` returns the free frames behind a
/// controller and the frames that the owner has there.
pub(crate) fn next_interleaved(
    candidates: ControllerSet,
    frames: impl Fn(ControllerId) -> (u64, u64),
) -> Option<ControllerId> {
    let mut best: Option<(ControllerId, u64, u64)> = None;
    for controller in candidates.iter() {
        let (free, held) = frames(controller);
        let capacity = free + held;
        let divisor = (held >> PAGEBLOCK_ORDER) + 1;
        // Frames behind a controller are fewer than 2^32 and units fewer than 2^24: the products fit.
        if best.is_none_or(|(_, most, least)| capacity * least > most * divisor) {
            best = Some((controller, capacity, divisor));
        }
    }
    best.map(|(controller, ..)| controller)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(number: u8) -> ControllerId {
        ControllerId::try_new(number).unwrap()
    }

    fn sequence(units: [u64; 3], steps: usize) -> Vec<usize> {
        let mut held = [0u64; 3];
        let set = (0..3).map(controller).collect();
        (0..steps)
            .map(|_| {
                let next = next_interleaved(set, |c| {
                    let held = held[c.index()];
                    ((units[c.index()] - held) << PAGEBLOCK_ORDER, held << PAGEBLOCK_ORDER)
                })
                .unwrap();
                held[next.index()] += 1;
                next.index()
            })
            .collect()
    }

    #[test]
    fn equal_controllers_take_turns() {
        assert_eq!(sequence([100, 100, 100], 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn unequal_controllers_share_in_proportion() {
        let sequence = sequence([400, 100, 200], 70);
        let count = |n| sequence.iter().filter(|&&c| c == n).count();
        assert_eq!((count(0), count(1), count(2)), (40, 10, 20));
    }

    #[test]
    fn turns_are_taken_in_proportion() {
        let set: ControllerSet = (0..3).map(controller).collect();
        let turns = |frames: [u64; 3]| Turns::new(set, |controller| frames[controller.index()]);
        let at = |turns: &Turns, number: u64| turns.at(Ipa::new_truncate(number << 21)).index();
        let equal = turns([5000, 5000, 5000]).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5].map(|number| at(&equal, number)), [0, 1, 2, 0, 1, 2]);
        assert_eq!(at(&equal, 0), at(&equal, TURNS as u64));
        let unequal = turns([3 << 20, 1 << 20, 0]).unwrap();
        let counts = |turns: &Turns| {
            [0, 1, 2]
                .map(|controller| (0..TURNS as u64).filter(|number| at(turns, *number) == controller).count())
        };
        assert_eq!(counts(&unequal), [48, 16, 0]);
        assert_eq!(counts(&turns([1, 0, 1]).unwrap()), [32, 0, 32]);
        assert_eq!(turns([0, 0, 0]), None);
    }

    #[test]
    fn a_list_names_each_controller_once() {
        let list = ControllerList::new(&[controller(2), controller(0), controller(2)]);
        assert_eq!(list.as_slice(), [controller(2), controller(0)]);
    }

    #[test]
    fn most_free_counts_whole_pageblocks() {
        let set = (0..2).map(controller).collect();
        assert_eq!(most_free(set, |c| [1000, 1023][c.index()]), Some(controller(0)));
        assert_eq!(most_free(set, |c| [1000, 1024][c.index()]), Some(controller(1)));
        assert_eq!(most_free(ControllerSet::EMPTY, |_| 0), None);
    }
}
