//! Migration on this machine: the engine and its host. `guest::time` gives it CPU time.
//!
//! CPUs without a guest, or whose vCPU is off, work in their idle loop. While there are jobs, WFI traps, and the vCPU's CPU
//! works in slices until an interrupt is pending. If no CPU was idle for a while, EL2's timer takes slices from running vCPUs,
//! up to the guest's share.
//!
//! A CPU learns of work by a kick ([`wake`]) and starts to poll the doorbell: it sets traps, and its timer ticks. While it
//! polls, it is not kicked again. Once no work is pending, it stops at its next tick. From then on migration costs its guest
//! nothing.

#[allow(unsafe_code)]
mod host;

pub(crate) use host::Host;

use super::{Guest, cpu};
use crate::arch::cpu::Request;
use crate::doorbell::Doorbell;
use guest_dts::config;
use stage2::addr::Ipa;
use stage2::migrate::{Engine, Fault, JobId, Request as Job, RequestError, Verdict};

/// The migration engine.
pub(crate) static ENGINE: Engine = Engine::new();

/// The doorbell of migration's and claims' work.
pub(super) static DOORBELL: Doorbell = Doorbell::new();

/// Applies the configuration's settings of migration.
pub(crate) fn configure(settings: &config::Migration) {
    let policy = ENGINE.policy();
    policy.set_slice_ns(u64::from(settings.slice_us) * 1000);
    policy.set_share_per_cent(settings.share_percent);
    policy.set_rate_bytes(settings.limit_bytes_per_s.unwrap_or(0));
}

/// Queues a job and wakes the machine.
pub(crate) fn submit(job: Job) -> Result<JobId, RequestError> {
    let id = ENGINE.submit(job)?;
    wake();
    Ok(id)
}

/// Announces work. Kicks the CPUs that do not poll; the others look at their next tick.
pub(crate) fn wake() {
    DOORBELL.ring();
    cpu::all().filter(|cpu| !cpu.poller.is_polling()).for_each(|cpu| cpu.request(Request::Look));
}

/// Looks again for free blocks into which split areas can be merged, after memory was freed.
pub(crate) fn note_freed() {
    ENGINE.note_freed();
    if ENGINE.has_spare_work() {
        wake();
    }
}

// Called by handlers of traps.

/// Handles a stage 2 fault of a vCPU of `guest`.
pub(crate) fn fault(guest: &'static Guest, ipa: Ipa, fault: Fault) -> Verdict {
    ENGINE.fault(&Host, guest.id, ipa, fault)
}

/// Returns true if there is a leaf at `ipa`.
pub(crate) fn is_mapped(guest: &'static Guest, ipa: Ipa) -> bool {
    guest.space.if_open().is_some_and(|space| space.with(|stage2| stage2.leaf(ipa).is_some()))
}

/// Handles an access flag fault of a vCPU of `guest`. Returns false if the flag was set meanwhile, or the leaf is in motion.
pub(crate) fn mark_accessed(guest: &'static Guest, ipa: Ipa) -> bool {
    guest.space.if_open().is_some_and(|space| space.with(|stage2| stage2.mark_accessed(ipa)))
}
