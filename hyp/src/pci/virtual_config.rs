//! The configuration space that a guest sees.
//!
//! A read yields the function's register, except for an *overlay*: bits that Ballast shows instead. A write reaches the
//! function in two bits of COMMAND only, bus master and interrupt disable. All other writes change nothing, or a register that
//! exists only here: the interrupt line, and the sizing of BARs.
//!
//! - The function always decodes memory: the guest's Memory Space Enable is its own. An access to a BAR that is not decoded may
//!   end in an error on the host's bus, which not the guest but EL2 would get.
//! - A BAR has the guest's address. After a write of all ones it reads as its size; any other write brings the address back.
//! - I/O BARs and the expansion ROM are absent.
//! - Capabilities are unlinked, and read as zeros up to the next one, unless they are harmless to read and make sense without
//!   writes. Hidden are thus MSI, MSI-X, power management, Advanced Features, virtio's window into BARs (a read of it is an
//!   access to a BAR); in the extended space all but serial number and vendor's.
//! - Function Level Reset reads as absent, since a guest cannot start it.
//!
//! State is in atomics: several vCPUs may access the space at once, without a lock, as they may a function's.

use core::sync::atomic::{AtomicU8, AtomicU16, Ordering::Relaxed};

use heapless::Vec;

use super::bar::{BAR_LIMIT, at_rest};
use super::capability::{Capability, EXPRESS, SERIAL_NUMBER, VENDOR, VENDOR_EXTENDED};
use super::config::{
    BAR, CAPABILITIES, CARDBUS_CIS, COMMAND, Command, EXPANSION_ROM, EXTENDED, HEADER_TYPE, INTERRUPT_LINE,
    MULTI_FUNCTION, RegisterSpace, SPACE_SIZE, STATUS_CAPABILITIES, Width, command, set_command,
};
use super::probe::{DEVICE_CAPABILITIES, FUNCTION_LEVEL_RESET, Function};
use super::virtio;

/// Capabilities that a guest sees, besides virtio's window.
const VISIBLE: [u16; 2] = [VENDOR, EXPRESS];
/// Extended capabilities that a guest sees.
const VISIBLE_EXTENDED: [u16; 2] = [SERIAL_NUMBER, VENDOR_EXTENDED];
/// Extended capabilities that a guest sees at most.
const EXTENDED_LIMIT: usize = 8;
/// Words in the first 256 bytes.
const WORDS: usize = EXTENDED as usize / 4;
/// The last register that [`BAR`] starts.
const LAST_BAR: u16 = BAR + 4 * (BAR_LIMIT as u16 - 1);
/// The bits of COMMAND that a guest writes.
const GUEST_COMMAND: u16 =
    Command::new().with_memory(true).with_bus_master(true).with_intx_disable(true).into_bits();
/// Those of them that reach the function.
const PASSED_COMMAND: u16 = Command::new().with_bus_master(true).with_intx_disable(true).into_bits();

/// A word as the guest reads it: `live & mask | value`.
#[derive(Clone, Copy, Debug)]
struct Overlay {
    mask: u32,
    value: u32,
}

/// A BAR register: as the guest reads it, and while it is being sized.
#[derive(Clone, Copy, Debug, Default)]
struct Register {
    address: u32,
    size: u32,
}

/// An extended capability that the guest sees: its bytes, and the offset of the next one.
#[derive(Clone, Copy, Debug)]
struct Extended {
    start: u16,
    end: u16,
    next: u16,
}

/// A function's configuration space for its guest.
#[derive(Debug)]
pub(crate) struct VirtualConfig {
    overlay: [Overlay; WORDS],
    extended: Vec<Extended, EXTENDED_LIMIT>,
    bars: [Register; BAR_LIMIT as usize],
    /// COMMAND with none of the guest's bits.
    base: Command,
    /// The guest's bits of COMMAND.
    command: AtomicU16,
    /// The registers that are being sized, a bit each.
    sizing: AtomicU8,
    interrupt_line: AtomicU8,
}

impl VirtualConfig {
    /// Makes the guest's view of `function`, whose BARs have addresses for host and guest.
    pub(crate) fn new(function: &Function, space: &impl RegisterSpace) -> Self {
        let mut bars = [Register::default(); BAR_LIMIT as usize];
        for bar in &function.bars {
            let registers = bar.registers(bar.guest).into_iter().zip(bar.registers(bar.size.wrapping_neg()));
            let count = if bar.is_64() { 2 } else { 1 };
            let own = bars.iter_mut().skip(bar.index.into()).take(count);
            own.zip(registers).for_each(|(register, (address, size))| *register = Register { address, size });
        }
        Self {
            overlay: overlay(function, space),
            extended: extended(&function.extended),
            bars,
            base: at_rest(command(space)).with_intx_disable(false),
            command: AtomicU16::new(0),
            sizing: AtomicU8::new(0),
            interrupt_line: AtomicU8::new(0),
        }
    }

    /// Resets the guest's registers, and lets the function, which must be quiet, interrupt again. The guest's vCPUs do not run.
    pub(crate) fn attach(&self, space: &impl RegisterSpace) {
        self.command.store(0, Relaxed);
        self.sizing.store(0, Relaxed);
        self.interrupt_line.store(0, Relaxed);
        set_command(space, self.base);
    }

    /// Reads `size` bytes at `offset`. A read of another size than 1, 2 and 4, an unaligned one, and one beyond the space yield
    /// all ones.
    pub(crate) fn read(&self, space: &impl RegisterSpace, offset: u16, size: u8) -> u64 {
        let Some(width) = aligned(offset, size) else { return u64::MAX };
        let word = match u8::try_from(offset / 4).ok().filter(|&number| usize::from(number) < WORDS) {
            Some(number) => self.word(space, number),
            None => self.extended_word(space, offset & !3),
        };
        (word >> (8 * (offset & 3)) & width.mask()).into()
    }

    /// Writes `size` bytes at `offset`. A write of another size than 1, 2 and 4, and an unaligned one, change nothing.
    pub(crate) fn write(&self, space: &impl RegisterSpace, offset: u16, size: u8, value: u64) {
        let Some(width) = aligned(offset, size) else { return };
        let value = value as u32 & width.mask();
        match (offset, width) {
            (COMMAND, Width::Byte) => self.write_command(space, 0x00ff, value as u16),
            (COMMAND, _) => self.write_command(space, 0xffff, value as u16),
            (offset, Width::Byte) if offset == COMMAND + 1 => {
                self.write_command(space, 0xff00, (value << 8) as u16);
            }
            (BAR..=LAST_BAR, Width::Word) => {
                let bit = 1 << ((offset - BAR) / 4);
                // The lowest bits of a BAR are read-only.
                if value | 0xf == u32::MAX {
                    self.sizing.fetch_or(bit, Relaxed);
                } else {
                    self.sizing.fetch_and(!bit, Relaxed);
                }
            }
            (INTERRUPT_LINE, _) => self.interrupt_line.store(value as u8, Relaxed),
            _ => {}
        }
    }

    /// Reads word `number`, of [`WORDS`], of the first 256 bytes.
    #[inline(always)]
    pub(crate) fn word(&self, space: &impl RegisterSpace, number: u8) -> u32 {
        let number = number % WORDS as u8;
        let Overlay { mask, value } = self.overlay[usize::from(number)];
        let offset = 4 * u16::from(number);
        let live = if mask == 0 { 0 } else { space.read32(offset) & mask };
        live | match offset {
            COMMAND => self.command.load(Relaxed).into(),
            BAR..=LAST_BAR => {
                let index = (offset - BAR) / 4;
                let register = self.bars[usize::from(index)];
                if self.sizing.load(Relaxed) >> index & 1 != 0 { register.size } else { register.address }
            }
            INTERRUPT_LINE => self.interrupt_line.load(Relaxed).into(),
            _ => value,
        }
    }

    fn extended_word(&self, space: &impl RegisterSpace, offset: u16) -> u32 {
        let Some(found) = self.extended.iter().find(|found| (found.start..found.end).contains(&offset))
        else {
            // A list starts at its place. ID 0 is the null capability.
            let first = self.extended.first().filter(|_| offset == EXTENDED);
            return first.map_or(0, |first| u32::from(first.start) << 20 | 1 << 16);
        };
        let live = space.read32(offset);
        if offset == found.start { live & 0xf_ffff | u32::from(found.next) << 20 } else { live }
    }

    fn write_command(&self, space: &impl RegisterSpace, lanes: u16, value: u16) {
        let kept = self.command.load(Relaxed) & !lanes;
        let guest = (kept | value & lanes) & GUEST_COMMAND;
        self.command.store(guest, Relaxed);
        set_command(space, Command::from_bits(self.base.into_bits() | guest & PASSED_COMMAND));
    }
}

/// Returns the device, counted from 0, and the register that `offset` in the guest's ECAM names: device `i + 1`, function 0,
/// of bus 0 is the guest's function `i`. `None`: no such function, which reads as all ones.
pub(crate) const fn slot(offset: u64) -> Option<(usize, u16)> {
    let (device, register) = (offset >> 15, (offset & 0x7fff) as u16);
    if device == 0 || device > 31 || register >= SPACE_SIZE {
        return None;
    }
    Some((device as usize - 1, register))
}

/// Returns the device, counted from 0, and the number of the word that `offset` in the guest's ECAM names, if that is a word in
/// the first 256 bytes of function 0. There may be no such device.
#[inline(always)]
pub(crate) const fn word_slot(offset: u64) -> Option<(usize, u8)> {
    const NUMBER: u64 = (EXTENDED - 4) as u64;
    if offset & 0x7fff & !NUMBER != 0 {
        return None;
    }
    Some(((offset >> 15).wrapping_sub(1) as usize, ((offset & NUMBER) / 4) as u8))
}

/// Returns the width of an access of `size` bytes that lies inside the space and is naturally aligned.
fn aligned(offset: u16, size: u8) -> Option<Width> {
    Width::try_new(size).filter(|width| offset < SPACE_SIZE && offset.is_multiple_of(width.bytes()))
}

/// Returns the overlay of `function`'s first 256 bytes.
fn overlay(function: &Function, space: &impl RegisterSpace) -> [Overlay; WORDS] {
    let mut words = [Overlay { mask: u32::MAX, value: 0 }; WORDS];
    let word = |offset: u16| usize::from(offset / 4);
    let is_visible = |found: &Capability| {
        let is_window = found.id == VENDOR
            && function.virtio.is_some()
            && space.read8(found.offset + virtio::CONFIG_TYPE) == virtio::WINDOW;
        VISIBLE.contains(&found.id) && !is_window
    };
    let list = &function.standard;
    words[word(COMMAND)].mask = !u32::from(GUEST_COMMAND);
    if !list.iter().any(is_visible) {
        words[word(COMMAND)].mask &= !(u32::from(STATUS_CAPABILITIES) << 16);
    }
    words[word(HEADER_TYPE)].mask = !(u32::from(MULTI_FUNCTION) << 16);
    for offset in (BAR..=LAST_BAR).step_by(4).chain([CARDBUS_CIS, EXPANSION_ROM]) {
        words[word(offset)].mask = 0;
    }
    words[word(INTERRUPT_LINE)].mask = !0xff;
    for found in list.iter().filter(|found| !is_visible(found)) {
        words[word(found.offset)..word(end(list, found, EXTENDED))].fill(Overlay { mask: 0, value: 0 });
    }
    if let Some(express) = function.express {
        // A capability too close to the end has no such word here.
        if let Some(word) = words.get_mut(word(express.offset + DEVICE_CAPABILITIES)) {
            word.mask &= !FUNCTION_LEVEL_RESET;
        }
    }
    words[word(CAPABILITIES)].mask = !0xff;
    let (mut pointer, mut shift) = (word(CAPABILITIES), 0);
    for found in list.iter().filter(|found| is_visible(found)) {
        words[pointer].value |= u32::from(found.offset) << shift;
        (pointer, shift) = (word(found.offset), 8);
        words[pointer].mask &= !0xff00;
    }
    words
}

/// Returns the extended capabilities of `list` that a guest sees.
fn extended(list: &[Capability]) -> Vec<Extended, EXTENDED_LIMIT> {
    let is_visible = |found: &&Capability| VISIBLE_EXTENDED.contains(&found.id);
    let mut visible: Vec<Extended, EXTENDED_LIMIT> = (list.iter().filter(is_visible).take(EXTENDED_LIMIT))
        .map(|found| Extended { start: found.offset, end: end(list, found, SPACE_SIZE), next: 0 })
        .collect();
    for index in 1..visible.len() {
        visible[index - 1].next = visible[index].start;
    }
    visible
}

/// Returns the end of `found`: the start of the capability above it, or `limit`.
fn end(list: &[Capability], found: &Capability, limit: u16) -> u16 {
    list.iter().map(|other| other.offset).filter(|&offset| offset > found.offset).min().unwrap_or(limit)
}
