//! Huge units for guests that start, claimed from pools that keep such units.

use super::claims::CLAIMS;
use super::migration::{self, Host};
use super::{Guest, Phase, time};
use crate::arch::{cpu, timer};
use crate::hyp_mem::pages;
use crate::monitor::machine::{Reason, reason};
use crate::monitor::units::Size;
use crate::observe::log;
use alloc::format;
use alloc::string::{String, ToString};
use stage2::addr::{FRAME_SIZE, Frame, Ipa};
use stage2::claim::{ClaimId, Claimant, RequestError, Wish};
use stage2::phys::frame::Mapping;
use stage2::phys::placement::Placement;
use stage2::phys::pool::Pools;

/// Claims a block of `order` for `guest`, which is starting, at `ipa`, out of a pool that keeps such units, and moves
/// tenants away. Waits until they have moved, at most for the pool's time limit, or until the operator stops the guest.
///
/// # Errors
///
/// The obstacle, if there is such a pool.
pub(crate) fn claim(
    guest: &Guest,
    order: u8,
    placement: &Placement,
    ipa: Ipa,
) -> Result<Frame, Option<String>> {
    let wish = Wish::Sized { frames: 1 << order, align: 1 << order };
    let mapping = Mapping { guest: guest.id, ipa };
    let mut why = None;
    for (id, pool) in CLAIMS.pools().into_iter().flat_map(Pools::iter) {
        if pool.unit_order != Some(order) || !placement.allows(pool.controller) {
            continue;
        }
        let wait_ms = u64::from(pool.unit_wait_ms);
        let deadline = timer::now() + wait_ms * timer::frequency() / 1000;
        let end = loop {
            match CLAIMS.claim(&Host, Claimant::Units, id, wish) {
                Ok(claim) => {
                    if guest.start_claim.lock().replace(claim).is_none() {
                        let (name, wait_s) = (guest.name(), wait_ms / 1000);
                        log::info!(
                            "{}: waits for huge units of pool {}, {} s for each",
                            name,
                            pool.name,
                            wait_s
                        );
                    }
                    break wait_for(guest, claim, deadline);
                }
                // Other starting guests have used up all claims.
                Err(RequestError::TooManyOpen) if is_patient(guest, deadline) => work_along(),
                Err(error) => break Err(Some(error.to_string())),
            }
        };
        let end = end.map_err(|why| why.unwrap_or_else(|| format!("no unit after {wait_ms} ms")));
        let adopted = end.and_then(|claim| match CLAIMS.adopt(&Host, &pages::MEMORY, claim, mapping) {
            Some(adopted) => adopted.map_err(|error| error.to_string()),
            None => Err(CLAIMS.report(Claimant::Units, claim).map_or_else(
                || String::from("the record of the claim is gone"),
                |report| report.blocker.to_string(),
            )),
        });
        match adopted {
            Ok(frame) => return Ok(frame),
            Err(error) => why = Some(format!("{}: {error}", pool.name)),
        }
    }
    Err(why)
}

/// Describes the progress of the claim that `guest`, which is starting, waits for, if there is one.
pub(crate) fn waited_for(guest: &Guest) -> Option<Reason> {
    let claim = (*guest.start_claim.lock())?;
    let report = CLAIMS.report(Claimant::Units, claim).filter(|report| !report.state.is_over())?;
    let pool = CLAIMS.pools()?.get(report.pool)?.name;
    let (size, state, done) =
        (Size(report.wish.frames() * FRAME_SIZE), report.state.name(), report.per_cent());
    Some(reason(format_args!("waits for {size} of pool {pool}: claim {}, {state}, {done} %", claim.get())))
}

/// Returns true if a claim of units for `guest` is still worth waiting for.
fn is_patient(guest: &Guest, deadline: u64) -> bool {
    guest.phase() == Phase::Starting && timer::now() < deadline
}

fn work_along() {
    cpu::serve_interrupts();
    time::work_along();
}

/// Works on claims until a claim for units ends, granted or not. Returns nothing if that takes too long.
fn wait_for(guest: &Guest, id: ClaimId, deadline: u64) -> Result<ClaimId, Option<String>> {
    migration::wake();
    while CLAIMS.report(Claimant::Units, id).is_some_and(|report| !report.state.is_over()) {
        if !is_patient(guest, deadline) {
            CLAIMS.decline(&Host, id);
            migration::wake();
            let is_stopped = guest.phase() != Phase::Starting;
            return Err(is_stopped.then(|| String::from("the guest is stopped")));
        }
        work_along();
    }
    Ok(id)
}
