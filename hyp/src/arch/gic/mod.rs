//! The host's GICv3 as EL2 uses it: a distributor, a redistributor and a CPU interface for each CPU, and the list
//! registers through which guests get their interrupts (IHI 0069H).
//!
//! All interrupts are non-secure group 1. EL2 ends an interrupt in two steps (ICC_CTLR_EL1.EOImode = 1). It drops the
//! priority at once. It deactivates the interrupt at once too, unless a list register with the HW bit hands it to a guest:
//! then the guest's deactivation deactivates the physical interrupt.

pub(crate) mod cpu_interface;
mod distributor;
pub(crate) mod its;
mod lists;
pub(crate) mod redistributor;

pub(crate) use cpu_interface::KICK_SGI;
pub(crate) use distributor::{Distributor, distributor};
pub(crate) use lists::Lists;
pub(crate) use redistributor::{Priority, Redistributor, Region};

/// Waits until `condition` holds. Returns false if it does not within the time that hardware may need.
fn wait_for(condition: impl Fn() -> bool) -> bool {
    // A read of a device takes tens of nanoseconds at least: this is a fraction of a second.
    const LIMIT: u32 = 1 << 22;
    (0..LIMIT).any(|_| {
        core::hint::spin_loop();
        condition()
    })
}
