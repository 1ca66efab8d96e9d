//! A model of an SMMU for tests. It sees of memory only what the driver made visible, caches entries and translations until a
//! command drops them, and may start to fetch an entry at any time.

mod translation;

use super::access::{Memory, Registers};
use super::registers::{
    CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0, CR0_CMDQEN, CR0_SMMUEN, CR0ACK, CR1, CR2, EVENTQ_BASE, EVENTQ_CONS,
    EVENTQ_PROD, GBPA, GBPA_ABORT, GBPA_UPDATE, GERROR, GERRORN, IDR0, IDR1, IDR5, IRQ_CTRL, IRQ_CTRLACK,
    OVERFLOW, STRTAB_BASE, STRTAB_BASE_CFG,
};
use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::vec::Vec;

/// Bits [51:12] of a descriptor or base register.
const ADDRESS: u64 = 0xf_ffff_ffff_f000;
/// Number of entries that the model fetches in parts.
const RACES: u32 = 4;

/// End of a device's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Access to memory at this address.
    Memory(u64),
    /// Abort.
    Aborted,
    /// Access to memory without translation.
    Bypassed,
}

/// Faults to inject.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Errors of the command queue, one for each command to come; 0 is none.
    pub(super) errors: VecDeque<u8>,
    /// CMD_SYNC never completes.
    pub(super) hangs_sync: bool,
    /// No command is consumed.
    pub(super) hangs_queue: bool,
    /// The register at this offset is not acknowledged any more.
    pub(super) unacknowledged: Option<usize>,
    /// Allocations that succeed before all fail.
    pub(super) allocations: Option<u32>,
    /// The device of this stream accesses address 0 just before the next write of IRQ_CTRL.
    pub(super) late_access: Option<u32>,
}

/// The machine: memory, registers, caches of the SMMU.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) faults: Faults,
    /// Registers of 32 bits; those of 64 bits are two.
    pub(super) registers: HashMap<usize, u32>,
    /// Opcodes of the commands that were consumed.
    pub(super) opcodes: Vec<u8>,
    /// Allocations: address and order.
    pub(super) allocated: BTreeMap<u64, u8>,
    /// True if the SMMU snoops.
    pub(super) is_coherent: bool,
    pub(super) now_ns: u64,
    /// Words that the SMMU sees.
    ram: HashMap<u64, u64>,
    /// Words that CPUs wrote and the SMMU does not see yet.
    dirty: BTreeMap<u64, u64>,
    /// Words that were cleaned, before the barrier.
    cleaned: BTreeMap<u64, u64>,
    /// Clean words in the CPUs' caches.
    lines: HashMap<u64, u64>,
    next: u64,
    entries: HashMap<u32, [u64; 8]>,
    partial: HashMap<u32, [u64; 8]>,
    spans: HashMap<u32, u64>,
    contexts: HashMap<u32, [u64; 4]>,
    /// Translations, by tag and page.
    translations: BTreeMap<(u64, u64), u64>,
}

/// A handle to a machine, as registers and as memory.
#[derive(Clone, Debug)]
pub(super) struct Fake(Rc<RefCell<Machine>>);

impl Fake {
    /// Makes an SMMU with these ID registers.
    pub(super) fn new(idr0: u32, idr1: u32, idr5: u32) -> Self {
        let registers = [(IDR0, idr0), (IDR1, idr1), (IDR5, idr5)].into_iter().collect();
        let is_coherent = idr0 & 1 << 4 != 0;
        let machine = Machine { registers, is_coherent, next: 1 << 32, ..Machine::default() };
        Self(Rc::new(RefCell::new(machine)))
    }

    pub(super) fn machine(&self) -> RefMut<'_, Machine> {
        self.0.borrow_mut()
    }

    /// Accesses `address` as the device of `stream`.
    pub(super) fn access(&self, stream: u32, address: u64, is_write: bool) -> Outcome {
        self.machine().access(stream, address, is_write)
    }
}

impl Machine {
    fn register(&self, at: usize) -> u32 {
        self.registers.get(&at).copied().unwrap_or(0)
    }

    fn register64(&self, at: usize) -> u64 {
        u64::from(self.register(at)) | u64::from(self.register(at + 4)) << 32
    }

    /// Reads a word as the SMMU does.
    fn fetch(&self, at: u64) -> u64 {
        *self.ram.get(&at).unwrap_or_else(|| panic!("the SMMU reads {at:#x}, which was not made visible"))
    }

    fn wraps(register: u64) -> u32 {
        (2 << (register & 0x1f)) - 1
    }

    fn entry(base: u64, index: u32, size: u64) -> u64 {
        (base & 0xf_ffff_ffff_ffe0) + u64::from(index & Self::wraps(base) >> 1) * size
    }

    fn consume(&mut self) {
        let base = self.register64(CMDQ_BASE);
        while self.register(CR0ACK) & CR0_CMDQEN != 0
            && !self.faults.hangs_queue
            && (self.register(GERROR) ^ self.register(GERRORN)) & 1 == 0
            && (self.register(CMDQ_CONS) ^ self.register(CMDQ_PROD)) & Self::wraps(base) != 0
        {
            let consumer = self.register(CMDQ_CONS) & Self::wraps(base);
            let at = Self::entry(base, consumer, 16);
            let command = [self.fetch(at), self.fetch(at + 8)];
            let error = match self.faults.errors.pop_front().unwrap_or(0) {
                0 if command[0] & 0xff == 0x46 && self.faults.hangs_sync => return,
                0 => self.execute(command).err().unwrap_or(0),
                error => error,
            };
            if error != 0 {
                self.registers.insert(CMDQ_CONS, consumer | u32::from(error) << 24);
                *self.registers.entry(GERROR).or_default() ^= 1;
                return;
            }
            self.opcodes.push(command[0] as u8);
            self.registers.insert(CMDQ_CONS, (consumer + 1) & Self::wraps(base));
        }
    }

    fn execute(&mut self, command: [u64; 2]) -> Result<(), u8> {
        let features = self.register(IDR0);
        let stream = (command[0] >> 32) as u32;
        match command[0] & 0xff {
            0x03 => {
                self.entries.remove(&stream);
                self.partial.remove(&stream);
                self.contexts.remove(&stream);
                if command[1] & 1 == 0 {
                    self.spans.remove(&(stream >> 8));
                }
            }
            0x04 if command[1] & 0x1f == 31 => {
                self.entries.clear();
                self.partial.clear();
                self.contexts.clear();
                self.spans.clear();
            }
            0x11 if features & 0b10 != 0 => {
                self.translations.retain(|key, _| key.0 != (command[0] >> 48 | 1 << 16));
            }
            0x20 if features & 1 << 9 != 0 => {}
            0x28 if features & 1 != 0 => {
                self.translations.retain(|key, _| key.0 != command[0] >> 32 & 0xffff);
            }
            0x30 => self.translations.clear(),
            0x46 if command[0] >> 12 & 3 == 0 => {}
            _ => return Err(1),
        }
        Ok(())
    }
}

impl Registers for Fake {
    fn read32(&self, offset: usize) -> u32 {
        self.machine().register(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut machine = self.machine();
        let enabled = machine.register(CR0ACK);
        let acknowledges = machine.faults.unacknowledged != Some(offset);
        if offset == IRQ_CTRL
            && let Some(stream) = machine.faults.late_access.take()
        {
            machine.access(stream, 0, true);
        }
        match offset {
            CR0 if acknowledges => {
                machine.registers.insert(CR0ACK, value);
            }
            IRQ_CTRL if acknowledges => {
                machine.registers.insert(IRQ_CTRLACK, value);
            }
            CR1 | CR2 | STRTAB_BASE_CFG => assert_eq!(enabled, 0, "register {offset:#x} while enabled"),
            CMDQ_CONS => assert_eq!(enabled & CR0_CMDQEN, 0, "CMDQ_CONS while enabled"),
            _ => {}
        }
        let value = if offset == GBPA && acknowledges { value & !GBPA_UPDATE } else { value };
        machine.registers.insert(offset, value);
        machine.consume();
    }

    fn write64(&self, offset: usize, value: u64) {
        let mut machine = self.machine();
        if [STRTAB_BASE, CMDQ_BASE, EVENTQ_BASE].contains(&offset) {
            assert_eq!(machine.register(CR0ACK), 0, "register {offset:#x} while enabled");
        }
        machine.registers.insert(offset, value as u32);
        machine.registers.insert(offset + 4, (value >> 32) as u32);
    }
}

impl Memory for Fake {
    fn allocate(&self, order: u8) -> Option<u64> {
        let mut machine = self.machine();
        if let Some(left) = &mut machine.faults.allocations {
            *left = left.checked_sub(1)?;
        }
        let size = 4096 << order;
        let pa = machine.next.next_multiple_of(size);
        machine.next = pa + size;
        machine.allocated.insert(pa, order);
        machine.dirty.extend((pa..pa + size).step_by(8).map(|at| (at, 0)));
        Some(pa)
    }

    fn free(&self, pa: u64, order: u8) {
        let mut machine = self.machine();
        assert_eq!(machine.allocated.remove(&pa), Some(order), "{pa:#x} is not allocated");
        let freed: BTreeSet<u64> = (pa..pa + (4096 << order)).step_by(8).collect();
        machine.ram.retain(|at, _| !freed.contains(at));
        machine.lines.retain(|at, _| !freed.contains(at));
        machine.dirty.retain(|at, _| !freed.contains(at));
        machine.cleaned.retain(|at, _| !freed.contains(at));
    }

    fn read64(&self, pa: u64) -> u64 {
        let mut machine = self.machine();
        if let Some(&word) = machine.dirty.get(&pa).or(machine.cleaned.get(&pa)) {
            return word;
        }
        let word = machine.fetch(pa);
        if machine.is_coherent { word } else { *machine.lines.entry(pa).or_insert(word) }
    }

    fn write64(&self, pa: u64, value: u64) {
        assert!(pa.is_multiple_of(8));
        let mut machine = self.machine();
        let is_allocated =
            machine.allocated.range(..=pa).next_back().is_some_and(|(&at, &order)| pa < at + (4096 << order));
        assert!(is_allocated, "{pa:#x} is not allocated");
        machine.dirty.insert(pa, value);
    }

    fn clean_invalidate(&self, pa: u64, size: u64) {
        let mut machine = self.machine();
        assert!(!machine.is_coherent, "needless maintenance");
        for at in (pa..pa + size).step_by(8) {
            if let Some(word) = machine.dirty.remove(&at) {
                machine.cleaned.insert(at, word);
            }
            machine.lines.remove(&at);
        }
    }

    fn barrier(&self) {
        let mut machine = self.machine();
        let visible = if machine.is_coherent {
            core::mem::take(&mut machine.dirty)
        } else {
            core::mem::take(&mut machine.cleaned)
        };
        machine.ram.extend(visible);
        machine.race();
    }

    fn now_ns(&self) -> u64 {
        let mut machine = self.machine();
        machine.now_ns += 100_000;
        machine.now_ns
    }
}
