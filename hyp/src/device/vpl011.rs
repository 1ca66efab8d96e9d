//! vPL011: the UART that a guest sees, a PL011 of revision r1p5 (Arm DDI 0183G).
//!
//! A state machine without a clock. Bytes that the guest writes go to a [`Line`] immediately. If the line refuses them, they
//! wait in the transmit FIFO, the flags show it (TXFF, BUSY), and none is lost. Input is taken from the line whenever the
//! receive FIFO has room, so that it cannot overrun.
//!
//! Baud rate, parity and word length can be written and read back, without effect. The reset state is the one in which firmware
//! leaves a UART: enabled, 8N1, FIFOs on. So `earlycon` works, and programs that only write UARTDR do.
//!
//! A booting Linux reads UARTFR and writes UARTDR at least once for each character. These two are short and inlined.

/// Depth of both FIFOs from revision r1p5 on (DDI 0183G, 2.1).
const FIFO_DEPTH: usize = 32;

/// Offsets of the registers (DDI 0183G, table 3-1).
mod offset {
    pub(super) const DR: u16 = 0x000;
    pub(super) const RSR: u16 = 0x004;
    pub(super) const FR: u16 = 0x018;
    pub(super) const ILPR: u16 = 0x020;
    pub(super) const IBRD: u16 = 0x024;
    pub(super) const FBRD: u16 = 0x028;
    pub(super) const LCR_H: u16 = 0x02c;
    pub(super) const CR: u16 = 0x030;
    pub(super) const IFLS: u16 = 0x034;
    pub(super) const IMSC: u16 = 0x038;
    pub(super) const RIS: u16 = 0x03c;
    pub(super) const MIS: u16 = 0x040;
    pub(super) const ICR: u16 = 0x044;
    pub(super) const DMACR: u16 = 0x048;
    pub(super) const PERIPH_ID0: u16 = 0xfe0;
}

/// UARTPeriphID0-3 and UARTPCellID0-3: part 0x011, designer 0x41, revision 3 (r1p5).
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Bits of UARTFR (DDI 0183G, 3.3.3).
mod flag {
    pub(super) const CTS: u32 = 1 << 0;
    pub(super) const DSR: u32 = 1 << 1;
    pub(super) const DCD: u32 = 1 << 2;
    pub(super) const BUSY: u32 = 1 << 3;
    pub(super) const RXFE: u32 = 1 << 4;
    pub(super) const TXFF: u32 = 1 << 5;
    pub(super) const RXFF: u32 = 1 << 6;
    pub(super) const TXFE: u32 = 1 << 7;
    pub(super) const RI: u32 = 1 << 8;
    pub(super) const MODEM: u32 = CTS | DSR | DCD | RI;
}

/// Bits of UARTRIS, UARTMIS, UARTIMSC and UARTICR (DDI 0183G, 3.3.11).
mod interrupt {
    pub(super) const RI: u16 = 1 << 0;
    pub(super) const CTS: u16 = 1 << 1;
    pub(super) const DCD: u16 = 1 << 2;
    pub(super) const DSR: u16 = 1 << 3;
    pub(super) const RX: u16 = 1 << 4;
    pub(super) const TX: u16 = 1 << 5;
    pub(super) const RT: u16 = 1 << 6;
    pub(super) const BE: u16 = 1 << 9;
    pub(super) const OE: u16 = 1 << 10;
    pub(super) const ALL: u16 = 0x7ff;
}

/// Bits of UARTCR (DDI 0183G, 3.3.8).
mod control {
    pub(super) const UARTEN: u16 = 1 << 0;
    pub(super) const LBE: u16 = 1 << 7;
    pub(super) const TXE: u16 = 1 << 8;
    pub(super) const RXE: u16 = 1 << 9;
    pub(super) const DTR: u16 = 1 << 10;
    pub(super) const RTS: u16 = 1 << 11;
    pub(super) const OUT1: u16 = 1 << 12;
    pub(super) const OUT2: u16 = 1 << 13;
    /// The bits that can be written, with SIREN and SIRLP (bits 1 and 2); bits 3 to 6 are reserved.
    pub(super) const WRITABLE: u16 = 0xff87;
}

/// UARTLCR_H.FEN: FIFOs on (DDI 0183G, 3.3.7).
const FEN: u8 = 1 << 4;
/// Reset value of UARTLCR_H: eight bits, no parity, one stop bit, FIFOs on.
const LCR_H_8N1_FIFO: u8 = 0x70;
/// Reset value of UARTIFLS: both interrupts at half full.
const IFLS_RESET: u8 = 0x12;
/// A received break in an entry of the receive FIFO: UARTDR.BE with framing error, data 0.
const BREAK: u16 = 1 << 10 | 1 << 8;
/// UARTRSR.OE, overrun.
const OVERRUN: u8 = 1 << 3;

/// The other end of a guest's UART.
pub(crate) trait Line {
    /// Takes one byte from the guest. Returns false to refuse it; it then stays in the guest's FIFO.
    fn transmit(&mut self, byte: u8) -> bool;
    /// Returns the next byte for the guest, if any.
    fn receive(&mut self) -> Option<u8>;
}

/// A ring of `FIFO_DEPTH` entries.
#[derive(Clone, Copy, Debug)]
struct Fifo<T> {
    entries: [T; FIFO_DEPTH],
    head: u8,
    len: u8,
}

impl<T: Copy> Fifo<T> {
    const fn new(fill: T) -> Self {
        Self { entries: [fill; FIFO_DEPTH], head: 0, len: 0 }
    }

    /// Adds an entry. The ring is not full.
    fn push(&mut self, entry: T) {
        let at = (usize::from(self.head) + usize::from(self.len)) % FIFO_DEPTH;
        self.entries[at] = entry;
        self.len += 1;
    }

    fn first(&self) -> Option<T> {
        (self.len != 0).then(|| self.entries[usize::from(self.head) % FIFO_DEPTH])
    }

    fn pop(&mut self) -> Option<T> {
        let entry = self.first()?;
        self.head = (self.head + 1) % FIFO_DEPTH as u8;
        self.len -= 1;
        Some(entry)
    }
}

/// One guest's UART.
#[derive(Clone, Debug)]
pub(crate) struct Vpl011 {
    /// UARTFR, always up to date.
    flags: u32,
    /// UARTRIS.
    raw: u16,
    /// UARTIMSC.
    mask: u16,
    /// True if a byte may go directly to the line: transmitter on, no loopback, transmit FIFO empty.
    is_direct: bool,
    /// UARTLCR_H.
    line_control: u8,
    /// UARTIFLS.
    levels: u8,
    /// UARTRSR.
    status: u8,
    /// UARTCR.
    control: u16,
    /// UARTIBRD.
    integer_divisor: u16,
    /// UARTFBRD.
    fractional_divisor: u8,
    /// UARTILPR.
    low_power: u8,
    /// UARTDMACR, without effect.
    dma: u8,
    rx: Fifo<u16>,
    tx: Fifo<u8>,
}

impl Default for Vpl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Vpl011 {
    /// Creates a UART in its reset state: enabled, 8N1, FIFOs on and empty, all interrupts masked.
    pub(crate) const fn new() -> Self {
        Self {
            flags: flag::TXFE | flag::RXFE | flag::CTS | flag::DSR | flag::DCD,
            raw: 0,
            mask: 0,
            is_direct: true,
            line_control: LCR_H_8N1_FIFO,
            levels: IFLS_RESET,
            status: 0,
            control: control::UARTEN | control::TXE | control::RXE,
            integer_divisor: 0,
            fractional_divisor: 0,
            low_power: 0,
            dma: 0,
            rx: Fifo::new(0),
            tx: Fifo::new(0),
        }
    }

    /// Returns true if the combined interrupt (UARTINTR) is asserted.
    #[inline]
    pub(crate) const fn interrupt_level(&self) -> bool {
        self.raw & self.mask != 0
    }

    /// Reads the register at `offset`; the caller truncates the value to the size of the access. Reads as zero unless a
    /// register starts at `offset`.
    ///
    /// Reading UARTDR may lower [`Vpl011::interrupt_level`], and takes input from the line.
    #[inline]
    pub(crate) fn read(&mut self, offset: u16, line: &mut impl Line) -> u32 {
        if offset == offset::FR && self.tx.len == 0 {
            return self.flags;
        }
        self.read_register(offset, line)
    }

    /// Returns the register at `offset` if reading it does not need the line: UARTFR while the transmit FIFO is empty.
    #[inline]
    pub(crate) fn peek(&self, offset: u16) -> Option<u32> {
        (offset == offset::FR && self.tx.len == 0).then_some(self.flags)
    }

    /// Writes `value` to the register at `offset`. Writes to anything else are ignored.
    ///
    /// May change [`Vpl011::interrupt_level`].
    #[inline]
    pub(crate) fn write(&mut self, offset: u16, value: u32, line: &mut impl Line) {
        if offset == offset::DR && self.is_direct && line.transmit(value as u8) {
            self.raw |= interrupt::TX;
            return;
        }
        self.write_register(offset, value, line);
    }

    /// Sends the waiting bytes until the line refuses one.
    #[cold]
    pub(crate) fn drain(&mut self, line: &mut impl Line) {
        let before = self.tx.len;
        while let Some(byte) = self.tx.first() {
            if self.is_transmitter_off() {
                break;
            }
            if self.control & control::LBE != 0 {
                self.loop_back(byte);
            } else if !line.transmit(byte) {
                break;
            }
            self.tx.pop();
        }
        if self.tx.len < before && usize::from(self.tx.len) <= self.transmit_level() {
            self.raw |= interrupt::TX;
        }
        self.refresh();
    }

    /// Takes input from the line while the receive FIFO has room and the receiver is on.
    ///
    /// Called when input arrives for a guest. May raise [`Vpl011::interrupt_level`].
    pub(crate) fn receive(&mut self, line: &mut impl Line) {
        let on = control::UARTEN | control::RXE;
        if self.control & (on | control::LBE) != on {
            return;
        }
        let before = self.rx.len;
        while usize::from(self.rx.len) < self.depth() {
            let Some(byte) = line.receive() else { break };
            self.rx.push(byte.into());
        }
        if self.rx.len != before {
            self.received(before);
        }
    }

    /// Puts a break condition into the receive FIFO: Linux takes the next key as SysRq. The break is lost if the FIFO is full
    /// or the receiver is off.
    pub(crate) fn receive_break(&mut self) {
        if self.control & control::UARTEN == 0 || usize::from(self.rx.len) >= self.depth() {
            return;
        }
        let before = self.rx.len;
        self.rx.push(BREAK);
        self.raw |= interrupt::BE;
        self.received(before);
    }

    #[inline(never)]
    fn read_register(&mut self, offset: u16, line: &mut impl Line) -> u32 {
        match offset {
            offset::DR => self.read_data(line),
            offset::RSR => self.status.into(),
            offset::FR => {
                self.drain(line);
                self.flags
            }
            offset::ILPR => self.low_power.into(),
            offset::IBRD => self.integer_divisor.into(),
            offset::FBRD => self.fractional_divisor.into(),
            offset::LCR_H => self.line_control.into(),
            offset::CR => self.control.into(),
            offset::IFLS => self.levels.into(),
            offset::IMSC => self.mask.into(),
            offset::RIS => self.raw.into(),
            offset::MIS => (self.raw & self.mask).into(),
            offset::DMACR => self.dma.into(),
            offset::PERIPH_ID0.. if offset.is_multiple_of(4) => {
                let at = usize::from(offset - offset::PERIPH_ID0) / 4;
                IDENTIFICATION.get(at).copied().unwrap_or(0).into()
            }
            _ => 0,
        }
    }

    #[inline(never)]
    fn write_register(&mut self, offset: u16, value: u32, line: &mut impl Line) {
        match offset {
            offset::DR => self.write_data(value as u8, line),
            // UARTECR: any write clears the errors.
            offset::RSR => self.status = 0,
            offset::ILPR => self.low_power = value as u8,
            offset::IBRD => self.integer_divisor = value as u16,
            offset::FBRD => self.fractional_divisor = value as u8 & 0x3f,
            offset::LCR_H => {
                self.line_control = value as u8;
                // A smaller depth keeps the contents of the FIFOs, so that nothing is lost when another driver takes over.
                self.refresh();
            }
            offset::CR => self.write_control(value as u16, line),
            offset::IFLS => self.levels = value as u8 & 0x3f,
            offset::IMSC => self.mask = value as u16 & interrupt::ALL,
            offset::ICR => self.raw &= !(value as u16),
            offset::DMACR => self.dma = value as u8 & 7,
            _ => {}
        }
    }

    /// Reads UARTDR: the next character with its error bits, which UARTRSR then has too (DDI 0183G, 3.3.1).
    fn read_data(&mut self, line: &mut impl Line) -> u32 {
        let entry = self.rx.pop().unwrap_or(0);
        self.status = self.status & OVERRUN | (entry >> 8) as u8 & 7;
        if self.rx.len == 0 {
            self.raw &= !(interrupt::RT | interrupt::RX);
            self.receive(line);
        }
        if usize::from(self.rx.len) < self.receive_level() {
            self.raw &= !interrupt::RX;
        }
        self.refresh();
        entry.into()
    }

    /// Writes UARTDR if the byte cannot go directly to the line. A byte written while TXFF is set is lost, as in hardware.
    fn write_data(&mut self, byte: u8, line: &mut impl Line) {
        if self.tx.len != 0 {
            self.drain(line);
        }
        if usize::from(self.tx.len) >= self.depth() {
            return;
        }
        self.tx.push(byte);
        if usize::from(self.tx.len) > self.transmit_level() {
            self.raw &= !interrupt::TX;
        }
        self.drain(line);
    }

    fn write_control(&mut self, value: u16, line: &mut impl Line) {
        let before = self.flags & flag::MODEM;
        self.control = value & control::WRITABLE;
        self.flags = self.flags & !flag::MODEM | self.modem_flags();
        let changed = (self.flags & flag::MODEM) ^ before;
        for (flag, interrupt) in [
            (flag::RI, interrupt::RI),
            (flag::CTS, interrupt::CTS),
            (flag::DCD, interrupt::DCD),
            (flag::DSR, interrupt::DSR),
        ] {
            if changed & flag != 0 {
                self.raw |= interrupt;
            }
        }
        if self.tx.len != 0 {
            self.drain(line);
        }
        self.receive(line);
        self.refresh();
    }

    /// Returns the modem inputs: connected, or in loopback the outputs (DDI 0183G, 2.4.6).
    fn modem_flags(&self) -> u32 {
        if self.control & control::LBE == 0 {
            return flag::CTS | flag::DSR | flag::DCD;
        }
        let input = |output: u16, flag: u32| if self.control & output != 0 { flag } else { 0 };
        input(control::RTS, flag::CTS)
            | input(control::DTR, flag::DSR)
            | input(control::OUT1, flag::DCD)
            | input(control::OUT2, flag::RI)
    }

    /// Receives a byte that was sent in loopback. A full FIFO is an overrun.
    fn loop_back(&mut self, byte: u8) {
        if self.control & control::RXE == 0 {
            return;
        }
        if usize::from(self.rx.len) >= self.depth() {
            self.status |= OVERRUN;
            self.raw |= interrupt::OE;
            return;
        }
        let before = self.rx.len;
        self.rx.push(byte.into());
        self.received(before);
    }

    /// Raises the interrupts for received characters. Without a clock, the line counts as idle after the last character, so the
    /// receive timeout is raised at once (DDI 0183G, 2.8.4).
    fn received(&mut self, before: u8) {
        self.raw |= interrupt::RT;
        let level = self.receive_level();
        if usize::from(before) < level && usize::from(self.rx.len) >= level {
            self.raw |= interrupt::RX;
        }
        self.refresh();
    }

    fn is_transmitter_off(&self) -> bool {
        let on = control::UARTEN | control::TXE;
        self.control & on != on
    }

    /// Recomputes the state that the fast paths read.
    fn refresh(&mut self) {
        let full = self.depth();
        let mut flags = self.flags & flag::MODEM;
        if self.rx.len == 0 {
            flags |= flag::RXFE;
        }
        if usize::from(self.rx.len) >= full {
            flags |= flag::RXFF;
        }
        if self.tx.len == 0 {
            flags |= flag::TXFE;
        } else {
            // Set whenever the FIFO holds something, enabled or not (DDI 0183G, 3.3.3).
            flags |= flag::BUSY;
        }
        if usize::from(self.tx.len) >= full {
            flags |= flag::TXFF;
        }
        self.flags = flags;
        self.is_direct = self.tx.len == 0 && !self.is_transmitter_off() && self.control & control::LBE == 0;
    }

    /// Returns the number of characters that each FIFO holds: one without UARTLCR_H.FEN.
    fn depth(&self) -> usize {
        if self.line_control & FEN != 0 { FIFO_DEPTH } else { 1 }
    }

    /// Returns the number of characters that raises the receive interrupt (UARTIFLS.RXIFLSEL).
    fn receive_level(&self) -> usize {
        if self.line_control & FEN == 0 {
            return 1;
        }
        level(self.levels >> 3)
    }

    /// Returns the number of characters at or below which the transmit interrupt is raised (UARTIFLS.TXIFLSEL).
    fn transmit_level(&self) -> usize {
        if self.line_control & FEN == 0 {
            return 0;
        }
        level(self.levels)
    }
}

/// Returns the level that three bits of UARTIFLS select: 1/8, 1/4, 1/2, 3/4, 7/8 (DDI 0183G, 3.3.9). Reserved values select
/// the last.
fn level(select: u8) -> usize {
    match select & 7 {
        0 => FIFO_DEPTH / 8,
        1 => FIFO_DEPTH / 4,
        2 => FIFO_DEPTH / 2,
        3 => FIFO_DEPTH * 3 / 4,
        _ => FIFO_DEPTH * 7 / 8,
    }
}

#[cfg(test)]
mod tests;
