//! A guest's address space while its memory moves: the protocol of the module's head, step by step.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::host::{Copier, SOME, Time};
use super::statistics::Counters;
pub use super::unit::BATCH;
use super::unit::{Batch, Block, COPYING, Copying, MOVING, SWITCHING, Whole, Work, area_of, frame_at};
use crate::addr::{Frame, Ipa, PAGEBLOCK_FRAMES};
use crate::owner::GuestId;
use crate::sync::relax;
use crate::table::{Access, Execute, Leaf, Level, Maintenance, Mark, Stage2, TableError, TableMemory};

/// Why a guest's access trapped, as stage 2 sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A translation fault: no valid leaf.
    Translation,
    /// A permission fault of a data access or of a stage 1 walk: the leaf forbids to write.
    Write,
    /// A permission fault of an instruction fetch.
    Fetch,
}

/// What becomes of a guest's access that trapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The guest tries again: the unit has arrived, or nothing stood in the way any more.
    Retry,
    /// Migration has no part in it: nothing is mapped there, or the guest may not do that.
    NotOurs,
    /// The leaf is in motion, but nobody moves it. This is a bug of Ballast's; the guest cannot go on.
    Stuck,
}

/// What one look at a fault led to.
enum Answer {
    /// No unit in flight is in the way.
    Final(Verdict),
    /// A unit in flight was in the way.
    Moved(Verdict),
    /// A unit in flight is in the way: look again.
    Again,
}

/// What a part of a copy led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Copied {
    /// There is more to copy, or someone else is at it.
    Part,
    /// The unit is no longer being copied: moved, split or given up.
    Changed,
}

/// The stage-2 tables of a guest behind their lock, and what moves in them.
pub struct Space<T, M> {
    guest: GuestId,
    inner: SpinMutex<Inner<T, M>>,
    /// Units of the batch that someone copies or has copied, a bit each. Set under the lock or by the
    /// worker, cleared under the lock.
    claimed: AtomicU64,
    /// Units of the batch that are copied.
    copied: AtomicU64,
    /// Frames of the 2 MiB unit that are copied while the worker copies, or [`STOPPED`], set by who splits it.
    so_far: AtomicU16,
    /// Whether a vCPU has faulted, or someone waits for the lock, since the worker last gave way.
    has_waiter: AtomicBool,
}

struct Inner<T, M> {
    stage2: Stage2<T, M>,
    work: Work,
    batch: Option<Batch>,
}

/// The unit that the worker copies is split or given up.
const STOPPED: u16 = u16::MAX;

impl<T: TableMemory, M: Maintenance> Space<T, M> {
    /// The address space of `guest`.
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

    /// The guest.
    pub const fn guest(&self) -> GuestId {
        self.guest
    }

    /// Runs `f` with the tables, under the lock. Nothing that migration has in motion can be unmapped;
    /// call [`Engine::abandon`](super::Engine::abandon) before the guest's memory goes.
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

    /// Between two things that someone may wait for: where CPUs take turns, as in an emulator, now it is theirs.
    #[inline(always)]
    pub(super) fn give_way(&self) {
        if self.has_waiter.load(Ordering::Relaxed) {
            self.has_waiter.store(false, Ordering::Relaxed);
            relax();
        }
    }

    /// What is under way.
    pub(super) fn work(&self) -> Work {
        self.lock().work
    }

    /// Takes what a finished or given up 2 MiB unit left over.
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

    /// Protects the 2 MiB leaf at `ipa`; its contents are copied to the block at `target` from now on.
    pub(super) fn begin_whole(&self, ipa: Ipa, target: Frame) -> Result<(), TableError> {
        let mut inner = self.lock();
        if inner.work != Work::Nothing {
            return Err(TableError::InMotion(ipa));
        }
        let leaf = inner.stage2.protect(ipa, COPYING)?;
        if leaf.level() != Level::L2 {
            // Its size has changed since the worker saw it.
            let _ = inner.stage2.unprotect(ipa);
            inner.stage2.synchronise();
            return Err(TableError::InMotion(ipa));
        }
        inner.stage2.synchronise();
        let source = Frame::containing(leaf.pa());
        inner.work = Work::Whole(Whole { ipa, source, target, copied: 0, copying: Copying::Nobody });
        Ok(())
    }

    /// Copies frames of the 2 MiB unit that is being copied for as long as `goes_on`, and switches the unit after the last
    /// one. For the worker.
    pub(super) fn copy_whole(
        &self,
        host: &(impl Time + Copier),
        counters: &Counters,
        goes_on: impl Fn() -> bool,
    ) -> Copied {
        let mut inner = self.lock();
        let Some(whole) = self.take_copy(&mut inner, Copying::Worker) else {
            let is_helped = matches!(inner.work, Work::Whole(_));
            drop(inner);
            if !is_helped {
                return Copied::Changed;
            }
            relax();
            return Copied::Part;
        };
        drop(inner);
        self.copy_taken(host, &whole, counters, goes_on)
    }

    /// Makes `copier` the one that copies the 2 MiB unit, unless another CPU does already. Under the lock that the caller
    /// looked at the unit under: what is copied next is that unit and no other.
    fn take_copy(&self, inner: &mut Inner<T, M>, copier: Copying) -> Option<Whole> {
        let Work::Whole(whole) = &mut inner.work else { return None };
        if whole.copying != Copying::Nobody {
            return None;
        }
        whole.copying = copier;
        self.so_far.store(whole.copied, Ordering::Relaxed);
        Some(*whole)
    }

    /// Copies frames of `whole`, which the caller has taken, for as long as `goes_on`, and switches it after the last one.
    fn copy_taken(
        &self,
        host: &(impl Time + Copier),
        whole: &Whole,
        counters: &Counters,
        goes_on: impl Fn() -> bool,
    ) -> Copied {
        let first = u64::from(whole.copied);
        let (source, target) = (frame_at(whole.source, first), frame_at(whole.target, first));
        let (started, mut copied) = (host.now(), whole.copied);
        let count = host.copy_some(self.guest, source, target, whole.left().into(), || {
            // Told at once: a split keeps it, and ends this.
            let next = (copied + SOME as u16).min(PAGEBLOCK_FRAMES as u16);
            let before = core::mem::replace(&mut copied, next);
            let told = self.so_far.compare_exchange(before, next, Ordering::AcqRel, Ordering::Relaxed);
            self.give_way();
            told.is_ok() && goes_on()
        });
        counters.count_copy(host.now().wrapping_sub(started));

        let mut inner = self.lock();
        let Work::Whole(now) = &mut inner.work else {
            // Split or given up meanwhile: what was copied does not count. A split unit's part at the
            // source may be written to, and is copied anew. Only the worker's copy can end here: while a
            // helper copies nobody splits.
            return Copied::Changed;
        };
        now.copied = whole.copied + (count as u16).min(whole.left());
        now.copying = Copying::Nobody;
        if now.left() > 0 {
            return Copied::Part;
        }
        let whole = *now;
        inner.work = inner.switch(host, &whole);
        Copied::Changed
    }

    /// Gives the guest back its 2 MiB unit where it was. Yields the target and how much of it was written
    /// to, or `None` where no unit is being copied, or a helper is at it.
    pub(super) fn roll_back(&self) -> Option<Frame> {
        let mut inner = self.lock();
        let Work::Whole(whole) = inner.work else { return None };
        if whole.copying != Copying::Nobody {
            return None;
        }
        // It was protected by us and has not moved since.
        let _ = inner.stage2.unprotect(whole.ipa);
        inner.stage2.synchronise();
        inner.work = Work::Nothing;
        Some(whole.target)
    }

    // 4 KiB units.

    /// From now on the area at `ipa` moves into the block at `target`.
    pub(super) fn begin_block(&self, ipa: Ipa, target: Frame) {
        self.lock().work = Work::Block(Block { ipa, source: None, target, next: 0, uncounted: 0 });
    }

    /// `count` more units of the block have moved.
    pub(super) fn advance_block(&self, count: u16) {
        if let Work::Block(block) = &mut self.lock().work {
            block.next += count;
        }
    }

    /// Takes the units of the block that its split has moved: those that nobody has counted yet.
    pub(super) fn take_uncounted(&self) -> u16 {
        match &mut self.lock().work {
            Work::Block(block) => core::mem::take(&mut block.uncounted),
            _ => 0,
        }
    }

    /// The block is complete, or given up.
    pub(super) fn end_block(&self) {
        self.lock().work = Work::Nothing;
    }

    /// Breaks the 4 KiB units from `ipa` on, as many as `batch` has targets, which are `count`, and completes the
    /// invalidation. It may be fewer: the area ends, or a unit is not there.
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

    /// Copies the units of the batch that no helper has taken, waits for those that one has, and makes all.
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
        // The run was broken and synchronised by `begin_batch` and its targets are frames of the machine.
        let _ = inner.stage2.make_leaves(&batch.run, |index| batch.targets[index % BATCH].pa());
        inner.stage2.publish();
        inner.batch = None;
        drop(inner);
        self.give_way();
    }

    /// Takes the copy of unit `index` of the batch. Only one CPU gets it.
    #[inline(always)]
    fn claim(&self, index: usize) -> bool {
        self.claimed.fetch_or(1 << index, Ordering::AcqRel) & 1 << index == 0
    }

    // A vCPU touched a unit in flight.

    /// Answers a fault at `ipa`: brings the unit there, waits for who does, or splits it. Where a unit in
    /// flight was in the way, counts the fault and the time that it cost.
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
            // The batch does not end before this unit is copied: it is still there, and nobody else makes the unit.
            let mut inner = self.lock();
            self.copied.fetch_or(1 << index, Ordering::AcqRel);
            return Answer::Moved(inner.make_one(index, target));
        }
        if is_forbidden(leaf, fault) {
            return Answer::Final(Verdict::NotOurs);
        }
        if fault != Fault::Write || leaf.mark() != COPYING {
            // It has arrived meanwhile, or the fault came from a cached entry that is gone by now.
            return Answer::Final(Verdict::Retry);
        }
        let Work::Whole(mut whole) = inner.work else { return Answer::Final(Verdict::Stuck) };
        if area_of(ipa) != whole.ipa {
            return Answer::Final(Verdict::Stuck);
        }
        if whole.copying == Copying::Worker {
            whole.copied = self.so_far.load(Ordering::Acquire);
        }
        let is_near = whole.left() <= stall_frames;
        match whole.copying {
            Copying::Nobody if is_near => {
                // Taken under the same lock: once it is dropped, the worker may arrive and begin with another unit, of
                // which far more than the stall bound is left.
                let taken = self.take_copy(&mut inner, Copying::Helper);
                drop(inner);
                if let Some(taken) = taken {
                    counters.count_help();
                    self.copy_taken(host, &taken, counters, || true);
                }
            }
            // A helper's copy is short, and it may not be cut off: see `copy_whole`.
            Copying::Worker if !is_near => {
                whole.copied = self.so_far.swap(STOPPED, Ordering::AcqRel);
                return inner.split(host, &whole, counters);
            }
            Copying::Nobody => return inner.split(host, &whole, counters),
            Copying::Worker | Copying::Helper => {
                drop(inner);
                relax();
            }
        }
        Answer::Again
    }
}

impl<T: TableMemory, M: Maintenance> Inner<T, M> {
    /// The number, source and target of the unit at `ipa`, if it is one of the batch.
    fn in_batch(&self, ipa: Ipa) -> Option<(usize, Frame, Frame)> {
        let batch = self.batch.as_ref()?;
        let index = batch.index_of(ipa)?;
        Some((index, batch.sources[index % BATCH], batch.targets[index % BATCH]))
    }

    fn make_one(&mut self, index: usize, target: Frame) -> Verdict {
        let Some(batch) = &self.batch else { return Verdict::Stuck };
        let made = self.stage2.make_leaf(&batch.run, index, Some(target.pa()));
        self.stage2.publish();
        if made.is_ok() { Verdict::Retry } else { Verdict::Stuck }
    }

    /// Lets the unit, copied to the end, lead to the target. Short: nobody waits longer than for this.
    fn switch(&mut self, host: &impl Copier, whole: &Whole) -> Work {
        host.synchronise_fetches();
        let Ok(run) = self.stage2.break_leaves(whole.ipa, 1, COPYING, SWITCHING, |_| ()) else {
            return Work::GivenUp { target: whole.target };
        };
        self.stage2.synchronise();
        let made = self.stage2.make_leaf(&run, 0, Some(whole.target.pa()));
        self.stage2.publish();
        match made {
            Ok(_) => Work::Switched { ipa: whole.ipa, source: whole.source, target: whole.target },
            Err(_) => Work::GivenUp { target: whole.target },
        }
    }

    /// Splits the unit where the copy stands; without a frame for the table, gives it up.
    fn split(&mut self, host: &impl Copier, whole: &Whole, counters: &Counters) -> Answer {
        if whole.copied > 0 {
            host.synchronise_fetches();
        }
        let (ipa, source, target) = (whole.ipa, whole.source, whole.target);
        self.work = match self.stage2.split(ipa, whole.copied.into(), target.pa()) {
            Ok(_) => {
                counters.count_split();
                let (next, uncounted) = (whole.copied, whole.copied);
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

/// Whether the guest may not do that, in flight or not.
fn is_forbidden(leaf: Leaf, fault: Fault) -> bool {
    match fault {
        Fault::Translation => false,
        Fault::Write => leaf.attributes().access == Access::ReadOnly,
        Fault::Fetch => leaf.attributes().execute == Execute::Never,
    }
}

const _: () = assert!(BATCH <= 64, "a batch's units are bits of a word");
const _: () = assert!(PAGEBLOCK_FRAMES <= u16::MAX as u64, "frames of an area are counted in 16 bits");
