//! Translation tables with invalid targets.

use crate::Task;
use bare::exception::catch;
use bare::mmu::{self, TABLE, VALID};
use bare::random::Random;
use bare::{mmio, mrs, say};

/// Unused entries of the library's root table.
const SPARE: usize = 510;
const WINDOW: usize = SPARE * mmu::GIBIBYTE;

fn root() -> *mut u64 {
    (mrs!("ttbr0_el1") & 0xffff_ffff_f000) as *mut u64
}

/// Sets the unused entry to `entry` while `work` runs.
fn with_entry<R>(entry: u64, work: impl FnOnce() -> R) -> R {
    let place = root().wrapping_add(SPARE);
    // SAFETY: an entry of the live table that nothing is reached by, and break before make.
    let old = unsafe { place.read_volatile() };
    let set = |value: u64| {
        for value in [0, value] {
            // SAFETY: as before.
            unsafe { place.write_volatile(value) };
            bare::instruction!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb");
        }
    };
    set(entry);
    let result = work();
    set(old);
    result
}

/// Uses output addresses with all bits of a descriptor set.
pub(crate) fn far_addresses(task: &Task) {
    let mut random = Random::new(task.seed);
    let mut aborted = 0u64;
    let mut tried = 0u64;
    for bit in 30..48 {
        for _ in 0..8 {
            let physical = ((1u64 << bit) | (random.draw() % (1 << bit))) & !((1 << 30) - 1);
            let offset = (random.draw() & 0x3fff_fff8) as usize;
            with_entry(physical | mmu::NORMAL | VALID, || {
                tried += 2;
                aborted += u64::from(catch(|| mmio::read64(WINDOW + offset)).is_err());
                aborted +=
                    u64::from(physical >= 1 << 36 && catch(|| mmio::write64(WINDOW + offset, 0)).is_err());
            });
        }
    }
    say!("rogue far-addresses: {} accesses, {} aborted", tried, aborted);
}

/// Uses tables of every level in holes.
pub(crate) fn table_in_hole(task: &Task) {
    let top = task.platform.ram().iter().map(|range| range.end).max().unwrap_or(0) as u64;
    walks("table-in-hole", &[top, top + 0x1000, 0x70_0000_0000, 0x7f_ffff_f000, 0x0a00_0000]);
}

/// Uses device registers as tables, so that walks read them.
pub(crate) fn table_in_device(task: &Task) {
    let platform = task.platform;
    walks(
        "table-in-device",
        &[
            platform.distributor as u64,
            platform.distributor as u64 + 0x6000,
            platform.redistributors[0].start as u64,
            platform.redistributors[0].start as u64 + 0x1_0000,
            platform.uart.unwrap_or(0x0900_0000) as u64,
        ],
    );
}

fn walks(name: &str, places: &[u64]) {
    let (mut aborted, mut tried) = (0u64, 0u64);
    for &place in places {
        with_entry(place & !0xfff | TABLE, || {
            for index in 0..64 {
                let address = WINDOW + index * mmu::BLOCK + index * 8;
                tried += 2;
                aborted += u64::from(catch(|| mmio::read64(address)).is_err());
                aborted += u64::from(catch(|| mmio::write32(address, 0)).is_err());
            }
        });
    }
    say!("rogue {}: {} accesses, {} aborted", name, tried, aborted);
}

/// Executes from devices.
pub(crate) fn fetch_device(task: &Task) {
    let platform = task.platform;
    let mut aborted = 0u64;
    let places =
        [platform.distributor, platform.redistributors[0].start, platform.uart.unwrap_or(0x0900_0000)];
    for place in places {
        let gibibyte = place & !(mmu::GIBIBYTE - 1);
        with_entry(gibibyte as u64 | mmu::NORMAL | VALID, || {
            for offset in [0, 4, 0x400, 0xffc] {
                let address = WINDOW + (place - gibibyte) + offset;
                let result = catch(|| {
                    // SAFETY: if anything comes of it at all, it is an abort or an undefined instruction at once.
                    unsafe { core::arch::asm!("blr {}", in(reg) address, clobber_abi("C")) }
                });
                aborted += u64::from(result.is_err());
            }
        });
    }
    say!("rogue fetch-device: {} of 12 aborted", aborted);
}

/// Uses a table of random entries.
pub(crate) fn random_tables(task: &Task) {
    let mut random = Random::new(task.seed);
    let table = bare::execute::data() as *mut u64;
    let (mut aborted, mut tried) = (0u64, 0u64);
    for _ in 0..task.count(200) {
        for index in 0..512 {
            let entry = random.draw() | if random.below(2) == 0 { VALID } else { TABLE };
            // SAFETY: this CPU's page of data, which no reference exists to. The window is only read.
            unsafe { table.wrapping_add(index).write_volatile(entry) };
        }
        with_entry(table as u64 | TABLE, || {
            for _ in 0..64 {
                let address = WINDOW + (random.draw() & 0x3fff_fff8) as usize;
                tried += 1;
                aborted += u64::from(catch(|| mmio::read64(address)).is_err());
            }
        });
    }
    say!("rogue random-tables: {} reads, {} aborted", tried, aborted);
}
