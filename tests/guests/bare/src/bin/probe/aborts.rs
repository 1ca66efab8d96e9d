//! Accesses to holes get external aborts with the right syndrome and address, as on hardware. Faults of the guest's own
//! translation are unchanged.

use crate::report::{check, equal, skip};
use bare::exception::{Caught, catch, class};
use bare::mmu::{self, PAGE, TABLE, VALID};
use bare::platform::{Host, Platform};
use bare::{mmio, mrs, msr};
use core::arch::asm;

/// A gibibyte of virtual addresses with its own entry in the library's map, which no other check needs.
const SPARE_GIBIBYTE: usize = 509;

pub(crate) fn run(platform: &'static Platform) {
    let Some(top) = platform.ram().iter().map(|range| range.end).max() else {
        return;
    };
    holes(platform, top);
    kinds_of_access(top);
    fetch(top);
    pages_of_a_hole(top);
    walk_through_hole(top);
    own_faults(top);
    device_edges(platform);
    repeat(top);
}

/// Checks an address in each hole of the guest's map.
fn holes(platform: &Platform, top: usize) {
    let mut holes = [top, top + 0x10_0000, 0x70_0000_0000, 0, 0x1000, 0x0100_0000, 0x0a00_0000, 0x3fff_f000];
    if platform.host != Host::Hypervisor {
        // The board has flash, PCI and other devices below RAM.
        holes[3..].fill(top);
    }
    for hole in holes {
        if platform.ram().iter().any(|range| range.contains(hole)) {
            continue;
        }
        let result = catch(|| mmio::read32(hole));
        check!("abort_of_hole", is_abort(result, hole, false), "{:#x}: {:x?}", hole, result);
    }
}

fn is_abort<T: Copy>(result: Result<T, Caught>, address: usize, is_write: bool) -> bool {
    result.is_err_and(|caught| {
        caught.class() == class::DATA_ABORT
            && caught.is_external_abort()
            && caught.far == address as u64
            && caught.is_write() == is_write
            && caught.esr >> 25 & 1 == 1
            && caught.number == 4
    })
}

fn kinds_of_access(hole: usize) {
    let at = hole + 0x1238;
    let reads = [
        ("abort_of_read_8", catch(|| u64::from(mmio::read8(at + 3))), at + 3),
        ("abort_of_read_16", catch(|| u64::from(mmio::read16(at + 2))), at + 2),
        ("abort_of_read_32", catch(|| u64::from(mmio::read32(at + 4))), at + 4),
        ("abort_of_read_64", catch(|| mmio::read64(at)), at),
        ("abort_of_read_pair", catch(|| load(at, Load::Pair)), at),
        ("abort_of_read_exclusive", catch(|| load(at, Load::Exclusive)), at),
        ("abort_of_read_acquire", catch(|| load(at, Load::Acquire)), at),
        ("abort_of_read_post_index", catch(|| load(at, Load::PostIndex)), at),
    ];
    for (name, result, address) in reads {
        check!(name, is_abort(result, address, false), "{:#x}: {:x?}", address, result);
    }
    let writes = [
        ("abort_of_write_8", catch(|| mmio::write8(at + 1, 1)), at + 1),
        ("abort_of_write_16", catch(|| mmio::write16(at + 2, 1)), at + 2),
        ("abort_of_write_32", catch(|| mmio::write32(at + 4, 1)), at + 4),
        ("abort_of_write_64", catch(|| mmio::write64(at, 1)), at),
        ("abort_of_write_pair", catch(|| store_pair(at)), at),
    ];
    for (name, result, address) in writes {
        check!(name, is_abort(result, address, true), "{:#x}: {:x?}", address, result);
    }
    let maintenance = catch(|| {
        // SAFETY: cleans nothing, or aborts.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack)) }
    });
    check!("maintenance_of_hole", maintenance.is_ok(), "{:x?}", maintenance);
    // An address translation instruction only uses the guest's own tables.
    msr!("par_el1", 0);
    // SAFETY: writes PAR_EL1 alone.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) at, options(nostack)) };
    equal!("translation_of_hole", mrs!("par_el1") & 0xf_ffff_f001, at as u64 & 0xf_ffff_f000);
}

#[derive(Clone, Copy)]
enum Load {
    Pair,
    Exclusive,
    Acquire,
    PostIndex,
}

fn load(address: usize, kind: Load) -> u64 {
    let mut value = 0u64;
    // SAFETY: the address is in a hole: each of these aborts, and changes only the declared registers.
    unsafe {
        match kind {
            Load::Pair => {
                asm!("ldp {v}, {w}, [{a}]", v = inout(reg) value, w = out(reg) _, a = in(reg) address)
            }
            Load::Exclusive => asm!("ldxr {v}, [{a}]", "clrex", v = inout(reg) value, a = in(reg) address),
            Load::Acquire => asm!("ldar {v}, [{a}]", v = inout(reg) value, a = in(reg) address),
            Load::PostIndex => asm!("ldr {v}, [{a}], #8", v = inout(reg) value, a = inout(reg) address => _),
        }
    }
    value
}

fn store_pair(address: usize) {
    // SAFETY: as for `load`.
    unsafe { asm!("stp xzr, xzr, [{}]", in(reg) address, options(nostack)) };
}

/// Checks a fetch from a hole. The library maps holes as device memory, so this maps one as executable memory.
fn fetch(hole: usize) {
    let entry = root().wrapping_add(SPARE_GIBIBYTE);
    // SAFETY: an entry of the live table that nothing is reached by.
    let old = unsafe { entry.read_volatile() };
    let physical = hole & !(mmu::GIBIBYTE - 1);
    set_entry(entry, physical as u64 | mmu::NORMAL | VALID);
    let address = SPARE_GIBIBYTE * mmu::GIBIBYTE + (hole - physical);
    let result = catch(|| {
        // SAFETY: nothing can be fetched there, and the vectors return to what follows.
        unsafe { asm!("blr {}", in(reg) address, clobber_abi("C")) }
    });
    let holds = result.is_err_and(|caught| {
        caught.class() == class::INSTRUCTION_ABORT
            && caught.is_external_abort()
            && caught.far == address as u64
            && caught.elr == address as u64
    });
    check!("abort_of_fetch", holds, "{:#x}: {:x?}", address, result);
    set_entry(entry, old);
}

/// Checks the fault address in each page of a hole.
fn pages_of_a_hole(hole: usize) {
    let wrong = (0..64).map(|page| hole + page * PAGE + page * 8).find(|&address| {
        let result = catch(|| mmio::read64(address));
        !is_abort(result, address, false)
    });
    check!("abort_addresses", wrong.is_none(), "{:x?}", wrong);
}

/// Checks a walk through a table in a hole, which gets an external abort on the walk.
fn walk_through_hole(hole: usize) {
    let entry = root().wrapping_add(SPARE_GIBIBYTE);
    // SAFETY: as in `fetch`.
    let old = unsafe { entry.read_volatile() };
    set_entry(entry, (hole & !(PAGE - 1)) as u64 | TABLE);
    let address = SPARE_GIBIBYTE * mmu::GIBIBYTE + 0x1238;
    let result = catch(|| mmio::read64(address));
    set_entry(entry, old);
    let holds = result.is_err_and(|caught| {
        caught.class() == class::DATA_ABORT
            && (0x14..0x18).contains(&caught.status())
            && caught.far == address as u64
    });
    check!("abort_of_walk", holds, "{:x?}", result);
}

fn own_faults(top: usize) {
    let beyond = 1usize << mmu::ADDRESS_BITS;
    let result = catch(|| mmio::read64(beyond));
    let holds = result
        .is_err_and(|c| c.class() == class::DATA_ABORT && c.status() & 0x3c == 4 && c.far == beyond as u64);
    check!("own_translation_fault", holds, "{:x?}", result);
    let entry = root().wrapping_add(SPARE_GIBIBYTE);
    // SAFETY: as in `fetch`.
    let old = unsafe { entry.read_volatile() };
    let ram = (top - 1) & !(mmu::GIBIBYTE - 1);
    set_entry(entry, ram as u64 | mmu::NORMAL | mmu::READ_ONLY | VALID);
    let address = SPARE_GIBIBYTE * mmu::GIBIBYTE + (top - 8 - ram);
    let result = catch(|| mmio::write64(address, 0));
    let holds = result.is_err_and(|c| c.status() == 0x0d && c.is_write() && c.far == address as u64);
    check!("own_permission_fault", holds, "{:x?}", result);
    set_entry(entry, ram as u64 | mmu::NORMAL & !(1 << 10) | VALID);
    let result = catch(|| mmio::read64(address));
    check!("own_access_flag_fault", result.is_err_and(|c| c.status() == 0x09), "{:x?}", result);
    set_entry(entry, old);
    let result = catch(|| {
        // SAFETY: faults by the misaligned program counter; the vectors return to what follows.
        unsafe { asm!("adr x9, 2f", "add x9, x9, #2", "blr x9", "2:", clobber_abi("C")) }
    });
    check!("own_misaligned_pc", result.is_err_and(|c| c.class() == class::PC_ALIGNMENT), "{:x?}", result);
    let result = catch(|| bare::instruction!("brk #7"));
    check!(
        "own_breakpoint",
        result.is_err_and(|c| c.class() == class::BREAKPOINT && c.esr & 0xffff == 7),
        "{:x?}",
        result
    );
    let result = catch(|| bare::instruction!("svc #9"));
    check!("own_svc", result.is_err_and(|c| c.class() == class::SVC && c.esr & 0xffff == 9), "{:x?}", result);
    let result = catch(|| bare::instruction!(".inst 0x00000000"));
    check!("own_undefined", result.is_err_and(|c| c.class() == class::UNKNOWN), "{:x?}", result);
}

/// Checks that the pages next to devices are holes.
fn device_edges(platform: &Platform) {
    if platform.host != Host::Hypervisor {
        skip("abort_beside_devices", "only under Ballast");
        return;
    }
    let frames = platform.redistributors[0].start + platform.cpu_count * 0x2_0000;
    let mut beside = [platform.distributor - 4, platform.distributor + 0x1_0000, frames, 0x0900_1000];
    if platform.redistributors[0].contains(frames) {
        // The tree has more redistributors than CPUs.
        beside[2] = platform.redistributors[0].end;
    }
    for address in beside {
        let result = catch(|| mmio::read32(address));
        check!("abort_beside_devices", is_abort(result, address, false), "{:#x}: {:x?}", address, result);
    }
}

/// Checks that many aborts have no effect.
fn repeat(hole: usize) {
    let failed =
        (0..10_000).find(|step| !is_abort(catch(|| mmio::read32(hole + step * 4)), hole + step * 4, false));
    check!("abort_10000_times", failed.is_none(), "{:?}", failed);
}

fn root() -> *mut u64 {
    (mrs!("ttbr0_el1") & 0xffff_ffff_f000) as *mut u64
}

fn set_entry(entry: *mut u64, value: u64) {
    for value in [0, value] {
        // SAFETY: an entry of the live table that nothing else is reached by; break before make.
        unsafe { entry.write_volatile(value) };
        bare::instruction!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb");
    }
}
