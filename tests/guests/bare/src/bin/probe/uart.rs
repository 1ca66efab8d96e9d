//! The PL011: registers, level-sensitive interrupts and FIFOs; and a mode that counts input.

use crate::irq;
use crate::report::{equal, skip};
use bare::console::{Console, pl011};
use bare::gic::{self, register};
use bare::mmio::{read32, write32};
use bare::platform::Platform;
use bare::{say, timer};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

static BASE: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn run(platform: &'static Platform) {
    let Console::Pl011(base) = platform.console() else {
        skip("uart", "no PL011");
        return;
    };
    BASE.store(base, Ordering::Relaxed);
    registers(base);
    irq::start();
    gic::set_edge(platform.uart_intid, 0);
    gic::route(platform.uart_intid, platform.cpus()[0]);
    gic::enable(platform.uart_intid);
    transmit_interrupt(base, platform.uart_intid);
    loop_back(base, platform.uart_intid);
    gic::disable(platform.uart_intid);
    irq::stop();
}

fn registers(base: usize) {
    let identification: [u32; 8] = core::array::from_fn(|index| read32(base + pl011::ID + index * 4));
    equal!("uart_identification", identification, [0x11, 0x10, identification[2], 0, 0x0d, 0xf0, 0x05, 0xb1]);
    for (name, offset, value) in [
        ("uart_ibrd", pl011::IBRD, 0x1234),
        ("uart_fbrd", pl011::FBRD, 0x2a),
        ("uart_lcr", pl011::LCR, 0x70),
        ("uart_imsc", pl011::IMSC, 0x050),
        ("uart_ifls", pl011::IFLS, 0x12),
    ] {
        let old = read32(base + offset);
        write32(base + offset, value);
        equal!(name, read32(base + offset), value);
        write32(base + offset, old);
    }
    equal!("uart_cr", read32(base + pl011::CR) & 0x301, 0x301);
    equal!("uart_nothing_typed", read32(base + pl011::FR) & pl011::RXFE, pl011::RXFE);
    let idle = timer::wait_for(1_000_000, || {
        read32(base + pl011::FR) & (pl011::TXFE | pl011::BUSY | pl011::TXFF) == pl011::TXFE
    });
    equal!("uart_sends", idle, true);
    write32(base + pl011::RSR, 0);
    equal!("uart_no_errors", read32(base + pl011::RSR), 0);
}

/// Checks the transmit interrupt, a level that is active while it is unmasked and not cleared.
fn transmit_interrupt(base: usize, intid: u32) {
    static TIMES: AtomicU32 = AtomicU32::new(0);
    irq::set_action(|_| {
        let base = BASE.load(Ordering::Relaxed);
        if TIMES.fetch_add(1, Ordering::Relaxed) == 3 {
            write32(base + pl011::ICR, pl011::TX);
        }
    });
    irq::clear();
    write32(base + pl011::IMSC, pl011::TX);
    // Let the FIFO run empty, with any byte.
    write32(base + pl011::DR, u32::from(b'.'));
    irq::settle(4);
    let count = irq::count();
    let masked = read32(base + pl011::MIS);
    write32(base + pl011::IMSC, 0);
    irq::set_action(|_| {});
    say!("");
    equal!("uart_interrupt_until_cleared", (count, irq::entry(0), masked & pl011::TX), (4, intid, 0));
    irq::clear();
    // Unmasked and masked again before it was taken: the level is low.
    write32(base + pl011::IMSC, pl011::TX);
    let up = timer::wait_for(1000, || gic::bit(register::ISPENDR, intid));
    write32(base + pl011::IMSC, 0);
    irq::settle(0);
    let none = (0..irq::count()).all(|index| irq::entry(index) >= 1020);
    equal!("uart_level_follows_mask", (up, none, gic::bit(register::ISPENDR, intid)), (true, true, false));
    irq::clear();
    write32(base + pl011::ICR, 0x7ff);
}

/// Checks the receiver with loopback, if the device has it: FIFO, depth, overrun, interrupts.
fn loop_back(base: usize, intid: u32) {
    let control = read32(base + pl011::CR);
    write32(base + pl011::CR, control | 1 << 7);
    write32(base + pl011::DR, u32::from(b'x'));
    let looped = timer::wait_for(10_000, || read32(base + pl011::FR) & pl011::RXFE == 0);
    if !looped {
        write32(base + pl011::CR, control);
        say!("");
        skip("uart_loop_back", "the device has none");
        return;
    }
    let first = read32(base + pl011::DR) & 0xff;
    irq::clear();
    irq::set_action(|_| write32(BASE.load(Ordering::Relaxed) + pl011::IMSC, 0));
    write32(base + pl011::IMSC, pl011::RX | pl011::RT);
    for byte in 0..16 {
        write32(base + pl011::DR, byte);
    }
    irq::settle(1);
    let came = irq::came(&[intid]);
    let received = (0..16).filter(|&byte| read32(base + pl011::DR) & 0xff == byte).count();
    write32(base + pl011::CR, control);
    irq::set_action(|_| {});
    irq::clear();
    equal!("uart_loop_back", (first, received, came), (u32::from(b'x'), 16, true));
}

/// Counts input, by interrupts, until a byte 4 (Ctrl-D), and prints `probe echo COUNT bytes hash HASH` (FNV-1a, 64 bits).
pub(crate) fn echo(platform: &'static Platform) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static HASH: [AtomicU32; 2] = [AtomicU32::new(0x8422_2325), AtomicU32::new(0xcbf2_9ce4)];
    static ENDED: AtomicU32 = AtomicU32::new(0);
    let Console::Pl011(base) = platform.console() else {
        skip("echo", "no PL011");
        return;
    };
    BASE.store(base, Ordering::Relaxed);
    irq::start();
    irq::set_action(|_| {
        let base = BASE.load(Ordering::Relaxed);
        irq::clear();
        write32(base + pl011::ICR, pl011::RX | pl011::RT);
        while read32(base + pl011::FR) & pl011::RXFE == 0 {
            let byte = read32(base + pl011::DR) & 0xff;
            if byte == 4 {
                ENDED.store(1, Ordering::Relaxed);
                continue;
            }
            let hash =
                u64::from(HASH[0].load(Ordering::Relaxed)) | u64::from(HASH[1].load(Ordering::Relaxed)) << 32;
            let hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            HASH[0].store(hash as u32, Ordering::Relaxed);
            HASH[1].store((hash >> 32) as u32, Ordering::Relaxed);
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    });
    gic::set_edge(platform.uart_intid, 0);
    gic::route(platform.uart_intid, platform.cpus()[0]);
    gic::enable(platform.uart_intid);
    write32(base + pl011::IMSC, pl011::RX | pl011::RT);
    say!("probe echo ready");
    while ENDED.load(Ordering::Relaxed) == 0 {
        bare::register::mask_interrupts();
        if ENDED.load(Ordering::Relaxed) == 0 {
            bare::instruction!("wfi");
        }
        bare::register::unmask_interrupts();
    }
    irq::stop();
    write32(base + pl011::IMSC, 0);
    say!(
        "probe echo {} bytes hash {:08x}{:08x}",
        COUNT.load(Ordering::Relaxed),
        HASH[1].load(Ordering::Relaxed),
        HASH[0].load(Ordering::Relaxed)
    );
}
