//! Tracing, as the operator turns it on and off.

use crate::arch::cpu::{self, Request};
use crate::hyp_mem::pages::{self, OwnError};
use crate::observe::trace::{self, Ring};
use stage2::owner::Owner;

/// log2 of the frames of a ring.
const RING_ORDER: u8 = 1;
const _: () = assert!(size_of::<Ring>() as u64 <= stage2::addr::FRAME_SIZE << RING_ORDER);

/// Turns recording on or off. Each CPU, this one too, takes the vectors that belong to that when the kick reaches it.
///
/// # Errors
///
/// There is no memory for the rings; recording stays off.
pub(crate) fn set_recording(is_on: bool) -> Result<(), OwnError> {
    if is_on {
        prepare()?;
    }
    trace::set_recording(is_on);
    cpu::all().for_each(|cpu| cpu.request(Request::Trace));
    Ok(())
}

/// Gives every CPU a ring.
///
/// # Errors
///
/// There is no memory for them.
pub(crate) fn prepare() -> Result<(), OwnError> {
    for cpu in cpu::all().filter(|cpu| cpu.trace().is_none()) {
        let frame = pages::allocate(RING_ORDER, Owner::Hypervisor)?;
        // SAFETY: frames of our own for ever, zeroed and mapped; a ring of zeroes is an empty one.
        cpu.set_trace(unsafe { pages::address(frame).cast::<Ring>().as_ref() });
    }
    Ok(())
}
