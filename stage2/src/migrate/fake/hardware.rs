//! Frames, tables, TLBs and a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Allocator, Scheduler};
use crate::addr::{FRAME_SIZE, Frame, Ipa, Pa};
use crate::migrate::Fault;
use crate::owner::GuestId;
use crate::range::FrameRange;
use crate::table::{Access, Kind, Level, Table};

/// Number of words that stand for the 4 KiB of a frame.
const WORDS: usize = 2;
/// Number of frames in one allocation. No more, for the reason given at [`crate::cases::tables`].
const PIECE: u64 = 64;

type Frames = [[AtomicU64; WORDS]; PIECE as usize];
/// Number of table frames.
const TABLES: usize = 48;
const TABLE_BASE: u64 = 0x80_0000;

/// A TLB entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    guest: GuestId,
    vcpu: usize,
    ipa: u64,
    size: u64,
    pa: u64,
    is_writable: bool,
    is_dying: bool,
}

pub(in super::super) struct Hardware {
    controllers: Vec<FrameRange>,
    #[expect(clippy::vec_box, reason = "each an allocation of its own: see `cases::tables`")]
    frames: Vec<Vec<Box<Frames>>>,
    allocator: Mutex<Allocator>,
    arena: Vec<Box<Table>>,
    tables_taken: Mutex<Vec<bool>>,
    roots: Mutex<BTreeMap<GuestId, Pa>>,
    tlb: Mutex<Vec<Entry>>,
    /// The expected value of each word, by guest and IPA. Words without an entry have the pattern.
    expected: Mutex<BTreeMap<(GuestId, u64, usize), u64>>,
    /// The number of writes to a word, for exclusives.
    versions: Mutex<BTreeMap<(u64, usize), u64>>,
    /// Targets of copies since the last `synchronise_fetches`.
    unfetched: Mutex<BTreeSet<u64>>,
    /// Pages that vCPUs touch. Only actions on these or on their frames are worth a switch of threads.
    watched: Mutex<BTreeSet<u64>>,
    /// Frames behind the watched pages.
    interesting: Mutex<BTreeSet<u64>>,
    /// True if the last invalidation was of a watched page.
    is_hot: AtomicBool,
    clock: AtomicU64,
    scheduler: Option<Arc<Scheduler>>,
    pub(in super::super) fail_tables: AtomicBool,
    pub(in super::super) frames_copied: AtomicU64,
    /// Additional ticks for copying a frame.
    pub(in super::super) ticks_per_copy: AtomicU64,
}

/// Returns the first value of a word of `guest`'s page at `ipa`.
fn pattern(guest: GuestId, ipa: u64, word: usize) -> u64 {
    (guest.index() as u64 + 1) << 56 | ipa << 4 | word as u64
}

impl Hardware {
    pub(super) fn new(sizes: &[u64], scheduler: Option<Arc<Scheduler>>) -> Self {
        let base = |number: usize| 0x4_0000 + number as u64 * 0x10_0000;
        let range = |(number, size): (usize, &u64)| {
            FrameRange::from_numbers(base(number), base(number) + size).unwrap()
        };
        let controllers: Vec<_> = sizes.iter().enumerate().map(range).collect();
        let frames = || zerocopy::FromZeros::new_box_zeroed().unwrap();
        Self {
            frames: sizes.iter().map(|size| (0..size.div_ceil(PIECE)).map(|_| frames()).collect()).collect(),
            allocator: Mutex::new(Allocator::new(controllers.clone())),
            controllers,
            arena: crate::cases::tables(TABLES),
            tables_taken: Mutex::new(vec![false; TABLES]),
            roots: Mutex::default(),
            tlb: Mutex::default(),
            expected: Mutex::default(),
            versions: Mutex::default(),
            unfetched: Mutex::default(),
            watched: Mutex::default(),
            interesting: Mutex::default(),
            is_hot: AtomicBool::new(true),
            clock: AtomicU64::new(1),
            scheduler,
            fail_tables: AtomicBool::new(false),
            frames_copied: AtomicU64::new(0),
            ticks_per_copy: AtomicU64::new(0),
        }
    }

    // Time and turns.

    pub(super) fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(in super::super) fn pass(&self, ticks: u64) {
        self.clock.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Lets another CPU run, if the scheduler decides so.
    pub(in super::super) fn pause(&self) {
        if let Some(scheduler) = &self.scheduler {
            scheduler.pause();
        }
    }

    // Frames.

    fn words(&self, frame: Frame) -> &[AtomicU64; WORDS] {
        let number = self.controllers.iter().position(|range| range.contains(frame)).unwrap();
        let at = frame.number() - self.controllers[number].start();
        &self.frames[number][(at / PIECE) as usize][(at % PIECE) as usize]
    }

    pub(super) fn span_of(&self, frame: Frame) -> Option<(u8, FrameRange)> {
        let number = self.controllers.iter().position(|range| range.contains(frame))?;
        Some((number as u8, self.controllers[number]))
    }

    pub(super) fn controller_frames(&self, number: u8) -> FrameRange {
        self.controllers[usize::from(number)]
    }

    pub(in super::super) fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap()
    }

    pub(super) fn fill(&self, guest: GuestId, ipa: Ipa, frame: Frame) {
        for (index, word) in self.words(frame).iter().enumerate() {
            word.store(pattern(guest, ipa.get(), index), Ordering::Relaxed);
        }
    }

    /// Notes that vCPUs will touch the page at `ipa`, which `frame` is behind.
    pub(in super::super) fn watch(&self, ipa: Ipa, frame: Frame) {
        self.watched.lock().unwrap().insert(ipa.get());
        self.interesting.lock().unwrap().insert(frame.number());
    }

    /// Lets another CPU run if the last invalidation was of a watched page.
    pub(super) fn pause_if_hot(&self) {
        if self.is_hot.load(Ordering::Relaxed) {
            self.pause();
        }
    }

    fn is_interesting(&self, frame: Frame) -> bool {
        self.interesting.lock().unwrap().contains(&frame.number())
    }

    /// Copies a frame word by word. Another CPU may run in between.
    pub(super) fn copy(&self, source: Frame, target: Frame) {
        let is_interesting = self.is_interesting(source) || self.is_interesting(target);
        if is_interesting {
            self.interesting.lock().unwrap().insert(target.number());
        }
        self.frames_copied.fetch_add(1, Ordering::Relaxed);
        self.pass(self.ticks_per_copy.load(Ordering::Relaxed));
        for (index, (from, to)) in self.words(source).iter().zip(self.words(target)).enumerate() {
            if is_interesting {
                self.pause();
            }
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            *self.versions.lock().unwrap().entry((target.number(), index)).or_default() += 1;
        }
        self.unfetched.lock().unwrap().insert(target.number());
        if is_interesting {
            self.pause();
        }
    }

    pub(super) fn scrub(&self, frame: Frame) {
        if self.is_interesting(frame) {
            self.pause();
        }
        self.words(frame).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    pub(super) fn scrub_free(&self, frame: Frame, count: u64) {
        (0..count).for_each(|index| self.scrub(frame.checked_add(index).unwrap()));
    }

    #[track_caller]
    pub(super) fn check_zero(&self, frame: Frame, count: u64) {
        for index in 0..count {
            let words = self.words(frame.checked_add(index).unwrap());
            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0), "{frame:?} + {index}");
        }
    }

    pub(super) fn check_scrubbed(&self) {
        let used: Vec<FrameRange> = {
            let allocator = self.allocator();
            self.controllers
                .iter()
                .flat_map(|range| range.start()..range.end())
                .filter_map(|first| {
                    let (order, _) = super::Books::block(&*allocator, Frame::try_new(first)?)?;
                    FrameRange::from_numbers(first, first + (1 << order))
                })
                .collect()
        };
        let mut used = used.into_iter().peekable();
        for (range, frames) in self.controllers.iter().zip(&self.frames) {
            for (index, words) in frames.iter().flat_map(|piece| piece.iter()).enumerate() {
                let frame = Frame::try_new(range.start() + index as u64).unwrap();
                while used.peek().is_some_and(|block| block.end() <= frame.number()) {
                    used.next();
                }
                if used.peek().is_none_or(|block| !block.contains(frame)) {
                    assert!(
                        words.iter().all(|word| word.load(Ordering::Relaxed) == 0),
                        "{frame:?} not scrubbed"
                    );
                }
            }
        }
    }

    pub(super) fn synchronise_fetches(&self) {
        self.pass(20);
        self.unfetched.lock().unwrap().clear();
    }

    // Tables.

    pub(super) fn allocate_table(&self, order: u8) -> Option<Frame> {
        if self.fail_tables.load(Ordering::Relaxed) {
            return None;
        }
        let mut taken = self.tables_taken.lock().unwrap();
        let count = 1 << order;
        let first =
            (0..taken.len()).step_by(count).find(|&first| !taken[first..first + count].contains(&true))?;
        taken[first..first + count].fill(true);
        Frame::try_new(TABLE_BASE + first as u64)
    }

    pub(super) fn free_table(&self, frame: Frame, order: u8) {
        let first = (frame.number() - TABLE_BASE) as usize;
        self.tables_taken.lock().unwrap()[first..first + (1 << order)].fill(false);
    }

    pub(super) fn table(&self, frame: Frame) -> &Table {
        &self.arena[(frame.number() - TABLE_BASE) as usize]
    }

    pub(super) fn add_root(&self, guest: GuestId, root: Pa) {
        self.roots.lock().unwrap().insert(guest, root);
    }

    // The TLB.

    pub(super) fn invalidate(&self, ipa: Ipa, size: u64) {
        let (start, end) = (ipa.get(), ipa.get() + size);
        let is_hot = self.watched.lock().unwrap().range(start..end).next().is_some();
        self.is_hot.store(is_hot, Ordering::Relaxed);
        for entry in self.tlb.lock().unwrap().iter_mut() {
            entry.is_dying |= entry.ipa < end && start < entry.ipa + entry.size;
        }
    }

    pub(super) fn synchronise(&self) {
        self.tlb.lock().unwrap().retain(|entry| !entry.is_dying);
    }

    /// Walks `guest`'s tables. Returns start and size of the leaf, its PA, and whether it is writable.
    fn walk(&self, guest: GuestId, ipa: Ipa) -> Option<(u64, u64, u64, bool)> {
        let root = self.roots.lock().unwrap().get(&guest).copied()?;
        let mut frame = Frame::containing(root).checked_add(ipa.get() >> 39)?;
        let mut level = Level::L1;
        loop {
            let entry = &self.table(frame)[(ipa.get() >> level.shift()) as usize % 512];
            let descriptor = crate::table::load(entry);
            match descriptor.kind(level) {
                Kind::Table => frame = Frame::containing(descriptor.output()),
                Kind::Leaf => {
                    let writable =
                        descriptor.attributes().access != Access::ReadOnly && !descriptor.is_protected();
                    let size = level.size();
                    return Some((ipa.get() & !(size - 1), size, descriptor.output().get(), writable));
                }
                _ => return None,
            }
            level = level.below()?;
        }
    }

    /// Returns the frame that `vcpu` reaches at `ipa`, by its TLB or by a walk.
    fn reach(&self, guest: GuestId, vcpu: usize, ipa: Ipa, is_write: bool) -> Result<Frame, Fault> {
        let mut tlb = self.tlb.lock().unwrap();
        let cached = tlb.iter().find(|entry| {
            entry.guest == guest
                && entry.vcpu == vcpu
                && (entry.ipa..entry.ipa + entry.size).contains(&ipa.get())
        });
        let entry = match cached {
            Some(entry) => *entry,
            None => {
                let (start, size, pa, is_writable) = self.walk(guest, ipa).ok_or(Fault::Translation)?;
                let entry = Entry { guest, vcpu, ipa: start, size, pa, is_writable, is_dying: false };
                tlb.push(entry);
                entry
            }
        };
        if is_write && !entry.is_writable {
            return Err(Fault::Write);
        }
        let frame = Frame::containing(Pa::try_new(entry.pa + (ipa.get() - entry.ipa)).unwrap());
        assert!(
            !self.unfetched.lock().unwrap().contains(&frame.number()),
            "{frame:?} was not made fetchable"
        );
        Ok(frame)
    }

    // The guest.

    fn expected(&self, guest: GuestId, ipa: Ipa, word: usize) -> u64 {
        let page = ipa.get() & !(FRAME_SIZE - 1);
        let written = self.expected.lock().unwrap().get(&(guest, page, word)).copied();
        written.unwrap_or_else(|| pattern(guest, page, word))
    }

    /// Checks both words of a page, and increments word 0 for a write. No other CPU runs in between.
    pub(in super::super) fn access(
        &self,
        guest: GuestId,
        vcpu: usize,
        ipa: Ipa,
        is_write: bool,
    ) -> Result<(), Fault> {
        let frame = self.reach(guest, vcpu, ipa, is_write)?;
        for (index, word) in self.words(frame).iter().enumerate() {
            let found = word.load(Ordering::Relaxed);
            assert_eq!(
                found,
                self.expected(guest, ipa, index),
                "vCPU {vcpu} at {ipa}, word {index}, {frame:?}"
            );
        }
        if is_write {
            self.write(guest, ipa, frame, 0);
        }
        Ok(())
    }

    fn write(&self, guest: GuestId, ipa: Ipa, frame: Frame, word: usize) {
        let page = ipa.get() & !(FRAME_SIZE - 1);
        let new = self.words(frame)[word].load(Ordering::Relaxed) + 1;
        self.words(frame)[word].store(new, Ordering::Relaxed);
        *self.versions.lock().unwrap().entry((frame.number(), word)).or_default() += 1;
        self.expected.lock().unwrap().insert((guest, page, word), new);
    }

    /// Performs a Load-Exclusive of word 1. Returns the monitor's state.
    pub(in super::super) fn load_exclusive(
        &self,
        guest: GuestId,
        vcpu: usize,
        ipa: Ipa,
    ) -> Result<(Frame, u64), Fault> {
        let frame = self.reach(guest, vcpu, ipa, false)?;
        let found = self.words(frame)[1].load(Ordering::Relaxed);
        assert_eq!(found, self.expected(guest, ipa, 1), "vCPU {vcpu} at {ipa}");
        let version = self.versions.lock().unwrap().get(&(frame.number(), 1)).copied().unwrap_or(0);
        Ok((frame, version))
    }

    /// Performs a Store-Exclusive of word 1 plus one. Returns whether it succeeded. The monitor holds a physical
    /// address.
    pub(in super::super) fn store_exclusive(
        &self,
        guest: GuestId,
        vcpu: usize,
        ipa: Ipa,
        monitor: (Frame, u64),
    ) -> Result<bool, Fault> {
        let frame = self.reach(guest, vcpu, ipa, true)?;
        let version = self.versions.lock().unwrap().get(&(frame.number(), 1)).copied().unwrap_or(0);
        if (frame, version) != monitor {
            return Ok(false);
        }
        self.write(guest, ipa, frame, 1);
        Ok(true)
    }

    #[track_caller]
    pub(super) fn check_page(&self, guest: GuestId, ipa: Ipa, frame: Frame) {
        for (index, word) in self.words(frame).iter().enumerate() {
            let found = word.load(Ordering::Relaxed);
            assert_eq!(found, self.expected(guest, ipa, index), "{guest} at {ipa}, word {index}, {frame:?}");
        }
    }
}
