//! A guest's address space while its memory moves: the steps of the protocol at the head of `migrate`.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::copier::{Copier, SOME, Time};
use super::statistics::Counters;
pub use super::unit::BATCH;
use super::unit::{Batch, Block, COPYING, Copying, HugeUnit, MOVING, SWITCHING, Work, area_of, frame_at};
use crate::addr::{Frame, Ipa, PAGEBLOCK_FRAMES};
use crate::owner::GuestId;
use crate::sync::relax;
use crate::table::{Access, Execute, Leaf, Level, Maintenance, Mark, Stage2, TableError, TableMemory};

/// The stage 2 fault that a guest's access took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A translation fault: no valid leaf.
    Translation,
    /// A permission fault of a data access or of a stage 1 walk: the leaf is not writable.
    Write,
    /// A permission fault of an instruction fetch.
    Fetch,
}

/// The outcome of a guest's access that trapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The guest tries again: the unit has arrived, or the cause is gone.
    Retry,
    /// Not caused by migration: nothing is mapped there, or the access is not allowed.
    NotOurs,
    /// The leaf is in flight, but nobody moves it: a bug in Ballast. The guest cannot continue.
    Stuck,
}

/// The result of one attempt to handle a fault.
enum Answer {
    /// The verdict; no unit in flight is involved.
    Final(Verdict),
    /// The verdict; a unit in flight was involved.
    Moved(Verdict),
    /// A unit in flight is involved: try again.
    Again,
}

/// The result of a part of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copied {
    /// More is left to copy, or another CPU copies.
    Part,
    /// The unit is no longer being copied: moved, split or given up.
    Changed,
}

/// A guest's stage 2 tables behind their lock, and the units in flight in them.
pub struct Space<T, M> {
    guest: GuestId,
    inner: SpinMutex<Inner<T, M>>,
    /// Units of the batch that a CPU copies or has copied, a bit each. Set under the lock or by the worker, cleared
    /// under the lock.
    claimed: AtomicU64,
    /// Units of the batch that are copied.
    copied: AtomicU64,
    /// Number of frames of the 2 MiB unit that the worker has copied so far, or [`STOPPED`], set by the CPU that splits
    /// it.
    so_far: AtomicU16,
    /// True if a vCPU has faulted, or a CPU waits for the lock, since the worker last yielded.
    has_waiter: AtomicBool,
}

/// The part of a space under its lock.
struct Inner<T, M> {
    stage2: Stage2<T, M>,
    work: Work,
    batch: Option<Batch>,
}

/// Value of [`Space::so_far`] once the unit that the worker copies is split or given up.
const STOPPED: u16 = u16::MAX;

impl<T: TableMemory, M: Maintenance> Space<T, M> {
    /// Makes the address space of `guest`.
    pub const fn new(guest: GuestId, stage2: Stage2<T, M>) -> Self {
        let inner = Inner { stage2, work: Work::Nothing, batch: None };
        Self {
            guest,
            inner: SpinMutex::new(inner),
            claimed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            so_far: AtomicU16::new(0),
            has_waiter: AtomicBool::new(false),
        }
    }

    /// Returns the guest.
    pub const fn guest(&self) -> GuestId {
        self.guest
    }

    /// Calls `f` with the tables, under the lock. Units in flight cannot be unmapped: call
    /// [`Engine::abandon`](super::Engine::abandon) before the guest's memory is freed.
    pub fn with<R>(&self, f: impl FnOnce(&mut Stage2<T, M>) -> R) -> R {
        f(&mut self.lock().stage2)
    }

    fn lock(&self) -> SpinMutexGuard<'_, Inner<T, M>> {
        #[cfg(test)]
        crate::sync::hooks::before_lock();
        loop {
            if let Some(inner) = self.inner.try_lock() {
                return inner;
            }
            self.has_waiter.store(true, Ordering::Relaxed);
            relax();
        }
    }

    /// Yields if a CPU waits for this one: between two actions, so that CPUs that take turns, as in an emulator, can
    /// run.
    #[inline(always)]
    pub(super) fn give_way(&self) {
        if self.has_waiter.load(Ordering::Relaxed) {
            self.has_waiter.store(false, Ordering::Relaxed);
            relax();
        }
    }

    /// Returns the work in flight.
    pub(super) fn work(&self) -> Work {
        self.lock().work
    }

    /// Takes a completed or given up 2 MiB unit, whose source or target is to be released.
    pub(super) fn take_leftover(&self) -> Option<Work> {
        let mut inner = self.lock();
        match inner.work {
            work @ (Work::Switched { .. } | Work::GivenUp { .. }) => {
                inner.work = Work::Nothing;
                Some(work)
            }
            _ => None,
        }
    }

    // 2 MiB units.

    /// Protects the 2 MiB leaf at `ipa`, whose contents are to be copied to the block at `target`.
    ///
    /// # Errors
    /// The leaf has changed, or another unit is in flight.
    pub(super) fn begin_huge(&self, ipa: Ipa, target: Frame) -> Result<(), TableError> {
        let mut inner = self.lock();
        if inner.work != Work::Nothing {
            return Err(TableError::InMotion(ipa));
        }
        let leaf = inner.stage2.protect(ipa, COPYING)?;
        if leaf.level() != Level::L2 {
            // Its size has changed since the worker looked at it.
            let _ = inner.stage2.unprotect(ipa);
            inner.stage2.synchronise();
            return Err(TableError::InMotion(ipa));
        }
        inner.stage2.synchronise();
        let source = Frame::containing(leaf.pa());
        inner.work = Work::Huge(HugeUnit { ipa, source, target, copied: 0, copying: Copying::Nobody });
        Ok(())
    }

    /// Copies frames of the 2 MiB unit until `goes_on` returns false, and switches the unit after the last one. For the
    /// worker.
    pub(super) fn copy_huge(
        &self,
        host: &(impl Time + Copier),
        counters: &Counters,
        goes_on: impl Fn() -> bool,
    ) -> Copied {
        let mut inner = self.lock();
        let Some(huge) = self.take_copy(&mut inner, Copying::Worker) else {
            let is_helped = matches!(inner.work, Work::Huge(_));
            drop(inner);
            if !is_helped {
                return Copied::Changed;
            }
            relax();
            return Copied::Part;
        };
        drop(inner);
        self.copy_taken(host, &huge, counters, goes_on)
    }

    /// Makes `copier` copy the 2 MiB unit, unless another CPU does already. The caller has held the lock since it
    /// looked at the unit, so it is that unit that is copied next.
    fn take_copy(&self, inner: &mut Inner<T, M>, copier: Copying) -> Option<HugeUnit> {
        let Work::Huge(huge) = &mut inner.work else { return None };
        if huge.copying != Copying::Nobody {
            return None;
        }
        huge.copying = copier;
        self.so_far.store(huge.copied, Ordering::Relaxed);
        Some(*huge)
    }

    /// Copies frames of `huge`, which the caller has taken, until `goes_on` returns false, and switches it after the
    /// last one.
    fn copy_taken(
        &self,
        host: &(impl Time + Copier),
        huge: &HugeUnit,
        counters: &Counters,
        goes_on: impl Fn() -> bool,
    ) -> Copied {
        let first = u64::from(huge.copied);
        let (source, target) = (frame_at(huge.source, first), frame_at(huge.target, first));
        let (started, mut copied) = (host.now(), huge.copied);
        let count = host.copy_some(self.guest, source, target, huge.left().into(), || {
            // Published at once: a split keeps these frames, and ends the copy.
            let next = (copied + SOME as u16).min(PAGEBLOCK_FRAMES as u16);
            let before = core::mem::replace(&mut copied, next);
            let told = self.so_far.compare_exchange(before, next, Ordering::AcqRel, Ordering::Relaxed);
            self.give_way();
            told.is_ok() && goes_on()
        });
        counters.count_copy(host.now().wrapping_sub(started));

        let mut inner = self.lock();
        let Work::Huge(now) = &mut inner.work else {
            // Split or given up meanwhile. Unpublished frames do not count: the guest may have written to their source,
            // so they are copied again. Only the worker's copy can end here: while a helper copies, nobody splits.
            return Copied::Changed;
        };
        now.copied = huge.copied + (count as u16).min(huge.left());
        now.copying = Copying::Nobody;
        if now.left() > 0 {
            return Copied::Part;
        }
        let huge = *now;
        inner.work = inner.switch(host, &huge);
        Copied::Changed
    }

    /// Makes the 2 MiB unit writable again at its source. Returns the target, or `None` if no unit is being copied or a
    /// helper copies it.
    pub(super) fn roll_back(&self) -> Option<Frame> {
        let mut inner = self.lock();
        let Work::Huge(huge) = inner.work else { return None };
        if huge.copying != Copying::Nobody {
            return None;
        }
        // It was protected by migration and has not moved since.
        let _ = inner.stage2.unprotect(huge.ipa);
        inner.stage2.synchronise();
        inner.work = Work::Nothing;
        Some(huge.target)
    }

    // 4 KiB units.

    /// Starts to move the area at `ipa` into the block at `target`.
    pub(super) fn begin_block(&self, ipa: Ipa, target: Frame) {
        self.lock().work = Work::Block(Block { ipa, source: None, target, next: 0, uncounted: 0 });
    }

    /// Notes that `count` more units of the block have moved.
    pub(super) fn advance_block(&self, count: u16) {
        if let Work::Block(block) = &mut self.lock().work {
            block.next += count;
        }
    }

    /// Takes the number of units that the split of the block has moved and that are not counted yet.
    pub(super) fn take_uncounted(&self) -> u16 {
        match &mut self.lock().work {
            Work::Block(block) => core::mem::take(&mut block.uncounted),
            _ => 0,
        }
    }

    /// Ends the work on the block: it is complete, or given up.
    pub(super) fn end_block(&self) {
        self.lock().work = Work::Nothing;
    }

    /// Breaks up to `count` 4 KiB units from `ipa`, for which `batch` has targets, and completes the invalidation.
    /// Breaks fewer if the area ends or a unit is not mapped.
    ///
    /// # Errors
    /// The unit at `ipa` has changed, or another batch is in flight.
    pub(super) fn begin_batch(&self, ipa: Ipa, count: usize, batch: &mut Batch) -> Result<(), TableError> {
        let mut inner = self.lock();
        let level = inner.stage2.leaf(ipa).ok_or(TableError::NotMapped(ipa))?.level();
        if level != Level::L3 || inner.batch.is_some() || count == 0 {
            return Err(TableError::InMotion(ipa));
        }
        let mut places = batch.sources.iter_mut();
        batch.run = inner.stage2.break_leaves(ipa, count.min(BATCH), Mark::NONE, MOVING, |leaf| {
            if let Some(place) = places.next() {
                *place = Frame::containing(leaf.pa());
            }
        })?;
        inner.stage2.synchronise();
        batch.note_runs();
        self.claimed.store(0, Ordering::Relaxed);
        self.copied.store(0, Ordering::Relaxed);
        inner.batch = Some(*batch);
        drop(inner);
        self.give_way();
        Ok(())
    }

    /// Copies the units of the batch that no helper has claimed, waits for the others, and makes all of them.
    pub(super) fn run_batch(&self, host: &(impl Time + Copier), batch: &Batch, counters: &Counters) {
        let started = host.now();
        for (first, count) in batch.runs() {
            let (source, target) = (batch.sources[first % BATCH], batch.targets[first % BATCH]);
            let claim = |index| self.claim(first + index);
            let done = |index| {
                self.copied.fetch_or(1u64 << (first + index), Ordering::AcqRel);
                self.give_way();
            };
            host.copy_each(self.guest, source, target, count, claim, done);
        }
        let copied = host.now();
        counters.count_copy(copied.wrapping_sub(started));
        while self.copied.load(Ordering::Acquire) & batch.all() != batch.all() {
            relax();
        }
        counters.count_wait(host.now().wrapping_sub(copied));
        host.synchronise_fetches();
        let mut inner = self.lock();
        // Cannot fail: `begin_batch` has broken and synchronised the run, and its targets are frames of the machine.
        let _ = inner.stage2.make_leaves(&batch.run, |index| batch.targets[index % BATCH].pa());
        inner.stage2.publish();
        inner.batch = None;
        drop(inner);
        self.give_way();
    }

    /// Claims the copy of unit `index` of the batch. Returns true to one CPU only.
    #[inline(always)]
    fn claim(&self, index: usize) -> bool {
        self.claimed.fetch_or(1 << index, Ordering::AcqRel) & 1 << index == 0
    }

    // Faults on units in flight.

    /// Handles a fault at `ipa`: completes the unit there, waits for the CPU that does, or splits it. Counts the fault
    /// and its time if a unit in flight was involved.
    pub(super) fn fault(
        &self,
        host: &(impl Time + Copier),
        ipa: Ipa,
        fault: Fault,
        stall_frames: u16,
        counters: &Counters,
    ) -> Verdict {
        let started = host.now();
        let mut was_in_flight = false;
        let verdict = loop {
            match self.try_fault(host, ipa, fault, stall_frames, counters) {
                Answer::Final(verdict) => break verdict,
                Answer::Moved(verdict) => {
                    was_in_flight = true;
                    break verdict;
                }
                Answer::Again => was_in_flight = true,
            }
        };
        if was_in_flight {
            counters.count_stall(host.now().wrapping_sub(started));
        }
        verdict
    }

    fn try_fault(
        &self,
        host: &(impl Time + Copier),
        ipa: Ipa,
        fault: Fault,
        stall_frames: u16,
        counters: &Counters,
    ) -> Answer {
        self.has_waiter.store(true, Ordering::Relaxed);
        let mut inner = self.lock();
        let Some(leaf) = inner.stage2.leaf(ipa) else { return Answer::Final(Verdict::NotOurs) };
        if leaf.is_broken() {
            let Some((index, source, target)) = inner.in_batch(leaf.ipa()) else {
                return Answer::Final(Verdict::Stuck);
            };
            if self.copied.load(Ordering::Acquire) & 1 << index != 0 {
                host.synchronise_fetches();
                return Answer::Moved(inner.make_one(index, target));
            }
            let is_mine = self.claim(index);
            drop(inner);
            if !is_mine {
                relax();
                return Answer::Again;
            }
            host.copy(self.guest, source, target, 1);
            counters.count_help();
            host.synchronise_fetches();
            // The batch cannot end before this unit is copied, so it is still there, and nobody else makes the unit.
            let mut inner = self.lock();
            self.copied.fetch_or(1 << index, Ordering::AcqRel);
            return Answer::Moved(inner.make_one(index, target));
        }
        if is_forbidden(leaf, fault) {
            return Answer::Final(Verdict::NotOurs);
        }
        if fault != Fault::Write || leaf.mark() != COPYING {
            // The unit has arrived meanwhile, or the fault came from a TLB entry that is gone by now.
            return Answer::Final(Verdict::Retry);
        }
        let Work::Huge(mut huge) = inner.work else { return Answer::Final(Verdict::Stuck) };
        if area_of(ipa) != huge.ipa {
            return Answer::Final(Verdict::Stuck);
        }
        if huge.copying == Copying::Worker {
            huge.copied = self.so_far.load(Ordering::Acquire);
        }
        let is_near = huge.left() <= stall_frames;
        match huge.copying {
            Copying::Nobody if is_near => {
                // Taken under the same lock: after it is dropped, the worker may complete this unit and start another
                // one, with far more than the stall bound left.
                let taken = self.take_copy(&mut inner, Copying::Helper);
                drop(inner);
                if let Some(taken) = taken {
                    counters.count_help();
                    self.copy_taken(host, &taken, counters, || true);
                }
            }
            // A helper's copy is short and must not be interrupted: see `copy_taken`.
            Copying::Worker if !is_near => {
                huge.copied = self.so_far.swap(STOPPED, Ordering::AcqRel);
                return inner.split(host, &huge, counters);
            }
            Copying::Nobody => return inner.split(host, &huge, counters),
            Copying::Worker | Copying::Helper => {
                drop(inner);
                relax();
            }
        }
        Answer::Again
    }
}

impl<T: TableMemory, M: Maintenance> Inner<T, M> {
    /// Returns index, source and target of the unit at `ipa`, if it is in the batch.
    fn in_batch(&self, ipa: Ipa) -> Option<(usize, Frame, Frame)> {
        let batch = self.batch.as_ref()?;
        let index = batch.index_of(ipa)?;
        Some((index, batch.sources[index % BATCH], batch.targets[index % BATCH]))
    }

    /// Makes one unit of the batch at its target.
    fn make_one(&mut self, index: usize, target: Frame) -> Verdict {
        let Some(batch) = &self.batch else { return Verdict::Stuck };
        let made = self.stage2.make_leaf(&batch.run, index, Some(target.pa()));
        self.stage2.publish();
        if made.is_ok() { Verdict::Retry } else { Verdict::Stuck }
    }

    /// Switches the leaf of the completely copied unit to the target.
    fn switch(&mut self, host: &impl Copier, huge: &HugeUnit) -> Work {
        host.synchronise_fetches();
        let Ok(run) = self.stage2.break_leaves(huge.ipa, 1, COPYING, SWITCHING, |_| ()) else {
            return Work::GivenUp { target: huge.target };
        };
        self.stage2.synchronise();
        let made = self.stage2.make_leaf(&run, 0, Some(huge.target.pa()));
        self.stage2.publish();
        match made {
            Ok(_) => Work::Switched { ipa: huge.ipa, source: huge.source, target: huge.target },
            Err(_) => Work::GivenUp { target: huge.target },
        }
    }

    /// Splits the unit at the progress of the copy, or gives it up if there is no frame for the table.
    fn split(&mut self, host: &impl Copier, huge: &HugeUnit, counters: &Counters) -> Answer {
        if huge.copied > 0 {
            host.synchronise_fetches();
        }
        let (ipa, source, target) = (huge.ipa, huge.source, huge.target);
        self.work = match self.stage2.split(ipa, huge.copied.into(), target.pa()) {
            Ok(_) => {
                counters.count_split();
                let (next, uncounted) = (huge.copied, huge.copied);
                Work::Block(Block { ipa, source: Some(source), target, next, uncounted })
            }
            Err(_) => {
                let _ = self.stage2.unprotect(ipa);
                self.stage2.synchronise();
                Work::GivenUp { target }
            }
        };
        Answer::Moved(Verdict::Retry)
    }
}

/// Returns whether the leaf's attributes forbid the access, in flight or not.
fn is_forbidden(leaf: Leaf, fault: Fault) -> bool {
    match fault {
        Fault::Translation => false,
        Fault::Write => leaf.attributes().access == Access::ReadOnly,
        Fault::Fetch => leaf.attributes().execute == Execute::Never,
    }
}

const _: () = assert!(BATCH <= 64, "a batch's units are bits of a word");
const _: () = assert!(PAGEBLOCK_FRAMES <= u16::MAX as u64, "frames of an area are counted in 16 bits");
