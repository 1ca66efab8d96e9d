//! Pools: memory that belongs to an owner who needs it seldom, lent to guests all the rest of the time.
//!
//! Words:
//! - a *pool* is a stretch of RAM of one controller, in whole pageblocks, wholly inside one designated movable block or
//!   outside all;
//! - its *owner* alone claims frames of it. There is one at a time: a guest that the configuration names has the pool
//!   for good; any other pool belongs to whoever claims first, until its last claimed frame is released;
//! - of a pool's frames some are *free*, some *lent* (guests' RAM, which can be moved away at any time), some *claimed*
//!   and some *fixed* (reserved, retired, or in use by what cannot move: none, where nothing went wrong).
//!
//! Frames of a pool in a designated block stay MOVABLE and are the first choice for guests' RAM. Those of a pool outside
//! all blocks have a pageblock type of their own and are lent to movable requests when nothing else is left.
//!
//! **The guarantee**: where the tenants can move and there are free frames for them elsewhere, a claim succeeds. What
//! cannot move never gets into a pool's frames: [`Memory::allocate`](crate::phys::alloc::Memory::allocate) serves unmovable
//! requests from NORMAL only, and there never from a pool. What is free elsewhere is said by [`Usage::room`].

use crate::controller::ControllerId;
use crate::name::Name;
use crate::owner::{GuestId, MAX_POOLS, PoolId};
use crate::phys::dmb::Source;
use crate::phys::map::BootMap;
use crate::range::FrameRange;

mod usage;
mod window;

pub use usage::{BlockUse, Survey, Usage};
pub use window::WindowError;

/// A pool, as it was set up at boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its frames.
    pub range: FrameRange,
    /// The controller that they lie behind.
    pub controller: ControllerId,
    /// The designated block that it lies in.
    pub block: Option<u8>,
    /// Where it was asked for.
    pub source: Source,
    /// Its node's name.
    pub name: Name,
    /// The guest that the configuration names as its owner.
    pub bound: Option<GuestId>,
    /// Whether what the guest claims appears at its physical address.
    pub is_in_place: bool,
    /// log2 of the frames of the huge units that it keeps for guests that ask for such units, if it does.
    pub unit_order: Option<u8>,
    /// How long a guest that starts waits for such a unit, in milliseconds.
    pub unit_wait_ms: u32,
}

/// All pools of the machine.
#[derive(Clone, Default, Debug)]
pub struct Pools {
    list: heapless::Vec<Pool, MAX_POOLS>,
}

impl Pools {
    /// The pools that were designated in `map`, without owners.
    pub fn of(map: &BootMap) -> Self {
        let pools = map.pools().iter().map(|pool| Pool {
            range: pool.range,
            controller: pool.controller,
            block: pool.block,
            source: pool.source,
            name: pool.name,
            bound: None,
            is_in_place: false,
            unit_order: None,
            unit_wait_ms: 0,
        });
        Self { list: pools.collect() }
    }

    /// The configuration names `guest` as the owner of the pool with this number.
    pub fn bind(&mut self, id: PoolId, guest: GuestId, is_in_place: bool) {
        if let Some(pool) = self.list.get_mut(id.index()) {
            pool.bound = Some(guest);
            pool.is_in_place = is_in_place;
        }
    }

    /// Takes the pool away from the guest that the configuration names.
    pub fn unbind(&mut self, id: PoolId) {
        if let Some(pool) = self.list.get_mut(id.index()) {
            pool.bound = None;
            pool.is_in_place = false;
        }
    }

    /// The pool with this number keeps units of `order` for guests that ask for such units, which wait so long for one.
    pub fn keep_units(&mut self, id: PoolId, order: u8, wait_ms: u32) {
        if let Some(pool) = self.list.get_mut(id.index()) {
            pool.unit_order = Some(order);
            pool.unit_wait_ms = wait_ms;
        }
    }

    /// The pool with this number.
    pub fn get(&self, id: PoolId) -> Option<&Pool> {
        self.list.get(id.index())
    }

    /// The pool with this name.
    pub fn find(&self, name: &str) -> Option<PoolId> {
        let name = Name::new(name);
        self.iter().find(|(_, pool)| pool.name == name).map(|(id, _)| id)
    }

    /// All pools with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PoolId, &Pool)> {
        let ids = (0..MAX_POOLS as u8).filter_map(PoolId::try_new);
        ids.zip(&self.list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::dmb;
    use crate::phys::dmb::{Node, NodeKind, NodePlace, Wishes};

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
