//! Device accesses of all sizes, with all registers and all addressing modes.

use crate::report::{check, equal, skip};
use bare::console::{Console, pl011};
use bare::exception::{Caught, catch, class};
use bare::gic::{self, register};
use bare::mmio::{read8, read16, read32, read64, write8, write16, write32, write64};
use bare::mrs;
use bare::platform::Platform;
use core::arch::asm;

/// The SPI whose registers the checks access, with its three neighbours.
const SPI: u32 = 60;

core::arch::global_asm!(
    r#"
/* For each n: load w_n or x_n from the address in x0, all else kept, and return the whole of x_n; and the store of x1. */
.macro all_saved
    stp     x29, x30, [sp, #-96]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
.endm
.macro all_restored
    ldp     x19, x20, [sp, #80]
    ldp     x21, x22, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #32]
    ldp     x27, x28, [sp, #16]
    ldp     x29, x30, [sp], #96
    ret
.endm
.balign 256
.global probe_accesses
probe_accesses:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    .balign 256
    all_saved
    mov     x2, x0
    mov     x3, x0
    mov     x\n, #-1
    .if \n == 3
    ldr     w\n, [x2]
    .else
    ldr     w\n, [x3]
    .endif
    mov     x0, x\n
    all_restored
    .balign 128
    all_saved
    mov     x2, x0
    mov     x3, x0
    mov     x\n, x1
    .if \n == 3
    str     w\n, [x2]
    .else
    str     w\n, [x3]
    .endif
    all_restored
.endr
    .balign 256
"#
);

unsafe extern "C" {
    static probe_accesses: u8;
}

pub(crate) fn run(platform: &'static Platform) {
    let priorities = gic::distributor() + register::IPRIORITYR + SPI as usize;
    let route = gic::distributor() + register::IROUTER + SPI as usize * 8;
    sizes(priorities);
    sign_extension(priorities);
    zero_register(priorities, route);
    addressing(priorities);
    every_register(priorities);
    doubleword(route);
    without_syndrome(priorities, route);
    reserved();
    uart(platform);
    write32(priorities, gic::PRIORITY * 0x0101_0101);
    write64(route, platform.cpus()[0]);
}

fn sizes(priorities: usize) {
    write32(priorities, 0x4030_2010);
    equal!("mmio_word", read32(priorities), 0x4030_2010);
    let bytes: [u32; 4] = core::array::from_fn(|index| read8(priorities + index));
    equal!("mmio_bytes_of_word", bytes, [0x10, 0x20, 0x30, 0x40]);
    for (index, value) in [0x80, 0x90, 0xa0, 0xb0].into_iter().enumerate() {
        write8(priorities + index, value);
    }
    equal!("mmio_word_of_bytes", read32(priorities), 0xb0a0_9080);
    write8(priorities + 1, 0xffff_ff70);
    equal!("mmio_byte_write_is_narrow", read32(priorities), 0xb0a0_7080);
    let wide: u64;
    // SAFETY: reads a byte of a device register into a register that held ones.
    unsafe { asm!("mov {v}, #-1", "ldrb {v:w}, [{a}]", v = out(reg) wide, a = in(reg) priorities) };
    equal!("mmio_byte_zero_extends", wide, 0x80);
}

macro_rules! load {
    ($instruction:literal, $address:expr) => {{
        let mut value = 0x5555_5555_5555_5555u64;
        // SAFETY: one load from a device register.
        unsafe { asm!($instruction, v = inout(reg) value, a = in(reg) $address, options(nostack)) };
        value
    }};
}

fn sign_extension(priorities: usize) {
    write32(priorities, 0xf000_70c0);
    equal!("mmio_ldrsb_w", load!("ldrsb {v:w}, [{a}]", priorities), 0xffff_ffc0);
    equal!("mmio_ldrsb_x", load!("ldrsb {v:x}, [{a}]", priorities), 0xffff_ffff_ffff_ffc0);
    equal!("mmio_ldrsb_positive", load!("ldrsb {v:x}, [{a}, #1]", priorities), 0x70);
    equal!("mmio_ldrsw", load!("ldrsw {v:x}, [{a}]", priorities), 0xffff_ffff_f000_70c0);
    write32(priorities, 0x7000_70c0);
    equal!("mmio_ldrsw_positive", load!("ldrsw {v:x}, [{a}]", priorities), 0x7000_70c0);
    write32(priorities, 0xf0f0_f0f0);
    equal!("mmio_ldr_w_zero_extends", load!("ldr {v:w}, [{a}]", priorities), 0xf0f0_f0f0);
    equal!("mmio_ldar", load!("ldar {v:w}, [{a}]", priorities), 0xf0f0_f0f0);
    if mrs!("id_aa64isar1_el1") >> 20 & 0xf == 0 {
        skip("mmio_ldapr", "there is no LDAPR");
    } else {
        let value = load!(".arch_extension rcpc\nldapr {v:w}, [{a}]", priorities);
        equal!("mmio_ldapr", value, 0xf0f0_f0f0);
    }
}

fn zero_register(priorities: usize, route: usize) {
    write32(priorities, 0x1020_3040);
    // SAFETY: accesses to device registers by the zero register.
    unsafe {
        asm!("ldr wzr, [{a}]", "ldrb wzr, [{a}]", "ldr xzr, [{r}]", a = in(reg) priorities, r = in(reg) route)
    };
    equal!("mmio_load_to_zero_register", read32(priorities), 0x1020_3040);
    // SAFETY: as before.
    unsafe { asm!("str wzr, [{a}]", a = in(reg) priorities) };
    equal!("mmio_store_of_wzr", read32(priorities), 0);
    write64(route, 1);
    // SAFETY: as before.
    unsafe { asm!("str xzr, [{r}]", r = in(reg) route) };
    equal!("mmio_store_of_xzr", read64(route), 0);
    write32(priorities, 0x1020_3040);
    // SAFETY: as before.
    unsafe { asm!("strb wzr, [{a}, #2]", a = in(reg) priorities) };
    equal!("mmio_store_byte_of_wzr", read32(priorities), 0x1000_3040);
}

fn addressing(priorities: usize) {
    write32(priorities, 0x5060_7080);
    let base = priorities - register::IPRIORITYR - SPI as usize;
    equal!("mmio_immediate_offset", load!("ldr {v:w}, [{a}, #0x43c]", base), 0x5060_7080);
    equal!("mmio_negative_offset", load!("ldur {v:w}, [{a}, #-4]", priorities + 4), 0x5060_7080);
    let index = (priorities - base) / 4;
    let (mut scaled, mut extended, mut by_stack) = (0u64, 0u64, 0u64);
    // SAFETY: loads from a device register; the stack pointer is put back before anything can use it.
    unsafe {
        asm!("ldr {v:w}, [{a}, {i}, lsl #2]", v = inout(reg) scaled, a = in(reg) base, i = in(reg) index);
        asm!("ldr {v:w}, [{a}, {i:w}, sxtw]", v = inout(reg) extended, a = in(reg) priorities + 16, i = in(reg) -16i64);
        asm!(
            "mov {s}, sp", "mov sp, {a}", "ldr {v:w}, [sp, #0x43c]", "str {v:w}, [sp, #0x43c]", "mov sp, {s}",
            v = inout(reg) by_stack, a = in(reg) base, s = out(reg) _
        );
    }
    equal!("mmio_scaled_index", scaled, 0x5060_7080);
    equal!("mmio_extended_index", extended, 0x5060_7080);
    equal!("mmio_stack_pointer_base", (by_stack, read32(priorities)), (0x5060_7080, 0x5060_7080));
}

fn every_register(priorities: usize) {
    let code = &raw const probe_accesses as usize;
    let (mut bad_load, mut bad_store) = (None, None);
    for n in 0..31 {
        let bits = n as u32;
        let want = (bits & 0xf) << 4 | (bits >> 4) << 12 | 5 << 20 | (!bits & 0xf) << 28;
        write32(priorities, want);
        let (loading, storing) = (code + n * 256, code + n * 256 + 128);
        let value: u64;
        // SAFETY: the code above keeps what a call keeps, and accesses the device register in x0.
        unsafe {
            asm!("blr {c}", c = in(reg) loading, inout("x0") priorities as u64 => value, clobber_abi("C"));
        }
        if value != u64::from(want) {
            bad_load = bad_load.or(Some((n, value, want)));
        }
        write32(priorities, 0);
        // SAFETY: as before.
        unsafe {
            asm!("blr {c}", c = in(reg) storing, in("x0") priorities, in("x1") u64::from(want) | 0xdead << 32,
                clobber_abi("C"));
        }
        if read32(priorities) != want {
            bad_store = bad_store.or(Some((n, read32(priorities), want)));
        }
    }
    check!("mmio_load_to_every_register", bad_load.is_none(), "x{:x?}", bad_load);
    check!("mmio_store_of_every_register", bad_store.is_none(), "x{:x?}", bad_store);
}

fn doubleword(route: usize) {
    write64(route, 0);
    write32(route, 1);
    equal!("mmio_route_low_word", read64(route), 1);
    write64(route, 0);
    let kind = gic::redistributor(0) + register::GICR_TYPER;
    let halves = u64::from(read32(kind)) | u64::from(read32(kind + 4)) << 32;
    equal!("mmio_doubleword_by_words", read64(kind), halves);
}

/// Checks accesses that a data abort's syndrome does not describe: performed correctly, aborted or undefined, but never partial.
fn without_syndrome(priorities: usize, route: usize) {
    let refused = |caught: Caught| matches!(caught.class(), class::DATA_ABORT | class::UNKNOWN);
    write32(priorities, 0x1020_3040);
    let mut value = 0u64;
    let mut address = priorities;
    let result = catch(|| {
        // SAFETY: a load from a device register with write-back of the address.
        unsafe { asm!("ldr {v:w}, [{a}], #4", v = inout(reg) value, a = inout(reg) address) };
    });
    let done = value == 0x1020_3040 && address == priorities + 4;
    check!(
        "mmio_post_index",
        (result.is_ok() && done) || result.is_err_and(refused),
        "{:x?} {:x} {:x}",
        result,
        value,
        address
    );
    let (mut low, mut high) = (0u64, 0u64);
    let result = catch(|| {
        // SAFETY: a load of two device registers.
        unsafe {
            asm!("ldp {v:w}, {w:w}, [{a}]", v = inout(reg) low, w = inout(reg) high, a = in(reg) priorities)
        };
    });
    check!(
        "mmio_pair",
        (result.is_ok() && low == 0x1020_3040) || result.is_err_and(refused),
        "{:x?} {:x}",
        result,
        low
    );
    let result = catch(|| {
        // SAFETY: stores zeros to two device registers.
        unsafe { asm!("stp wzr, wzr, [{a}]", a = in(reg) priorities) };
    });
    check!("mmio_store_pair", result.is_ok() || result.is_err_and(refused), "{:x?}", result);
    let result = catch(|| {
        // SAFETY: a vector load of a device register.
        unsafe { asm!(".inst 0xfd400000 | 9 << 5 // ldr d0, [x9]", in("x9") route) };
    });
    check!("mmio_vector", result.is_ok() || result.is_err_and(refused), "{:x?}", result);
}

/// Checks that reserved registers read as zero and ignore writes, and that unsupported sizes abort or are ignored.
fn reserved() {
    let (distributor, redistributor) = (gic::distributor(), gic::redistributor(0));
    let before = read32(distributor + register::CTLR);
    for offset in [0x0030, 0x0e04, 0x5ffc, 0xbff0] {
        let read = catch(|| read32(distributor + offset));
        let write = catch(|| write32(distributor + offset, u32::MAX));
        check!(
            "mmio_reserved_of_distributor",
            read.is_ok() && write.is_ok(),
            "{:#x}: {:x?} {:x?}",
            offset,
            read,
            write
        );
    }
    for offset in [0x0030, 0x9000, 0x1_0030, 0x1_0e10] {
        let read = catch(|| read32(redistributor + offset));
        let write = catch(|| write32(redistributor + offset, u32::MAX));
        check!(
            "mmio_reserved_of_redistributor",
            read.is_ok() && write.is_ok(),
            "{:#x}: {:x?} {:x?}",
            offset,
            read,
            write
        );
    }
    for size in [1, 2, 8] {
        let odd = catch(|| match size {
            1 => u64::from(read8(distributor + register::TYPER)),
            2 => u64::from(read16(distributor + register::TYPER)),
            _ => read64(distributor + register::CTLR),
        });
        check!(
            "mmio_odd_size",
            odd.is_ok() || odd.is_err_and(|c| c.class() == class::DATA_ABORT),
            "{}: {:x?}",
            size,
            odd
        );
    }
    write32(distributor + register::TYPER, 0);
    write32(distributor + register::PIDR2, 0);
    let kind = catch(|| write64(redistributor + register::GICR_TYPER, 0));
    check!("mmio_write_of_read_only", kind.is_ok(), "{:x?}", kind);
    let versions = (
        read32(distributor + register::PIDR2) >> 4 & 0xf,
        read32(redistributor + register::PIDR2) >> 4 & 0xf,
    );
    equal!("gic_architecture_3", versions, (3, 3));
    equal!("mmio_distributor_unchanged", read32(distributor + register::CTLR), before);
}

fn uart(platform: &Platform) {
    let Console::Pl011(base) = platform.console() else {
        skip("mmio_uart", "no PL011");
        return;
    };
    let old = read32(base + pl011::IBRD);
    write32(base + pl011::IBRD, 0xa5c3);
    equal!("mmio_halfword", read16(base + pl011::IBRD), 0xa5c3);
    equal!("mmio_ldrsh_w", load!("ldrsh {v:w}, [{a}, #0x24]", base), 0xffff_a5c3);
    equal!("mmio_ldrsh_x", load!("ldrsh {v:x}, [{a}, #0x24]", base), 0xffff_ffff_ffff_a5c3);
    write16(base + pl011::IBRD, 0x1234);
    equal!("mmio_halfword_write", read32(base + pl011::IBRD), 0x1234);
    write32(base + pl011::IBRD, old);
}
