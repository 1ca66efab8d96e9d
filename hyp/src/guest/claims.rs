//! Claims on this machine: pools and their owners, and the windows in which guests see claimed memory.
//!
//! Claims are worked on in the same CPU time as migration ([`super::migration`]).

use super::migration::{self, Host};
use super::{Guest, Phase, get, interrupts};
use crate::arch::{cpu, timer, trace};
use crate::device::pool_call::{self, Owned};
use crate::hyp_mem::{copy, pages};
use crate::monitor::machine::{Reason, reason};
use crate::monitor::units::Size;
use crate::observe::log;
use crate::observe::trace::{Kind, Step};
use crate::physical::{self, Owner};
use alloc::format;
use alloc::string::{String, ToString};
use guest_dts::config::Pool;
use guest_dts::guest_tree::platform::POOL_SPI;
use spin::Mutex;
use stage2::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES};
use stage2::claim::{self, ClaimId, Claimant, Claims, Report, RequestError, Windows, Wish};
use stage2::migrate::{Copier, Region};
use stage2::owner::{GuestId, PoolId};
use stage2::phys::alloc::Memory;
use stage2::phys::frame::Mapping;
use stage2::phys::placement::Placement;
use stage2::phys::pool::Pools;
use stage2::range::FrameRange;
use stage2::table::Attributes;

/// All pools and claims.
pub(crate) static CLAIMS: Claims = Claims::new();

/// The designated pools, until their owners are known.
static DESIGNATED: Mutex<Option<Pools>> = Mutex::new(None);

/// Approximate number of leaves that are unmapped at a time.
const HIDDEN: usize = 64;

/// Keeps the designated pools.
pub(crate) fn designated(pools: Pools) {
    *DESIGNATED.lock() = Some(pools);
}

/// Sets the owners of the pools, once the guests are defined.
pub(crate) fn set_owners(configured: &[Pool<'_>]) {
    let Some(mut pools) = DESIGNATED.lock().take() else { return };
    physical::set_owners(&mut pools, configured, |name| super::find(name).map(owner), &mut super::tell);
    CLAIMS.set_pools(pools);
}

/// Returns what decides whether windows of pools fit into the address space of `guest`.
fn owner(guest: &'static Guest) -> Owner<'static> {
    Owner { id: guest.id, layout: guest.plan.layout(), ipa_limit: guest.space.ipa_limit() }
}

/// Works on claims for at most about `ticks`.
pub(crate) fn step(ticks: u64) -> claim::Step {
    if CLAIMS.pools().is_none_or(|pools| pools.iter().next().is_none()) {
        return claim::Step::Idle;
    }
    CLAIMS.step(&Host, &migration::ENGINE, ticks)
}

/// Gives back all that `guest` has claimed, when it stops or is reset. No vCPU of it runs, and its space is closed. Returns
/// true if no claimed memory is mapped in the guest any more; else no vCPU may run before the space is released.
pub(crate) fn abandon(guest: &'static Guest) -> bool {
    let Some(pools) = CLAIMS.pools() else { return true };
    if !pools.iter().any(|(_, pool)| pool.bound == Some(guest.id)) {
        return true;
    }
    let mut is_hidden = true;
    CLAIMS.abandon(&Host, guest.id);
    for (id, pool) in pools.iter().filter(|(_, pool)| pool.bound == Some(guest.id)) {
        let mut left = pool.range;
        while !left.is_empty() {
            cpu::serve_interrupts();
            let slice = Host.slice_to_hide(guest.id, id, left);
            is_hidden &= Host.hide(guest.id, id, slice);
            left = FrameRange::from_numbers(slice.end(), left.end()).unwrap_or_default();
        }
    }
    migration::wake();
    is_hidden
}

/// Claims a block of `order` for `guest`, which is starting, at `ipa`, out of a pool that keeps such units, and moves
/// tenants away. Waits until they have moved, at most for the pool's time limit, or until the operator stops the guest.
///
/// # Errors
///
/// The obstacle, if there is such a pool.
pub(crate) fn win_back(
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
            None => Err(CLAIMS
                .report(Claimant::Units, claim)
                .map_or_else(|| String::from("the claim is forgotten"), |report| report.blocker.to_string())),
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
    migration::work_along();
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

/// Returns the address at which the frames of `pool` appear in its owner.
fn window(guest: &Guest, pool: PoolId) -> Option<Ipa> {
    let window = physical::claim_window(CLAIMS.pools()?, pool, guest.plan.layout(), guest.space.ipa_limit());
    Ipa::try_new(window.ok()?.start)
}

impl Windows for Host {
    fn invalidate_instructions(&self) {
        copy::synchronise_fetches();
    }

    fn show(&self, guest: GuestId, pool: PoolId, slice: FrameRange) -> Option<Ipa> {
        let (ipa, space) = (place(guest, pool, slice)?, get(guest.index())?.space.if_open()?);
        space.with(|stage2| stage2.map(ipa, slice.base(), slice.bytes(), Attributes::RAM)).ok()?;
        Some(ipa)
    }

    fn part(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> bool {
        let (Some(ipa), Some(guest)) = (place(guest, pool, range), get(guest.index())) else { return true };
        let end = ipa.checked_add(range.bytes()).unwrap_or(ipa);
        guest.space.any().with(|stage2| [ipa, end].into_iter().all(|edge| stage2.split_at(edge).is_ok()))
    }

    fn slice_to_hide(&self, guest: GuestId, pool: PoolId, range: FrameRange) -> FrameRange {
        let slice = claim::slice_of(range);
        let (Some(ipa), Some(guest)) = (place(guest, pool, slice), get(guest.index())) else { return slice };
        let nth = guest.space.any().with(|stage2| stage2.leaves(ipa, slice.bytes()).nth(HIDDEN));
        let Some(leaf) = nth else { return slice };
        // Whole pageblocks, so that no leaf spans two slices.
        let frames = (leaf.ipa().get() - ipa.get()) / FRAME_SIZE;
        let first = (slice.start() | (PAGEBLOCK_FRAMES - 1)) + 1;
        let end = first.max((slice.start() + frames) & !(PAGEBLOCK_FRAMES - 1)).min(slice.end());
        FrameRange::from_numbers(slice.start(), end).unwrap_or(slice)
    }

    fn hide(&self, guest: GuestId, pool: PoolId, slice: FrameRange) -> bool {
        let (Some(ipa), Some(guest)) = (place(guest, pool, slice), get(guest.index())) else { return true };
        let hidden = guest.space.any().with(|stage2| stage2.unmap(ipa, slice.bytes(), |_| ()));
        if let Err(error) = hidden {
            // Nothing moves in a window, and no leaf spans two slices.
            log::error!("guest {}: its window at {}: {}", guest.id.index(), ipa, error);
        }
        hidden.is_ok()
    }

    fn scrub(&self, frame: Frame, count: u64) {
        Copier::scrub(self, frame, count);
    }

    fn clean(&self, frame: Frame, count: u64) {
        copy::clean(frame, count);
    }
}

impl claim::Host for Host {
    type Ground = Memory<'static>;

    fn ground(&self) -> &Memory<'static> {
        &pages::MEMORY
    }

    fn region_at(&self, guest: GuestId, ipa: Ipa) -> Option<Region> {
        get(guest.index())?.region(ipa)
    }

    fn note(&self, report: &Report) {
        let step = match report.state {
            claim::State::Granted => Step::Granted,
            claim::State::Released => Step::Released,
            claim::State::Failed => Step::Failed,
            claim::State::Cancelled => Step::Cancelled,
            _ => Step::Begins,
        };
        // No guest has the index of the operator's claims and of claims for huge units.
        let guest = match report.claimant {
            Claimant::Guest(id) => {
                // The claim was made before the guest's reset.
                let is_told = report.state.is_over() && !report.is_orphan();
                if let Some(guest) = get(id.index()).filter(|_| is_told) {
                    interrupts::pulse(guest, POOL_SPI);
                }
                id.index()
            }
            Claimant::Operator | Claimant::Units => usize::from(u8::MAX),
        };
        let operation = match report.kind {
            claim::Kind::Claim => "claim",
            claim::Kind::Release => "release",
        };
        let (id, state, claimant) = (report.id.get(), report.state.name(), report.claimant);
        log::debug!(
            "{} {} by {}: {}, {}, {}",
            operation,
            id,
            claimant,
            state,
            report.range,
            report.blocker.cause
        );
        let place = if report.range.is_empty() { 0 } else { report.range.base().get() };
        trace::record(Kind::Claim(step), guest, 0, report.id.get().into(), place);
    }
}

/// Returns the IPA of `range` of `pool` in `guest`.
fn place(guest: GuestId, pool: PoolId, range: FrameRange) -> Option<Ipa> {
    let offset = range.base().get().checked_sub(CLAIMS.pools()?.get(pool)?.range.base().get())?;
    window(get(guest.index())?, pool)?.checked_add(offset)
}

/// Handles a pool call of a vCPU of `guest`.
pub(crate) fn call(guest: &'static Guest, call: pool_call::Call) -> [u64; 4] {
    pool_call::answer(call, &Caller(guest))
}

/// A guest that makes a pool call.
struct Caller(&'static Guest);

impl Caller {
    fn claimant(&self) -> Claimant {
        Claimant::Guest(self.0.id)
    }
}

impl pool_call::Owner for Caller {
    fn pool(&self, index: usize) -> Option<Owned> {
        let mut owned = CLAIMS.pools()?.iter().filter(|(_, pool)| pool.bound == Some(self.0.id));
        let (id, pool) = owned.nth(index)?;
        let claimed = claim::Ground::claimed_frames(&pages::MEMORY, id);
        let window = window(self.0, id);
        Some(Owned { id, range: pool.range, window, claimed, is_in_place: pool.is_in_place })
    }

    fn claim(&self, pool: PoolId, wish: Wish) -> Result<ClaimId, RequestError> {
        let id = CLAIMS.claim(&Host, self.claimant(), pool, wish)?;
        migration::wake();
        Ok(id)
    }

    fn release(&self, pool: PoolId, range: FrameRange) -> Result<ClaimId, RequestError> {
        let id = CLAIMS.release(&Host, self.claimant(), pool, range)?;
        migration::wake();
        Ok(id)
    }

    fn cancel(&self, id: ClaimId) -> Result<(), RequestError> {
        CLAIMS.cancel(&Host, self.claimant(), id)?;
        // A claim that had not begun has ended.
        if self.report(id).is_some_and(|report| !report.state.is_over()) {
            migration::wake();
        }
        Ok(())
    }

    fn report(&self, id: ClaimId) -> Option<Report> {
        CLAIMS.report(self.claimant(), id)
    }
}
