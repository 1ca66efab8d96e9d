//! Table frames and a TLB that need no maintenance.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{Frame, Ipa};
use crate::table::{Cached, Level, Maintenance, Table, TableMemory};

const TABLES: usize = 96;
const TABLE_BASE: u64 = 0x1000;

#[derive(Clone, Copy)]
pub(crate) struct Tables(pub(super) &'static Shared);
#[derive(Clone, Copy)]
pub(crate) struct Tlb;

/// Table frames of all guests.
pub(crate) struct Shared {
    tables: Vec<Box<Table>>,
    taken: Mutex<Vec<bool>>,
    /// Set while every allocation fails.
    pub(super) is_empty: AtomicBool,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            tables: crate::cases::tables(TABLES),
            taken: Mutex::new(vec![false; TABLES]),
            is_empty: AtomicBool::new(false),
        }
    }
}

impl TableMemory for Tables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        if self.0.is_empty.load(Ordering::Relaxed) {
            return None;
        }
        let mut taken = self.0.taken.lock().unwrap();
        let count = 1 << order;
        let first = (0..taken.len()).step_by(count).find(|at| !taken[*at..at + count].contains(&true))?;
        taken[first..first + count].fill(true);
        Frame::try_new(TABLE_BASE + first as u64)
    }

    fn free(&mut self, frame: Frame, order: u8) {
        let first = (frame.number() - TABLE_BASE) as usize;
        self.0.taken.lock().unwrap()[first..first + (1 << order)].fill(false);
    }

    fn table(&self, frame: Frame) -> &Table {
        &self.0.tables[(frame.number() - TABLE_BASE) as usize]
    }
}

impl Maintenance for Tlb {
    fn publish(&self) {}
    fn invalidate(&self, _: Ipa, _: u64, _: Level, _: Cached) {}
    fn synchronise(&self) {}
}
