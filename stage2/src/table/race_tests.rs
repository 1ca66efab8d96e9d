//! Races between changes of a leaf and hardware that sets its access flag, on real threads.

use super::descriptor::{Attributes, Kind, Level, Mark};
use super::{Cached, Geometry, Maintenance, Stage2, Table, TableMemory, load};
use crate::addr::{Frame, Ipa, Pa};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const ROUNDS: usize = if cfg!(miri) { 6 } else { 400 };
const M2: u64 = 2 << 20;

struct Arena {
    tables: Vec<Box<Table>>,
    taken: Mutex<Vec<bool>>,
}

impl TableMemory for &Arena {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        let mut taken = self.taken.lock().unwrap();
        let count = 1 << order;
        let first =
            (0..taken.len()).step_by(count).find(|&first| !taken[first..first + count].contains(&true))?;
        taken[first..first + count].fill(true);
        Frame::try_new(first as u64)
    }

    fn free(&mut self, frame: Frame, order: u8) {
        let first = frame.number() as usize;
        self.taken.lock().unwrap()[first..first + (1 << order)].fill(false);
    }

    fn table(&self, frame: Frame) -> &Table {
        &self.tables[frame.number() as usize]
    }
}

struct NoTlb;

impl Maintenance for NoTlb {
    fn publish(&self) {}
    fn invalidate(&self, _: Ipa, _: u64, _: Level, _: Cached) {}
    fn synchronise(&self) {
        std::thread::yield_now();
    }
}

/// Walks as hardware does, and sets the access flag of the leaf if it is valid. Returns whether it did.
fn access_by_hardware(arena: &Arena, ipa: Ipa) -> bool {
    let mut level = Level::L1;
    let mut table = &arena.tables[(ipa.get() >> 39) as usize];
    loop {
        let entry = &table[(ipa.get() >> level.shift()) as usize % 512];
        let found = load(entry);
        match found.kind(level) {
            Kind::Table => {
                table = &arena.tables[Frame::containing(found.output()).number() as usize];
                level = level.below().unwrap();
            }
            Kind::Leaf => {
                let new = found.with_accessed().bits();
                return entry
                    .compare_exchange(found.bits(), new, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok();
            }
            _ => return false,
        }
    }
}

/// Runs `change` while hardware accesses the leaf at 2 MiB. The access must show in the leaf afterwards.
fn race(change: impl Fn(&mut Stage2<&Arena, NoTlb>)) {
    let arena = Arena { tables: crate::cases::tables(8), taken: Mutex::new(vec![false; 8]) };
    let ipa = Ipa::try_new(M2).unwrap();
    let idle = Attributes { accessed: false, ..Attributes::RAM };
    let mut stage2 = Stage2::new(Geometry::new(40, 48).unwrap(), &arena, NoTlb).unwrap();
    for round in 0..ROUNDS {
        stage2.map(ipa, Pa::try_new(M2).unwrap(), M2, idle).unwrap();
        let go = AtomicBool::new(false);
        let accessed = std::thread::scope(|scope| {
            let hardware = scope.spawn(|| {
                while !go.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                for _ in 0..round % 50 {
                    std::hint::spin_loop();
                }
                access_by_hardware(&arena, ipa)
            });
            go.store(true, Ordering::Relaxed);
            change(&mut stage2);
            hardware.join().unwrap()
        });
        let leaf = stage2.leaf(ipa).unwrap();
        assert!(!leaf.is_broken() && !leaf.is_protected());
        assert_eq!(leaf.attributes(), Attributes { accessed, ..idle }, "round {round}: {leaf:?}");
        stage2.unmap(ipa, M2, |_| ()).unwrap();
    }
}

#[test]
fn demotion_races_with_hardware() {
    race(|stage2| _ = stage2.demote(Ipa::new_truncate(M2)).unwrap());
}

#[test]
fn promotion_races_with_hardware() {
    race(|stage2| {
        let ipa = Ipa::new_truncate(M2);
        stage2.demote(ipa).unwrap();
        stage2.promote(ipa, Level::L2).unwrap();
    });
}

#[test]
fn a_move_races_with_hardware() {
    race(|stage2| {
        let ipa = Ipa::new_truncate(M2);
        let run = stage2.break_leaves(ipa, 1, Mark::NONE, Mark::new_truncate(1), |_| ()).unwrap();
        stage2.synchronise();
        stage2.make_leaf(&run, 0, Some(Pa::new_truncate(8 * M2))).unwrap();
    });
}

#[test]
fn protection_races_with_hardware() {
    race(|stage2| {
        let ipa = Ipa::new_truncate(M2);
        let leaf = stage2.protect(ipa, Mark::new_truncate(1)).unwrap();
        stage2.synchronise();
        assert!(leaf.is_protected());
        stage2.unprotect(ipa).unwrap();
    });
}
