//! Turning tracing on and off.

use crate::arch::cpu::{self, Request};
use crate::hyp_mem::pages::{self, OwnError};
use crate::observe::trace;

/// Turns recording on or off. Each CPU, this one too, changes its vectors when the kick reaches it.
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
        cpu.set_trace(pages::allocate_zeroed()?);
    }
    Ok(())
}
