//! The stream table (IHI 0070, "Stream table"): an entry for each stream. All entries abort until a stream is attached.
//!
//! A table of two levels has leaves of 256 entries only for streams that were attached or silenced once; other streams abort
//! with the event C_BAD_STREAMID. Leaves stay until the end.

use super::access::{Memory, Port, Registers};
use super::entry::{ABORT, STE_SIZE, STE_WORDS};
use super::error::Error;
use super::features::Features;
use super::registers::{BASE_ALLOCATE, STRTAB_BASE, STRTAB_BASE_CFG};
use heapless::Vec;

/// log2 of the entries of a leaf: StreamIDs of a PCI bus are in one leaf.
const SPLIT: u8 = 8;
/// log2 of the 4 KiB pages of a leaf.
const LEAF_ORDER: u8 = 2;
/// Most leaves.
const LEAF_LIMIT: usize = 32;
/// Most bits of StreamIDs in a table of one level: 4 MiB.
const LINEAR_LIMIT: u8 = 16;
/// Most bits of StreamIDs in a table of two levels: a first level of 256 KiB.
const TWO_LEVEL_LIMIT: u8 = 15 + SPLIT;

/// A leaf, or a table of one level.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    /// StreamIDs above the index in the leaf.
    number: u32,
    pa: u64,
}

/// The stream table.
#[derive(Debug)]
pub(super) struct StreamTable {
    bits: u8,
    /// The first level, and the order of its pages.
    root: Option<(u64, u8)>,
    leaves: Vec<Leaf, LEAF_LIMIT>,
}

/// Returns the order of the pages that hold `bytes`.
fn order(bytes: u64) -> u8 {
    bytes.div_ceil(4096).next_power_of_two().trailing_zeros() as u8
}

impl StreamTable {
    /// Builds a table that reaches `largest`, if the SMMU does. All its streams abort.
    pub(super) fn new<R: Registers, M: Memory>(
        port: &Port<R, M>,
        features: &Features,
        largest: u32,
    ) -> Result<Self, Error> {
        let bits = features.stream_bits.min((u32::BITS - largest.leading_zeros()) as u8);
        let mut table = Self { bits, root: None, leaves: Vec::new() };
        if features.has_two_levels && bits > SPLIT {
            if bits > TWO_LEVEL_LIMIT {
                return Err(Error::StreamTable(bits));
            }
            let order = order(8 << (bits - SPLIT));
            table.root = Some((port.allocate(order)?, order));
        } else if bits > LINEAR_LIMIT {
            return Err(Error::StreamTable(bits));
        } else {
            table.add_leaf(port, 0)?;
        }
        port.memory.barrier();
        Ok(table)
    }

    /// Frees the table, which the SMMU no longer accesses.
    pub(super) fn free<R: Registers, M: Memory>(self, port: &Port<R, M>) {
        let order = self.leaf_order();
        self.leaves.iter().for_each(|leaf| port.free(leaf.pa, order));
        if let Some((pa, order)) = self.root {
            port.free(pa, order);
        }
    }

    /// Writes the table's registers, while CR0.SMMUEN is 0.
    pub(super) fn program<R: Registers, M: Memory>(&self, port: &Port<R, M>) {
        let base = self.root.map(|(pa, _)| pa).or(self.leaves.first().map(|leaf| leaf.pa));
        port.registers.write64(STRTAB_BASE, BASE_ALLOCATE | base.unwrap_or(0));
        port.registers.write32(STRTAB_BASE_CFG, self.configuration());
    }

    /// Returns the value of STRTAB_BASE_CFG: FMT, SPLIT, LOG2SIZE.
    pub(super) fn configuration(&self) -> u32 {
        let format = if self.root.is_some() { 1 << 16 | u32::from(SPLIT) << 6 } else { 0 };
        format | u32::from(self.bits)
    }

    /// Returns the number of leaves that may still be added.
    pub(super) fn free_leaf_count(&self) -> usize {
        if self.root.is_some() { LEAF_LIMIT - self.leaves.len() } else { 0 }
    }

    fn leaf_bits(&self) -> u8 {
        if self.root.is_some() { SPLIT } else { self.bits }
    }

    fn leaf_order(&self) -> u8 {
        if self.root.is_some() { LEAF_ORDER } else { order(STE_SIZE << self.bits) }
    }

    fn add_leaf<R: Registers, M: Memory>(&mut self, port: &Port<R, M>, number: u32) -> Result<u64, Error> {
        if self.leaves.is_full() {
            return Err(Error::StreamLimit);
        }
        let pa = port.allocate(self.leaf_order())?;
        for at in (pa..).step_by(STE_SIZE as usize).take(1 << self.leaf_bits()) {
            port.write64(at, ABORT);
        }
        // Not full, as just checked.
        let _ = self.leaves.push(Leaf { number, pa });
        if let Some((root, _)) = self.root {
            // The leaf must be complete before the SMMU can reach it.
            port.memory.barrier();
            port.write64(root + u64::from(number) * 8, self.descriptor(pa));
        }
        Ok(pa)
    }

    /// Returns the level 1 descriptor of a leaf: L2Ptr, and Span, which is log2 of the entries, plus 1.
    fn descriptor(&self, leaf: u64) -> u64 {
        leaf | u64::from(SPLIT + 1)
    }

    /// Returns the physical address of a stream's entry, if the table has one.
    pub(super) fn entry(&self, stream: u32) -> Option<u64> {
        if u64::from(stream) >> self.bits != 0 {
            return None;
        }
        let bits = self.leaf_bits();
        let number = (u64::from(stream) >> bits) as u32;
        let leaf = self.leaves.iter().find(|leaf| leaf.number == number)?;
        Some(leaf.pa + (u64::from(stream) & ((1 << bits) - 1)) * STE_SIZE)
    }

    /// Checks that the table reaches a stream.
    pub(super) fn reach(&self, stream: u32) -> Result<(), Error> {
        match u64::from(stream) >> self.bits {
            0 => Ok(()),
            _ => Err(Error::Stream { id: stream, bits: self.bits }),
        }
    }

    /// Returns a stream's entry, which aborts if it is new, and true if it is new: the caller then invalidates the level 1
    /// descriptor.
    pub(super) fn prepare<R: Registers, M: Memory>(
        &mut self,
        port: &Port<R, M>,
        stream: u32,
    ) -> Result<(u64, bool), Error> {
        self.reach(stream)?;
        if let Some(entry) = self.entry(stream) {
            return Ok((entry, false));
        }
        self.add_leaf(port, stream >> SPLIT)?;
        let entry = self.entry(stream).ok_or(Error::Stream { id: stream, bits: self.bits })?;
        Ok((entry, true))
    }

    /// Returns the address of the first word that does not hold what it must: `expected` gives the entries of attached
    /// streams, all others abort.
    pub(super) fn wrong_word<R: Registers, M: Memory>(
        &self,
        port: &Port<R, M>,
        expected: &dyn Fn(u32) -> Option<[u64; STE_WORDS]>,
    ) -> Option<u64> {
        let is_wrong = |at: u64, word: u64| port.memory.read64(at) != word;
        if let Some((root, _)) = self.root {
            for number in 0..1_u32 << (self.bits - SPLIT) {
                let leaf = self.leaves.iter().find(|leaf| leaf.number == number);
                let at = root + u64::from(number) * 8;
                if is_wrong(at, leaf.map_or(0, |leaf| self.descriptor(leaf.pa))) {
                    return Some(at);
                }
            }
        }
        for leaf in &self.leaves {
            for index in 0..1_u32 << self.leaf_bits() {
                let stream = leaf.number << self.leaf_bits() | index;
                let words = expected(stream).unwrap_or([ABORT, 0, 0, 0]);
                let entry = leaf.pa + u64::from(index) * STE_SIZE;
                for (at, word) in (entry..).step_by(8).zip(words.into_iter().chain([0; 4])) {
                    if is_wrong(at, word) {
                        return Some(at);
                    }
                }
            }
        }
        None
    }
}
