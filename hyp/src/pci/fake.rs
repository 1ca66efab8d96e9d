//! Fake functions: registers with writable bits, BARs, resets, and faults on request.

use core::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use super::config::{Bus, RegisterSpace, Rid, Width};
use super::quiesce::Clock;

/// Faults of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Transactions Pending stays set.
    pub(super) is_always_pending: bool,
    /// Bus master cannot be turned off.
    pub(super) is_always_master: bool,
    /// Nothing answers after a reset.
    pub(super) dies_of_reset: bool,
}

/// A function's configuration space.
pub(super) struct Fake {
    bytes: RefCell<[u8; 4096]>,
    writable: RefCell<[u8; 4096]>,
    reset_bytes: RefCell<[u8; 4096]>,
    /// All writes: offset, width, value.
    pub(super) writes: RefCell<Vec<(u16, Width, u32)>>,
    pub(super) resets: Cell<u32>,
    pub(super) faults: Cell<Faults>,
    is_dead: Cell<bool>,
    express: Cell<u16>,
    advanced: Cell<u16>,
    power: Cell<u16>,
}

impl Fake {
    /// Makes a function with IDs, a class and the pin INTA.
    pub(super) fn new(vendor: u16, device: u16, class: u32) -> Self {
        let fake = Self {
            bytes: RefCell::new([0; 4096]),
            writable: RefCell::new([0; 4096]),
            reset_bytes: RefCell::new([0; 4096]),
            writes: RefCell::default(),
            resets: Cell::new(0),
            faults: Cell::default(),
            is_dead: Cell::new(false),
            express: Cell::new(0),
            advanced: Cell::new(0),
            power: Cell::new(0),
        };
        fake.set(0, 2, vendor.into(), 0);
        fake.set(2, 2, device.into(), 0);
        // I/O, memory, bus master, parity, SERR, interrupt disable.
        fake.set(4, 2, 0, 0x547);
        fake.set(8, 4, class << 8 | 1, 0);
        fake.set(0x3c, 2, 0x100, 0xff);
        fake.set(0x30, 4, 0, 0xffff_f801);
        fake
    }

    /// Sets a register's value, also that after a reset, and its writable bits.
    pub(super) fn set(&self, offset: u16, size: usize, value: u32, writable: u32) {
        let at = usize::from(offset)..usize::from(offset) + size;
        self.bytes.borrow_mut()[at.clone()].copy_from_slice(&value.to_le_bytes()[..size]);
        self.reset_bytes.borrow_mut()[at.clone()].copy_from_slice(&value.to_le_bytes()[..size]);
        self.writable.borrow_mut()[at].copy_from_slice(&writable.to_le_bytes()[..size]);
    }

    /// Sets a register's value as firmware does: a reset takes it back.
    pub(super) fn poke(&self, offset: u16, size: usize, value: u32) {
        let at = usize::from(offset);
        self.bytes.borrow_mut()[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    /// Reads a word without side effects.
    pub(super) fn peek(&self, offset: u16) -> u32 {
        let at = usize::from(offset);
        u32::from_le_bytes(self.bytes.borrow()[at..at + 4].try_into().unwrap())
    }

    /// Adds a BAR of `size` bytes with `flags`, at `address`.
    pub(super) fn bar(self, index: u16, size: u64, flags: u32, address: u64) -> Self {
        let mask = size.wrapping_neg();
        self.set(0x10 + 4 * index, 4, flags, mask as u32 & !0xf);
        self.poke(0x10 + 4 * index, 4, address as u32 | flags);
        if flags & 6 == 4 {
            self.set(0x14 + 4 * index, 4, 0, (mask >> 32) as u32);
            self.poke(0x14 + 4 * index, 4, (address >> 32) as u32);
        }
        self
    }

    /// Adds capabilities at offsets, linked in this order: offset, ID, bytes behind the pointer.
    pub(super) fn capabilities(self, list: &[(u16, u8, &[u8])]) -> Self {
        let mut pointer = 0x34;
        self.set(6, 2, 0x10, 0);
        for &(offset, id, body) in list {
            self.set(pointer, 1, offset.into(), 0);
            self.set(offset, 2, id.into(), 0);
            for (at, &byte) in (offset + 2..).zip(body) {
                self.set(at, 1, byte.into(), 0);
            }
            match id {
                0x01 => {
                    self.power.set(offset);
                    self.set(offset + 4, 2, 0, 3);
                }
                0x05 | 0x11 => self.set(offset + 2, 2, 0, 0xc001),
                0x10 => {
                    self.express.set(offset);
                    self.set(offset + 8, 2, 0x2810, 0xffff);
                    self.set(offset + 0x28, 2, 0, 0xffff);
                }
                0x13 => {
                    self.advanced.set(offset);
                    self.set(offset + 4, 1, 0, 1);
                }
                _ => {}
            }
            pointer = offset + 1;
        }
        self
    }

    /// Adds extended capabilities, linked in this order: offset, ID.
    pub(super) fn extended(self, list: &[(u16, u16)]) -> Self {
        for (index, &(offset, id)) in list.iter().enumerate() {
            let next = list.get(index + 1).map_or(0, |next| next.0);
            self.set(offset, 4, u32::from(next) << 20 | 1 << 16 | u32::from(id), 0);
            self.set(offset + 4, 4, 0xabcd_0000 | u32::from(id), 0xffff_ffff);
        }
        self
    }

    /// Adds a fault.
    pub(super) fn with(self, faults: Faults) -> Self {
        self.faults.set(faults);
        self
    }

    fn reset(&self) {
        self.resets.set(self.resets.get() + 1);
        *self.bytes.borrow_mut() = *self.reset_bytes.borrow();
        self.is_dead.set(self.faults.get().dies_of_reset);
    }
}

impl RegisterSpace for Rc<Fake> {
    fn read(&self, offset: u16, width: Width) -> u32 {
        assert!(offset.is_multiple_of(width.bytes()) && offset < 4096);
        if self.is_dead.get() {
            return width.mask();
        }
        let mut word = self.peek(offset & !3);
        let express = self.express.get();
        if express != 0 && offset & !3 == express + 8 && self.faults.get().is_always_pending {
            word |= 1 << 21;
        }
        word >> (8 * (offset & 3)) & width.mask()
    }

    fn write(&self, offset: u16, width: Width, value: u32) {
        assert!(offset.is_multiple_of(width.bytes()) && offset < 4096);
        self.writes.borrow_mut().push((offset, width, value));
        if self.is_dead.get() {
            return;
        }
        let before = self.peek(self.power.get() + 4) & 3;
        for index in 0..width.bytes() {
            let at = usize::from(offset + index);
            let (byte, mask) = ((value >> (8 * index)) as u8, self.writable.borrow()[at]);
            let old = self.bytes.borrow()[at];
            self.bytes.borrow_mut()[at] = old & !mask | byte & mask;
        }
        if self.faults.get().is_always_master {
            self.bytes.borrow_mut()[4] |= 4;
        }
        let (express, advanced, power) = (self.express.get(), self.advanced.get(), self.power.get());
        let is_reset = express != 0 && self.peek(express + 8) & 0x8000 != 0
            || advanced != 0 && self.peek(advanced + 4) & 1 != 0
            || power != 0 && before == 3 && self.peek(power + 4) & 3 == 0;
        if is_reset {
            self.reset();
        }
    }
}

/// Functions by RID.
#[derive(Default)]
pub(super) struct FakeBus(pub(super) BTreeMap<u16, Rc<Fake>>);

impl FakeBus {
    pub(super) fn of(functions: impl IntoIterator<Item = (u16, Fake)>) -> Self {
        Self(functions.into_iter().map(|(rid, fake)| (rid, Rc::new(fake))).collect())
    }
}

impl Bus for FakeBus {
    type Space = Rc<Fake>;

    fn function(&self, rid: Rid) -> Option<Rc<Fake>> {
        let absent = || {
            let fake = Fake::new(0xffff, 0xffff, 0);
            fake.is_dead.set(true);
            Rc::new(fake)
        };
        Some(self.0.get(&rid.get()).cloned().unwrap_or_else(absent))
    }
}

/// A virtio device's common configuration.
#[derive(Default)]
pub(super) struct FakeCommon {
    pub(super) features: u64,
    pub(super) select: Cell<u32>,
    pub(super) status: Cell<u8>,
    /// Reads of the status until a reset is complete; `None`: never.
    pub(super) delay: Cell<Option<u32>>,
    pub(super) is_resetting: Cell<bool>,
}

impl RegisterSpace for FakeCommon {
    fn read(&self, offset: u16, _width: Width) -> u32 {
        match (offset, self.delay.get()) {
            (4, _) => (self.features >> (32 * self.select.get())) as u32,
            (0x14, Some(0)) if self.is_resetting.get() => 0,
            (0x14, delay) => {
                self.delay.set(delay.map(|left| left.saturating_sub(1)));
                self.status.get().into()
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u16, _width: Width, value: u32) {
        match offset {
            0 => self.select.set(value),
            0x14 => self.is_resetting.set(value == 0),
            _ => {}
        }
    }
}

/// A clock that counts.
#[derive(Default)]
pub(super) struct FakeClock(pub(super) u64);

impl Clock for FakeClock {
    fn wait(&mut self, microseconds: u32) {
        self.0 += u64::from(microseconds);
    }
}

/// A virtio capability's bytes behind the pointer: length, type, BAR, offset, length of the structure.
fn virtio(kind: u8, bar: u8, offset: u32) -> [u8; 14] {
    let mut body = [0; 14];
    (body[0], body[1], body[2]) = (if kind == 5 { 20 } else { 16 }, kind, bar);
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[11] = 1;
    body
}

/// A disk as QEMU's virtio-blk-pci: BAR 1 with 32 bits, BAR 4 with 64, MSI-X first in the list.
pub(super) fn virtio_disk() -> Fake {
    let lists =
        [virtio(5, 0, 0), virtio(2, 4, 0x3000), virtio(4, 4, 0x2000), virtio(3, 4, 0x1000), virtio(1, 4, 0)];
    let fake = Fake::new(0x1af4, 0x1042, 0x01_0000)
        .bar(0, 0x80, 1, 0)
        .bar(1, 0x1000, 0, 0)
        .bar(4, 0x4000, 0xc, 0)
        .capabilities(&[
            (0x98, 0x11, &[]),
            (0x84, 0x09, &lists[0]),
            (0x70, 0x09, &lists[1]),
            (0x60, 0x09, &lists[2]),
            (0x50, 0x09, &lists[3]),
            (0x40, 0x09, &lists[4]),
        ]);
    // pci_cfg_data reads from a BAR.
    fake.set(0x94, 4, 0x5ec2_e700, 0xffff_ffff);
    fake
}

/// A PCI Express endpoint with function level reset, MSI, power management, and extended capabilities.
pub(super) fn endpoint() -> Fake {
    Fake::new(0x8086, 0x10d3, 0x02_0000)
        .bar(0, 0x2_0000, 0, 0)
        .bar(2, 0x20, 1, 0)
        .bar(3, 0x100, 0, 0)
        .capabilities(&[
            (0xc8, 0x01, &[0x22, 0xc8]),
            (0xd0, 0x05, &[]),
            (0xe0, 0x10, &[0x02, 0x00, 0xc1, 0x8c, 0x00, 0x10]),
        ])
        .extended(&[(0x100, 0x01), (0x140, 0x03), (0x150, 0x0f), (0x160, 0x10), (0x1a0, 0x0b)])
}

/// A root port: bus numbers and a memory window.
pub(super) fn root_port(kind: u8, secondary: u8, base: u32, end: u32) -> Fake {
    let fake = Fake::new(0x1b36, 0x000c, 0x06_0400).capabilities(&[(0x48, 0x10, &[kind << 4 | 2, 0])]);
    fake.set(0x0e, 1, 1, 0);
    fake.set(0x18, 4, u32::from(secondary) << 16 | u32::from(secondary) << 8, 0xffffff);
    fake.set(0x20, 4, (end - 1) & 0xfff0_0000 | base >> 16, 0xfff0_fff0);
    // The prefetchable window is closed.
    fake.set(0x24, 4, 0x0001_fff1, 0xfff0_fff0);
    fake.set(0x30, 4, 0, 0);
    fake
}
