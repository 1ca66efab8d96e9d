//! The attacks.

use crate::pci::{BUS_MASTER, ECAM, ECAM_SIZE, Function, MEMORY};
use crate::virtio::{Block, Places, peek};
use bare::platform::Platform;
use bare::random::Random;
use bare::{exception, gic, mmio, psci, register, say, timer};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Patience with the device in microseconds.
const PATIENCE: u64 = 300_000;
/// INTID of the first interrupt of an assigned device.
const FIRST_INTID: u32 = 64;
/// Number of interrupts that assigned devices can have.
const INTIDS: u32 = 32;

/// Returns the disk, or ends the guest.
fn disk() -> Block {
    match Block::find() {
        Some(block) => block,
        None => {
            say!("sabotage no disk");
            psci::system_off()
        }
    }
}

/// Returns places in the DMA window that a request may use.
fn honest(platform: &Platform) -> Places {
    let window = platform.ram().iter().map(|ram| ram.start).min().unwrap_or_default();
    let rings = window + 0x10_0000;
    Places { rings, told_rings: rings as u64, data: rings as u64 + 0x1_0000, sectors: 1 }
}

/// Returns the addresses in `targets=`.
fn targets(platform: &'static Platform) -> impl Iterator<Item = u64> {
    let list = platform.argument("targets").unwrap_or_default();
    list.split(',').filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
}

/// Performs one request. Returns the status that the device wrote, if it wrote one.
fn attempt(disk: &Block, places: &Places) -> Option<u32> {
    disk.clear(places);
    if !disk.start(places) {
        return None;
    }
    disk.submit(places);
    disk.wait(places, PATIENCE)
}

/// Lets the device read its rings and write its data at each target, and checks that an honest request works before and after.
pub(crate) fn dma(platform: &'static Platform) {
    let (disk, places) = (disk(), honest(platform));
    mmio::write32(places.data as usize, 0x5a5a_5a5a);
    say!("sabotage honest {:?} data {:#x}", attempt(&disk, &places), peek(places.data as usize));
    for target in targets(platform) {
        let data = attempt(&disk, &Places { data: target, ..places });
        let rings = attempt(&disk, &Places { told_rings: target & !0xfff, ..places });
        say!("sabotage target {:#x} data {:?} rings {:?}", target, data, rings);
    }
    say!("sabotage honest {:?}", attempt(&disk, &places));
}

/// Writes to every word of the configuration space, in random order and of every size, and checks that each function has the
/// same identity and BARs afterwards.
pub(crate) fn config(platform: &'static Platform) {
    let mut random = Random::new(platform.number("seed").unwrap_or(1));
    let before = fingerprint();
    let count = platform.number("count").unwrap_or(200_000);
    for _ in 0..count {
        let draw = random.draw();
        let (offset, value) = (draw as usize % ECAM_SIZE, random.draw());
        // Mostly where there is a function.
        let offset = if draw >> 62 != 0 { offset % 0x1_0000 } else { offset };
        let address = ECAM + offset;
        let _ = exception::catch(|| match draw >> 60 & 3 {
            0 => mmio::write8(address, value as u32),
            1 => mmio::write16(address & !1, value as u32),
            2 => mmio::write32(address & !3, value as u32),
            _ => mmio::write64(address & !7, value),
        });
    }
    for function in Function::all() {
        (0..6).for_each(|index| function.set_bar(index, u32::MAX));
    }
    restore(&before);
    let same = before == fingerprint();
    say!("sabotage config functions {} same {}", Function::all().count(), same);
    let disk = disk();
    say!("sabotage honest {:?}", attempt(&disk, &honest(platform)));
}

/// Identity and BARs of up to eight functions.
type Fingerprint = [[u32; 8]; 8];

fn fingerprint() -> Fingerprint {
    let mut prints = Fingerprint::default();
    for (print, function) in prints.iter_mut().zip(Function::all()) {
        *print = core::array::from_fn(|index| match index {
            0 => function.id(),
            7 => function.number() as u32,
            bar => function.read(0x10 + 4 * (bar - 1)),
        });
    }
    prints
}

fn restore(prints: &Fingerprint) {
    for (print, function) in prints.iter().zip(Function::all()) {
        (0..6).for_each(|index| function.set_bar(index, print[1 + index]));
    }
}

/// Moves each BAR over the other functions' and over RAM, and uses the disk at its old address.
pub(crate) fn bars(platform: &'static Platform) {
    let (disk, places) = (disk(), honest(platform));
    let before = fingerprint();
    for place in [0x1000_0000, 0x1000_4000, 0x3000_0000, 0x0800_0000, 0x4000_0000u32] {
        (0..6).for_each(|index| disk.function.set_bar(index, place));
        say!("sabotage bars at {:#x} honest {:?}", place, attempt(&disk, &places));
    }
    restore(&before);
    say!("sabotage bars same {}", before == fingerprint());
}

/// Causes DMA faults without end.
pub(crate) fn flood(platform: &'static Platform) {
    let (disk, places) = (disk(), honest(platform));
    let target = targets(platform).next().unwrap_or(0xdead_0000);
    for round in 0u64.. {
        disk.clear(&places);
        if disk.start(&Places { told_rings: target & !0xfff, ..places }) {
            disk.submit(&places);
        }
        if round.is_multiple_of(1000) {
            say!("sabotage flood {}", round);
        }
    }
}

/// Raises the disk's interrupt and never lowers its line.
pub(crate) fn storm(platform: &'static Platform) {
    exception::on_irq(count_irq);
    (FIRST_INTID..FIRST_INTID + INTIDS).for_each(gic::enable);
    register::unmask_interrupts();
    let (disk, places) = (disk(), honest(platform));
    say!("sabotage honest {:?}", attempt(&disk, &places));
    loop {
        timer::delay(500_000);
        say!("sabotage storm {}", TAKEN.load(Ordering::Relaxed));
    }
}

static TAKEN: AtomicU32 = AtomicU32::new(0);

fn count_irq() {
    let intid = gic::acknowledge();
    if intid < 1020 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        gic::end(intid);
    }
}

/// Resets the machine in the middle of a long read, `count` times in all by the number of starts that the caller counts.
pub(crate) fn reset(platform: &'static Platform) {
    let (disk, mut places) = (disk(), honest(platform));
    places.sectors = 4096;
    disk.clear(&places);
    disk.start(&places);
    disk.submit(&places);
    psci::call(psci::SYSTEM_RESET, 0, 0, 0);
    psci::stay()
}

/// Reads without end.
pub(crate) fn busy(platform: &'static Platform) {
    let (disk, mut places) = (disk(), honest(platform));
    places.sectors = 2048;
    for round in 0u64.. {
        let status = attempt(&disk, &places);
        if status != Some(0) {
            say!("sabotage busy bad {:?} in round {}", status, round);
        }
        if round.is_multiple_of(100) {
            say!("sabotage busy {}", round);
        }
    }
}

static DISK: AtomicUsize = AtomicUsize::new(0);

/// Takes the disk's interrupt 1000 times, and says how many arrived: each request raises the line once, and reading the ISR
/// lowers it.
pub(crate) fn interrupts(platform: &'static Platform) {
    let (disk, places) = (disk(), honest(platform));
    DISK.store(core::ptr::from_ref(&disk) as usize, Ordering::Release);
    exception::on_irq(acknowledge_irq);
    (FIRST_INTID..FIRST_INTID + INTIDS).for_each(gic::enable);
    register::unmask_interrupts();
    let rounds = platform.number("count").unwrap_or(1000) as u32;
    let mut missing = 0;
    for round in 1..=rounds {
        if round == 1 {
            let _ = attempt(&disk, &places);
        } else {
            disk.submit(&places);
            let _ = disk.wait(&places, PATIENCE);
        }
        if !timer::wait_for(PATIENCE, || TAKEN.load(Ordering::Relaxed) >= round - missing) {
            missing += 1;
        }
    }
    register::mask_interrupts();
    say!("sabotage interrupts {} of {} missing {}", TAKEN.load(Ordering::Relaxed), rounds, missing);
}

fn acknowledge_irq() {
    let intid = gic::acknowledge();
    if intid >= 1020 {
        return;
    }
    // SAFETY: `interrupts` stores the address of a disk that outlives interrupts.
    let disk = unsafe { (DISK.load(Ordering::Acquire) as *const Block).as_ref() };
    if disk.is_some_and(|disk| disk.acknowledge() & 1 != 0) {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
    gic::end(intid);
}

/// Ends by an exception without a vector while the device writes.
pub(crate) fn crash(platform: &'static Platform) {
    let (disk, mut places) = (disk(), honest(platform));
    places.sectors = 4096;
    disk.clear(&places);
    disk.start(&places);
    disk.submit(&places);
    disk.function.set_command(MEMORY | BUS_MASTER);
    bare::msr!("vbar_el1", 0xdead_0000_0000u64);
    // SAFETY: ends the guest: there is nothing to return to.
    unsafe { core::arch::asm!("udf #0", options(noreturn)) };
}
