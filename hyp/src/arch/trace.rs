//! Recording of events, for all rooms.
//!
//! Recording is off until the operator turns it on (`operator::trace`). The fast paths are traced by vectors of their own;
//! all other code calls [`record`].

use super::{cpu, timer};
use crate::observe::trace::{self, Kind, What};

/// Records an event of guest `guest` and its vCPU `vcpu`, if events are recorded; see [`Kind`] for `detail` and `place`.
#[inline(always)]
pub(crate) fn record(kind: Kind, guest: usize, vcpu: usize, detail: u64, place: u64) {
    if trace::is_recording() {
        write(kind.with(guest, vcpu), detail, place);
    }
}

/// Records an event of the vCPU that runs here, if events are recorded.
#[inline(always)]
pub(crate) fn record_here(kind: Kind, detail: u64, place: u64) {
    if trace::is_recording()
        && let Some((guest, vcpu)) = cpu::current().vcpu_numbers()
    {
        write(kind.with(guest, vcpu), detail, place);
    }
}

#[cold]
#[inline(never)]
fn write(what: What, detail: u64, place: u64) {
    if let Some(ring) = cpu::current().trace() {
        ring.record(timer::now(), what, detail, place);
    }
}
