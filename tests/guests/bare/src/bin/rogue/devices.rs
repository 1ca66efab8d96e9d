//! Accesses to devices and to holes.

use crate::Task;
use bare::exception::catch;
use bare::execute::execute_with;
use bare::mmio::{read8, read16, read32, read64, write8, write16, write32, write64};
use bare::platform::Platform;
use bare::random::Random;
use bare::say;

/// Reads and writes the whole address space outside RAM: every page at the edges of the first gibibytes, every megabyte after
/// that. It spares the PL011, which is needed for messages.
pub(crate) fn holes(task: &Task) {
    let mut random = Random::new(task.seed);
    let (mut taken, mut given) = (0u64, 0u64);
    let mut address = 0usize;
    while address < 1 << bare::mmu::ADDRESS_BITS {
        let is_ram = task.platform.ram().iter().any(|range| range.contains(address));
        let is_console = task.platform.uart.is_some_and(|base| base == address & !0xfff);
        if !is_ram && !is_console {
            let offset = (random.draw() & 0xff8) as usize;
            let results = [
                catch(|| read_any(address + offset, random.below(4))).is_ok(),
                catch(|| write_any(address + offset, random.below(4), random.draw())).is_ok(),
            ];
            taken += results.iter().filter(|&&ok| ok).count() as u64;
            given += results.iter().filter(|&&ok| !ok).count() as u64;
        }
        address += match address {
            0x0700_0000..=0x0aff_ffff => 0x1000,
            0..=0xffff_ffff => 0x4_0000,
            0x1_0000_0000..=0xf_ffff_ffff => 0x40_0000,
            _ => 0x1000_0000,
        };
        if is_ram {
            address = address.next_multiple_of(0x4_0000);
        }
    }
    say!("rogue holes: {} accesses answered, {} aborted", taken, given);
}

/// Accesses random registers of the interrupt controller, including all redistributors, with random sizes.
pub(crate) fn gic(task: &Task) {
    let mut random = Random::new(task.seed);
    let count = task.count(200_000);
    let mut aborted = 0u64;
    for _ in 0..count {
        let address = gic_address(task.platform, &mut random);
        let size = random.below(4);
        let result = if random.below(2) == 0 {
            catch(|| read_any(address, size)).map(|_| ())
        } else {
            let value = value(&mut random);
            catch(|| write_any(address, size, value))
        };
        aborted += u64::from(result.is_err());
    }
    say!("rogue gic: {} accesses, {} aborted", count, aborted);
}

fn gic_address(platform: &Platform, random: &mut Random) -> usize {
    let frames = platform.cpu_count as u64 * 2;
    let base = match random.below(4) {
        0 | 1 => platform.distributor,
        _ => platform.redistributors[0].start + random.below(frames + 1) as usize * 0x1_0000,
    };
    // Most registers are in the first page, but not all.
    let offset = if random.below(4) == 0 { random.below(0x1_0000) } else { random.below(0x1000) };
    base + (offset as usize & !7) + random.below(8) as usize
}

/// Returns interesting values more often than random ones.
fn value(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.below(64),
        _ => random.draw(),
    }
}

/// Accesses random registers of the PL011, but does not send bytes.
pub(crate) fn uart(task: &Task) {
    let Some(base) = task.platform.uart else {
        return;
    };
    let mut random = Random::new(task.seed);
    for _ in 0..task.count(100_000) {
        let offset = random.below(0x1000) as usize;
        let size = random.below(4);
        let _ = if offset < 4 || random.below(2) == 0 {
            catch(|| read_any(base + offset, size)).map(|_| ())
        } else {
            let value = value(&mut random);
            catch(|| write_any(base + (offset & !7 | 4), size % 3, value))
        };
    }
}

/// Executes loads and stores that a syndrome does not describe, on devices, holes, and across their edges.
pub(crate) fn odd_accesses(task: &Task) {
    const INSTRUCTIONS: [u32; 24] = [
        0xa940_0801, // ldp x1, x2, [x0]
        0xa900_0801, // stp x1, x2, [x0]
        0x2940_0801, // ldp w1, w2, [x0]
        0xf840_8401, // ldr x1, [x0], #8
        0xf800_8c01, // str x1, [x0, #8]!
        0xb840_4401, // ldr w1, [x0], #4
        0x3840_1401, // ldrb w1, [x0], #1
        0xfd40_0000, // ldr d0, [x0]
        0x3dc0_0000, // ldr q0, [x0]
        0x3d80_0000, // str q0, [x0]
        0xad40_0400, // ldp q0, q1, [x0]
        0x4c40_2000, // ld1 {v0.16b-v3.16b}, [x0]
        0x4c00_2000, // st1 {v0.16b-v3.16b}, [x0]
        0xc85f_7c01, // ldxr x1, [x0]
        0xc802_7c01, // stxr w2, x1, [x0]
        0xc87f_0801, // ldxp x1, x2, [x0]
        0xc8df_fc01, // ldar x1, [x0]
        0xc89f_fc01, // stlr x1, [x0]
        0xf821_0002, // ldadd x1, x2, [x0]
        0xf821_8002, // swp x1, x2, [x0]
        0xc8a1_7c02, // cas x1, x2, [x0]
        0xd50b_7420, // dc zva, x0
        0xd50b_7e20, // dc civac, x0
        0xf980_0000, // prfm pldl1keep, [x0]
    ];
    let mut random = Random::new(task.seed);
    let platform = task.platform;
    let top = platform.ram().iter().map(|range| range.end).max().unwrap_or(0);
    let bases = [
        platform.distributor,
        platform.distributor + 0xfff8,
        platform.redistributors[0].start,
        platform.redistributors[0].start + 0x1_0400,
        platform.uart.unwrap_or(0x0900_0000) + 0x48,
        platform.uart.unwrap_or(0x0900_0000) + 0xff8,
        top,
        top + 0x1000,
        0x0700_0000,
    ];
    let mut aborted = 0u64;
    let count = task.count(20_000);
    for _ in 0..count {
        let base = bases[random.below(bases.len() as u64) as usize] as u64;
        let address = if random.below(4) == 0 { base + random.below(16) } else { base & !15 };
        let instruction = INSTRUCTIONS[random.below(INSTRUCTIONS.len() as u64) as usize];
        aborted += u64::from(execute_with(instruction, address).is_err());
    }
    say!("rogue odd-accesses: {} accesses, {} aborted", count, aborted);
}

fn read_any(address: usize, size: u64) -> u64 {
    match size {
        0 => read8(address).into(),
        1 => read16(address & !1).into(),
        2 => read32(address & !3).into(),
        _ => read64(address & !7),
    }
}

fn write_any(address: usize, size: u64, value: u64) {
    match size {
        0 => write8(address, value as u32),
        1 => write16(address & !1, value as u32),
        2 => write32(address & !3, value as u32),
        _ => write64(address & !7, value),
    }
}
