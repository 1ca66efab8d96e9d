//! Claims on this machine: pools and their owners, and the windows in which guests see claimed memory.
//!
//! Claims are worked on in the same CPU time as migration ([`super::migration`]).

use super::migration::{self, Host};
use super::{Guest, get, interrupts};
use crate::arch::{cpu, trace};
use crate::device::pool_call::{self, Owned};
use crate::hyp_mem::{copy, pages};
use crate::observe::log;
use crate::observe::trace::{Kind, Step};
use crate::physical::{self, Owner};
use guest_dts::config::Pool;
use guest_dts::guest_tree::platform::POOL_SPI;
use spin::Mutex;
use stage2::addr::{FRAME_SIZE, Frame, Ipa, PAGEBLOCK_FRAMES};
use stage2::claim::{self, ClaimId, Claimant, Claims, Report, RequestError, Windows, Wish};
use stage2::migrate::{Copier, Region};
use stage2::owner::{GuestId, PoolId};
use stage2::phys::alloc::Memory;
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
