//! Events for the trace, from wherever something happens.
//!
//! Recording is off until the operator turns it on; then each CPU gets a ring and, by a kick, the vectors that trace.
//! The paths that no lock and no slow work is on are traced by those vectors alone; all others ask [`record`].

use super::cpu::{self, PerCpu, Request};
use super::timer;
use crate::exit::vectors;
use crate::guest::Vcpu;
use crate::hyp_mem::pages;
use crate::hyp_mem::pages::OwnError;
use crate::observe::trace;
use crate::observe::trace::{Kind, Ring, What};
use stage2::owner::Owner;

/// log2 of the frames of a ring.
const RING_ORDER: u8 = 1;
const _: () = assert!(size_of::<Ring>() as u64 <= stage2::addr::FRAME_SIZE << RING_ORDER);

/// Turns recording on or off, on all CPUs.
///
/// # Errors
/// There is no memory for the rings; recording stays off.
pub(crate) fn set_recording(is_on: bool) -> Result<(), OwnError> {
    if is_on {
        prepare()?;
    }
    trace::set_recording(is_on);
    vectors::install();
    let here = cpu::current().index();
    cpu::all().filter(|cpu| cpu.index() != here).for_each(|cpu| cpu.request(Request::Trace));
    Ok(())
}

/// Gives every CPU a ring.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn prepare() -> Result<(), OwnError> {
    for cpu in cpu::all().filter(|cpu| cpu.trace().is_none()) {
        let frame = pages::allocate(RING_ORDER, Owner::Hypervisor)?;
        // SAFETY: frames of our own for ever, zeroed and mapped; a ring of zeroes is an empty one.
        cpu.set_trace(unsafe { pages::address(frame).cast::<Ring>().as_ref() });
    }
    Ok(())
}

/// Recording was turned on or off: takes the vectors that belong to that.
pub(crate) fn follow(cpu: &PerCpu) {
    if cpu.take(Request::Trace) {
        vectors::install();
    }
}

/// Records that `kind` happened to guest `guest` and its vCPU `vcpu`, if events are recorded; see [`Kind`] for
/// `detail` and `place`.
#[inline(always)]
pub(crate) fn record(kind: Kind, guest: usize, vcpu: usize, detail: u64, place: u64) {
    if trace::is_recording() {
        write(kind.with(guest, vcpu), detail, place);
    }
}

/// Records what happened to the vCPU that runs here, if events are recorded.
#[inline(always)]
pub(crate) fn record_here(kind: Kind, detail: u64, place: u64) {
    if trace::is_recording()
        && let Some(vcpu) = cpu::current().vcpu()
    {
        write_of(kind, vcpu, detail, place);
    }
}

#[cold]
#[inline(never)]
fn write_of(kind: Kind, vcpu: &Vcpu, detail: u64, place: u64) {
    write(kind.with(vcpu.guest().id().index(), vcpu.index()), detail, place);
}

#[cold]
#[inline(never)]
fn write(what: What, detail: u64, place: u64) {
    if let Some(ring) = cpu::current().trace() {
        ring.record(timer::now(), what, detail, place);
    }
}
