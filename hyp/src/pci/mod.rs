//! PCI functions that guests own: probe, BARs, the configuration space that a guest sees, and reset. Pure: a caller gives
//! access to registers ([`RegisterSpace`], [`Bus`]) and passes time ([`Clock`]).
//!
//! A *function* is named by its requester ID ([`Rid`]). *Placement* gives each of its BARs an address in the windows of the
//! host's bridge, in pages of its own ([`Survey`]). The guest's bus is flat and virtual: [`VirtualConfig`] shows the BARs at
//! guest addresses, which stage 2 maps to the placed ones, and passes on nothing but two bits of COMMAND.
//!
//! # A function's way
//! 1. Boot: [`Survey::scan`], [`Function::probe`], [`Survey::place`], [`give_guest_addresses`].
//! 2. A guest starts: [`quiesce`] (firmware may have left the function active), then [`VirtualConfig::attach`]. Only then does
//!    the SMMU translate the stream.
//! 3. A guest ends, and no vCPU runs: [`quiesce`], then the SMMU aborts the stream. The head of `quiesce.rs` has the order
//!    and its reasons.
//!
//! # Functions that are refused
//! Bridges; functions behind a switch (its ports may route a request to a peer, past the SMMU) or behind a bridge to
//! conventional PCI (which replaces the requester ID); Enhanced Allocation, which fixes the addresses of BARs. Functions of
//! one device, and devices on the root bus, are taken to reach each other only through the root complex.
//!
//! Sources: PCI Local Bus Specification 3.0; PCI Express Base Specification 5.0; PCI Bus Power Management Interface
//! Specification 1.2; ECN "Advanced Capabilities for Conventional PCI"; Virtual I/O Device (VIRTIO) 1.2.

mod bar;
mod bridge;
mod capability;
mod config;
mod error;
#[cfg(test)]
mod fake;
mod place;
mod probe;
mod quiesce;
#[cfg(test)]
mod tests;
mod virtio;
mod virtual_config;

pub(crate) use bar::Bar;
pub(crate) use bridge::root_pin;
pub(crate) use config::{Bus, RegisterSpace, Rid, Width};
pub(crate) use error::Error;
pub(crate) use place::{Survey, Window, give_guest_addresses};
pub(crate) use probe::Function;
pub(crate) use quiesce::{Clock, Quiescence, quiesce};
pub(crate) use virtio::CommonConfig;
pub(crate) use virtual_config::{VirtualConfig, slot, word_slot};
