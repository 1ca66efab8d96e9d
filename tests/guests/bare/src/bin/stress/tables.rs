//! Translation tables in pages of the window: each CPU builds two levels of tables, reads other pages through them, changes
//! entries with break-before-make (Arm ARM, "Using break-before-make when updating translation table entries"), and
//! restores the pages.

use crate::memory::{self, PAGE};
use crate::{Round, error};
use bare::exception::catch;
use bare::mmu::{self, NORMAL, READ_ONLY, TABLE, VALID};
use bare::{mmio, mrs};
use core::arch::asm;

/// First entry of the root table for the CPUs, one each.
const FIRST_ENTRY: usize = 480;
/// Number of entries that are used in each round.
const ENTRIES: usize = 64;
/// Number of changes of each entry.
const CHANGES: usize = 64;

pub(crate) fn run(round: &mut Round) {
    // Use two different pages of this CPU's share as tables.
    let upper = round.any_of_share(0);
    let lower = loop {
        let page = round.any_of_share(0);
        if page != upper {
            break page;
        }
    };
    let [upper, lower] = [upper, lower].map(|page| round.memory.address(page));
    clear(upper);
    clear(lower);
    let root = (mrs!("ttbr0_el1") & 0xffff_ffff_f000) as usize;
    let window = (FIRST_ENTRY + round.cpu) * mmu::GIBIBYTE;
    let slot = round.random.below(512) as usize;
    set(upper + slot * 8, lower as u64 | TABLE);
    set(root + (FIRST_ENTRY + round.cpu) * 8, upper as u64 | TABLE);
    invalidate();
    // No CPU reads the tables of another one through its own.
    round.barrier();
    let base = window + slot * mmu::BLOCK;
    let mut mapped = [0usize; ENTRIES];
    for change in 0..ENTRIES + CHANGES {
        let index = if change < ENTRIES { change } else { round.random.below(ENTRIES as u64) as usize };
        let address = loop {
            let page = round.random.below(round.memory.pages() as u64) as usize;
            // Pages of this round's window may be tables.
            let in_window = (round.first..round.first + round.pages).contains(&page);
            let address = round.memory.address(page);
            if round.memory.windows() == 1 || !in_window {
                break address;
            }
        };
        mapped[index] = address;
        remap(lower, base, index, address as u64 | NORMAL | TABLE);
        read_through(round, base, index, address);
    }
    permissions(lower, base, &mapped);
    set(root + (FIRST_ENTRY + round.cpu) * 8, 0);
    invalidate();
    round.barrier();
    for address in [upper, lower] {
        memory::fill(address, round.number);
    }
    round.barrier();
}

/// Checks a page through its new mapping: a word, and sometimes the whole page.
fn read_through(round: &mut Round, base: usize, index: usize, address: usize) {
    let Some(filled) = page_index(round, address).and_then(|page| round.memory.filled_in(page, round.number))
    else {
        return;
    };
    if round.memory.windows() == 1 {
        // The page may be a table, so only its translation is checked.
        let _ = mmio::read64(base + index * PAGE);
        return;
    }
    let alias = base + index * PAGE;
    if round.random.below(8) == 0 {
        memory::check_at("through own tables", alias, address, filled);
        return;
    }
    let word = round.random.below(memory::WORDS as u64) as usize;
    let (got, want) = (mmio::read64(alias + word * 8), memory::word(memory::key(address, filled), word));
    if got != want {
        error(format_args!(
            "word through own tables: ipa {:#x} is {got:#x}, want {want:#x}",
            address + word * 8
        ));
    }
}

fn page_index(round: &Round, address: usize) -> Option<usize> {
    // Binary search: the addresses of pages ascend.
    let (mut low, mut high) = (0, round.memory.pages());
    while low < high {
        let middle = (low + high) / 2;
        if round.memory.address(middle) < address {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low < round.memory.pages() && round.memory.address(low) == address).then_some(low)
}

/// Checks the guest's own faults on a read-only page and an unmapped one, while its tables may be migrated.
fn permissions(lower: usize, base: usize, mapped: &[usize; ENTRIES]) {
    let alias = base + 3 * PAGE;
    remap(lower, base, 3, mapped[3] as u64 | NORMAL | READ_ONLY | TABLE);
    let before = mmio::read64(alias);
    let result = catch(|| mmio::write64(alias, !before));
    if !result.is_err_and(|caught| caught.status() == 0x0f && caught.far == alias as u64)
        || mmio::read64(alias) != before
    {
        error(format_args!("read-only page: {result:x?}"));
    }
    remap(lower, base, 3, 0);
    let result = catch(|| mmio::read64(alias));
    if !result.is_err_and(|caught| caught.status() == 0x07 && caught.far == alias as u64) {
        error(format_args!("page without entry: {result:x?}"));
    }
}

fn clear(page: usize) {
    for index in 0..512 {
        set(page + index * 8, 0);
    }
}

fn set(place: usize, entry: u64) {
    // SAFETY: an entry of this CPU's tables, which translate nothing that Rust knows of.
    unsafe { (place as *mut u64).write_volatile(entry) };
}

/// Changes an entry with break-before-make on all CPUs.
fn remap(lower: usize, base: usize, index: usize, entry: u64) {
    set(lower + index * 8, 0);
    let page = (base + index * PAGE) >> 12;
    // SAFETY: invalidates a translation.
    unsafe { asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) page, options(nostack)) };
    set(lower + index * 8, entry);
    bare::instruction!("dsb ishst", "isb");
    let _ = VALID;
}

fn invalidate() {
    bare::instruction!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb");
}
