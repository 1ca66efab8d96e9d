//! Units at rest that stand in the way of a claim.
//!
//! The hypervisor keeps none: a pool's units are all lent in smaller ones until a guest asks for one, which a claim wins back
//! and the guest adopts (`crate::memory::adopt`). From then on it is the guest's RAM, which migration replaces before it lets
//! go of it, be it for a claim, an evacuation or frames that fail. So this is for who keeps a reserve beside.

use super::lend::demote_accounts;
use super::units::{HugeUnits, fresh, release};
use super::{UnitError, UnitSize};
use crate::addr::{PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER};
use crate::memory::Memory;
use crate::owner::Owner;
use crate::placement::Placement;
use crate::range::FrameRange;

impl HugeUnits {
    /// Replaces one unit at rest that touches `range`, which is isolated: a fresh unit from elsewhere, where `placement`
    /// says, rests before the old one goes into the range's free frames. Where there is no other 1 GiB, a unit of that
    /// size that is promised to nobody is demoted first, so that only the 2 MiB that are in the way have to be replaced. Yields whether there was
    /// one: call it until there is none.
    ///
    /// # Errors
    /// Where memory has no replacement; no unit is lost.
    pub fn vacate(
        &self,
        memory: &Memory<'_>,
        range: FrameRange,
        placement: Placement,
    ) -> Result<bool, UnitError> {
        let mut pools = self.pools.lock();
        for size in UnitSize::ALL {
            let pool = &mut pools[size as usize];
            for controller in memory.controllers().iter() {
                let found = pool.chains[controller.index()].pop(memory, size, |span| span.overlaps(range));
                let Some(old) = found else { continue };
                match fresh(memory, size, placement) {
                    Ok(new) => {
                        pool.chains[new.controller.index()].push(memory, new.frame);
                        release(memory, old, size);
                    }
                    Err(_)
                        if size == UnitSize::OneGib
                            && pool.unpromised() > 0
                            && memory.divide(old, size.order(), Owner::Huge).is_ok() =>
                    {
                        let [two_mib, one_gib] = &mut *pools;
                        for part in (0..PAGEBLOCK_FRAMES).rev() {
                            if let Some(part) = old.checked_add(part << PAGEBLOCK_ORDER) {
                                two_mib.chains[controller.index()].push(memory, part);
                            }
                        }
                        demote_accounts(one_gib, two_mib, |pool| &mut pool.resting);
                    }
                    Err(error) => {
                        pool.chains[controller.index()].push(memory, old);
                        return Err(error);
                    }
                }
                return Ok(true);
            }
        }
        Ok(false)
    }
}
