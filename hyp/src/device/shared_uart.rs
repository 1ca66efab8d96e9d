//! A guest's vPL011 and its interrupt line, shared by the CPUs of its vCPUs and the console.
//!
//! The level of the line is published under the UART's lock. Otherwise a CPU that saw the line low could publish that after
//! another CPU has raised it, and the guest would miss the interrupt for the characters in its FIFO.
//!
//! Lock order: this lock, then the console's multiplexer, then the guest's vGIC.

use super::vpl011::Vpl011;
use stage2::sync::FairLock;

/// A vPL011 behind a lock.
pub(crate) struct SharedUart(FairLock<Inner>);

struct Inner {
    uart: Vpl011,
    /// Last published level of the interrupt line.
    line: bool,
}

impl Inner {
    /// Publishes the level of the line if it has changed.
    #[inline]
    fn publish<K>(&mut self, set_line: impl FnOnce(bool) -> K) -> Option<K> {
        let level = self.uart.interrupt_level();
        if level == self.line {
            return None;
        }
        self.line = level;
        Some(set_line(level))
    }
}

impl Default for SharedUart {
    fn default() -> Self {
        Self::new()
    }
}

impl SharedUart {
    /// Creates a UART in its reset state, with the line low.
    pub(crate) fn new() -> Self {
        Self(FairLock::new(Inner { uart: Vpl011::new(), line: false }))
    }

    /// Resets the UART. `set_line` is as for [`Self::with`].
    pub(crate) fn reset<K>(&self, set_line: impl FnOnce(bool) -> K) -> Option<K> {
        self.with(|uart| *uart = Vpl011::new(), set_line)
    }

    /// Calls `f` with the UART, then `set_line` with the new level of the interrupt line if it has changed, both under the
    /// lock. Returns the result of `set_line`.
    #[inline]
    pub(crate) fn with<K>(&self, f: impl FnOnce(&mut Vpl011), set_line: impl FnOnce(bool) -> K) -> Option<K> {
        let mut inner = self.0.lock();
        f(&mut inner.uart);
        inner.publish(set_line)
    }

    /// Reads the register at `offset`, by calling `read` unless its value is at hand. `set_line` is as for [`Self::with`].
    #[inline]
    pub(crate) fn read<K>(
        &self,
        offset: u16,
        read: impl FnOnce(&mut Vpl011) -> u32,
        set_line: impl FnOnce(bool) -> K,
    ) -> (u32, Option<K>) {
        let mut inner = self.0.lock();
        if let Some(value) = inner.uart.peek(offset) {
            return (value, None);
        }
        let value = read(&mut inner.uart);
        let change = inner.publish(set_line);
        (value, change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::vpl011::Line;

    /// A line with one byte for the guest.
    struct OneByte(Option<u8>);

    impl Line for OneByte {
        fn transmit(&mut self, _: u8) -> bool {
            true
        }
        fn receive(&mut self) -> Option<u8> {
            self.0.take()
        }
    }

    /// UARTIMSC and UARTICR, and the interrupt of the receive timeout.
    const IMSC: u16 = 0x38;
    const ICR: u16 = 0x44;
    const RT: u32 = 1 << 6;

    #[test]
    fn the_line_is_published_under_the_lock_and_only_when_it_changes() {
        let shared = SharedUart::new();
        let mut line = OneByte(Some(b'x'));
        let is_held = |level| (level, shared.0.try_lock().is_none());
        assert_eq!(shared.with(|uart| uart.write(IMSC, RT, &mut line), is_held), None);
        assert_eq!(shared.with(|uart| uart.receive(&mut line), is_held), Some((true, true)));
        assert_eq!(shared.with(|uart| uart.receive(&mut line), is_held), None);
        assert_eq!(shared.with(|uart| uart.write(ICR, RT, &mut line), is_held), Some((false, true)));
    }

    #[test]
    fn a_reset_lowers_the_line() {
        let shared = SharedUart::new();
        let mut line = OneByte(Some(b'x'));
        let _ = shared.with(|uart| uart.write(IMSC, RT, &mut line), |_| ());
        assert_eq!(shared.with(|uart| uart.receive(&mut line), |level| level), Some(true));
        assert_eq!(shared.reset(|level| level), Some(false));
        assert_eq!(shared.reset(|level| level), None);
    }

    #[test]
    fn reads_publish_a_change_of_the_line() {
        let shared = SharedUart::new();
        let mut line = OneByte(Some(b'x'));
        let _ = shared.with(|uart| uart.write(IMSC, RT, &mut line), |_| ());
        let _ = shared.with(|uart| uart.receive(&mut line), |_| ());
        let flags = shared.read(0x18, |_| unreachable!(), |level| level);
        assert_eq!((flags.0 & 1 << 4, flags.1), (0, None), "the receive FIFO is not empty");
        assert_eq!(
            shared.read(0, |uart| uart.read(0, &mut line), |level| level),
            (u32::from(b'x'), Some(false))
        );
    }
}
