//! Ballast's own registers, configuration space and interrupts, which no guest gets.

use crate::board::{Board, Interrupt};
use guest_dts::range::PaRange;

/// Returns the owner of physical addresses in `range`, in the words of a message, if they are not a device's for guests.
pub(super) fn owner_of_range(board: &Board<'_>, range: PaRange) -> Option<&'static str> {
    let gic = &board.gic;
    let overlaps = |other: &PaRange| other.overlaps(&range);
    let smmus = || board.smmus.iter().map(|smmu| smmu.registers);
    let ecams = || board.bridges.iter().map(|bridge| bridge.ecam);
    let windows = || board.bridges.iter().flat_map(|bridge| &bridge.windows).map(|window| window.cpu);
    if overlaps(&board.console.registers) {
        Some("the console's UART, which Ballast uses")
    } else if board.second_uart.is_some_and(|uart| overlaps(&uart.registers)) {
        Some("the UART of Ballast's log")
    } else if overlaps(&gic.distributor) {
        Some("the GIC's distributor, which Ballast uses")
    } else if gic.redistributors.iter().any(overlaps) {
        Some("the GIC's redistributors, which Ballast uses")
    } else if gic.translators.iter().any(overlaps) {
        Some("an ITS")
    } else if smmus().any(|other| overlaps(&other)) {
        Some("an SMMU, which Ballast uses")
    } else if ecams().any(|other| overlaps(&other)) {
        Some("a PCI host bridge; assign its functions by `pci-functions`")
    } else if windows().any(|other| overlaps(&other)) {
        Some("a memory window of a PCI host bridge")
    } else if board.ram.ranges.iter().any(|ram| overlaps(&ram.range)) {
        Some("the host's RAM")
    } else {
        None
    }
}

/// Returns the rule that `interrupt` breaks for a guest if Ballast uses it, in words that follow "must".
pub(super) fn owner_of_interrupt(board: &Board<'_>, interrupt: Interrupt) -> Option<&'static str> {
    let is_it = |other: Interrupt| other.intid == interrupt.intid;
    if is_it(board.console.interrupt) {
        return Some("not have the interrupt of the console's UART, which Ballast uses");
    }
    let smmus = board.smmus.iter().flat_map(|smmu| [smmu.event_interrupt, smmu.error_interrupt]);
    let is_smmus = smmus.flatten().any(is_it);
    is_smmus.then_some("not have an interrupt of an SMMU, which Ballast uses")
}
