//! The host's PL011, and the console's multiplexer on it.
//!
//! Lock order: a guest's vPL011, then `CONSOLE`. No other lock is taken while `CONSOLE` is held, for a few hundred bytes of
//! output at most.

use crate::arch::cpu;
use crate::arch::device::read32;
use crate::board;
use crate::hyp_mem::mmu;
use crate::monitor::mux::{self, Console, Consoles, Effect, Mux, QUEUE_SIZE, RING_SIZE, Storage};
use alloc::boxed::Box;
use alloc::vec;
use arm_pl011_uart::{
    DataBits, FifoLevel, Interrupts, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer,
};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use guest_dts::range::PaRange;
use spin::Mutex;

/// Bytes of a PL011's registers.
const SIZE: u64 = 0x1000;
/// UARTDR, UARTFR and its TXFF, for messages at boot and of fatal errors, without the multiplexer.
const DR: usize = 0x00;
const FR: usize = 0x18;
const FR_TXFF: u32 = 1 << 5;

static REGISTERS: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static INTID: AtomicU32 = AtomicU32::new(u32::MAX);
/// The second UART's registers, if the log goes there.
static SECOND: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
/// The console's multiplexer.
static CONSOLE: Mutex<Option<Mux<'static, Wire>>> = Mutex::new(None);

/// The multiplexer's UART.
pub(crate) struct Wire {
    uart: Uart<'static>,
    wants_room: bool,
}

// SAFETY: the registers are accessed under the multiplexer's lock only, from any CPU.
unsafe impl Send for Wire {}

impl Wire {
    fn masks(&self) -> Interrupts {
        let receive = Interrupts::RXI | Interrupts::RTI;
        if self.wants_room { receive | Interrupts::TXI } else { receive }
    }
}

impl mux::Uart for Wire {
    #[inline]
    fn try_write(&mut self, byte: u8) -> bool {
        if self.uart.is_tx_fifo_full() {
            return false;
        }
        self.uart.write_word(byte);
        true
    }

    fn notify_room(&mut self, is_wanted: bool) {
        if self.wants_room != is_wanted {
            self.wants_room = is_wanted;
            self.uart.set_interrupt_masks(self.masks());
        }
    }
}

/// Writer that polls the UART, without a lock.
pub(crate) struct Polled;

impl fmt::Write for Polled {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let registers = REGISTERS.load(Ordering::Acquire);
        if registers.is_null() {
            return Ok(());
        }
        for byte in text.bytes() {
            // SAFETY: the PL011's registers, mapped forever; single aligned accesses.
            unsafe {
                while read32(registers.add(FR).cast()) & FR_TXFF != 0 {
                    core::hint::spin_loop();
                }
                registers.add(DR).cast::<u32>().write_volatile(u32::from(byte));
            }
        }
        Ok(())
    }
}

/// Maps the UART, for messages by polling.
pub(crate) fn init_early(registers: PaRange) -> Result<(), mmu::MapError> {
    let base = mmu::map_device(registers.base(), SIZE)?;
    REGISTERS.store(base.as_ptr(), Ordering::Release);
    Ok(())
}

/// Initializes the UART and the multiplexer.
pub(crate) fn init(console: &board::Console) {
    let Some(base) = NonNull::new(REGISTERS.load(Ordering::Acquire)) else { return };
    // SAFETY: the PL011's registers, mapped forever. Only `Polled` uses them too, for fatal errors.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(base.cast::<PL011Registers>()) });
    if let Some(clock) = console.clock_hz {
        let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
        // If the clock cannot provide the rate, the firmware's settings remain.
        let _ = uart.enable(line, console.baud.unwrap_or(115_200), clock);
    }
    uart.set_interrupt_fifo_levels(FifoLevel::Bytes4, FifoLevel::Bytes4);
    uart.clear_interrupts(Interrupts::all());
    let wire = Wire { uart, wants_room: false };
    let leak = |size: usize| -> &'static mut [u8] { Box::leak(vec![0; size].into_boxed_slice()) };
    let storage = Storage { out: leak(QUEUE_SIZE), messages: leak(QUEUE_SIZE) };
    *CONSOLE.lock() = Some(Mux::new(wire, storage, leak(RING_SIZE), leak(RING_SIZE)));
    INTID.store(console.interrupt.intid, Ordering::Release);
}

/// Initializes the second UART, for the log. Only the monitor's coroutine writes to it, by polling.
pub(crate) fn init_second(console: &board::Console) -> Result<(), mmu::MapError> {
    let base = mmu::map_device(console.registers.base(), SIZE)?;
    // SAFETY: the PL011's registers, mapped forever and used by nobody else.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(base.cast::<PL011Registers>()) });
    if let Some(clock) = console.clock_hz {
        let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
        let _ = uart.enable(line, 115_200, clock);
    }
    SECOND.store(base.as_ptr(), Ordering::Release);
    Ok(())
}

/// Returns true if there is a second UART for the log.
pub(crate) fn has_second() -> bool {
    !SECOND.load(Ordering::Relaxed).is_null()
}

/// Sends `byte` by the second UART. Returns false if its FIFO is full.
pub(crate) fn try_write_second(byte: u8) -> bool {
    let registers = SECOND.load(Ordering::Acquire);
    if registers.is_null() {
        return true;
    }
    // SAFETY: the PL011's registers, mapped forever; single aligned accesses.
    unsafe {
        if read32(registers.add(FR).cast()) & FR_TXFF != 0 {
            return false;
        }
        registers.add(DR).cast::<u32>().write_volatile(u32::from(byte));
    }
    true
}

/// Enables the UART's interrupts, for this CPU.
pub(crate) fn enable_interrupts(distributor: &crate::arch::gic::Distributor) {
    with_console(|mux| {
        let masks = mux.uart().masks();
        mux.uart().uart.set_interrupt_masks(masks);
    });
    distributor.enable(INTID.load(Ordering::Acquire), cpu::current().mpidr());
}

/// Gives guest `index` a console.
pub(crate) fn add_guest(index: usize, name: &'static str) {
    let leak = |size: usize| -> &'static mut [u8] { Box::leak(vec![0; size].into_boxed_slice()) };
    if let Some(console) = Console::guest(index) {
        let (input, output) = (leak(RING_SIZE), leak(RING_SIZE));
        with_console(|mux| mux.add(console, name, input, output));
    }
}

/// Calls `f` with the multiplexer, if there is one yet.
pub(crate) fn with_console<T>(f: impl FnOnce(&mut Mux<'static, Wire>) -> T) -> Option<T> {
    CONSOLE.lock().as_mut().map(f)
}

/// Locks the multiplexer. For the vPL011's path.
pub(crate) fn lock() -> spin::MutexGuard<'static, Option<Mux<'static, Wire>>> {
    CONSOLE.lock()
}

pub(crate) fn is_interrupt(intid: u32) -> bool {
    intid == INTID.load(Ordering::Relaxed)
}

/// Most bytes that are taken from the UART at an interrupt: its FIFO's depth.
const RECEIVE_BURST: usize = 32;

/// Effects of a UART interrupt on guests and the monitor.
#[must_use]
pub(crate) struct Effects {
    /// Guests that have input, a bit each.
    received: u32,
    /// Guests that get a break, a bit each.
    breaks: u32,
    /// Consoles that have room for output again.
    pub(crate) writable: Consoles,
    /// True if the monitor has input.
    pub(crate) wakes_monitor: bool,
}

impl Effects {
    /// Returns the guests that have input.
    pub(crate) fn received(&self) -> impl Iterator<Item = usize> {
        guests(self.received)
    }

    /// Returns the guests that get a break.
    pub(crate) fn breaks(&self) -> impl Iterator<Item = usize> {
        guests(self.breaks)
    }
}

fn guests(mask: u32) -> impl Iterator<Item = usize> {
    (0..mux::GUESTS).filter(move |index| mask >> index & 1 != 0)
}

/// Handles the UART's interrupt: takes what was received and sends what is queued.
pub(crate) fn interrupt() -> Effects {
    let (mut received, mut breaks, mut wakes_monitor) = (0u32, 0u32, false);
    let writable = with_console(|mux| {
        for _ in 0..RECEIVE_BURST {
            // A byte with a framing or parity error is dropped; at an overrun the FIFO has dropped bytes already.
            let byte = match mux.uart().uart.read_word() {
                Ok(Some(byte)) => byte,
                Ok(None) => break,
                Err(_) => continue,
            };
            match mux.input(byte) {
                Effect::None => {}
                Effect::Received(console) => match console.guest_index() {
                    Some(index) => received |= 1 << index,
                    None => wakes_monitor = true,
                },
                Effect::Break(index) => breaks |= 1 << index,
                Effect::Front(console) => match console.guest_index() {
                    Some(index) => received |= 1 << index,
                    None => wakes_monitor = true,
                },
            }
        }
        mux.pump();
        mux.take_writable()
    });
    Effects { received, breaks, writable: writable.unwrap_or_default(), wakes_monitor }
}
