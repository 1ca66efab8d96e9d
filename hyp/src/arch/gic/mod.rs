//! The host's GICv3, as seen by EL2: one distributor, a redistributor and a CPU interface a CPU, and the list
//! registers through which guests get their interrupts (IHI 0069H).
//!
//! All interrupts are non-secure group 1. EL2 ends an interrupt in two steps (ICC_CTLR_EL1.EOImode = 1): the
//! priority drop at once; the deactivation at once too, except for interrupts that are handed to a guest with a
//! hardware-linked list register, where the guest's own deactivation does it.

pub(super) mod cpu_interface;
mod distributor;
mod lists;
mod mmio;
mod redistributor;

pub(super) use distributor::Distributor;
pub(crate) use lists::Lists;
pub(super) use redistributor::{Redistributor, Region};

/// The SGI with which CPUs call each other into EL2. SGIs below it are the guests' own
/// ([`crate::device::vgic::DIRECT_SGIS`]).
pub(super) const KICK_SGI: u32 = 7;
const _: () = assert!(KICK_SGI >= crate::device::vgic::DIRECT_SGIS);

/// Priority of everything that EL2 enables.
const PRIORITY: u8 = 0xa0;
