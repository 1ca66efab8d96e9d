//! The pools' accounts.

use super::chain::Chain;
use super::{UnitError, UnitSize};
use crate::addr::Frame;
use crate::controller::{ControllerId, MAX_CONTROLLERS};
use crate::frame::Contents;
use crate::memory::{Allocation, Kind, Memory, Request};
use crate::owner::{GuestId, MAX_GUESTS, Owner};
use crate::placement::Placement;
use crate::sync::Lock;

/// The huge-unit pools of the machine. All zero is empty.
pub struct HugeUnits {
    pub(super) pools: Lock<[Pool; 2]>,
}

/// The units of one size.
pub(super) struct Pool {
    /// Those at rest, by controller.
    pub(super) chains: [Chain; MAX_CONTROLLERS],
    pub(super) resting: u32,
    pub(super) target: u32,
    pub(super) surplus_limit: u32,
    pub(super) lent: [u32; MAX_GUESTS],
    pub(super) promised: [u32; MAX_GUESTS],
    /// Frames of each guest's that came back from a unit of 2 MiB that was divided, until they are 512.
    pub(super) loose: [u32; MAX_GUESTS],
}

/// What a pool has, in units.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// At rest and lent.
    pub total: u32,
    /// At rest.
    pub resting: u32,
    /// Of those at rest, promised to guests.
    pub promised: u32,
    /// Lent to guests.
    pub lent: u32,
    /// Beyond the target.
    pub surplus: u32,
    /// How many the operator wants.
    pub target: u32,
    /// How far the pool may grow beyond that.
    pub surplus_limit: u32,
}

impl Default for HugeUnits {
    fn default() -> Self {
        Self::new()
    }
}

impl HugeUnits {
    /// Pools without a unit.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { pools: Lock::new([const { Pool::new() }; 2]) }
    }

    /// Pools without a unit.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { pools: Lock::new([const { Pool::new() }; 2]) }
    }

    /// What the pool of `size` has.
    pub fn totals(&self, size: UnitSize) -> Totals {
        self.pools.lock()[size as usize].totals()
    }

    /// How many units of `size` are lent and promised to `guest`.
    pub fn of_guest(&self, size: UnitSize, guest: GuestId) -> (u32, u32) {
        let pool = &self.pools.lock()[size as usize];
        (pool.lent[guest.index()], pool.promised[guest.index()])
    }
}

impl Pool {
    const fn new() -> Self {
        Self {
            chains: [const { Chain::EMPTY }; MAX_CONTROLLERS],
            resting: 0,
            target: 0,
            surplus_limit: 0,
            lent: [0; MAX_GUESTS],
            promised: [0; MAX_GUESTS],
            loose: [0; MAX_GUESTS],
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let (lent, promised) = (self.lent.iter().sum(), self.promised.iter().sum());
        let total = self.resting + lent;
        Totals {
            total,
            resting: self.resting,
            promised,
            lent,
            surplus: total.saturating_sub(self.target),
            target: self.target,
            surplus_limit: self.surplus_limit,
        }
    }

    /// Units at rest that are promised to nobody.
    pub(super) fn unpromised(&self) -> u32 {
        let totals = self.totals();
        totals.resting.saturating_sub(totals.promised)
    }

    /// Lays a block of [`Owner::Huge`]'s to rest.
    pub(super) fn rest(&mut self, memory: &Memory<'_>, unit: &Allocation) {
        self.chains[unit.controller.index()].push(memory, unit.frame);
        self.resting += 1;
    }

    /// Adds a unit from memory, at rest, in front of those behind its controller, which it yields.
    ///
    /// # Errors
    /// Where memory has none.
    pub(super) fn grow(
        &mut self,
        memory: &Memory<'_>,
        size: UnitSize,
        placement: Placement,
    ) -> Result<ControllerId, UnitError> {
        let unit = fresh(memory, size, placement)?;
        self.rest(memory, &unit);
        Ok(unit.controller)
    }

    /// Gives the unit in front of those behind `controller` back to memory.
    pub(super) fn shrink_behind(&mut self, memory: &Memory<'_>, size: UnitSize, controller: ControllerId) {
        if let Some(frame) = self.chains[controller.index()].pop(memory, size, |_| true) {
            self.resting -= 1;
            release(memory, frame, size);
        }
    }

    /// Gives a unit at rest back to memory: the first that is found. Yields whether there was one.
    pub(super) fn shrink(&mut self, memory: &Memory<'_>, size: UnitSize) -> bool {
        let unit = self.chains.iter_mut().find_map(|chain| chain.pop(memory, size, |_| true));
        let Some(frame) = unit else { return false };
        self.resting -= 1;
        release(memory, frame, size);
        true
    }
}

/// A block for a unit.
pub(super) fn fresh(
    memory: &Memory<'_>,
    size: UnitSize,
    placement: Placement,
) -> Result<Allocation, UnitError> {
    let request =
        Request { order: size.order(), kind: Kind::Movable, owner: Owner::Huge, placement, mapping: None };
    memory.allocate(&request).map_err(|error| UnitError::NoMemory { size, error })
}

/// Gives a unit that rests nowhere any more back to memory. What guests left in it is there still.
pub(super) fn release(memory: &Memory<'_>, frame: Frame, size: UnitSize) {
    let freed = memory.free(frame, size.order(), Owner::Huge, Contents::Dirty);
    debug_assert_eq!(freed, Ok(()), "a unit's block is whole and the pool's");
}
