//! The translation table of a window: one range of addresses of a guest's devices, mapped to one range of physical memory.
//!
//! Both stages use the 4 KiB granule, a level 1 root of 512 entries, and blocks of 2 MiB at level 2 (Arm ARM, "VMSAv8-64
//! descriptor formats"). A table never changes while streams are attached to it.

use super::access::{Memory, Port, Registers};
use super::entry::{self, CD_SIZE, Target};
use super::error::Error;
use super::features::{Features, Stage};

/// Bytes that a level 2 block maps.
const BLOCK_SIZE: u64 = 1 << 21;
/// Bytes that a level 1 entry maps.
const LEVEL_1_SIZE: u64 = 1 << 30;
/// Most bytes of a window.
const SIZE_LIMIT: u64 = 1 << 30;
/// Most level 2 tables of a window: it may cross a boundary of 1 GiB.
const LEAF_TABLES: usize = 2;
/// A descriptor that leads to a table.
const TABLE: u64 = 0b11;
/// A block: valid, Inner Shareable, accessed.
const BLOCK: u64 = 0b01 | 0b11 << 8 | 1 << 10;
/// Stage 2: readable and writable, Write-Back.
const STAGE_2: u64 = 0b1111 << 2 | 0b11 << 6;
/// Stage 1: readable and writable for privileged and unprivileged accesses, attribute 0 of MAIR, not global.
const STAGE_1: u64 = 0b01 << 6 | 1 << 11;

/// A range of addresses of devices, and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Start as devices see it.
    pub(crate) ipa: u64,
    /// Start in physical memory.
    pub(crate) pa: u64,
    /// Size in bytes.
    pub(crate) size: u64,
}

impl Window {
    /// Checks the range against the rules of tables.
    fn check(&self, features: &Features) -> Result<(), Error> {
        let ends_in = |start: u64, bits: u8| start.checked_add(self.size).is_some_and(|end| end <= 1 << bits);
        let rules = [
            (self.size != 0 && self.size <= SIZE_LIMIT, "the size is from 2 MiB to 1 GiB"),
            (
                (self.ipa | self.pa | self.size).is_multiple_of(BLOCK_SIZE),
                "addresses and size are multiples of 2 MiB",
            ),
            (ends_in(self.ipa, features.input_bits), "the end is beyond the SMMU's input addresses"),
            (
                ends_in(self.pa, features.output_bits),
                "the end is beyond the SMMU's physical addresses (IDR5.OAS)",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some(&(_, rule)) => Err(Error::Window { ipa: self.ipa, pa: self.pa, size: self.size, rule }),
            None => Ok(()),
        }
    }

    /// Returns the level 2 descriptor that must translate the block at `ipa`.
    fn block(&self, features: &Features, ipa: u64) -> u64 {
        let attributes = if features.stage == Stage::Two { STAGE_2 } else { STAGE_1 };
        match ipa.checked_sub(self.ipa) {
            Some(offset) if offset < self.size => (self.pa + offset) | BLOCK | attributes,
            _ => 0,
        }
    }
}

/// A window and its table.
#[derive(Debug)]
pub(super) struct WindowTable {
    window: Window,
    index: u8,
    root: u64,
    /// Level 2 tables, in order of addresses.
    leaves: [Option<u64>; LEAF_TABLES],
    /// The page with the CDs, if the stage is 1.
    contexts: Option<u64>,
}

impl WindowTable {
    /// Builds the table of `window`. `index` is unique among the SMMU's windows.
    pub(super) fn new<R: Registers, M: Memory>(
        port: &Port<R, M>,
        features: &Features,
        window: Window,
        index: u8,
    ) -> Result<Self, Error> {
        window.check(features)?;
        let root = port.allocate(0)?;
        let mut table = Self { window, index, root, leaves: [None; LEAF_TABLES], contexts: None };
        if let Err(error) = table.fill(port, features) {
            table.free(port);
            return Err(error);
        }
        port.memory.barrier();
        Ok(table)
    }

    fn fill<R: Registers, M: Memory>(&mut self, port: &Port<R, M>, features: &Features) -> Result<(), Error> {
        for number in 0..self.leaf_count() {
            let leaf = port.allocate(0)?;
            self.leaves[number] = Some(leaf);
            let first = self.leaf_ipa(number);
            for at in 0..512 {
                let descriptor = self.window.block(features, first + at * BLOCK_SIZE);
                if descriptor != 0 {
                    port.write64(leaf + at * 8, descriptor);
                }
            }
            port.write64(self.root + first / LEVEL_1_SIZE * 8, leaf | TABLE);
        }
        if features.stage == Stage::One {
            let contexts = port.allocate(0)?;
            self.contexts = Some(contexts);
            for is_coherent in [false, true] {
                let context = self.expected_context(port, features, is_coherent);
                port.write_words(self.context(is_coherent), &context);
            }
        }
        Ok(())
    }

    fn leaf_count(&self) -> usize {
        let last = (self.window.ipa + self.window.size - 1) / LEVEL_1_SIZE;
        (last - self.window.ipa / LEVEL_1_SIZE + 1) as usize
    }

    fn leaf_ipa(&self, number: usize) -> u64 {
        (self.window.ipa / LEVEL_1_SIZE + number as u64) * LEVEL_1_SIZE
    }

    fn expected_context<R: Registers, M: Memory>(
        &self,
        port: &Port<R, M>,
        features: &Features,
        is_coherent: bool,
    ) -> [u64; entry::CD_WORDS] {
        let asid = self.asids()[usize::from(is_coherent)];
        entry::context(features, self.root, asid, port.is_coherent, is_coherent)
    }

    /// Frees the table, which no STE names and no TLB holds.
    pub(super) fn free<R: Registers, M: Memory>(self, port: &Port<R, M>) {
        for page in self.leaves.into_iter().chain([self.contexts, Some(self.root)]).flatten() {
            port.free(page, 0);
        }
    }

    /// Returns the table as the STE of a device names it.
    pub(super) fn target(&self, is_coherent: bool) -> Target {
        Target { root: self.root, vmid: self.vmid(), context: self.context(is_coherent) }
    }

    /// Returns the VMID of the window at stage 2; not 0.
    pub(super) fn vmid(&self) -> u16 {
        u16::from(self.index) + 1
    }

    /// Returns the ASIDs of the window at stage 1, of devices that are not coherent and of those that are: their memory types
    /// differ, so they must not share TLB entries.
    pub(super) fn asids(&self) -> [u16; 2] {
        [self.vmid() * 2, self.vmid() * 2 + 1]
    }

    /// Returns the physical address of a CD, which stage 1 has.
    fn context(&self, is_coherent: bool) -> u64 {
        self.contexts.unwrap_or(0) + u64::from(is_coherent) * CD_SIZE
    }

    /// Returns the address of the first word of the table that does not hold what it must.
    pub(super) fn wrong_word<R: Registers, M: Memory>(
        &self,
        port: &Port<R, M>,
        features: &Features,
    ) -> Option<u64> {
        let is_wrong = |at: u64, word: u64| port.memory.read64(at) != word;
        let first = self.window.ipa / LEVEL_1_SIZE;
        for number in 0..512_u64 {
            let leaf = number.checked_sub(first).and_then(|number| *self.leaves.get(number as usize)?);
            let at = self.root + number * 8;
            if is_wrong(at, leaf.map_or(0, |leaf| leaf | TABLE)) {
                return Some(at);
            }
        }
        for (number, leaf) in self.leaves.iter().enumerate() {
            let Some(leaf) = *leaf else { continue };
            for block in 0..512 {
                let ipa = self.leaf_ipa(number) + block * BLOCK_SIZE;
                if is_wrong(leaf + block * 8, self.window.block(features, ipa)) {
                    return Some(leaf + block * 8);
                }
            }
        }
        self.contexts?;
        for is_coherent in [false, true] {
            let words = self.expected_context(port, features, is_coherent);
            for (at, word) in (self.context(is_coherent)..).step_by(8).zip(words) {
                if is_wrong(at, word) {
                    return Some(at);
                }
            }
        }
        None
    }
}
