//! Pools for the monitor's tests: real memory and real claims, but no migration.

use std::cell::Cell;
use std::sync::atomic::AtomicU32;

use stage2::addr::{Frame, Ipa};
use stage2::claim::{self, ClaimId, Claimant, Claims, RequestError, Step, Windows, Wish};
use stage2::controller::ControllerId;
use stage2::migrate::{Engine, Mobility, Region, Time};
use stage2::owner::{GuestId, Owner, PoolId};
use stage2::phys::alloc::{Memory, MemoryKind, Request};
use stage2::phys::dmb;
use stage2::phys::dmb::{Node, NodeKind, NodePlace, Source, Wishes};
use stage2::phys::frame::{Footprint, Mapping};
use stage2::phys::map::BootMap;
use stage2::phys::placement::Placement;
use stage2::phys::pool::Pools;
use stage2::range::FrameRange;
use stage2::table::Level;

use super::claiming::Claiming;

/// Two pools on the second of two controllers: `video` with 64 MiB, and `camera` with 32 MiB, which guest 1 owns. Guest 0
/// has 72 MiB of both.
pub(super) struct FakePools {
    pub(super) memory: &'static Memory<'static>,
    claims: Claims,
    engine: Engine,
    clock: Cell<u64>,
}

fn node(name: &str, base: u64, mib: u64) -> Node<'_> {
    Node {
        name,
        source: Source::Configuration,
        kind: NodeKind::BlockPool,
        place: NodePlace::Static { base, size: mib << 20 },
        entry: 0,
        is_reusable: true,
        is_no_map: false,
        is_cma_default: false,
    }
}

impl FakePools {
    pub(super) fn new() -> Self {
        let mut map = BootMap::new();
        for (number, base) in [(0, 0x4000_0000), (1, 0x8000_0000)] {
            map.add_ram(ControllerId::try_new(number).unwrap(), base, 256 << 20).unwrap();
        }
        let nodes = [node("video", 0x8400_0000, 64), node("camera", 0x8a00_0000, 32)];
        dmb::designate(&mut map, &Wishes { nodes: &nodes, ..Wishes::default() }).unwrap();
        let mut pools = Pools::of(&map);
        pools.bind(pools.find("camera").unwrap(), GuestId::try_new(1).unwrap(), false);
        let words: Vec<AtomicU32> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
        let memory: &'static Memory<'static> = Box::leak(Box::new(Memory::new()));
        memory.boot(&map, words.leak(), 0).unwrap();
        let guest = GuestId::try_new(0).unwrap();
        for at in 0..36 {
            let ipa = Ipa::new_truncate(0x4000_0000 + at * (2 << 20));
            let owner = Owner::Guest(guest);
            let (placement, mapping) = (Placement::Any, Some(Mapping { guest, ipa }));
            let request = Request { order: 9, kind: MemoryKind::Movable, owner, placement, mapping };
            let _ = memory.allocate(&request).unwrap();
        }
        let claims = Claims::new();
        claims.set_pools(pools);
        Self { memory, claims, engine: Engine::new(), clock: Cell::new(1_000_000) }
    }

    /// Works until nothing is left to do without migration.
    fn work(&self) {
        while self.claims.step(self, &self.engine, u64::MAX) == Step::More {}
    }
}

impl Time for FakePools {
    fn now(&self) -> u64 {
        self.clock.set(self.clock.get() + 1000);
        self.clock.get()
    }
    fn ticks_per_second(&self) -> u64 {
        1_000_000_000
    }
}

impl Windows for FakePools {
    fn invalidate_instructions(&self) {}
    fn show(&self, _: GuestId, _: PoolId, _: FrameRange) -> Option<Ipa> {
        None
    }
    fn part(&self, _: GuestId, _: PoolId, _: FrameRange) -> bool {
        true
    }

    fn hide(&self, _: GuestId, _: PoolId, _: FrameRange) -> bool {
        true
    }
    fn scrub(&self, _: Frame, _: u64) {}
    fn clean(&self, _: Frame, _: u64) {}
}

impl claim::Host for FakePools {
    type Ground = Memory<'static>;
    fn ground(&self) -> &Memory<'static> {
        self.memory
    }
    fn region_at(&self, _: GuestId, _: Ipa) -> Option<Region> {
        let (ipa, size) = (Ipa::default(), 1 << 40);
        let (mobility, placement, largest) = (Mobility::Movable, Placement::Any, Level::L2);
        Some(Region { ipa, size, mobility, placement, largest })
    }
}

impl Claiming for FakePools {
    fn claims(&self) -> &Claims {
        &self.claims
    }
    fn claim(&self, pool: PoolId, wish: Wish) -> Result<ClaimId, RequestError> {
        let id = self.claims.claim(self, Claimant::Operator, pool, wish)?;
        self.work();
        Ok(id)
    }
    fn release(&self, pool: PoolId, range: FrameRange) -> Result<ClaimId, RequestError> {
        let id = self.claims.release(self, Claimant::Operator, pool, range)?;
        self.work();
        Ok(id)
    }
    fn release_all(&self, pool: PoolId) -> Result<(), RequestError> {
        self.claims.release_all(Claimant::Operator, pool)?;
        self.work();
        Ok(())
    }
    fn cancel(&self, id: ClaimId) -> Result<(), RequestError> {
        self.claims.cancel(self, Claimant::Operator, id)?;
        self.work();
        Ok(())
    }
    fn now(&self) -> u64 {
        Time::now(self)
    }
}
