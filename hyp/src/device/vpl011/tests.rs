use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A line that takes `room` bytes, and has queued input.
#[derive(Default)]
struct Wire {
    sent: Vec<u8>,
    room: usize,
    input: VecDeque<u8>,
}

impl Wire {
    fn with_room(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    fn typing(text: &[u8]) -> Self {
        Self { room: usize::MAX, input: text.iter().copied().collect(), ..Self::default() }
    }
}

impl Line for Wire {
    fn transmit(&mut self, byte: u8) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        self.sent.push(byte);
        true
    }

    fn receive(&mut self) -> Option<u8> {
        self.input.pop_front()
    }
}

const TX: u32 = interrupt::TX as u32;
const RX: u32 = interrupt::RX as u32;
const RT: u32 = interrupt::RT as u32;

#[test]
fn identifies_itself_as_r1p5() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::default();
    let read: Vec<u32> = (0..8).map(|n| uart.read(0xfe0 + 4 * n, wire)).collect();
    assert_eq!(read, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!(uart.read(0xfe1, wire), 0);
    assert_eq!(uart.read(0xffe, wire), 0);
}

#[test]
fn a_character_goes_straight_out() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(9);
    assert_eq!(uart.read(offset::FR, wire), 0x97);
    uart.write(offset::DR, 0x141, wire);
    assert_eq!(wire.sent, b"A");
    assert_eq!(uart.read(offset::FR, wire), 0x97);
    assert_eq!(uart.read(offset::RIS, wire), TX);
    assert!(!uart.interrupt_level());
}

#[test]
fn a_line_that_refuses_is_seen_and_loses_nothing() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(0);
    let mut written = Vec::new();
    while uart.read(offset::FR, wire) & flag::TXFF == 0 {
        uart.write(offset::DR, written.len() as u32, wire);
        written.push(written.len() as u8);
        assert_ne!(uart.read(offset::FR, wire) & flag::BUSY, 0);
    }
    assert_eq!(written.len(), 32);
    wire.room = 15;
    uart.drain(wire);
    assert_eq!(uart.read(offset::RIS, wire), 0, "17 wait, the level is 16");
    uart.write(offset::IMSC, TX, wire);
    wire.room = 1;
    uart.drain(wire);
    assert!(uart.interrupt_level());
    uart.write(offset::ICR, TX, wire);
    uart.drain(wire);
    assert!(!uart.interrupt_level(), "no transition, no interrupt");
    wire.room = usize::MAX;
    assert_eq!(uart.read(offset::FR, wire) & (flag::BUSY | flag::TXFE), flag::TXFE);
    assert_eq!(wire.sent, written);
}

#[test]
fn order_is_kept_when_the_line_recovers_during_a_write() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(0);
    uart.write(offset::DR, b'a'.into(), wire);
    wire.room = 5;
    uart.write(offset::DR, b'b'.into(), wire);
    assert_eq!(wire.sent, b"ab");
}

#[test]
fn without_fifos_it_holds_one_character() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(0);
    uart.write(offset::LCR_H, 0x60, wire);
    uart.write(offset::DR, b'a'.into(), wire);
    assert_ne!(uart.read(offset::FR, wire) & flag::TXFF, 0);
    uart.write(offset::DR, b'b'.into(), wire);
    wire.room = 5;
    wire.input.extend(b"xy");
    uart.drain(wire);
    assert_eq!(wire.sent, b"a", "what is written to a full register is lost");
    uart.receive(wire);
    assert_eq!(uart.read(offset::RIS, wire), RX | TX | RT);
    assert_ne!(uart.read(offset::FR, wire) & flag::RXFF, 0);
    assert_eq!(wire.input.len(), 1);
}

#[test]
fn typing_raises_timeout_and_level_interrupts() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::typing(b"l");
    uart.write(offset::IMSC, RX | RT, wire);
    uart.receive(wire);
    assert_eq!(uart.read(offset::MIS, wire), RT);
    assert_eq!(uart.read(offset::DR, wire), u32::from(b'l'));
    assert!(!uart.interrupt_level());
    assert_ne!(uart.read(offset::FR, wire) & flag::RXFE, 0);
    assert_eq!(uart.read(offset::DR, wire), 0, "an empty FIFO reads as zero");

    wire.input.extend([b'x'; 16]);
    uart.receive(wire);
    assert_eq!(uart.read(offset::MIS, wire), RX | RT);
    uart.read(offset::DR, wire);
    assert_eq!(uart.read(offset::MIS, wire), RT, "15 are below the level");
}

#[test]
fn a_paste_passes_whole() {
    let mut uart = Vpl011::new();
    let text: Vec<u8> = (0..10_240).map(|n| (n % 251) as u8).collect();
    let wire = &mut Wire::typing(&text);
    let mut got = Vec::new();
    uart.receive(wire);
    while uart.read(offset::FR, wire) & flag::RXFE == 0 {
        got.push(uart.read(offset::DR, wire) as u8);
    }
    assert_eq!(got, text);
}

#[test]
fn a_receiver_that_is_off_leaves_the_input_where_it_is() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::typing(b"early");
    uart.write(offset::CR, 0, wire);
    uart.receive(wire);
    assert_eq!(wire.input.len(), 5);
    uart.write(offset::CR, 0x301, wire);
    assert_eq!(wire.input.len(), 0);
    assert_eq!(uart.read(offset::DR, wire), u32::from(b'e'));
}

#[test]
fn a_disabled_transmitter_keeps_written_bytes() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(9);
    uart.write(offset::CR, 0x200, wire);
    uart.write(offset::DR, b'z'.into(), wire);
    assert!(wire.sent.is_empty());
    assert_ne!(uart.read(offset::FR, wire) & flag::BUSY, 0);
    uart.write(offset::CR, 0x301, wire);
    assert_eq!(wire.sent, b"z");
}

#[test]
fn loopback_returns_characters_and_modem_lines() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(9);
    uart.write(offset::CR, 0x381 | 1 << 10 | 1 << 13, wire);
    assert_eq!(uart.read(offset::FR, wire) & flag::MODEM, flag::DSR | flag::RI);
    assert_eq!(uart.read(offset::RIS, wire), 0b0111, "RI rose, CTS and DCD fell");
    uart.write(offset::DR, 0x55, wire);
    assert!(wire.sent.is_empty());
    assert_eq!(uart.read(offset::DR, wire), 0x55);
    for n in 0..33 {
        uart.write(offset::DR, n, wire);
    }
    assert_eq!(uart.read(offset::RSR, wire), u32::from(OVERRUN));
    assert_ne!(uart.read(offset::RIS, wire) & u32::from(interrupt::OE), 0);
    uart.write(offset::RSR, 0, wire);
    assert_eq!(uart.read(offset::RSR, wire), 0);
}

#[test]
fn a_break_arrives_as_such() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::default();
    uart.receive_break();
    assert_eq!(uart.read(offset::RIS, wire), u32::from(interrupt::BE | interrupt::RT));
    assert_eq!(uart.read(offset::DR, wire), 0x500);
    assert_eq!(uart.read(offset::RSR, wire), 5);
}

#[test]
fn registers_keep_their_implemented_bits() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::default();
    for (offset, kept) in [
        (offset::ILPR, 0xff),
        (offset::IBRD, 0xffff),
        (offset::FBRD, 0x3f),
        (offset::LCR_H, 0xff),
        (offset::CR, 0xff87),
        (offset::IFLS, 0x3f),
        (offset::IMSC, 0x7ff),
        (offset::DMACR, 7),
        (offset::ICR, 0),
        (0x080, 0),
    ] {
        uart.write(offset, u32::MAX, wire);
        assert_eq!(uart.read(offset, wire), kept, "{offset:#x}");
    }
}

/// Writes like the driver of Linux: until TXFF, then half a FIFO for each transmit interrupt, without looking at the flags.
#[test]
fn a_driver_that_trusts_the_transmit_interrupt_loses_nothing() {
    let mut uart = Vpl011::new();
    let wire = &mut Wire::with_room(0);
    let text: Vec<u8> = (0..1000).map(|n| n as u8).collect();
    let mut left = text.iter();
    while uart.read(offset::FR, wire) & flag::TXFF == 0 {
        uart.write(offset::DR, (*left.next().unwrap()).into(), wire);
    }
    uart.write(offset::IMSC, TX, wire);
    while uart.read(offset::FR, wire) & flag::BUSY != 0 {
        wire.room = 1;
        uart.drain(wire);
        if uart.interrupt_level() {
            for byte in left.by_ref().take(16) {
                uart.write(offset::DR, (*byte).into(), wire);
            }
            if left.len() == 0 {
                uart.write(offset::IMSC, 0, wire);
            }
        }
    }
    assert_eq!(wire.sent, text);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16),
    Write(u16, u32),
    Room(usize),
    Type(u8),
    Break,
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let register = prop_oneof![
        4 => prop::sample::select(vec![
            offset::DR, offset::FR, offset::LCR_H, offset::CR, offset::IFLS, offset::IMSC, offset::ICR,
        ]),
        1 => 0..0x1000u16,
    ];
    let value = prop_oneof![any::<u32>(), 0..0x100u32, Just(0x301u32), Just(0x381u32)];
    let step = prop_oneof![
        3 => register.clone().prop_map(Step::Read),
        6 => (register, value).prop_map(|(register, value)| Step::Write(register, value)),
        1 => (0..40usize).prop_map(Step::Room),
        2 => any::<u8>().prop_map(Step::Type),
        1 => Just(Step::Break),
        1 => Just(Step::Drain),
    ];
    prop::collection::vec(step, 0..300)
}

proptest! {
    /// With any accesses of a guest, the flags match the FIFOs, and no accepted byte (TXFF clear, no loopback) is lost or reordered.
    #[test]
    fn flags_and_bytes_agree(steps in steps()) {
        let mut uart = Vpl011::new();
        let wire = &mut Wire::with_room(3);
        let mut accepted = Vec::new();
        let mut has_looped = false;
        for step in steps {
            match step {
                Step::Read(register) => {
                    uart.read(register, wire);
                }
                Step::Write(register, value) => {
                    if register == offset::DR && uart.read(offset::FR, wire) & flag::TXFF == 0 {
                        accepted.push(value as u8);
                    }
                    uart.write(register, value, wire);
                    has_looped |= uart.control & control::LBE != 0;
                }
                Step::Room(room) => wire.room = room,
                Step::Type(byte) => {
                    wire.input.push_back(byte);
                    uart.receive(wire);
                }
                Step::Break => uart.receive_break(),
                Step::Drain => uart.drain(wire),
            }
            let flags = uart.flags;
            prop_assert_eq!(flags & flag::TXFE != 0, uart.tx.len == 0);
            prop_assert_eq!(flags & flag::BUSY != 0, uart.tx.len != 0);
            prop_assert_eq!(flags & flag::RXFE != 0, uart.rx.len == 0);
            prop_assert!(usize::from(uart.tx.len) <= FIFO_DEPTH && usize::from(uart.rx.len) <= FIFO_DEPTH);
            prop_assert_eq!(uart.interrupt_level(), uart.read(offset::MIS, wire) != 0);
        }
        if !has_looped {
            uart.write(offset::CR, 0x301, wire);
            wire.room = usize::MAX;
            uart.drain(wire);
            prop_assert_eq!(&wire.sent, &accepted);
        }
    }
}
