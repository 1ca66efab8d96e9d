//! Stops a function's accesses to memory, and resets it.
//!
//! # The order
//! No vCPU of the guest runs, so nobody but Ballast reaches the function.
//! 1. COMMAND: interrupts off and bus master off, in one write. The read that follows returns after the write has taken
//!    effect: the function issues no further requests (PCI Express Base Specification, "Command Register").
//! 2. Message interrupts and address translation of the function's own are off, as they are whenever a guest has it.
//! 3. Wait until requests that were sent have been answered (Transactions Pending), where the function tells.
//! 4. Reset, then put back what a reset loses.
//!
//! # How quiescence is known
//! [`Quiescence`] names it. Memory writes are posted, so that one may still be on its way when bus master is off. A read of the
//! function's registers returns behind posted writes on the same path ("Transaction Ordering"); writes with relaxed ordering
//! and other traffic classes may be later, which the 100 ms of a reset cover.
//!
//! Two things back this up, whatever the function does. First, the SMMU aborts the stream after this, and the CMD_SYNC behind
//! the invalidation completes only when earlier transactions of the stream have (IHI 0070, "CMD_SYNC", "Completion of
//! TLB invalidation"). Second, the function reaches its guest's DMA window alone, and the window's memory stays this
//! guest's own: what is late hits nobody else. Without an SMMU, only this and the function's obedience hold.

use super::bar::{self, at_rest};
use super::config::{ID, RegisterSpace, command, set_command};
use super::error::{Error, Fault};
use super::probe::{DEVICE_CONTROL, DEVICE_CONTROL_2, Express, Function, NO_VENDOR, POWER_CONTROL};
use super::virtio;

/// Device Control.Initiate Function Level Reset.
const INITIATE_RESET: u16 = 1 << 15;
/// Device Status, and its Transactions Pending.
const DEVICE_STATUS: u16 = 0x0a;
const TRANSACTIONS_PENDING: u16 = 1 << 5;
/// AF Control: Initiate FLR.
const ADVANCED_CONTROL: u16 = 0x04;
const ADVANCED_INITIATE: u8 = 1;
/// AF Status: Transactions Pending.
const ADVANCED_STATUS: u16 = 0x05;
const ADVANCED_PENDING: u8 = 1;
/// Power states in Power Management Control/Status.
const D0: u16 = 0;
const D3_HOT: u16 = 3;
/// The vendor ID of a function that is not ready yet (Configuration Request Retry Status).
const RETRY: u16 = 0x0001;

/// Time that a function level reset takes at most ("Function Level Reset").
const RESET_MS: u32 = 100;
/// Time before the next access after D3hot, and after D0 (PCI Bus Power Management, "State Transition Recovery Time").
const POWER_MS: u32 = 10;
/// Time that a function may take to answer all requests. Completion timeouts are 50 ms by default.
const PENDING_MS: u32 = 100;
/// Time after which a function that is not ready, or a virtio device that is not reset, counts as failed.
const READY_MS: u32 = 1000;

/// Time passes here; the caller may serve interrupts meanwhile.
pub(crate) trait Clock {
    /// Returns after at least `microseconds`.
    fn wait(&mut self, microseconds: u32);
}

/// Reasons to believe that a function is quiet, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quiescence {
    /// A function level reset of PCI Express: the function has dropped all it knew, and has no request outstanding.
    FunctionReset,
    /// A function level reset of Advanced Features: likewise.
    AdvancedReset,
    /// A virtio reset: the device said that it has stopped using queues and buffers.
    VirtioReset,
    /// A change from D3hot to D0, which resets the function.
    PowerCycle,
    /// Bus master is off and nothing is known to be outstanding. The function still has its state.
    BusMasterOff,
}

impl Quiescence {
    /// Returns the way in words.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::FunctionReset => "function level reset",
            Self::AdvancedReset => "function level reset (Advanced Features)",
            Self::VirtioReset => "virtio reset",
            Self::PowerCycle => "reset by D3hot",
            Self::BusMasterOff => "bus master off, no reset",
        }
    }
}

/// Makes `function` quiet and resets it, in the order at the head of this file. Then its BARs are in place, and it is neither
/// bus master nor interrupts. `common` are the registers of a virtio function at [`Function::common_config`].
///
/// # Errors
///
/// The function does not do as it must. It counts as failed: bus master was written off, but whether it is quiet is not known.
pub(crate) fn quiesce(
    function: &Function,
    config: &impl RegisterSpace,
    common: Option<&impl RegisterSpace>,
    clock: &mut impl Clock,
) -> Result<Quiescence, Error> {
    rest(function, config)?;
    // If some are outstanding still, the reset drops them, or the check at the end finds them.
    wait_for(clock, PENDING_MS, || pending(function, config).is_none());
    let way = if let Some(express) = function.express.filter(|express| express.has_reset) {
        config.write16(express.offset + DEVICE_CONTROL, express.control | INITIATE_RESET);
        wait_ms(clock, RESET_MS);
        Quiescence::FunctionReset
    } else if let Some(offset) = function.advanced {
        config.write8(offset + ADVANCED_CONTROL, ADVANCED_INITIATE);
        wait_ms(clock, RESET_MS);
        Quiescence::AdvancedReset
    } else if let Some(common) = common {
        virtio::reset(common);
        if !wait_for(clock, READY_MS, || virtio::status(common) == 0) {
            let value = virtio::status(common);
            return Err(Fault::VirtioStatus { value, milliseconds: READY_MS }.of(function.rid));
        }
        Quiescence::VirtioReset
    } else if let Some(offset) = function.power {
        for state in [D3_HOT, D0] {
            config.write16(offset + POWER_CONTROL, state);
            wait_ms(clock, POWER_MS);
        }
        Quiescence::PowerCycle
    } else {
        Quiescence::BusMasterOff
    };
    let is_ready = wait_for(clock, READY_MS, || !matches!(config.read16(ID), NO_VENDOR | RETRY));
    if !is_ready {
        return Err(Fault::NotReady { way: way.name(), milliseconds: READY_MS }.of(function.rid));
    }
    restore(function, config)?;
    match pending(function, config) {
        Some((register, value)) => Err(Fault::Pending { register, value }.of(function.rid)),
        None => Ok(way),
    }
}

/// Turns off bus master, interrupts, and controls that no guest may have, and checks that bus master is off.
fn rest(function: &Function, config: &impl RegisterSpace) -> Result<(), Error> {
    if config.read16(ID) == NO_VENDOR {
        return Err(Fault::Absent.of(function.rid));
    }
    let written = at_rest(command(config));
    let read = set_command(config, written);
    if read.bus_master() {
        let (written, read) = (written.into_bits(), read.into_bits());
        return Err(Fault::Command { written, read }.of(function.rid));
    }
    for &control in &function.controls {
        config.write16(control, 0);
    }
    Ok(())
}

/// Writes what a reset loses: BARs, the payload sizes and timeouts that firmware chose, COMMAND.
fn restore(function: &Function, config: &impl RegisterSpace) -> Result<(), Error> {
    bar::write(function.rid, config, &function.bars)?;
    if let Some(Express { offset, control, control_2, .. }) = function.express {
        config.write16(offset + DEVICE_CONTROL, control);
        if let Some(control) = control_2 {
            config.write16(offset + DEVICE_CONTROL_2, control);
        }
    }
    rest(function, config)
}

/// Returns the register that says that requests are outstanding, and its value. `None`: there are none, or the function
/// cannot tell.
fn pending(function: &Function, config: &impl RegisterSpace) -> Option<(u16, u16)> {
    if let Some(express) = function.express {
        let register = express.offset + DEVICE_STATUS;
        let value = config.read16(register);
        return (value & TRANSACTIONS_PENDING != 0).then_some((register, value));
    }
    let register = function.advanced? + ADVANCED_STATUS;
    let value = config.read8(register);
    (value & ADVANCED_PENDING != 0).then_some((register, value.into()))
}

/// Waits until `is_done`, for at most `limit_ms`. Returns whether it is.
fn wait_for(clock: &mut impl Clock, limit_ms: u32, mut is_done: impl FnMut() -> bool) -> bool {
    for _ in 0..limit_ms {
        if is_done() {
            return true;
        }
        wait_ms(clock, 1);
    }
    is_done()
}

fn wait_ms(clock: &mut impl Clock, milliseconds: u32) {
    clock.wait(milliseconds * 1000);
}
