//! The way of an SMMU from any state to one that aborts every stream (IHI 0070, "Initialization of the SMMU").

use super::access::{Memory, Port, Registers};
use super::command::Command;
use super::error::Failure;
use super::features::Features;
use super::queue::{CommandQueue, EventQueue};
use super::registers::{
    CR0, CR0_ATSCHK, CR0_CMDQEN, CR0_EVENTQEN, CR0_SMMUEN, CR0ACK, CR1, CR1_COHERENT, CR2, CR2_PTM,
    CR2_RECINVSID, EVENTQ_IRQ_CFG0, GBPA, GBPA_ABORT, GBPA_UPDATE, GERROR, GERROR_IRQ_CFG0, GERRORN,
    IRQ_CTRL, IRQ_CTRLACK, IRQ_EVENTQ, IRQ_GERROR,
};
use super::stream_table::StreamTable;

/// Returns CR0 while the SMMU works. All STEs refuse ATS, so ATSCHK stops a device that marks its own accesses as translated.
pub(super) fn enabled(features: &Features) -> u32 {
    let check = if features.has_ats { CR0_ATSCHK } else { 0 };
    CR0_SMMUEN | CR0_EVENTQEN | CR0_CMDQEN | check
}

/// IRQ_CTRL while events are signalled.
pub(super) const INTERRUPTS: u32 = IRQ_GERROR | IRQ_EVENTQ;

/// Turns the SMMU off, with all its streams aborting. Returns false if it has no GBPA.ABORT: then streams bypass it until it is
/// turned on.
pub(super) fn quiet<R: Registers, M: Memory>(port: &Port<R, M>) -> Result<bool, Failure> {
    // Before CR0, which a loader may have left on: GBPA decides as soon as SMMUEN is 0. An update waits for an earlier one.
    let has_updated = || port.registers.read32(GBPA) & GBPA_UPDATE == 0;
    let gbpa = Failure::Unacknowledged("GBPA");
    if !port.wait(has_updated) {
        return Err(gbpa);
    }
    let value = port.registers.read32(GBPA);
    port.registers.write32(GBPA, value | GBPA_ABORT | GBPA_UPDATE);
    if !port.wait(has_updated) {
        return Err(gbpa);
    }
    let aborts = port.registers.read32(GBPA) & GBPA_ABORT != 0;
    port.control("CR0", CR0, CR0ACK, 0)?;
    port.control("IRQ_CTRL", IRQ_CTRL, IRQ_CTRLACK, 0)?;
    Ok(aborts)
}

/// Turns on queues, interrupts and translation of an SMMU that [`quiet`] turned off.
pub(super) fn enable<R: Registers, M: Memory>(
    port: &Port<R, M>,
    features: &Features,
    table: &StreamTable,
    commands: &mut CommandQueue,
    events: &EventQueue,
) -> Result<(), Failure> {
    let registers = &port.registers;
    registers.write32(CR1, if port.is_coherent { CR1_COHERENT } else { 0 });
    // E2H stays 0: streams are of NS-EL1.
    registers.write32(CR2, CR2_PTM | CR2_RECINVSID);
    table.program(port);
    commands.program(port);
    events.program(port);
    // Stale errors of a loader.
    registers.write32(GERRORN, registers.read32(GERROR));

    port.control("CR0", CR0, CR0ACK, CR0_CMDQEN)?;
    commands.run(port, &[Command::INVALIDATE_ALL_ENTRIES])?;
    if features.has_hyp {
        commands.run(port, &[Command::INVALIDATE_EL2])?;
    }
    commands.run(port, &[Command::INVALIDATE_EL1])?;

    port.control("CR0", CR0, CR0ACK, enabled(features) & !CR0_SMMUEN)?;
    // Address 0 turns message-signalled interrupts off: the wires signal.
    registers.write64(GERROR_IRQ_CFG0, 0);
    registers.write64(EVENTQ_IRQ_CFG0, 0);
    port.control("IRQ_CTRL", IRQ_CTRL, IRQ_CTRLACK, INTERRUPTS)?;
    port.control("CR0", CR0, CR0ACK, enabled(features))
}
