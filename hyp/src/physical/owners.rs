//! Owners of pools, and the windows in which they see what they claim.

use super::Tell;
use alloc::format;
use alloc::string::{String, ToString};
use core::ops::Range;
use guest_dts::config::{Layout, Pool, Severity, Unit};
use guest_dts::guest_tree::platform::RAM_BASE;
use stage2::addr::{MAX_ORDER, PAGEBLOCK_ORDER};
use stage2::owner::{GuestId, PoolId};
use stage2::phys::pool::Pools;

/// A guest that may own pools.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The guest.
    pub id: GuestId,
    /// The guest's RAM.
    pub layout: &'a Layout,
    /// End of the guest's address space.
    pub ipa_limit: u64,
}

/// Gives `pools` the owners and units that the configuration names. `find` returns the guest of a name. Reports pools that
/// get no owner: the guest does not exist, or the pool's window does not fit into its address space.
pub fn set_owners<'a>(
    pools: &mut Pools,
    configured: &[Pool<'_>],
    find: impl Fn(&str) -> Option<Owner<'a>>,
    tell: &mut Tell<'_>,
) {
    for pool in configured {
        let name = pool.node.name();
        let Some(id) = pools.find(name) else { continue };
        match pool.unit {
            Unit::Medium => pools.keep_units(id, PAGEBLOCK_ORDER, pool.unit_wait_ms),
            Unit::Large => pools.keep_units(id, MAX_ORDER, pool.unit_wait_ms),
            Unit::Any | Unit::Small => {}
        }
        let Some(guest) = pool.owner else { continue };
        let Some(owner) = find(guest) else {
            tell(Severity::Warning, format_args!("pool {name}: no owner, because guest {guest} was refused"));
            continue;
        };
        pools.bind(id, owner.id, pool.is_pinned_in_place);
        if let Err(why) = claim_window(pools, id, owner.layout, owner.ipa_limit) {
            tell(Severity::Error, format_args!("pool {name}: no owner, because for guest {guest} {why}"));
            pools.unbind(id);
        }
    }
}

/// Returns the guest addresses at which the owner of `pool`, with the RAM `layout`, sees the pool's frames.
///
/// # Errors
/// The window does not fit below `ipa_limit`, or overlaps with the owner's devices or RAM.
pub fn claim_window(
    pools: &Pools,
    pool: PoolId,
    layout: &Layout,
    ipa_limit: u64,
) -> Result<Range<u64>, String> {
    let window = pools.window(pool, ipa_limit).ok_or_else(|| String::from("there is no such pool"))?;
    let window = window.map_err(|error| error.to_string())?;
    let Range { start, end } = window;
    if start < RAM_BASE {
        return Err(format!(
            "its window begins at {start:#x}; it must not lie below the guest's RAM at {RAM_BASE:#x}, among its devices"
        ));
    }
    let overlapped = layout.ranges.iter().find(|ram| ram.range.base().get() < end && start < ram.range.end());
    match overlapped {
        Some(ram) => Err(format!(
            "its window from {start:#x} to {end:#x} overlaps with the guest's RAM: {}",
            ram.range
        )),
        None => Ok(window),
    }
}
