//! The worker: what one turn of migration does. Every turn is short.

use heapless::Vec;

use super::engine::Engine;
use super::host::Host;
use super::job::{Cursor, JobId, JobState, Request};
use super::pacer::scaled;
use super::plan::{self, Found, Portion, SpanCache};
use super::reason::{Reason, Unmoved};
use super::space::{Copied, Space};
use super::unit::{BATCH, Batch, Block, Copying, Work, area_of, frame_at};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE};
use crate::frame::Contents;
use crate::owner::{GuestId, MAX_GUESTS};
use crate::range::FrameRange;
use crate::table::{Leaf, Level, TableError};

/// Frames of a 2 MiB unit that are copied in a turn.
const CHUNK: u16 = 32;
/// Frames that are scrubbed in a turn.
const SCRUB: u64 = 64;
/// How often a unit that was given up is tried again.
const RETRIES: u8 = 3;
/// Units of an area of 4 KiB leaves that must be on the move for all of them to move into one block.
const GATHER: u64 = PAGEBLOCK_FRAMES * 3 / 4;
/// Unused blocks of a reserve that are released in a turn.
const UNRESERVE: usize = 16;
/// Areas in 1 GiB.
const AREAS: usize = 512;

/// What a turn came to.
pub(super) enum Turn {
    /// Something was done.
    Worked,
    /// There is nothing to do.
    Idle,
    /// The limit of the rate is reached, for this many ticks.
    Wait(u64),
}

/// How a job goes on after a turn.
enum Outcome {
    Turn(Turn),
    Stop(JobState),
}

const WORKED: Outcome = Outcome::Turn(Turn::Worked);

/// A block that is no guest's memory any more, until it is scrubbed and released.
struct Debt {
    guest: GuestId,
    frame: Frame,
    order: u8,
    scrubbed: u64,
}

/// Blocks side by side for all areas of 1 GiB, so that it can be one leaf again.
struct Reserve {
    guest: GuestId,
    ipa: u64,
    base: Frame,
    used: [bool; AREAS],
    checked: usize,
}

impl Reserve {
    fn index_of(&self, guest: GuestId, ipa: Ipa) -> Option<usize> {
        let offset = ipa.get().checked_sub(self.ipa)?;
        let index = (offset / PAGEBLOCK_SIZE) as usize;
        (guest == self.guest && index < AREAS).then_some(index)
    }

    fn block(&self, index: usize) -> Frame {
        frame_at(self.base, (index as u64) << PAGEBLOCK_ORDER)
    }
}

/// The job being worked on.
struct Active {
    id: JobId,
    request: Request,
    cursor: Cursor,
    /// The region that `is_exhausted` is about.
    region: Option<(GuestId, Ipa)>,
    /// Whether the target has no frame left.
    is_exhausted: bool,
    retries: u8,
}

impl Active {
    const fn new(id: JobId, request: Request, cursor: Cursor) -> Self {
        Self { id, request, cursor, region: None, is_exhausted: false, retries: 0 }
    }

    /// In the name of no job: to bring a guest to rest that jobs have left.
    const fn nobody(guest: GuestId) -> Self {
        let request = Request::retire(FrameRange::EMPTY);
        let cursor = Cursor { guest: guest.index() as u8, next: Ipa::new_truncate(0), is_counted: true };
        Self::new(JobId::new(0), request, cursor)
    }
}

/// The worker's state between turns.
pub(super) struct Worker {
    active: Option<Active>,
    reserve: Option<Reserve>,
    debts: Vec<Debt, 4>,
    sources: SpanCache,
    targets: SpanCache,
    last: Option<JobId>,
}

impl Worker {
    pub(super) const fn new() -> Self {
        Self {
            active: None,
            reserve: None,
            debts: Vec::new(),
            sources: SpanCache::new(),
            targets: SpanCache::new(),
            last: None,
        }
    }

    /// Does the next thing.
    pub(super) fn turn<H: Host>(&mut self, engine: &Engine, host: &H) -> Turn {
        if self.pay_debt(host) {
            return Turn::Worked;
        }
        let Some(mut active) = self.active.take() else {
            let Some((id, request, cursor)) = engine.lock_jobs(host).start_next(host.now()) else {
                return Turn::Idle;
            };
            let mut active = Active::new(id, request, cursor);
            if !active.cursor.is_counted {
                active.cursor.is_counted = true;
                let bytes = plan::total_bytes(host, &request);
                Self::report(engine, host, id, |report| report.total_bytes = bytes);
            }
            self.last = Some(id);
            self.active = Some(active);
            return Turn::Worked;
        };
        match self.advance(engine, host, &mut active) {
            Outcome::Turn(turn) => {
                self.active = Some(active);
                turn
            }
            Outcome::Stop(state) => {
                engine.lock_jobs(host).stop(active.id, state, active.cursor, host.now());
                Turn::Worked
            }
        }
    }

    /// Charges the time of a step to the job that it went into.
    pub(super) fn charge<H: Host>(&self, engine: &Engine, host: &H, ticks: u64) {
        if let Some(id) = self.last {
            Self::report(engine, host, id, |report| report.worked_ticks += ticks);
        }
    }

    fn report<H: Host>(engine: &Engine, host: &H, id: JobId, f: impl FnOnce(&mut super::JobReport)) {
        if let Some(report) = engine.lock_jobs(host).report(id) {
            f(report);
        }
    }

    fn advance<H: Host>(&mut self, engine: &Engine, host: &H, active: &mut Active) -> Outcome {
        let (state, moved) = {
            let mut jobs = engine.lock_jobs(host);
            match jobs.report(active.id) {
                Some(report) => (report.state, report.moved.bytes()),
                None => (JobState::Cancelled, 0),
            }
        };
        if let Some(guest) = GuestId::try_new(active.cursor.guest)
            && let Some(space) = host.space(guest)
        {
            match space.work(host) {
                Work::Nothing => {}
                Work::Whole(_) if state == JobState::Cancelling => {
                    if let Some(target) = space.roll_back(host) {
                        self.owe(guest, target, PAGEBLOCK_ORDER);
                    }
                    return WORKED;
                }
                work => {
                    self.go_on(engine, host, active, space, work);
                    return WORKED;
                }
            }
        }
        let stop = match state {
            JobState::Cancelling | JobState::Cancelled => Some(JobState::Cancelled),
            JobState::Pausing => Some(JobState::Paused),
            _ if moved >= active.request.limit_bytes => Some(JobState::Finished),
            _ => None,
        };
        if let Some(state) = stop {
            return if self.unreserve(host) { WORKED } else { Outcome::Stop(state) };
        }
        self.next_unit(engine, host, active)
    }

    /// Goes on with what is under way.
    fn go_on<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        space: &Space<H::Tables, H::Tlb>,
        work: Work,
    ) {
        match work {
            Work::Nothing => {}
            Work::Whole(_) => {
                let counters = engine.statistics().guest(space.guest());
                if space.copy_whole(host, CHUNK, Copying::Worker, counters) == Copied::Changed {
                    self.settle(engine, host, active, space);
                }
            }
            Work::Switched { .. } | Work::GivenUp { .. } => self.settle(engine, host, active, space),
            Work::Block(block) => self.move_block(engine, host, active, space, block),
        }
    }

    // The next unit.

    fn next_unit<H: Host>(&mut self, engine: &Engine, host: &H, active: &mut Active) -> Outcome {
        let Some(portion) = plan::next_portion(host, &active.request, &mut active.cursor) else {
            return if self.unreserve(host) { WORKED } else { Outcome::Stop(JobState::Finished) };
        };
        let guest = portion.guest;
        if let Some(reserve) = &self.reserve
            && reserve.index_of(guest, portion.from).is_none()
            && self.unreserve(host)
        {
            return WORKED;
        }
        let wait = engine.rate.wait(host.now(), 0);
        let wait = wait.max(engine.guest_rates[guest.index() % MAX_GUESTS].wait(host.now(), 0));
        if wait > 0 {
            return Outcome::Turn(Turn::Wait(wait));
        }
        let Some(space) = host.space(guest) else { return WORKED };
        let place = Some((guest, portion.region.ipa));
        if active.region != place {
            active.region = place;
            active.is_exhausted = false;
        }
        let reason = plan::obstacle(&active.request, &portion.region)
            .or(active.is_exhausted.then_some(Reason::NoFrame));
        let mut unmoved = Unmoved::default();
        let found = space.find(host, &portion, |leaf| {
            let is_selected = plan::is_selected(&active.request.select, host, &mut self.sources, leaf);
            if is_selected && reason.is_some() {
                plan::pass(guest, &mut unmoved, leaf);
            }
            is_selected && reason.is_none()
        });
        if let Some(reason) = reason.filter(|_| unmoved.leaf_count > 0) {
            Self::report(engine, host, active.id, |report| report.count_unmoved(reason, &unmoved));
        }
        match found {
            Found::None(reached) => Self::reach(engine, host, active, portion.from, reached),
            Found::Leaf(leaf) => {
                let at = leaf.ipa().max(portion.from);
                Self::reach(engine, host, active, portion.from, at);
                self.begin(engine, host, active, &Portion { from: at, ..portion }, space, leaf);
            }
        }
        WORKED
    }

    /// Moves the cursor.
    fn reach<H: Host>(engine: &Engine, host: &H, active: &mut Active, from: Ipa, to: Ipa) {
        active.cursor.next = to;
        let bytes = to.get().saturating_sub(from.get());
        if bytes > 0 {
            Self::report(engine, host, active.id, |report| report.scanned_bytes += bytes);
        }
    }

    /// Passes over `leaf`, which cannot move.
    fn skip<H: Host>(
        engine: &Engine,
        host: &H,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
        reason: Reason,
    ) {
        let end = (leaf.ipa().get() + leaf.size()).min(portion.end);
        let mut unmoved = Unmoved::default();
        unmoved.add(portion.guest, leaf.ipa(), 1, end.saturating_sub(portion.from.get()));
        Self::report(engine, host, active.id, |report| report.count_unmoved(reason, &unmoved));
        active.retries = 0;
        Self::reach(engine, host, active, portion.from, Ipa::new_truncate(end));
    }

    fn begin<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        portion: &Portion,
        space: &Space<H::Tables, H::Tlb>,
        leaf: Leaf,
    ) {
        match leaf.level() {
            Level::L3 => self.begin_pages(engine, host, active, portion, space, leaf),
            Level::L2 if portion.holds(leaf.ipa(), leaf.size()) => {
                self.begin_whole(engine, host, active, portion, space, leaf);
            }
            _ => {
                if portion.region.largest == Level::L1 && portion.holds(leaf.ipa(), Level::L1.size()) {
                    self.reserve(host, active, portion, leaf);
                }
                Self::demote(engine, host, active, portion, space, leaf);
            }
        }
    }

    /// Demotes a leaf and the block behind it; the job goes on with the parts.
    fn demote<H: Host>(
        engine: &Engine,
        host: &H,
        active: &mut Active,
        portion: &Portion,
        space: &Space<H::Tables, H::Tlb>,
        leaf: Leaf,
    ) {
        let (frame, order) = (Frame::containing(leaf.pa()), leaf.level().order());
        if !host.divide(portion.guest, frame, order) {
            return Self::skip(engine, host, active, portion, leaf, Reason::Busy);
        }
        let reason = match space.with(host, |stage2| stage2.demote(leaf.ipa())) {
            Ok(_) => return engine.statistics().guest(portion.guest).count_demotion(),
            Err(TableError::OutOfTables { .. }) => Reason::NoTable,
            Err(_) => Reason::Busy,
        };
        host.unite(portion.guest, frame, order, leaf.ipa());
        Self::skip(engine, host, active, portion, leaf, reason);
    }

    fn begin_whole<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        portion: &Portion,
        space: &Space<H::Tables, H::Tlb>,
        leaf: Leaf,
    ) {
        let (guest, ipa) = (portion.guest, leaf.ipa());
        let Some(target) = self.target_block(host, active, portion, ipa) else {
            // By parts it fits where no 2 MiB are side by side.
            let free = host.free_frames(plan::placement_of(&active.request, portion));
            if free >= PAGEBLOCK_FRAMES {
                return Self::demote(engine, host, active, portion, space, leaf);
            }
            return Self::skip(engine, host, active, portion, leaf, Reason::NoFrame);
        };
        if space.begin_whole(host, ipa, target).is_err() {
            host.release(guest, target, PAGEBLOCK_ORDER, Contents::Dirty);
            return Self::skip(engine, host, active, portion, leaf, Reason::Busy);
        }
        engine.statistics().guest(guest).count_invalidation();
    }

    /// A block of 2 MiB for the area at `ipa`: of the reserve, or a new one.
    fn target_block<H: Host>(
        &mut self,
        host: &H,
        active: &Active,
        portion: &Portion,
        ipa: Ipa,
    ) -> Option<Frame> {
        if let Some(reserve) = &mut self.reserve
            && let Some(index) = reserve.index_of(portion.guest, ipa)
            && let Some(used) = reserve.used.get_mut(index)
            && !core::mem::replace(used, true)
        {
            return Some(reserve.block(index));
        }
        let placement = plan::placement_of(&active.request, portion);
        plan::allocate(host, &active.request, placement, (portion.guest, ipa), PAGEBLOCK_ORDER)
    }

    fn reserve<H: Host>(&mut self, host: &H, active: &Active, portion: &Portion, leaf: Leaf) {
        if leaf.level() != Level::L1 || self.reserve.is_some() {
            return;
        }
        let (guest, order) = (portion.guest, Level::L1.order());
        let placement = plan::placement_of(&active.request, portion);
        let Some(base) = plan::allocate(host, &active.request, placement, (guest, leaf.ipa()), order) else {
            return;
        };
        if host.divide(guest, base, order) {
            let ipa = leaf.ipa().get();
            self.reserve = Some(Reserve { guest, ipa, base, used: [false; AREAS], checked: 0 });
        } else {
            host.release(guest, base, order, Contents::Dirty);
        }
    }

    /// Gives back some of what of the reserve was not used. Yields whether there was a reserve.
    fn unreserve<H: Host>(&mut self, host: &H) -> bool {
        let Some(reserve) = &mut self.reserve else { return false };
        for index in reserve.checked..(reserve.checked + UNRESERVE).min(AREAS) {
            if !reserve.used[index] {
                host.release(reserve.guest, reserve.block(index), PAGEBLOCK_ORDER, Contents::Dirty);
            }
        }
        reserve.checked += UNRESERVE;
        if reserve.checked >= AREAS {
            self.reserve = None;
        }
        true
    }

    // Units of 4 KiB.

    fn begin_pages<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        portion: &Portion,
        space: &Space<H::Tables, H::Tlb>,
        leaf: Leaf,
    ) {
        let (guest, ipa) = (portion.guest, leaf.ipa());
        let select = active.request.select;
        if portion.region.largest <= Level::L2 && ipa == area_of(ipa) && portion.holds(ipa, PAGEBLOCK_SIZE) {
            let survey = space.survey(host, ipa, PAGEBLOCK_FRAMES, |leaf| {
                plan::is_selected(&select, host, &mut self.sources, leaf)
            });
            if survey.present == PAGEBLOCK_FRAMES
                && survey.selected >= GATHER
                && let Some(target) = self.target_block(host, active, portion, ipa)
            {
                return space.begin_block(host, ipa, target);
            }
        }
        let most = (portion.end - ipa.get()) / FRAME_SIZE;
        let survey = space.survey(host, ipa, most.min(BATCH as u64), |leaf| {
            plan::is_selected(&select, host, &mut self.sources, leaf)
        });
        let placement = plan::placement_of(&active.request, portion);
        let mut targets: Vec<Frame, BATCH> = Vec::new();
        for index in 0..survey.leading.max(1) {
            let at = Ipa::new_truncate(ipa.get() + index as u64 * FRAME_SIZE);
            let target = plan::allocate(host, &active.request, placement, (guest, at), 0);
            // The list holds as many as a survey counts.
            let Some(Ok(())) = target.map(|target| targets.push(target)) else { break };
        }
        if targets.is_empty() {
            active.is_exhausted = true;
            return;
        }
        let batch = space.begin_batch(host, ipa, &targets);
        let count = batch.as_ref().map_or(0, Batch::len);
        for target in targets.iter().skip(count) {
            host.release(guest, *target, 0, Contents::Dirty);
        }
        let Ok(batch) = batch else {
            return Self::skip(engine, host, active, portion, leaf, Reason::Busy);
        };
        self.move_batch(engine, host, active, space, &batch);
        self.release_sources(host, guest, &batch);
        let reached = Ipa::new_truncate(ipa.get() + count as u64 * FRAME_SIZE);
        Self::reach(engine, host, active, ipa, reached);
        if area_of(reached) == reached {
            self.promote(engine, host, portion, space, Level::L2, ipa);
            self.promote_gigantic(engine, host, portion, space, reached);
        }
    }

    /// Moves a batch and counts it.
    fn move_batch<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &Active,
        space: &Space<H::Tables, H::Tlb>,
        batch: &Batch,
    ) {
        let guest = space.guest();
        engine.statistics().guest(guest).count_invalidation();
        space.run_batch(host, batch, engine.statistics().guest(guest));
        let mut run = (None, 0);
        for (source, target) in batch.sources.iter().zip(&batch.targets).take(batch.len()) {
            let pair = self.sources.controller(host, *source).zip(self.targets.controller(host, *target));
            if pair != run.0 && run.1 > 0 {
                engine.statistics().count_moved(guest, run.0, Level::L3, run.1);
                run.1 = 0;
            }
            run = (pair, run.1 + 1);
        }
        engine.statistics().count_moved(guest, run.0, Level::L3, run.1);
        Self::count(engine, host, active.id, guest, Level::L3, batch.len() as u64);
    }

    /// Scrubs and releases the frames that a batch came from.
    fn release_sources<H: Host>(&self, host: &H, guest: GuestId, batch: &Batch) {
        for source in batch.sources.iter().take(batch.len()) {
            host.scrub(*source, 1);
            host.release(guest, *source, 0, Contents::Zeroed);
        }
    }

    /// Reports what has moved, and charges it to the rates.
    fn count<H: Host>(engine: &Engine, host: &H, id: JobId, guest: GuestId, level: Level, count: u64) {
        Self::report(engine, host, id, |report| report.count_moved(level, count));
        let bytes = count * level.size();
        let pacers = [
            (&engine.rate, engine.policy().rate_bytes()),
            (&engine.guest_rates[guest.index() % MAX_GUESTS], host.rate_bytes(guest)),
        ];
        for (pacer, rate) in pacers.into_iter().filter(|(_, rate)| *rate > 0) {
            pacer.charge(host.now(), scaled(bytes, host.ticks_per_second(), rate));
        }
    }

    // Areas that move into one block.

    fn move_block<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        space: &Space<H::Tables, H::Tlb>,
        block: Block,
    ) {
        let next = u64::from(block.next);
        if next >= PAGEBLOCK_FRAMES {
            return self.finish_block(engine, host, active, space, block);
        }
        let mut targets = [Frame::default(); BATCH];
        for (index, target) in targets.iter_mut().enumerate() {
            *target = frame_at(block.target, next + index as u64);
        }
        let count = (PAGEBLOCK_FRAMES - next).min(BATCH as u64) as usize;
        let ipa = Ipa::new_truncate(block.ipa.get() + next * FRAME_SIZE);
        let Ok(batch) = space.begin_batch(host, ipa, &targets[..count.min(BATCH)]) else {
            return self.give_up_block(engine, host, active, space, block);
        };
        self.move_batch(engine, host, active, space, &batch);
        if block.source.is_none() {
            self.release_sources(host, space.guest(), &batch);
        }
        space.advance_block(host, batch.len() as u16);
    }

    fn finish_block<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        space: &Space<H::Tables, H::Tlb>,
        block: Block,
    ) {
        let guest = space.guest();
        space.end_block(host);
        if let Some(source) = block.source {
            self.owe(guest, source, PAGEBLOCK_ORDER);
        }
        match space.with(host, |stage2| stage2.promote(block.ipa, Level::L2)) {
            Ok(_) => engine.statistics().guest(guest).count_promotion(),
            // Leaves stay small; then so do the blocks.
            Err(_) => _ = host.divide(guest, block.target, PAGEBLOCK_ORDER),
        }
        self.arrived(engine, host, active, space, block.ipa);
    }

    /// A unit of the block has gone: something else unmaps the guest's memory. What has moved stays.
    fn give_up_block<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        space: &Space<H::Tables, H::Tlb>,
        block: Block,
    ) {
        let guest = space.guest();
        let next = u64::from(block.next);
        space.end_block(host);
        if host.divide(guest, block.target, PAGEBLOCK_ORDER) {
            for index in next..PAGEBLOCK_FRAMES {
                host.release(guest, frame_at(block.target, index), 0, Contents::Dirty);
            }
        }
        if let Some(source) = block.source
            && host.divide(guest, source, PAGEBLOCK_ORDER)
        {
            for index in 0..next {
                host.release(guest, frame_at(source, index), 0, Contents::Dirty);
            }
        }
        let mut unmoved = Unmoved::default();
        let left = PAGEBLOCK_FRAMES - next;
        unmoved.add(guest, block.ipa, left, left * FRAME_SIZE);
        Self::report(engine, host, active.id, |report| report.count_unmoved(Reason::Busy, &unmoved));
        self.arrived(engine, host, active, space, block.ipa);
    }

    // Units of 2 MiB.

    /// Takes up what a 2 MiB unit has left over.
    fn settle<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        space: &Space<H::Tables, H::Tlb>,
    ) {
        let guest = space.guest();
        match space.take_leftover(host) {
            Some(Work::Switched { ipa, source, target }) => {
                self.owe(guest, source, PAGEBLOCK_ORDER);
                let pair = self.sources.controller(host, source).zip(self.targets.controller(host, target));
                engine.statistics().count_moved(guest, pair, Level::L2, 1);
                engine.statistics().guest(guest).count_invalidation();
                Self::count(engine, host, active.id, guest, Level::L2, 1);
                self.arrived(engine, host, active, space, ipa);
            }
            Some(Work::GivenUp { target }) => {
                self.owe(guest, target, PAGEBLOCK_ORDER);
                engine.statistics().guest(guest).count_retry();
                active.retries += 1;
                let portion = plan::next_portion(host, &active.request, &mut active.cursor);
                if active.retries > RETRIES
                    && let Some(portion) = portion
                    && let Some(leaf) = space.with(host, |stage2| stage2.leaf(portion.from))
                {
                    Self::skip(engine, host, active, &portion, leaf, Reason::NoTable);
                }
            }
            _ => {}
        }
    }

    /// The area at `ipa` is done.
    fn arrived<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        active: &mut Active,
        space: &Space<H::Tables, H::Tlb>,
        ipa: Ipa,
    ) {
        active.retries = 0;
        let reached = Ipa::new_truncate(ipa.get() + PAGEBLOCK_SIZE);
        if let Some(region) = host.region(space.guest(), ipa) {
            let end = reached.get();
            let portion = Portion { guest: space.guest(), region, from: ipa, end };
            self.promote_gigantic(engine, host, &portion, space, reached);
        }
        Self::reach(engine, host, active, ipa, reached);
    }

    // Promotion.

    fn promote_gigantic<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        portion: &Portion,
        space: &Space<H::Tables, H::Tlb>,
        reached: Ipa,
    ) {
        let size = Level::L1.size();
        if reached.is_aligned(size) && reached.get() >= size {
            let base = Ipa::new_truncate(reached.get() - size);
            self.promote(engine, host, portion, space, Level::L1, base);
        }
    }

    /// Makes one leaf of `level` of those around `ipa`, and one block of theirs, where they allow it.
    fn promote<H: Host>(
        &mut self,
        engine: &Engine,
        host: &H,
        portion: &Portion,
        space: &Space<H::Tables, H::Tlb>,
        level: Level,
        ipa: Ipa,
    ) {
        let base = Ipa::new_truncate(ipa.get() & !(level.size() - 1));
        if portion.region.largest > level || !portion.region_holds(base.get(), level.size()) {
            return;
        }
        let (guest, order) = (portion.guest, level.order());
        let is_promoted = space.with(host, |stage2| {
            let Ok(()) = stage2.can_promote(base, level) else { return false };
            let Some(first) = stage2.leaf(base) else { return false };
            let frame = Frame::containing(first.pa());
            if !host.unite(guest, frame, order, base) {
                return false;
            }
            let is_promoted = stage2.promote(base, level).is_ok();
            if !is_promoted {
                host.divide(guest, frame, order);
            }
            is_promoted
        });
        if is_promoted {
            engine.statistics().guest(guest).count_promotion();
        }
    }

    // What is left over.

    /// Notes a block to scrub and release. There is always room: debts are paid before anything is begun,
    /// and no turn leaves more than two.
    fn owe(&mut self, guest: GuestId, frame: Frame, order: u8) {
        let _ = self.debts.push(Debt { guest, frame, order, scrubbed: 0 });
    }

    /// Scrubs some of what is owed, and releases it at the end. Yields whether anything was owed.
    fn pay_debt<H: Host>(&mut self, host: &H) -> bool {
        let Some(debt) = self.debts.last_mut() else { return false };
        let left = (1 << debt.order) - debt.scrubbed;
        let count = left.min(SCRUB);
        host.scrub(frame_at(debt.frame, debt.scrubbed), count);
        debt.scrubbed += count;
        if debt.scrubbed == 1 << debt.order {
            host.release(debt.guest, debt.frame, debt.order, Contents::Zeroed);
            self.debts.pop();
        }
        true
    }

    /// Brings `space` to rest: see [`Engine::abandon`].
    pub(super) fn abandon<H: Host>(&mut self, engine: &Engine, host: &H, space: &Space<H::Tables, H::Tlb>) {
        let guest = space.guest();
        // The job may have left the guest already, since it is no longer to be seen.
        let is_here = |active: &Active| active.cursor.guest == guest.index() as u8;
        let mut other = self.active.take();
        let mut nobody = Active::nobody(guest);
        let active = other.as_mut().filter(|active| is_here(active)).unwrap_or(&mut nobody);
        loop {
            match space.work(host) {
                Work::Nothing => break,
                Work::Whole(_) => {
                    if let Some(target) = space.roll_back(host) {
                        self.owe(guest, target, PAGEBLOCK_ORDER);
                    }
                }
                work => self.go_on(engine, host, active, space, work),
            }
            while self.pay_debt(host) {}
        }
        while self.pay_debt(host) {}
        if self.reserve.as_ref().is_some_and(|reserve| reserve.guest == guest) {
            while self.unreserve(host) {}
        }
        self.active = other.filter(|active| active.request.guest() != Some(guest));
    }
}
