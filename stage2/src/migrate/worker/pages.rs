//! Moves units of 4 KiB in batches, to single frames or into one block.

use super::{Active, Context, Mover};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE, Pa};
use crate::migrate::host::Host;
use crate::migrate::plan::{self, Portion, Survey};
use crate::migrate::reason::{Reason, Unmoved};
use crate::migrate::unit::{BATCH, Batch, Block, area_of, frame_at};
use crate::phys::frame::Contents;
use crate::table::{Leaf, Level};

/// Number of selected units from which on all units of an area move into one block.
const GATHER: u64 = PAGEBLOCK_FRAMES * 3 / 4;

/// log2 of [`BATCH`].
const BATCH_ORDER: u8 = BATCH.trailing_zeros() as u8;
const _: () = assert!(BATCH.is_power_of_two());

/// Fills `frames` with contiguous frames from `first`, of the same block.
fn fill(frames: &mut [Frame; BATCH], first: Frame) {
    for (index, frame) in frames.iter_mut().enumerate() {
        *frame = Frame::containing(Pa::new_truncate(first.pa().get() + index as u64 * FRAME_SIZE));
    }
}

impl Mover {
    /// Starts to move the area of `leaf` into one block, or moves one batch of it.
    pub(super) fn begin_pages<H: Host>(
        &mut self,
        context: &Context<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        let (host, guest, ipa) = (context.host, portion.guest, leaf.ipa());
        let is_exact = active.request.of_kind.is_some();
        let may_gather =
            portion.region.largest <= Level::L2 && (!is_exact || active.left_bytes >= PAGEBLOCK_SIZE);
        if may_gather && ipa == area_of(ipa) && portion.holds(ipa, PAGEBLOCK_SIZE) {
            let survey = self.survey(context, active, ipa, PAGEBLOCK_FRAMES);
            if survey.present == PAGEBLOCK_FRAMES
                && survey.selected >= if is_exact { PAGEBLOCK_FRAMES } else { GATHER }
                && let Some(target) = self.target_block(host, active, portion, ipa)
            {
                return context.space.begin_block(ipa, target);
            }
        }
        let mut left = ((portion.end - ipa.get()) / FRAME_SIZE).min(BATCH as u64);
        if is_exact {
            left = left.min(active.left_bytes / FRAME_SIZE);
        }
        let leading = context.space.leading(ipa, left as usize, |pa| {
            plan::selects(&active.request.select, host, &mut self.sources, Frame::containing(pa), 1)
        });
        let mut batch = Batch::empty();
        let target_count =
            Self::target_frames(context, active, portion, ipa, leading.max(1), &mut batch.targets);
        if target_count == 0 {
            active.is_exhausted = true;
            return;
        }
        let is_begun = context.space.begin_batch(ipa, target_count, &mut batch).is_ok();
        let count = if is_begun { batch.len() } else { 0 };
        for target in batch.targets.iter().take(target_count).skip(count) {
            host.release(guest, *target, 0, Contents::Dirty);
        }
        if !is_begun {
            return active.skip(context, portion, leaf, Reason::Busy);
        }
        self.move_batch(context, active, &batch);
        Self::release_sources(context, &batch);
        if may_gather {
            context.engine.note_split(guest);
        }
        let reached = Ipa::new_truncate(ipa.get() + count as u64 * FRAME_SIZE);
        active.reach(context, ipa, reached);
        if area_of(reached) == reached {
            self.promote(context, &portion.region, Level::L2, area_of(ipa));
            self.promote_gigantic(context, &portion.region, reached);
        }
    }

    /// Summarises the area at `ipa` for the job.
    fn survey<H: Host>(&mut self, context: &Context<'_, H>, active: &Active, ipa: Ipa, most: u64) -> Survey {
        context.space.survey(ipa, most, |leaf| {
            plan::is_selected(&active.request.select, context.host, &mut self.sources, leaf)
        })
    }

    /// Allocates up to `count` frames for the units from `ipa`. Returns their number.
    fn target_frames<H: Host>(
        context: &Context<'_, H>,
        active: &Active,
        portion: &Portion,
        ipa: Ipa,
        count: usize,
        targets: &mut [Frame; BATCH],
    ) -> usize {
        let (placement, guest) = (plan::placement_of(&active.request, portion), portion.guest);
        if count == BATCH
            && let Some(first) =
                plan::allocate_run(context.host, &active.request, placement, (guest, ipa), BATCH_ORDER)
        {
            fill(targets, first);
            return BATCH;
        }
        for (index, target) in targets.iter_mut().enumerate().take(count) {
            let at = Ipa::new_truncate(ipa.get() + index as u64 * FRAME_SIZE);
            match plan::allocate(context.host, &active.request, placement, (guest, at), 0) {
                Some(frame) => *target = frame,
                None => return index,
            }
        }
        count.min(BATCH)
    }

    /// Moves a batch and counts it.
    fn move_batch<H: Host>(&mut self, context: &Context<'_, H>, active: &Active, batch: &Batch) {
        let (host, guest, statistics) = (context.host, context.guest(), context.engine.statistics());
        context.counters().count_invalidation();
        context.space.run_batch(host, batch, context.counters());
        // A run lies in one pageblock, and so behind one controller.
        for (first, count) in batch.runs() {
            let source = self.sources.controller(host, batch.sources[first % BATCH]);
            let pair = source.zip(self.targets.controller(host, batch.targets[first % BATCH]));
            statistics.count_moved(guest, pair, Level::L3, count as u64);
            if let Some(ipa) = batch.run.ipa().checked_add(first as u64 * FRAME_SIZE) {
                host.has_moved(guest, ipa, batch.targets[first % BATCH]);
            }
        }
        active.count_moved(context, Level::L3, batch.len() as u64);
    }

    /// Scrubs and releases the sources of a batch.
    fn release_sources<H: Host>(context: &Context<'_, H>, batch: &Batch) {
        let started = context.host.now();
        for (first, count) in batch.runs() {
            context.host.scrub(batch.sources[first % BATCH], count as u64);
            context.space.give_way();
        }
        context.counters().count_scrub(context.host.now().wrapping_sub(started));
        for (first, count) in batch.runs() {
            let source = batch.sources[first % BATCH];
            context.host.release_run(context.guest(), source, count as u64, Contents::Zeroed);
        }
        context.space.give_way();
    }

    /// Moves the next batch of an area into the area's target block.
    pub(super) fn move_block<H: Host>(
        &mut self,
        context: &Context<'_, H>,
        active: &mut Active,
        block: Block,
    ) {
        let (host, next) = (context.host, u64::from(block.next));
        if block.uncounted > 0
            && let Some(source) = block.source
        {
            let count = context.space.take_uncounted().into();
            let pair = self.sources.controller(host, source).zip(self.targets.controller(host, block.target));
            context.engine.statistics().count_moved(context.guest(), pair, Level::L3, count);
            active.count_moved(context, Level::L3, count);
            host.has_moved(context.guest(), block.ipa, block.target);
        }
        if next >= PAGEBLOCK_FRAMES {
            return self.finish_block(context, active, block);
        }
        let count = (PAGEBLOCK_FRAMES - next).min(BATCH as u64);
        let mut batch = Batch::empty();
        fill(&mut batch.targets, frame_at(block.target, next));
        let ipa = Ipa::new_truncate(block.ipa.get() + next * FRAME_SIZE);
        if context.space.begin_batch(ipa, count as usize, &mut batch).is_err() {
            return self.give_up_block(context, active, block);
        }
        self.move_batch(context, active, &batch);
        if block.source.is_none() {
            Self::release_sources(context, &batch);
        }
        context.space.advance_block(batch.len() as u16);
    }

    /// Completes an area whose units have all moved, and promotes it.
    fn finish_block<H: Host>(&mut self, context: &Context<'_, H>, active: &mut Active, block: Block) {
        let (host, guest) = (context.host, context.guest());
        context.space.end_block();
        if let Some(source) = block.source {
            self.scrub_later(guest, source);
        }
        match context.space.with(|stage2| stage2.promote(block.ipa, Level::L2)) {
            Ok(_) => context.counters().count_promotion(),
            // The leaves stay small, and so must the blocks.
            Err(_) => {
                host.divide(guest, block.target, PAGEBLOCK_ORDER);
                active.note_split(context);
            }
        }
        self.arrived(context, active, block.ipa);
    }

    /// Gives the area up: a unit has gone, since something else unmaps the guest's memory. Units that have moved stay
    /// at their targets.
    fn give_up_block<H: Host>(&mut self, context: &Context<'_, H>, active: &mut Active, block: Block) {
        let (host, guest, next) = (context.host, context.guest(), u64::from(block.next));
        context.space.end_block();
        let unused = [(Some(block.target), next..PAGEBLOCK_FRAMES), (block.source, 0..next)];
        for (frame, indexes) in unused {
            if let Some(frame) = frame.filter(|frame| host.divide(guest, *frame, PAGEBLOCK_ORDER)) {
                indexes.for_each(|index| host.release(guest, frame_at(frame, index), 0, Contents::Dirty));
            }
        }
        let mut unmoved = Unmoved::default();
        let left = PAGEBLOCK_FRAMES - next;
        unmoved.add(guest, block.ipa, left, left * FRAME_SIZE);
        active.report(context.engine, |report| report.count_unmoved(Reason::Busy, &unmoved));
        active.note_split(context);
        self.arrived(context, active, block.ipa);
    }
}
