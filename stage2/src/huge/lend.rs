//! Promises, and units that go to guests and come back.

use super::units::{HugeUnits, Pool, fresh, release};
use super::{UnitError, UnitSize};
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::controller::{ControllerId, MAX_CONTROLLERS};
use crate::frame::{Contents, Mapping};
use crate::memory::{Allocation, BlockError, Memory};
use crate::owner::{GuestId, Owner};
use crate::placement::{Placement, Strictness};
use crate::range::FrameRange;

impl HugeUnits {
    /// Promises `guest` `count` units of `size` more. What is not at rest unpromised is taken from memory, as far as the
    /// target and the limit for surplus allow.
    ///
    /// # Errors
    /// Where there are not that many; the pool is as before then.
    pub fn promise(
        &self,
        memory: &Memory<'_>,
        size: UnitSize,
        guest: GuestId,
        count: u32,
        placement: Placement,
    ) -> Result<(), UnitError> {
        let mut pools = self.pools.lock();
        let pool = &mut pools[size as usize];
        let missing = count.saturating_sub(pool.unpromised());
        check_limit(pool, size, missing)?;
        let mut grown = [0u32; MAX_CONTROLLERS];
        for _ in 0..missing {
            match pool.grow(memory, size, placement) {
                Ok(controller) => grown[controller.index()] += 1,
                Err(error) => {
                    // What came last stands in front.
                    for controller in memory.controllers().iter() {
                        (0..grown[controller.index()])
                            .for_each(|_| pool.shrink_behind(memory, size, controller));
                    }
                    return Err(error);
                }
            }
        }
        pool.promised[guest.index()] += count;
        Ok(())
    }

    /// Takes `count` promises back from `guest`; what is surplus then goes back to memory.
    ///
    /// # Errors
    /// Where it has fewer; nothing is changed then.
    pub fn withdraw(
        &self,
        memory: &Memory<'_>,
        size: UnitSize,
        guest: GuestId,
        count: u32,
    ) -> Result<(), UnitError> {
        let mut pools = self.pools.lock();
        let pool = &mut pools[size as usize];
        let promised = &mut pool.promised[guest.index()];
        *promised = promised.checked_sub(count).ok_or(UnitError::NotTheGuests { guest })?;
        while pool.totals().surplus > 0 && pool.unpromised() > 0 && pool.shrink(memory, size) {}
        Ok(())
    }

    /// Lends `guest` a unit: one that it was promised, or else one that nobody was. Units in isolated ranges stay where
    /// they are; where only such are left, a fresh one is taken in their stead.
    ///
    /// # Errors
    /// Where none is left where `placement` allows.
    pub fn lend(
        &self,
        memory: &Memory<'_>,
        size: UnitSize,
        guest: GuestId,
        placement: Placement,
        mapping: Option<Mapping>,
    ) -> Result<Allocation, UnitError> {
        let mut pools = self.pools.lock();
        let pool = &mut pools[size as usize];
        let is_promised = pool.promised[guest.index()] > 0;
        let unit = if is_promised || pool.unpromised() > 0 {
            pool.take_resting(memory, size, placement)
        } else {
            check_limit(pool, size, 1)?;
            let unit = fresh(memory, size, placement)?;
            pool.resting += 1;
            Some(unit)
        };
        let Some(unit) = unit else {
            let totals = pool.totals();
            return Err(UnitError::NoneLeft { size, resting: totals.resting, promised: totals.promised });
        };
        let owner = Owner::Guest(guest);
        if memory.hand_over(unit.frame, size.order(), Owner::Huge, owner, mapping).is_err() {
            pool.rest_again(memory, &unit);
            return Err(UnitError::NoUnit { frame: unit.frame });
        }
        pool.resting -= 1;
        pool.lent[guest.index()] += 1;
        if is_promised {
            pool.promised[guest.index()] -= 1;
        }
        Ok(unit)
    }

    /// Takes a block back that was lent to `guest` as a unit, or is a part of one that was divided meanwhile. A unit goes
    /// to rest, or to memory where it is surplus or holds frames that are to be retired; a part goes to memory, and the
    /// accounts follow. `contents` says what the guest left in it.
    ///
    /// # Errors
    /// Where it is no block of that order of the guest's; nothing is changed then.
    pub fn give_back(
        &self,
        memory: &Memory<'_>,
        guest: GuestId,
        frame: Frame,
        order: u8,
        contents: Contents,
    ) -> Result<(), BlockError> {
        let mut pools = self.pools.lock();
        let [two_mib, one_gib] = &mut *pools;
        let at = guest.index();
        if order == UnitSize::OneGib.order() {
            return one_gib.take_back(memory, guest, frame, UnitSize::OneGib, contents);
        }
        memory.check_block(frame, order, Owner::Guest(guest))?;
        if two_mib.lent[at] == 0 && one_gib.lent[at] > 0 {
            // Of a unit of 1 GiB.
            demote_accounts(one_gib, two_mib, |pool| &mut pool.lent[at]);
        }
        if order == UnitSize::TwoMib.order() {
            return two_mib.take_back(memory, guest, frame, UnitSize::TwoMib, contents);
        }
        memory.free(frame, order, Owner::Guest(guest), contents)?;
        two_mib.loose[at] += 1 << order;
        while u64::from(two_mib.loose[at]) >= PAGEBLOCK_FRAMES && two_mib.lent[at] > 0 {
            two_mib.loose[at] -= PAGEBLOCK_FRAMES as u32;
            two_mib.lent[at] -= 1;
        }
        Ok(())
    }

    /// Ends all accounts of a guest that has given everything back: promises, and what is left of divided units.
    pub fn forget(&self, memory: &Memory<'_>, guest: GuestId) {
        let at = guest.index();
        for size in UnitSize::ALL {
            let pool = &mut self.pools.lock()[size as usize];
            (pool.lent[at], pool.promised[at], pool.loose[at]) = (0, 0, 0);
            while pool.totals().surplus > 0 && pool.unpromised() > 0 && pool.shrink(memory, size) {}
        }
    }
}

/// Whether the pool may have `more` units more than it has.
fn check_limit(pool: &Pool, size: UnitSize, more: u32) -> Result<(), UnitError> {
    let limit = pool.target.saturating_add(pool.surplus_limit);
    match pool.totals().total.checked_add(more) {
        Some(total) if more == 0 || total <= limit => Ok(()),
        _ => Err(UnitError::Limit { size, limit }),
    }
}

/// Counts one unit of 1 GiB less and 512 of 2 MiB more, where `count` says, and in the targets.
pub(super) fn demote_accounts(one_gib: &mut Pool, two_mib: &mut Pool, count: impl Fn(&mut Pool) -> &mut u32) {
    *count(one_gib) -= 1;
    *count(two_mib) += PAGEBLOCK_FRAMES as u32;
    if one_gib.target > 0 {
        one_gib.target -= 1;
        two_mib.target += PAGEBLOCK_FRAMES as u32;
    }
}

impl Pool {
    /// Takes a unit from where `placement` allows. It counts as resting still.
    fn take_resting(
        &mut self,
        memory: &Memory<'_>,
        size: UnitSize,
        placement: Placement,
    ) -> Option<Allocation> {
        let (named, strictness) = placement.named();
        let listed = match &placement {
            Placement::Listed(list, _) => list.as_slice(),
            _ => &[],
        };
        let others = match strictness {
            Strictness::Strict => named,
            Strictness::Preferred => memory.controllers(),
        };
        let order = listed.iter().copied().chain(named.iter()).chain(others.iter());
        for controller in order {
            let chain = self.chains.get_mut(controller.index())?;
            let is_lendable =
                |span: FrameRange| !memory.is_isolated(span) && !memory.is_doomed_block(span.first());
            if let Some(frame) = chain.pop(memory, size, is_lendable) {
                return Some(unit(frame, size, controller, memory));
            }
        }
        // What rests is isolated, or elsewhere: a fresh unit, and one of these goes in its stead.
        let fresh = fresh(memory, size, placement).ok()?;
        let old = self.chains.iter_mut().find_map(|chain| chain.pop(memory, size, |_| true));
        release(memory, old.unwrap_or(fresh.frame), size);
        old.map(|_| fresh)
    }

    /// Takes a unit, or a block that passes for one, back from `guest`.
    fn take_back(
        &mut self,
        memory: &Memory<'_>,
        guest: GuestId,
        frame: Frame,
        size: UnitSize,
        contents: Contents,
    ) -> Result<(), BlockError> {
        let (order, owner) = (size.order(), Owner::Guest(guest));
        let is_lent = self.lent[guest.index()] > 0;
        if !is_lent || self.totals().surplus > 0 || memory.is_doomed_block(frame) {
            memory.free(frame, order, owner, contents)?;
        } else {
            let controller = memory.hand_over(frame, order, owner, Owner::Huge, None)?;
            self.chains[controller.index()].push(memory, frame);
            self.resting += 1;
        }
        self.lent[guest.index()] -= u32::from(is_lent);
        Ok(())
    }

    /// Undoes [`Self::take_resting`].
    fn rest_again(&mut self, memory: &Memory<'_>, unit: &Allocation) {
        self.chains[unit.controller.index()].push(memory, unit.frame);
    }
}

fn unit(frame: Frame, size: UnitSize, controller: ControllerId, memory: &Memory<'_>) -> Allocation {
    let zone = memory.zone_of(frame).unwrap_or(crate::zone::Zone::Normal);
    Allocation { frame, order: size.order(), controller, zone, contents: Contents::Dirty }
}
