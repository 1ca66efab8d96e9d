//! Taking over the RAM of a machine.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use stage2::controller::ControllerId;
use stage2::phys::alloc::{Arena, Memory};
use stage2::phys::frame::Footprint;
use stage2::phys::map::{BootMap, ReservationKind};

use crate::workload::{BASE, words};

/// A machine whose RAM is taken over.
pub(crate) struct Boot {
    /// The description.
    pub(crate) name: &'static str,
    /// The amount of RAM in GiB.
    pub(crate) gib: u64,
    map: BootMap,
}

impl Boot {
    /// Returns machines of one range, and one of 64 GiB in eight ranges with holes, each behind its own controller and
    /// with a reserved megabyte.
    pub(crate) fn all() -> Vec<Self> {
        let controller = |number| ControllerId::try_new(number).expect("a controller");
        let one = |name, gib: u64| {
            let mut map = BootMap::new();
            map.add_ram(controller(0), BASE, gib << 30).expect("RAM");
            Self { name, gib, map }
        };
        let mut holes = BootMap::new();
        for number in 0..8 {
            let base = BASE + ((u64::from(number) * 40) << 30);
            holes.add_ram(controller(number), base, 8 << 30).expect("RAM");
            holes.reserve(base + 0x12_3000, 1 << 20, ReservationKind::Firmware, "firmware").expect("room");
        }
        vec![
            one("1 GiB", 1),
            one("16 GiB", 16),
            Self { name: "64 GiB behind 8 controllers, 7 holes", gib: 64, map: holes },
            one("1 TiB", 1024),
        ]
    }

    /// Returns the size of its frame table.
    pub(crate) fn table_bytes(&self) -> u64 {
        Footprint::of(&self.map).bytes()
    }

    /// Returns the number of bytes of the frame table that boot writes: the table is filled with a pattern first, and
    /// the words that differ afterwards count. Returns `None` for a table too large to fill.
    pub(crate) fn written_bytes(&self) -> Option<u64> {
        const PATTERN: u32 = 0xa5a5_5a5a;
        if self.table_bytes() > 256 << 20 {
            return None;
        }
        let words = words(&self.map);
        words.iter().for_each(|word| word.store(PATTERN, Relaxed));
        let memory = self.new_memory();
        self.boot(&memory, words);
        Some(4 * words.iter().filter(|word| word.load(Relaxed) != PATTERN).count() as u64)
    }

    /// Takes over the RAM.
    #[inline(never)]
    pub(crate) fn run(&self) {
        let words = words(&self.map);
        let memory = self.new_memory();
        self.boot(&memory, words);
        std::mem::forget(memory);
    }

    /// Creates memory with enough arenas.
    fn new_memory(&self) -> Box<Memory<'static>> {
        let memory = Box::new(Memory::new());
        let arenas: Vec<Arena> = (0..Memory::arenas_to_extend(&self.map)).map(|_| Arena::new()).collect();
        memory.extend(arenas.leak());
        memory
    }

    #[inline(never)]
    fn boot(&self, memory: &Memory<'static>, words: &'static [AtomicU32]) {
        memory.boot(&self.map, words, 0).expect("boot");
    }
}
