//! This guest's translation: an identity map, with RAM cacheable and executable, and everything else device memory.

use crate::platform::{Platform, Range};
use crate::{cache, mrs, msr};
use core::cell::UnsafeCell;

/// Bytes in a page.
pub const PAGE: usize = 4 << 10;
/// Size in bytes that an entry of the second level maps.
pub const BLOCK: usize = 2 << 20;
/// Size in bytes that an entry of the first level maps.
pub const GIBIBYTE: usize = 1 << 30;
/// Number of bits of a virtual address.
pub const ADDRESS_BITS: usize = 39;

/// SCTLR_EL1 with the MMU and all caches off (RES1 bits alone).
pub const SCTLR_OFF: u64 = 0x30d0_0800;
/// SCTLR_EL1 with the MMU and all caches on.
pub const SCTLR_ON: u64 = SCTLR_OFF | 1 | 1 << 2 | 1 << 12;

/// Descriptor bits: valid.
pub const VALID: u64 = 1;
/// Descriptor bits: a table, or at the last level a page.
pub const TABLE: u64 = 3;
/// Descriptor bits: normal cacheable memory, inner shareable, accessed.
pub const NORMAL: u64 = 1 << 2 | 3 << 8 | 1 << 10;
/// Descriptor bits: normal memory without caches.
pub const UNCACHED: u64 = 2 << 2 | 3 << 8 | 1 << 10;
/// Descriptor bits: device memory, not executable.
pub const DEVICE: u64 = 3 << 8 | 1 << 10 | 3 << 53;
/// Descriptor bits: read-only.
pub const READ_ONLY: u64 = 1 << 7;
/// Descriptor bits: EL0 may access it too.
pub const USER: u64 = 1 << 6;
/// Descriptor bits: indirect branches need landing pads (FEAT_BTI).
pub const GUARDED: u64 = 1 << 50;

const MAIR: u64 = 0x04_44_ff_00;

/// One translation table.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Table(pub [u64; 512]);

struct Tables(UnsafeCell<[Table; 1 + EDGE_TABLES]>);

/// Tables for gibibytes that RAM fills partially.
const EDGE_TABLES: usize = 8;

// SAFETY: written by the first CPU before there is another.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables(UnsafeCell::new([const { Table([0; 512]) }; 1 + EDGE_TABLES]));

/// Returns true if the MMU of this CPU is on.
#[must_use]
pub fn is_on() -> bool {
    mrs!("sctlr_el1") & 1 != 0
}

/// TCR_EL1 for 4 KiB pages and [`ADDRESS_BITS`].
#[must_use]
pub fn translation_control() -> u64 {
    let size = (mrs!("id_aa64mmfr0_el1") & 0xf).min(5);
    (64 - ADDRESS_BITS as u64) | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | size << 32
}

/// Builds the map and turns the first CPU's MMU on.
pub(crate) fn start(platform: &Platform) {
    // SAFETY: the only CPU, and nothing else uses the tables.
    let [root, edges @ ..] = unsafe { &mut *TABLES.0.get() };
    fill(root, edges, platform.ram());
    // Stores so far were not cached; cache lines of this memory are stale.
    let image = crate::boot::image();
    cache::clean_invalidate(image.start, image.size());
    use_table(core::ptr::from_ref(root) as usize);
    msr!("sctlr_el1", SCTLR_ON);
}

/// Switches to the tables at `root`, with the library's attributes. They must map the running code.
pub fn use_table(root: usize) {
    msr!("mair_el1", MAIR);
    msr!("tcr_el1", translation_control());
    msr!("ttbr0_el1", root as u64);
    crate::instruction!("tlbi vmalle1", "ic iallu", "dsb nsh", "isb");
}

/// Maps the gibibyte of virtual addresses with this number to normal memory at `address`, a multiple of 1 GiB. Only while one
/// CPU runs. Returns the first virtual address.
pub fn alias(number: usize, address: u64) -> usize {
    set_gibibyte(number, address | NORMAL | VALID)
}

/// Sets the entry of the gibibyte of virtual addresses with this number to `descriptor`. Only while one CPU runs. Returns the
/// first virtual address.
pub fn set_gibibyte(number: usize, descriptor: u64) -> usize {
    // SAFETY: the only CPU; nothing lies in the gibibytes that callers choose.
    let entry = unsafe { &mut (*TABLES.0.get())[0].0[number % 512] };
    // SAFETY: a table entry; the walker may read it at any time.
    unsafe { core::ptr::write_volatile(entry, 0) };
    crate::instruction!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb");
    // SAFETY: as before.
    unsafe { core::ptr::write_volatile(entry, descriptor) };
    crate::instruction!("dsb ishst", "isb");
    number % 512 * GIBIBYTE
}

fn fill(root: &mut Table, edges: &mut [Table], ram: &[Range]) {
    let mut edges = edges.iter_mut();
    for (index, entry) in root.0.iter_mut().enumerate() {
        let start = index * GIBIBYTE;
        let gibibyte = Range::sized(start, GIBIBYTE);
        let covered = |part: &Range| ram.iter().any(|r| r.start <= part.start && part.end <= r.end);
        let touched = |part: &Range| ram.iter().any(|r| r.start < part.end && part.start < r.end);
        *entry = if covered(&gibibyte) {
            start as u64 | NORMAL | VALID
        } else if touched(&gibibyte)
            && let Some(table) = edges.next()
        {
            for (block, entry) in table.0.iter_mut().enumerate() {
                let part = Range::sized(start + block * BLOCK, BLOCK);
                let attributes = if touched(&part) { NORMAL } else { DEVICE };
                *entry = part.start as u64 | attributes | VALID;
            }
            core::ptr::from_ref(table) as u64 | TABLE
        } else {
            start as u64 | DEVICE | VALID
        };
    }
}
