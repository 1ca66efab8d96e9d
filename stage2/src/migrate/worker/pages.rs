//! Units of 4 KiB: in batches, one by one or into one block.

use super::{Active, Hands, Place};
use crate::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE, Pa};
use crate::migrate::host::Host;
use crate::migrate::plan::{self, Portion, Survey};
use crate::migrate::reason::{Reason, Unmoved};
use crate::migrate::unit::{BATCH, Batch, Block, area_of, frame_at};
use crate::phys::frame::Contents;
use crate::table::{Leaf, Level};

/// Units of an area that must be on the move for all of them to move into one block.
const GATHER: u64 = PAGEBLOCK_FRAMES * 3 / 4;

/// log2 of [`BATCH`].
const BATCH_ORDER: u8 = BATCH.trailing_zeros() as u8;
const _: () = assert!(BATCH.is_power_of_two());

/// Frames side by side from `first` on, which are `first` and others of its block.
fn fill(frames: &mut [Frame; BATCH], first: Frame) {
    for (index, frame) in frames.iter_mut().enumerate() {
        *frame = Frame::containing(Pa::new_truncate(first.pa().get() + index as u64 * FRAME_SIZE));
    }
}

impl Hands {
    /// Begins with the area of `leaf`, or moves a batch of it.
    pub(super) fn begin_pages<H: Host>(
        &mut self,
        place: &Place<'_, H>,
        active: &mut Active,
        portion: &Portion,
        leaf: Leaf,
    ) {
        let (host, guest, ipa) = (place.host, portion.guest, leaf.ipa());
        let is_exact = active.request.of_kind.is_some();
        let may_gather =
            portion.region.largest <= Level::L2 && (!is_exact || active.left_bytes >= PAGEBLOCK_SIZE);
        if may_gather && ipa == area_of(ipa) && portion.holds(ipa, PAGEBLOCK_SIZE) {
            let survey = self.survey(place, active, ipa, PAGEBLOCK_FRAMES);
            if survey.present == PAGEBLOCK_FRAMES
                && survey.selected >= if is_exact { PAGEBLOCK_FRAMES } else { GATHER }
                && let Some(target) = self.target_block(host, active, portion, ipa)
            {
                return place.space.begin_block(ipa, target);
            }
        }
        let mut left = ((portion.end - ipa.get()) / FRAME_SIZE).min(BATCH as u64);
        if is_exact {
            left = left.min(active.left_bytes / FRAME_SIZE);
        }
        let leading = place.space.leading(ipa, left as usize, |pa| {
            plan::selects(&active.request.select, host, &mut self.sources, Frame::containing(pa), 1)
        });
        let mut batch = Batch::empty();
        let target_count =
            Self::target_frames(place, active, portion, ipa, leading.max(1), &mut batch.targets);
        if target_count == 0 {
            active.is_exhausted = true;
            return;
        }
        let is_begun = place.space.begin_batch(ipa, target_count, &mut batch).is_ok();
        let count = if is_begun { batch.len() } else { 0 };
        for target in batch.targets.iter().take(target_count).skip(count) {
            host.release(guest, *target, 0, Contents::Dirty);
        }
        if !is_begun {
            return active.skip(place, portion, leaf, Reason::Busy);
        }
        self.move_batch(place, active, &batch);
        Self::release_sources(place, &batch);
        if may_gather {
            place.engine.note_split(guest);
        }
        let reached = Ipa::new_truncate(ipa.get() + count as u64 * FRAME_SIZE);
        active.reach(place, ipa, reached);
        if area_of(reached) == reached {
            self.promote(place, &portion.region, Level::L2, area_of(ipa));
            self.promote_gigantic(place, &portion.region, reached);
        }
    }

    fn survey<H: Host>(&mut self, place: &Place<'_, H>, active: &Active, ipa: Ipa, most: u64) -> Survey {
        place.space.survey(ipa, most, |leaf| {
            plan::is_selected(&active.request.select, place.host, &mut self.sources, leaf)
        })
    }

    /// Up to `count` frames for the units from `ipa` on; how many they are.
    fn target_frames<H: Host>(
        place: &Place<'_, H>,
        active: &Active,
        portion: &Portion,
        ipa: Ipa,
        count: usize,
        targets: &mut [Frame; BATCH],
    ) -> usize {
        let (placement, guest) = (plan::placement_of(&active.request, portion), portion.guest);
        if count == BATCH
            && let Some(first) =
                plan::allocate_run(place.host, &active.request, placement, (guest, ipa), BATCH_ORDER)
        {
            fill(targets, first);
            return BATCH;
        }
        for (index, target) in targets.iter_mut().enumerate().take(count) {
            let at = Ipa::new_truncate(ipa.get() + index as u64 * FRAME_SIZE);
            match plan::allocate(place.host, &active.request, placement, (guest, at), 0) {
                Some(frame) => *target = frame,
                None => return index,
            }
        }
        count.min(BATCH)
    }

    /// Moves a batch and counts it.
    fn move_batch<H: Host>(&mut self, place: &Place<'_, H>, active: &Active, batch: &Batch) {
        let (host, guest, statistics) = (place.host, place.guest(), place.engine.statistics());
        place.counters().count_invalidation();
        place.space.run_batch(host, batch, place.counters());
        // A pageblock lies behind one controller.
        for (first, count) in batch.runs() {
            let source = self.sources.controller(host, batch.sources[first % BATCH]);
            let pair = source.zip(self.targets.controller(host, batch.targets[first % BATCH]));
            statistics.count_moved(guest, pair, Level::L3, count as u64);
            if let Some(ipa) = batch.run.ipa().checked_add(first as u64 * FRAME_SIZE) {
                host.has_moved(guest, ipa, batch.targets[first % BATCH]);
            }
        }
        active.count_moved(place, Level::L3, batch.len() as u64);
    }

    /// Scrubs and releases the frames that a batch came from.
    fn release_sources<H: Host>(place: &Place<'_, H>, batch: &Batch) {
        let started = place.host.now();
        for (first, count) in batch.runs() {
            place.host.scrub(batch.sources[first % BATCH], count as u64);
            place.space.give_way();
        }
        place.counters().count_scrub(place.host.now().wrapping_sub(started));
        for (first, count) in batch.runs() {
            let source = batch.sources[first % BATCH];
            place.host.release_run(place.guest(), source, count as u64, Contents::Zeroed);
        }
        place.space.give_way();
    }

    /// Moves the next batch of an area into its block.
    pub(super) fn move_block<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active, block: Block) {
        let (host, next) = (place.host, u64::from(block.next));
        if block.uncounted > 0
            && let Some(source) = block.source
        {
            let count = place.space.take_uncounted().into();
            let pair = self.sources.controller(host, source).zip(self.targets.controller(host, block.target));
            place.engine.statistics().count_moved(place.guest(), pair, Level::L3, count);
            active.count_moved(place, Level::L3, count);
            host.has_moved(place.guest(), block.ipa, block.target);
        }
        if next >= PAGEBLOCK_FRAMES {
            return self.finish_block(place, active, block);
        }
        let count = (PAGEBLOCK_FRAMES - next).min(BATCH as u64);
        let mut batch = Batch::empty();
        fill(&mut batch.targets, frame_at(block.target, next));
        let ipa = Ipa::new_truncate(block.ipa.get() + next * FRAME_SIZE);
        if place.space.begin_batch(ipa, count as usize, &mut batch).is_err() {
            return self.give_up_block(place, active, block);
        }
        self.move_batch(place, active, &batch);
        if block.source.is_none() {
            Self::release_sources(place, &batch);
        }
        place.space.advance_block(batch.len() as u16);
    }

    fn finish_block<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active, block: Block) {
        let (host, guest) = (place.host, place.guest());
        place.space.end_block();
        if let Some(source) = block.source {
            self.owe(guest, source);
        }
        match place.space.with(|stage2| stage2.promote(block.ipa, Level::L2)) {
            Ok(_) => place.counters().count_promotion(),
            // Leaves stay small; then so do the blocks.
            Err(_) => {
                host.divide(guest, block.target, PAGEBLOCK_ORDER);
                active.note_split(place);
            }
        }
        self.arrived(place, active, block.ipa);
    }

    /// A unit of the area has gone: something else unmaps the guest's memory. What has moved stays.
    fn give_up_block<H: Host>(&mut self, place: &Place<'_, H>, active: &mut Active, block: Block) {
        let (host, guest, next) = (place.host, place.guest(), u64::from(block.next));
        place.space.end_block();
        let unused = [(Some(block.target), next..PAGEBLOCK_FRAMES), (block.source, 0..next)];
        for (frame, indexes) in unused {
            if let Some(frame) = frame.filter(|frame| host.divide(guest, *frame, PAGEBLOCK_ORDER)) {
                indexes.for_each(|index| host.release(guest, frame_at(frame, index), 0, Contents::Dirty));
            }
        }
        let mut unmoved = Unmoved::default();
        let left = PAGEBLOCK_FRAMES - next;
        unmoved.add(guest, block.ipa, left, left * FRAME_SIZE);
        active.report(place.engine, |report| report.count_unmoved(Reason::Busy, &unmoved));
        active.note_split(place);
        self.arrived(place, active, block.ipa);
    }
}
