//! Migration, as the console sees it.

use super::{ENGINE, Host, submit, wake};
use crate::arch::{own, timer};
use crate::guest::Guest;
use crate::monitor::migration::{Heat, Migration, Order, Piece};
use guest_dts::config::BankKind;
use stage2::addr::{Frame, Ipa, PAGEBLOCK_SIZE};
use stage2::controller::ControllerId;
use stage2::memory::Retired;
use stage2::migrate::{Engine, Frames, Guests, JobId, JobReport, Request, RequestError, Shortage};
use stage2::placement::Placement;
use stage2::range::FrameRange;
use stage2::table::Leaf;

/// The operator's hand on migration.
pub(crate) struct Operator;

fn guest(index: usize) -> Option<&'static Guest> {
    crate::guest::all().nth(index)
}

impl Migration for Operator {
    fn engine(&self) -> &Engine {
        &ENGINE
    }

    fn submit(&self, request: Request) -> Result<JobId, RequestError> {
        submit(request)
    }

    fn control(&self, job: JobId, order: Order) -> Result<(), RequestError> {
        match order {
            Order::Pause => ENGINE.pause(&Host, job),
            Order::Resume => ENGINE.resume(&Host, job),
            Order::Cancel => ENGINE.cancel(&Host, job),
        }?;
        wake();
        Ok(())
    }

    fn job(&self, job: JobId) -> Option<JobReport> {
        ENGINE.job(&Host, job)
    }

    fn job_after(&self, job: JobId) -> Option<JobReport> {
        ENGINE.job_after(&Host, job)
    }

    fn shortage(&self, report: &JobReport) -> Shortage {
        ENGINE.shortage(&Host, report)
    }

    fn piece(&self, index: usize, piece: usize) -> Option<Piece> {
        let guest = guest(index)?;
        let planned = guest.plan.pieces().get(piece)?;
        let (is_dmb, number) = match guest.plan.kind_at(planned.ipa)? {
            BankKind::Region(number) => (false, number),
            BankKind::Dmb(number) => (true, number),
        };
        let placement = guest.placement(piece).unwrap_or(planned.placement);
        Some(Piece {
            is_dmb,
            number,
            ipa: planned.ipa.get(),
            size: planned.size,
            placement,
            is_pinned: placement != planned.placement,
            mobility: Host.region(guest.id, planned.ipa)?.mobility,
        })
    }

    fn place(&self, index: usize, piece: usize, placement: Option<Placement>) {
        let Some(guest) = guest(index) else { return };
        let Some(planned) = guest.plan.pieces().get(piece) else { return };
        if let Some(place) = guest.placements.lock().get_mut(piece) {
            *place = placement.unwrap_or(planned.placement);
        }
    }

    fn sample(&self, index: usize, ipa: u64, heat: &mut Heat) -> Option<u64> {
        let space = guest(index)?.space.if_open()?;
        let from = Ipa::try_new(ipa)?;
        space.with(&Host, |stage2| {
            let leaf = stage2.leaves(from, stage2.geometry().ipa_limit().checked_sub(ipa)?).next()?;
            let size = leaf.size().max(PAGEBLOCK_SIZE);
            let base = Ipa::new_truncate(leaf.ipa().get() & !(size - 1));
            let visit = |leaf: Leaf| {
                heat.unit_count += 1;
                let span = own::MEMORY.span_of(Frame::containing(leaf.pa()));
                if let Some(span) = span.filter(|_| heat.is_end && leaf.descriptor().is_accessed()) {
                    heat.touched[span.controller.index()] += leaf.size();
                }
            };
            if heat.is_end {
                stage2.mark_all_accessed(base, size, visit);
            } else {
                stage2.harvest_accessed(base, size, visit);
                stage2.synchronise();
            }
            Some(base.get() + size)
        })
    }

    fn close(&self, controller: ControllerId, is_closed: bool) {
        if is_closed {
            own::MEMORY.close(controller);
        } else {
            own::MEMORY.open(controller);
        }
    }

    fn retire_some(&self, frames: FrameRange, done: &mut Retired) -> FrameRange {
        own::MEMORY.retire_some(frames, done)
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        timer::to_nanoseconds(ticks)
    }

    fn now(&self) -> u64 {
        timer::now()
    }
}
