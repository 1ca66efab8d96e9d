//! A model of an SMMU for tests. It sees of memory only what the driver made visible, caches entries and translations until a
//! command drops them, and may start to fetch an entry at any time.

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
    /// It reached memory at this address.
    Memory(u64),
    /// It aborted.
    Aborted,
    /// It reached memory without translation.
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

    /// Returns the address of a stream's entry.
    fn locate(&mut self, stream: u32) -> Option<u64> {
        let (base, layout) =
            (self.register64(STRTAB_BASE) & 0xf_ffff_ffff_ffc0, self.register(STRTAB_BASE_CFG));
        if u64::from(stream) >> (layout & 0x3f) != 0 {
            return None;
        }
        if layout >> 16 & 3 == 0 {
            return Some(base + u64::from(stream) * 64);
        }
        assert_eq!(layout >> 6 & 0x1f, 8, "SPLIT");
        let number = stream >> 8;
        let fetched = self.fetch(base + u64::from(number) * 8);
        let descriptor = *self.spans.entry(number).or_insert(fetched);
        let span = descriptor & 0x1f;
        let index = u64::from(stream & 0xff);
        (span != 0 && index < 1 << (span - 1)).then(|| (descriptor & 0xf_ffff_ffff_ffc0) + index * 64)
    }

    fn fetch_entry(&mut self, stream: u32) -> Option<[u64; 8]> {
        let at = self.locate(stream)?;
        let fetched = core::array::from_fn(|word| self.fetch(at + word as u64 * 8));
        Some(*self.entries.entry(stream).or_insert(fetched))
    }

    /// Fetches entries in two parts, word 0 last, as an SMMU may at any time.
    fn race(&mut self) {
        if self.register(CR0ACK) & CR0_SMMUEN == 0 {
            return;
        }
        for stream in 0..RACES {
            let known = self.entries.get(&stream).copied();
            let Some(mut fetched) = self.fetch_entry(stream) else { continue };
            match known {
                Some(entry) => self.entries.insert(stream, entry),
                None => self.entries.remove(&stream),
            };
            if let Some(partial) = self.partial.get(&stream) {
                let word = fetched[0];
                fetched = *partial;
                fetched[0] = word;
                assert!(word >> 1 & 7 != 0b110 || fetched[3] != 0, "an entry was mixed: {fetched:x?}");
                self.entries.entry(stream).or_insert(fetched);
            }
            self.partial.insert(stream, fetched);
        }
    }

    fn record(&mut self, kind: u64, stream: u32, address: u64, is_write: bool) -> Outcome {
        let base = self.register64(EVENTQ_BASE);
        let (producer, consumer) = (self.register(EVENTQ_PROD), self.register(EVENTQ_CONS));
        let count = producer.wrapping_sub(consumer) & Self::wraps(base);
        if count > Self::wraps(base) >> 1 {
            if (producer ^ consumer) & OVERFLOW == 0 {
                self.registers.insert(EVENTQ_PROD, producer ^ OVERFLOW);
            }
            return Outcome::Aborted;
        }
        let at = Self::entry(base, producer, 32);
        let words = [kind | u64::from(stream) << 32, u64::from(!is_write) << 35, address, 0];
        for (word, at) in words.into_iter().zip((at..).step_by(8)) {
            self.ram.insert(at, word);
        }
        let index = (producer + 1) & Self::wraps(base);
        self.registers.insert(EVENTQ_PROD, producer & OVERFLOW | index);
        Outcome::Aborted
    }

    fn access(&mut self, stream: u32, address: u64, is_write: bool) -> Outcome {
        if self.register(CR0ACK) & CR0_SMMUEN == 0 {
            let aborts = self.register(GBPA) & GBPA_ABORT != 0;
            return if aborts { Outcome::Aborted } else { Outcome::Bypassed };
        }
        let Some(entry) = self.fetch_entry(stream) else { return self.record(0x02, stream, 0, is_write) };
        let (tag, root, bits, is_stage_2) = match entry[0] & 0xf {
            1 => return Outcome::Aborted,
            0b1011 => {
                let at = entry[0] & 0xf_ffff_ffff_ffc0;
                let fetched = core::array::from_fn(|word| self.fetch(at + word as u64 * 8));
                let context = *self.contexts.entry(stream).or_insert(fetched);
                // V, AA64, R, A, EPD1 set; S clear.
                let flags = 1 << 31 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 30;
                assert_eq!(context[0] & (flags | 1 << 44), flags, "CD {context:x?}");
                (context[0] >> 48 | 1 << 16, context[1] & ADDRESS, 64 - (context[0] & 0x3f), false)
            }
            0b1101 => {
                // S2AA64, S2AFFD, S2R set; S2S, S2ENDI clear; S2SL0 = 1, S2TG = 0.
                let flags = 1 << 51 | 1 << 53 | 1 << 58;
                let mask = flags | 1 << 57 | 1 << 52 | 3 << 46;
                assert_eq!(entry[2] & mask, flags, "STE {entry:x?}");
                assert_eq!(entry[2] >> 38 & 3, 1, "S2SL0");
                (entry[2] & 0xffff, entry[3] & ADDRESS, 64 - (entry[2] >> 32 & 0x3f), true)
            }
            _ => return self.record(0x04, stream, 0, is_write),
        };
        assert_eq!(entry[1] >> 28 & 0xf, 0, "EATS and STRW");
        let key = (tag, address >> 12);
        if let Some(page) = self.translations.get(&key) {
            return Outcome::Memory(page | address & 0xfff);
        }
        let Some(page) = self.walk(root, address, bits, is_stage_2) else {
            return self.record(0x10, stream, address, is_write);
        };
        self.translations.insert(key, page);
        Outcome::Memory(page | address & 0xfff)
    }

    fn walk(&self, root: u64, address: u64, bits: u64, is_stage_2: bool) -> Option<u64> {
        if address >> bits != 0 {
            return None;
        }
        let table = self.fetch(root + (address >> 30 & 0x1ff) * 8);
        if table & 3 != 3 {
            return None;
        }
        let block = self.fetch((table & ADDRESS) + (address >> 21 & 0x1ff) * 8);
        if block & 3 != 1 {
            return None;
        }
        assert_eq!(block >> 8 & 7, 0b111, "SH and AF of {block:#x}");
        assert_eq!(block >> 6 & 3, if is_stage_2 { 3 } else { 1 }, "access permissions of {block:#x}");
        Some(block & ADDRESS & !0x1f_ffff | address & 0x1f_f000)
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
