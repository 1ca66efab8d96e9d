//! Attacks that end, or end the guest.

use crate::pci::{ECAM, ECAM_SIZE, Function};
use crate::virtio::{Block, Places, peek};
use bare::platform::Platform;
use bare::random::Random;
use bare::{exception, gic, mmio, psci, register, say, timer};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Addresses for BARs: those of other functions, of the configuration space, the distributor, and RAM.
const PLACES: [u32; 5] = [0x1000_0000, 0x1000_4000, 0x3000_0000, 0x0800_0000, 0x4000_0000];
/// A word that is not on the disk.
const UNWRITTEN: u32 = 0x5a5a_5a5a;
/// Patience in microseconds with a device that must answer.
const PATIENCE: u64 = 20_000_000;
/// Patience in microseconds with a device whose accesses are denied.
const SHORT_PATIENCE: u64 = 300_000;
/// INTID of the first interrupt of an assigned device.
pub(crate) const FIRST_INTID: u32 = 64;
/// Number of interrupts that assigned devices can have.
pub(crate) const INTIDS: u32 = 32;

/// Returns the disk, or ends the guest.
pub(crate) fn disk() -> Block {
    match Block::find() {
        Some(block) => block,
        None => {
            say!("sabotage no disk");
            psci::system_off()
        }
    }
}

/// Returns places in the DMA window that a request may use.
pub(crate) fn places(platform: &Platform) -> Places {
    let window = platform.ram().iter().map(|ram| ram.start).min().unwrap_or_default();
    let rings = window + 0x10_0000;
    Places { rings, told_rings: rings as u64, data: rings as u64 + 0x1_0000, sectors: 1 }
}

/// Performs one request that is allowed. Returns the status that the device wrote, if it wrote one.
pub(crate) fn attempt(disk: &Block, places: &Places) -> Option<u32> {
    attempt_for(disk, places, PATIENCE)
}

/// Performs one request, and waits for its end at most `patience` microseconds.
fn attempt_for(disk: &Block, places: &Places, patience: u64) -> Option<u32> {
    disk.clear(places);
    if !disk.start(places) {
        return None;
    }
    disk.submit(places);
    disk.wait(places, patience)
}

/// Performs a request that is allowed, and checks that the device wrote its data.
pub(crate) fn honest(platform: &'static Platform, _: Option<u64>) {
    let (disk, places) = (disk(), places(platform));
    mmio::write32(places.data as usize, UNWRITTEN);
    let status = attempt(&disk, &places);
    say!("sabotage honest {:?} written {}", status, peek(places.data as usize) != UNWRITTEN);
}

/// Lets the device write its name to `target`: few bytes, since QEMU reports each word.
pub(crate) fn data(platform: &'static Platform, target: Option<u64>) {
    let places = Places { data: target.unwrap_or_default(), sectors: 0, ..places(platform) };
    say!("sabotage data {:#x} {:?}", places.data, attempt_for(&disk(), &places, SHORT_PATIENCE));
}

/// Lets the device have its rings at the page `target`.
pub(crate) fn rings(platform: &'static Platform, target: Option<u64>) {
    let places = Places { told_rings: target.unwrap_or_default() & !0xfff, ..places(platform) };
    say!("sabotage rings {:#x} {:?}", places.told_rings, attempt_for(&disk(), &places, SHORT_PATIENCE));
}

/// Writes to every word of the configuration space, in random order and of every size, and checks that each function has the
/// same identity and BARs afterwards.
pub(crate) fn config(platform: &'static Platform, count: Option<u64>) {
    let mut random = Random::new(platform.number("seed").unwrap_or(1));
    let before = fingerprint();
    let count = count.unwrap_or(20_000);
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
pub(crate) fn bars(platform: &'static Platform, _: Option<u64>) {
    let (disk, places) = (disk(), places(platform));
    let before = fingerprint();
    let mut answers = [None; PLACES.len()];
    for (answer, place) in answers.iter_mut().zip(PLACES) {
        (0..6).for_each(|index| disk.function.set_bar(index, place));
        *answer = attempt(&disk, &places);
    }
    restore(&before);
    let worked = answers.iter().filter(|answer| **answer == Some(0)).count();
    say!("sabotage bars same {} worked {} of {}", before == fingerprint(), worked, PLACES.len());
}

/// Starts a long read and does not wait for it.
fn start_read(platform: &'static Platform) -> Block {
    let (disk, mut places) = (disk(), places(platform));
    places.sectors = 4096;
    disk.clear(&places);
    disk.start(&places);
    disk.submit(&places);
    disk
}

/// Resets the machine during a read.
pub(crate) fn reset(platform: &'static Platform, _: Option<u64>) {
    start_read(platform);
    psci::call(psci::SYSTEM_RESET, 0, 0, 0);
    psci::stay()
}

/// Powers the machine off during a read.
pub(crate) fn off(platform: &'static Platform, _: Option<u64>) {
    start_read(platform);
    psci::system_off()
}

/// Number of interrupts that were taken.
pub(crate) static TAKEN: AtomicU32 = AtomicU32::new(0);
static DISK: AtomicUsize = AtomicUsize::new(0);

/// Takes the disk's interrupt `count` times, and says how many arrived: each request raises the line once, and reading the ISR
/// lowers it.
pub(crate) fn interrupts(platform: &'static Platform, count: Option<u64>) {
    let (disk, places) = (disk(), places(platform));
    DISK.store(core::ptr::from_ref(&disk) as usize, Ordering::Release);
    exception::on_irq(acknowledge_irq);
    (FIRST_INTID..FIRST_INTID + INTIDS).for_each(gic::enable);
    register::unmask_interrupts();
    let rounds = count.unwrap_or(1000) as u32;
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

/// Ends in exceptions for ever, without vectors, while the device writes.
pub(crate) fn crash(platform: &'static Platform, _: Option<u64>) {
    start_read(platform);
    bare::msr!("vbar_el1", 0xdead_0000_0000u64);
    // SAFETY: ends the guest: there is nothing to return to.
    unsafe { core::arch::asm!("udf #0", options(noreturn)) };
}
