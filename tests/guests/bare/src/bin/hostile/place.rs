//! Places for accesses: mostly devices, then edges, holes, and random addresses.

use crate::Attacker;
use bare::mmu::{self, GIBIBYTE};
use bare::platform::{MAX_CPUS, Platform, Range};
use bare::pools::{POOL_INFO, call};
use bare::random::Random;
use bare::{execute, mrs};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// First of the unused entries of the root table that serve as windows, one for each CPU.
const WINDOWS: usize = 500;
/// The top of RAM that this program does not use.
const SPARE: usize = 0x1_0000;
/// Bytes around an address that an instruction may touch: offsets, structures, lines.
const REACH: usize = 0x400;

static POOL: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static RAM: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Reads the layout of the platform. Only while one CPU runs.
pub(crate) fn learn(platform: &Platform) {
    let info = call(POOL_INFO, 0, 0, 0);
    if info[0] == 0 {
        POOL[0].store(info[2] as u64, Ordering::Relaxed);
        POOL[1].store(info[1] as u64, Ordering::Relaxed);
    }
    let ram = platform.ram()[0];
    RAM[0].store(ram.start, Ordering::Relaxed);
    RAM[1].store(ram.end, Ordering::Relaxed);
}

/// Returns the IPA of the pool's window, and its bytes; zeros without a pool.
pub(crate) fn pool() -> (u64, u64) {
    (POOL[0].load(Ordering::Relaxed), POOL[1].load(Ordering::Relaxed))
}

fn ram() -> Range {
    Range { start: RAM[0].load(Ordering::Relaxed), end: RAM[1].load(Ordering::Relaxed) }
}

/// Returns the middle of a page of RAM that nothing else uses: this CPU's page of data.
pub(crate) fn scratch(_cpu: usize) -> usize {
    execute::data() + 0x800
}

/// Returns an address in a device, or close by.
pub(crate) fn device(attacker: &mut Attacker) -> u64 {
    let frames = attacker.platform.cpu_count as u64 * 2;
    let random = &mut attacker.random;
    let base = match random.below(8) {
        0..=2 => attacker.platform.distributor,
        3..=5 => attacker.platform.redistributors[0].start + random.below(frames + 1) as usize * 0x1_0000,
        _ => attacker.platform.uart.unwrap_or(0x0900_0000),
    };
    let offset = match random.below(4) {
        0 => random.below(0x1_0000),
        1 => 0x1_0000 - random.below(64),
        _ => random.below(0x1000),
    };
    base as u64 + offset
}

/// Returns an address that is probably a hole.
pub(crate) fn hole(attacker: &mut Attacker) -> u64 {
    match attacker.random.below(4) {
        0 => attacker.random.below(0x0800_0000),
        1 => 0x0a00_0000 + attacker.random.below(0x3000_0000),
        2 => {
            let reach = 1 << attacker.random.below(36);
            ram().end as u64 + attacker.random.below(reach)
        }
        _ => attacker.random.draw() >> (64 - mmu::ADDRESS_BITS),
    }
}

/// Returns an address at an edge: of RAM, of the pool's window.
fn edge(attacker: &mut Attacker) -> u64 {
    let (window, size) = pool();
    let random = &mut attacker.random;
    let near = random.below(128).wrapping_sub(64);
    match random.below(4) {
        0 => ram().start as u64 - 1 - random.below(64),
        1 => (ram().end as u64).wrapping_add(near),
        2 => window.wrapping_add(near),
        _ => (window + size).wrapping_add(near),
    }
}

/// Returns true if an access at `ipa` may change memory that this program depends on.
fn is_own(ipa: u64) -> bool {
    let ram = ram();
    let (low, high) = (ipa.saturating_sub(REACH as u64), ipa.saturating_add(REACH as u64));
    // The page with the image's header and the top of RAM are unused.
    let (start, end) = (ram.start as u64 + REACH as u64, (ram.end - SPARE) as u64);
    low < end && high > start
}

/// Returns the virtual address of a random place.
pub(crate) fn any(attacker: &mut Attacker) -> u64 {
    let ipa = match attacker.random.below(16) {
        0..=7 => device(attacker),
        8 | 9 => edge(attacker),
        10 => return scratch(attacker.cpu) as u64 + attacker.random.below(64),
        11 => pool().0 + attacker.random.below(pool().1.max(1)),
        12 | 13 => hole(attacker),
        // The gibibyte that this CPU's window is at.
        _ => attacker.window.ipa + attacker.random.below(GIBIBYTE as u64),
    };
    let ipa = if attacker.random.below(2) == 0 { ipa & !15 } else { ipa };
    let ipa = if !attacker.is_wild && is_own(ipa) { attacker.platform.distributor as u64 } else { ipa };
    attacker.window.address(ipa, &mut attacker.random)
}

/// A CPU's own gibibyte of virtual addresses, with a changing target and memory type. Unaligned accesses pass stage 1 there if it
/// is Normal memory.
pub(crate) struct Window {
    number: usize,
    ipa: u64,
}

impl Window {
    /// Creates the window of a CPU, which is not mapped yet.
    pub(crate) fn of(cpu: usize) -> Self {
        Self { number: WINDOWS + cpu % MAX_CPUS, ipa: 0 }
    }

    /// Sometimes changes the target of the window.
    pub(crate) fn turn(&mut self, random: &mut Random) {
        if random.below(4) != 0 {
            return;
        }
        let gibibyte = match random.below(8) {
            0..=2 => 0,
            3 => ram().start as u64 >> 30,
            4 => pool().0 >> 30,
            5 => random.below(1 << 9),
            _ => random.below(1 << 18),
        };
        self.ipa = gibibyte << 30;
        let attributes = match random.below(3) {
            0 => mmu::NORMAL,
            1 => mmu::UNCACHED,
            _ => mmu::DEVICE,
        };
        let root = (mrs!("ttbr0_el1") & 0xffff_ffff_f000) as *mut u64;
        for entry in [0, self.ipa | attributes | mmu::VALID] {
            // SAFETY: an entry of the live table that only this CPU uses, and break before make.
            unsafe { root.wrapping_add(self.number).write_volatile(entry) };
            bare::instruction!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb");
        }
    }

    /// Returns a virtual address for `ipa`: in the window if it maps `ipa`, else `ipa` itself.
    fn address(&self, ipa: u64, random: &mut Random) -> u64 {
        let offset = ipa.wrapping_sub(self.ipa);
        let is_mapped = ipa >> mmu::ADDRESS_BITS == 0;
        if offset < GIBIBYTE as u64 && (!is_mapped || random.below(2) == 0) {
            (self.number * GIBIBYTE) as u64 + offset
        } else {
            ipa
        }
    }
}
