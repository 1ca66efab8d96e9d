//! Pools: memory whose owner needs it seldom, lent to guests otherwise.
//!
//! Terms:
//! - a *pool* is a range of RAM of one controller, in whole pageblocks, wholly inside one designated movable block or
//!   outside all;
//! - only its *owner* claims frames of it. There is one owner at a time: if the configuration names a guest, that
//!   guest; otherwise the first claimant, until its last claimed frame is released;
//! - frames of a pool are *free*, *lent* (guest RAM, which can be moved away at any time), *claimed* or *fixed*
//!   (reserved, retired, or in use by unmovable memory: none in normal operation).
//!
//! Frames of a pool in a designated block stay in MOVABLE and are the first choice for guest RAM. Frames of a pool
//! outside all blocks have a pageblock type of their own and are lent to movable requests as a last resort.
//!
//! **The guarantee**: a claim succeeds if the tenants can move and there are enough free frames elsewhere for them.
//! Unmovable memory never gets into a pool: [`Memory::allocate`](crate::phys::alloc::Memory::allocate) serves unmovable
//! requests from NORMAL only, and there never from a pool. [`Usage::room`] gives the number of lent frames that fit
//! elsewhere.

use crate::name::Name;
use crate::owner::{GuestId, MAX_POOLS, PoolId};
use crate::phys::map::BootMap;

mod usage;
mod window;

pub use crate::phys::block::Pool;
pub use usage::{BlockUse, Survey, Usage};
pub use window::WindowError;

/// All pools of the machine.
#[derive(Clone, Default, Debug)]
pub struct Pools {
    list: heapless::Vec<Pool, MAX_POOLS>,
}

impl Pools {
    /// Returns the pools designated in `map`, without owners.
    pub fn of(map: &BootMap) -> Self {
        Self { list: map.pools().iter().copied().collect() }
    }

    /// Sets the owner that the configuration names for pool `id`.
    pub fn bind(&mut self, id: PoolId, guest: GuestId, is_in_place: bool) {
        if let Some(pool) = self.list.get_mut(id.index()) {
            pool.bound = Some(guest);
            pool.is_in_place = is_in_place;
        }
    }

    /// Removes the owner that the configuration names for pool `id`.
    pub fn unbind(&mut self, id: PoolId) {
        if let Some(pool) = self.list.get_mut(id.index()) {
            pool.bound = None;
            pool.is_in_place = false;
        }
    }

    /// Makes pool `id` keep units of `order` for guests that ask for such units. A guest waits `wait_ms` for one.
    pub fn keep_units(&mut self, id: PoolId, order: u8, wait_ms: u32) {
        if let Some(pool) = self.list.get_mut(id.index()) {
            pool.unit_order = Some(order);
            pool.unit_wait_ms = wait_ms;
        }
    }

    /// Returns pool `id`.
    pub fn get(&self, id: PoolId) -> Option<&Pool> {
        self.list.get(id.index())
    }

    /// Returns the pool with this name.
    pub fn find(&self, name: &str) -> Option<PoolId> {
        let name = Name::new(name);
        self.iter().find(|(_, pool)| pool.name == name).map(|(id, _)| id)
    }

    /// Returns all pools with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PoolId, &Pool)> {
        let ids = (0..MAX_POOLS as u8).filter_map(PoolId::try_new);
        ids.zip(&self.list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ControllerId;
    use crate::phys::dmb;
    use crate::phys::dmb::{Node, NodeKind, NodePlace, Source, Wishes};

    fn node(name: &str, kind: NodeKind, base: u64, size: u64) -> Node<'_> {
        Node {
            name,
            source: Source::Tree,
            kind,
            place: NodePlace::Static { base, size },
            entry: 0,
            is_reusable: true,
            is_no_map: false,
            is_cma_default: false,
        }
    }

    #[test]
    fn p20_pools_lie_in_one_block_or_outside_all_and_keep_their_owner() {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::default(), 0x4000_0000, 1 << 30).unwrap();
        let nodes = [
            node("video", NodeKind::BlockPool, 0x5000_0000, 64 << 20),
            node("camera", NodeKind::Pool, 0x6000_0000, 32 << 20),
        ];
        dmb::designate(&mut map, &Wishes { nodes: &nodes, ..Wishes::default() }).unwrap();
        let guest = GuestId::try_new(1).unwrap();
        let mut pools = Pools::of(&map);
        pools.bind(pools.find("video").unwrap(), guest, false);
        let (video, camera) = (pools.find("video").unwrap(), pools.find("camera").unwrap());
        assert_eq!(pools.get(video).unwrap().block, Some(0));
        assert_eq!(pools.get(video).unwrap().bound, Some(guest));
        assert_eq!((pools.get(camera).unwrap().block, pools.get(camera).unwrap().bound), (None, None));
        assert_eq!(pools.find("audio"), None);
        assert_eq!(pools.iter().count(), 2);
    }

    #[test]
    fn p18_a_pool_partly_in_a_block_is_refused() {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::default(), 0x4000_0000, 1 << 30).unwrap();
        let nodes = [
            node("dmb", NodeKind::Block, 0x5000_0000, 64 << 20),
            node("video", NodeKind::Pool, 0x5200_0000, 64 << 20),
        ];
        let error = dmb::designate(&mut map, &Wishes { nodes: &nodes, ..Wishes::default() }).unwrap_err();
        assert!(matches!(error.rule, dmb::Rule::PartlyInBlock { .. }), "{error}");
        assert_eq!(map.pools().len(), 0);
    }
}
