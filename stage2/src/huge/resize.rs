//! What the operator wants of the pools.

use super::lend::demote_accounts;
use super::units::{HugeUnits, Pool, release};
use super::{UnitError, UnitSize};
use crate::addr::{Frame, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::controller::ControllerId;
use crate::memory::Memory;
use crate::owner::Owner;
use crate::placement::Placement;

/// What a step towards the target has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// Units taken from memory.
    pub grown: u32,
    /// Units given back to memory.
    pub shrunk: u32,
    /// Units still missing.
    pub missing: u32,
    /// Whether memory has no block for what is missing.
    pub is_out_of_memory: bool,
}

impl HugeUnits {
    /// Sets how many units of `size` there should be, and how many more there may be. [`Self::settle`] does it.
    pub fn set_target(&self, size: UnitSize, target: u32, surplus_limit: u32) {
        let pool = &mut self.pools.lock()[size as usize];
        (pool.target, pool.surplus_limit) = (target, surplus_limit);
    }

    /// Takes at most `most` units from memory, or gives as many back, towards the target. What is lent or promised stays;
    /// it goes when it comes back.
    pub fn settle(&self, memory: &Memory<'_>, size: UnitSize, most: u32, placement: Placement) -> Settled {
        let pool = &mut self.pools.lock()[size as usize];
        let mut done = Settled::default();
        while done.grown + done.shrunk < most {
            let totals = pool.totals();
            if totals.total < totals.target {
                if pool.grow(memory, size, placement).is_err() {
                    done.is_out_of_memory = true;
                    break;
                }
                done.grown += 1;
            } else if totals.surplus > 0 && pool.unpromised() > 0 && pool.shrink(memory, size) {
                done.shrunk += 1;
            } else {
                break;
            }
        }
        let totals = pool.totals();
        done.missing = totals.target.saturating_sub(totals.total);
        done
    }

    /// Makes 512 units of 2 MiB of a unit of 1 GiB at rest, `frame` if that is given; targets follow. Yields the first
    /// frame.
    ///
    /// # Errors
    /// Where no such unit rests unpromised; nothing is changed then.
    pub fn demote_one_gib(&self, memory: &Memory<'_>, frame: Option<Frame>) -> Result<Frame, UnitError> {
        let mut pools = self.pools.lock();
        let [two_mib, one_gib] = &mut *pools;
        let (frame, controller) = one_gib.take_unpromised(memory, UnitSize::OneGib, frame)?;
        if memory.divide(frame, UnitSize::OneGib.order(), Owner::Huge).is_err() {
            return Err(UnitError::NoUnit { frame });
        }
        // In descending order, so that the lowest is lent first.
        for part in (0..PAGEBLOCK_FRAMES).rev() {
            // A frame's number has room above a unit that lies in RAM.
            if let Some(part) = frame.checked_add(part << PAGEBLOCK_ORDER) {
                two_mib.chains[controller.index()].push(memory, part);
            }
        }
        demote_accounts(one_gib, two_mib, |pool| &mut pool.resting);
        Ok(frame)
    }

    /// Makes 512 frames of memory's own of a unit of 2 MiB at rest, `frame` if that is given; the target follows. Yields
    /// the first frame.
    ///
    /// # Errors
    /// Where no such unit rests unpromised; nothing is changed then.
    pub fn demote_two_mib(&self, memory: &Memory<'_>, frame: Option<Frame>) -> Result<Frame, UnitError> {
        let pool = &mut self.pools.lock()[UnitSize::TwoMib as usize];
        let (frame, _) = pool.take_unpromised(memory, UnitSize::TwoMib, frame)?;
        pool.resting -= 1;
        pool.target = pool.target.saturating_sub(1);
        release(memory, frame, UnitSize::TwoMib);
        Ok(frame)
    }
}

impl Pool {
    /// Takes a unit out of its chain that is promised to nobody and stands in no isolated range: `frame`, or any. It
    /// counts as resting still.
    fn take_unpromised(
        &mut self,
        memory: &Memory<'_>,
        size: UnitSize,
        frame: Option<Frame>,
    ) -> Result<(Frame, ControllerId), UnitError> {
        let totals = self.totals();
        let none = UnitError::NoneLeft { size, resting: totals.resting, promised: totals.promised };
        if self.unpromised() == 0 {
            return Err(none);
        }
        for controller in memory.controllers().iter() {
            let chain = &mut self.chains[controller.index()];
            let found = chain.pop(memory, size, |span| match frame {
                Some(frame) => span.first() == frame,
                None => !memory.is_isolated(span),
            });
            if let Some(found) = found {
                return Ok((found, controller));
            }
        }
        Err(frame.map_or(none, |frame| UnitError::NoUnit { frame }))
    }
}
