//! Memory controllers: their numbers and sets of them.

use core::fmt;

/// The maximum number of controllers of a machine.
#[cfg(not(any(loom, all(miri, test))))]
pub const MAX_CONTROLLERS: usize = 64;
/// One under loom, whose stacks are small.
#[cfg(loom)]
pub const MAX_CONTROLLERS: usize = 1;
/// As few as the tests need under Miri, which is slow: data for each controller is created and checked often.
#[cfg(all(miri, test))]
pub const MAX_CONTROLLERS: usize = 4;

/// The number of a memory controller, below [`MAX_CONTROLLERS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct ControllerId(u8);

impl ControllerId {
    /// Creates the number of a controller, or returns `None` at or above [`MAX_CONTROLLERS`].
    pub const fn try_new(number: u8) -> Option<Self> {
        if (number as usize) < MAX_CONTROLLERS { Some(Self(number)) } else { None }
    }

    /// Returns the number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ControllerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "controller {}", self.0)
    }
}

/// A set of controllers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ControllerSet(u64);

impl ControllerSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);
    /// The set of all possible controllers.
    pub const ALL: Self = Self(u64::MAX);

    /// Returns the set with `controller` added.
    #[must_use]
    pub const fn with(self, controller: ControllerId) -> Self {
        Self(self.0 | 1 << controller.0)
    }

    /// Returns the set without `controller`.
    #[must_use]
    pub const fn without(self, controller: ControllerId) -> Self {
        Self(self.0 & !(1 << controller.0))
    }

    /// Returns the intersection of both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the union of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the set without the controllers of `others`.
    #[must_use]
    pub const fn without_all(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Returns whether `controller` is in the set.
    pub const fn contains(self, controller: ControllerId) -> bool {
        self.0 & 1 << controller.0 != 0
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the controller, if there is exactly one.
    #[inline]
    pub(crate) const fn only(self) -> Option<ControllerId> {
        if self.0.is_power_of_two() { Some(ControllerId(self.0.trailing_zeros() as u8)) } else { None }
    }

    /// Returns the number of controllers in the set.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Returns the set as bits, one for each controller, for storage in an atomic.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Returns the set of the given bits.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the controllers of the set in ascending order.
    pub fn iter(self) -> impl Iterator<Item = ControllerId> {
        let mut bits = self.0;
        core::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let number = bits.trailing_zeros() as u8;
            bits &= bits - 1;
            Some(ControllerId(number))
        })
    }
}

impl FromIterator<ControllerId> for ControllerSet {
    fn from_iter<I: IntoIterator<Item = ControllerId>>(controllers: I) -> Self {
        controllers.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for ControllerSet {
    /// Formats the numbers, separated by commas: `0,2,3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, controller) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", controller.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_lists_its_controllers_in_order() {
        let set: ControllerSet = [3, 0, 63].into_iter().map(ControllerId).collect();
        assert_eq!(set.to_string(), "0,3,63");
        assert_eq!(set.len(), 3);
        assert!(set.contains(ControllerId(3)) && !set.contains(ControllerId(1)));
        assert!(set.without(ControllerId(3)).iter().eq([ControllerId(0), ControllerId(63)]));
    }

    #[test]
    fn controller_numbers_are_bounded() {
        let count = MAX_CONTROLLERS as u8;
        assert_eq!(ControllerId::try_new(count), None);
        assert_eq!(ControllerId::try_new(count - 1).unwrap().index(), MAX_CONTROLLERS - 1);
    }
}
