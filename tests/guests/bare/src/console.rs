//! Output of text lines, by a PL011 or Xen's console call.

use crate::mmio;
use crate::sync::Lock;
use core::fmt::{self, Write};

/// PL011 registers by their offset.
pub mod pl011 {
    /// Data.
    pub const DR: usize = 0x00;
    /// Receive status, error clear.
    pub const RSR: usize = 0x04;
    /// Flags.
    pub const FR: usize = 0x18;
    /// Integer baud rate divisor.
    pub const IBRD: usize = 0x24;
    /// Fractional baud rate divisor.
    pub const FBRD: usize = 0x28;
    /// Line control.
    pub const LCR: usize = 0x2c;
    /// Control.
    pub const CR: usize = 0x30;
    /// Interrupt FIFO level select.
    pub const IFLS: usize = 0x34;
    /// Interrupt mask.
    pub const IMSC: usize = 0x38;
    /// Raw interrupt status.
    pub const RIS: usize = 0x3c;
    /// Masked interrupt status.
    pub const MIS: usize = 0x40;
    /// Interrupt clear.
    pub const ICR: usize = 0x44;
    /// DMA control.
    pub const DMACR: usize = 0x48;
    /// First of eight identification registers, a byte in each word.
    pub const ID: usize = 0xfe0;
    /// FR: receive FIFO empty.
    pub const RXFE: u32 = 1 << 4;
    /// FR: transmit FIFO full.
    pub const TXFF: u32 = 1 << 5;
    /// FR: transmit FIFO empty.
    pub const TXFE: u32 = 1 << 7;
    /// FR: busy sending.
    pub const BUSY: u32 = 1 << 3;
    /// Interrupt bits: receive.
    pub const RX: u32 = 1 << 4;
    /// Interrupt bits: transmit.
    pub const TX: u32 = 1 << 5;
    /// Interrupt bits: receive timeout.
    pub const RT: u32 = 1 << 6;
}

/// The destination of lines.
#[derive(Clone, Copy, Debug)]
pub enum Console {
    /// PL011 at this address.
    Pl011(usize),
    /// Xen's console call.
    Xen,
    /// No output.
    None,
}

static CONSOLE: Lock<Console> = Lock::new(Console::None);

/// Sets the destination of lines.
pub fn open(console: Console) {
    if let Console::Pl011(base) = console {
        // Enable transmitter, receiver and device, 8 bits, FIFOs: firmware may have left any state.
        mmio::write32(base + pl011::IMSC, 0);
        mmio::write32(base + pl011::LCR, 0x70);
        mmio::write32(base + pl011::CR, 0x301);
    }
    *CONSOLE.lock() = console;
}

/// Writes text that other CPUs' text cannot interrupt. Used through [`crate::say!`].
pub fn write(text: fmt::Arguments<'_>) {
    crate::register::with_interrupts_masked(|| {
        let console = CONSOLE.lock();
        let mut line = Line { console: *console, buffer: [0; 120], length: 0 };
        // The writer below never fails.
        let _ = line.write_fmt(text);
        line.flush();
    });
}

/// Returns a byte of input, if there is one. Xen's console has no input.
#[must_use]
pub fn typed() -> Option<u8> {
    match *CONSOLE.lock() {
        Console::Pl011(base) if mmio::read32(base + pl011::FR) & pl011::RXFE == 0 => {
            Some(mmio::read32(base + pl011::DR) as u8)
        }
        _ => None,
    }
}

/// Prints one line.
#[macro_export]
macro_rules! say {
    ($format:literal $($rest:tt)*) => {
        $crate::console::write(format_args!(concat!($format, "\n") $($rest)*))
    };
}

struct Line {
    console: Console,
    buffer: [u8; 120],
    length: usize,
}

impl Line {
    fn push(&mut self, byte: u8) {
        if self.length == self.buffer.len() {
            self.flush();
        }
        self.buffer[self.length] = byte;
        self.length += 1;
    }

    fn flush(&mut self) {
        let text = &self.buffer[..self.length];
        match self.console {
            Console::Pl011(base) => text.iter().for_each(|&byte| {
                while mmio::read32(base + pl011::FR) & pl011::TXFF != 0 {}
                mmio::write32(base + pl011::DR, u32::from(byte));
            }),
            Console::Xen => crate::xen::console_write(text),
            Console::None => {}
        }
        self.length = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' && matches!(self.console, Console::Pl011(_)) {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}
