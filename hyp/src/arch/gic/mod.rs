//! The host's GICv3, as seen by EL2: one distributor, a redistributor and a CPU interface a CPU, and the list
//! registers through which guests get their interrupts (IHI 0069H).
//!
//! All interrupts are non-secure group 1. EL2 ends an interrupt in two steps (ICC_CTLR_EL1.EOImode = 1): the
//! priority drop at once; the deactivation at once too, except for interrupts that are handed to a guest with a
//! hardware-linked list register, where the guest's own deactivation does it.

pub(crate) mod cpu_interface;
mod distributor;
pub(crate) mod its;
mod lists;
mod mmio;
pub(crate) mod redistributor;

pub(crate) use cpu_interface::KICK_SGI;
pub(crate) use distributor::Distributor;
pub(crate) use lists::Lists;
pub(crate) use redistributor::{Priority, Redistributor, Region};

/// Waits until `condition` holds, as long as hardware may need. Returns false if it does not come to hold.
fn wait_for(condition: impl Fn() -> bool) -> bool {
    // A read of a device takes tens of nanoseconds at least: this is a fraction of a second.
    const LIMIT: u32 = 1 << 22;
    (0..LIMIT).any(|_| {
        core::hint::spin_loop();
        condition()
    })
}
