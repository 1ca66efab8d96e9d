//! Migration for the monitor's commands.

use crate::arch::timer;
use crate::guest::Guest;
use crate::guest::migration::{ENGINE, Host, submit, wake};
use crate::hyp_mem::pages;
use crate::monitor::balance::History;
use crate::monitor::migration::{Heat, Look, Migration, Order, Piece};
use guest_dts::config::RamSource;
use guest_dts::guest_tree::platform;
use stage2::addr::{FRAME_SIZE, Frame, Ipa};
use stage2::controller::ControllerId;
use stage2::migrate::{Engine, Frames, Guests, JobId, JobReport, Request, RequestError, Shortage};
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::Retired;
use stage2::phys::placement::Placement;
use stage2::range::FrameRange;
use stage2::table::Leaf;

/// Bytes of 4 KiB units that are sampled while a guest's lock is held once.
const LOOK: u64 = 64 * FRAME_SIZE;

/// The directions of earlier balancing by heat.
static HISTORY: History = History::new();

/// The operator's access to migration.
pub(crate) struct Operator;

fn guest(index: usize) -> Option<&'static Guest> {
    crate::guest::all().nth(index)
}

impl Migration for Operator {
    fn engine(&self) -> &Engine {
        &ENGINE
    }

    fn history(&self) -> &History {
        &HISTORY
    }

    fn submit(&self, request: Request) -> Result<JobId, RequestError> {
        submit(request)
    }

    fn control(&self, job: JobId, order: Order) -> Result<(), RequestError> {
        match order {
            Order::Pause => ENGINE.pause(job),
            Order::Resume => ENGINE.resume(job),
            Order::Cancel => ENGINE.cancel(&Host, job),
        }?;
        wake();
        Ok(())
    }

    fn job(&self, job: JobId) -> Option<JobReport> {
        ENGINE.job(job)
    }

    fn job_after(&self, job: JobId) -> Option<JobReport> {
        ENGINE.job_after(job)
    }

    fn shortage(&self, report: &JobReport) -> Shortage {
        ENGINE.shortage(&Host, report)
    }

    fn frames_for(&self, guest: GuestId, controller: ControllerId) -> u64 {
        let free = pages::MEMORY.free_frames(&Placement::only(controller));
        // Nothing moves back to a closed controller.
        if free == 0 && pages::MEMORY.is_closed(controller) {
            0
        } else {
            free + pages::MEMORY.resident(Owner::Guest(guest), controller)
        }
    }

    fn piece(&self, index: usize, piece: usize) -> Option<Piece> {
        let guest = guest(index)?;
        let planned = guest.plan().pieces().get(piece)?;
        let (is_dmb, number) = match guest.plan().kind_at(planned.ipa)? {
            RamSource::Region(number) => (false, number),
            RamSource::Dmb(number) => (true, number),
        };
        let placement = guest.placement(piece).unwrap_or(planned.placement);
        Some(Piece {
            is_dmb,
            number,
            ipa: planned.ipa.get(),
            size: planned.size,
            placement,
            is_pinned: placement != planned.placement,
            mobility: Host.region(guest.id(), planned.ipa)?.mobility,
            backing: planned.backing.map(|base| base.get()),
        })
    }

    fn place(&self, index: usize, piece: usize, placement: Option<Placement>) {
        let Some(guest) = guest(index) else { return };
        let Some(planned) = guest.plan().pieces().get(piece) else { return };
        if let Some(place) = guest.placements.lock().get_mut(piece) {
            *place = placement.unwrap_or(planned.placement);
        }
    }

    fn sample(&self, index: usize, ipa: u64, heat: &mut Heat) -> Option<u64> {
        let guest = guest(index)?;
        let space = guest.space.if_open()?;
        heat.life = guest.space.life();
        // Registers of devices, below RAM, have no heat: nobody sets their access flags again.
        let from = Ipa::try_new(ipa.max(platform::RAM_BASE))?;
        space.with(|stage2| {
            let leaf = stage2.leaves(from, stage2.geometry().ipa_limit().checked_sub(from.get())?).next()?;
            // Bounded: a guest that faults waits for the lock.
            let size = leaf.size().max(LOOK);
            let base = Ipa::new_truncate(leaf.ipa().get() & !(size - 1));
            let visit = |leaf: Leaf| {
                heat.unit_count += 1;
                let Some(span) = pages::MEMORY.span_of(Frame::containing(leaf.pa())) else { return };
                let at = span.controller.index();
                heat.resident[at] += leaf.size();
                if leaf.descriptor().is_accessed() {
                    heat.touched[at] += leaf.size();
                }
            };
            match heat.look {
                Look::Begin => {
                    stage2.harvest_accessed(base, size, visit);
                    stage2.synchronise();
                }
                Look::Count => stage2.leaves(base, size).filter(|leaf| !leaf.is_broken()).for_each(visit),
                Look::End => stage2.mark_all_accessed(base, size, visit),
            }
            Some(base.get() + size)
        })
    }

    fn close(&self, controller: ControllerId, is_closed: bool) {
        if is_closed {
            pages::MEMORY.close(controller);
        } else {
            pages::MEMORY.open(controller);
        }
    }

    fn forget_some(&self, frames: FrameRange) -> FrameRange {
        pages::MEMORY.forget_some(frames)
    }

    fn retire_some(&self, frames: FrameRange, done: &mut Retired) -> FrameRange {
        pages::MEMORY.retire_some(frames, done)
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        timer::to_nanoseconds(ticks)
    }

    fn now(&self) -> u64 {
        timer::now()
    }
}
