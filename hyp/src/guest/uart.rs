//! A guest's PL011: its accesses, the operator's input, and the interrupt line.

use super::interrupts::deliver;
use super::{Guest, Vcpu, get};
use crate::device::vgic::Kick;
use crate::device::vpl011::Vpl011;
use crate::monitor::mux::{Console, ConsoleLine};
use crate::serial;
use guest_dts::guest_tree::platform;

/// Reads a guest's PL011 at `offset`.
#[inline]
pub(crate) fn read(vcpu: &'static Vcpu, offset: u16) -> u32 {
    let guest = vcpu.guest();
    let read = |uart: &mut Vpl011| with_line(guest, |line| uart.read(offset, line)).unwrap_or(0);
    let (value, kick) = guest.uart.read(offset, read, |level| set_line(guest, level));
    if let Some(kick) = kick {
        deliver(guest, kick);
    }
    value
}

/// Writes a guest's PL011 at `offset`.
#[inline]
pub(crate) fn write(vcpu: &'static Vcpu, offset: u16, value: u32) {
    with_uart(vcpu.guest(), |uart, line| uart.write(offset, value, line));
}

/// Hands console input to the PL011 of guest `index`.
pub(crate) fn receive_input(index: usize) {
    if let Some(guest) = get(index) {
        with_uart(guest, |uart, line| uart.receive(line));
    }
}

/// Hands a break to the PL011 of guest `index`.
pub(crate) fn receive_break(index: usize) {
    if let Some(guest) = get(index) {
        with_uart(guest, |uart, _| uart.receive_break());
    }
}

/// Sends queued output of guest `index`, whose console has room again.
pub(crate) fn drain_output(index: usize) {
    if let Some(guest) = get(index) {
        with_uart(guest, |uart, line| uart.drain(line));
    }
}

type Line<'m> = ConsoleLine<'m, 'static, serial::Wire>;

fn with_line<T>(guest: &Guest, f: impl FnOnce(&mut Line<'_>) -> T) -> Option<T> {
    let console = Console::guest(guest.id.index())?;
    Some(f(&mut serial::lock().as_mut()?.line(console)))
}

/// Calls `f` with the guest's vPL011 and its console, updates the interrupt line, and kicks the CPU that has to take the
/// interrupt.
#[inline]
fn with_uart(guest: &'static Guest, f: impl FnOnce(&mut Vpl011, &mut Line<'_>)) {
    let use_line = |uart: &mut Vpl011| {
        with_line(guest, |line| f(uart, line));
    };
    if let Some(kick) = guest.uart.with(use_line, |level| set_line(guest, level)) {
        deliver(guest, kick);
    }
}

/// Sets the vPL011's interrupt line.
#[inline(never)]
pub(crate) fn set_line(guest: &Guest, level: bool) -> Kick {
    guest.vgic.set_level(32 + platform::UART_SPI, level)
}
