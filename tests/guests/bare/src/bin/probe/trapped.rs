//! Trapped instructions complete as if the CPU had executed them: single steps, branch types, IT blocks, lengths, conditions, byte
//! orders, and cache maintenance of devices.

use crate::report::{check, equal, skip};
use bare::console::{Console, pl011};
use bare::exception::class;
use bare::execute::{execute_with, place, read, step};
use bare::gic::{self, register};
use bare::lower::{self, Registers, state};
use bare::mmio::{read16, read32, read64, write16, write32, write64};
use bare::mmu::{self, DEVICE, GIBIBYTE, NORMAL, PAGE, TABLE, Table, USER, VALID};
use bare::platform::Platform;
use bare::{cache, instruction, mrs, msr};
use core::arch::asm;
use core::cell::UnsafeCell;

/// The SPI whose registers the checks access, with its three neighbours.
const SPI: u32 = 61;
/// Gibibytes below 4 GiB, within reach of AArch32, for RAM and devices at EL0.
const USER_RAM: usize = 2;
const USER_DEVICES: usize = 3;

const LDR_W1: u32 = 0xb940_0001; // ldr w1, [x0]
const STR_WZR: u32 = 0xb900_001f; // str wzr, [x0]
const MOV_W2_5: u32 = 0x5280_00a2;
const SVC: u32 = 0xd400_0001;

pub(crate) fn run(platform: &'static Platform) {
    let priorities = gic::distributor() + register::IPRIORITYR + (SPI as usize & !3);
    write32(priorities, 0x4030_2010);
    maintenance(platform, priorities);
    steps(platform);
    os_lock();
    branches();
    big_endian_el1(platform, priorities);
    if platform.ram().iter().any(|range| range.end > USER_RAM * GIBIBYTE) {
        skip("trapped_el0", "RAM lies at the addresses that it needs");
    } else {
        el0(priorities);
    }
    write32(priorities, gic::PRIORITY * 0x0101_0101);
}

/// Checks that cache maintenance of devices has no effect.
fn maintenance(platform: &Platform, priorities: usize) {
    let instructions = [
        ("dc_ivac", 0xd508_7620),
        ("dc_cvac", 0xd50b_7a20),
        ("dc_cvau", 0xd50b_7b20),
        ("dc_civac", 0xd50b_7e20),
        ("ic_ivau", 0xd50b_7520),
    ];
    let devices = [
        priorities,
        gic::redistributor(0),
        platform.uart.unwrap_or(gic::distributor()),
        platform.uart.unwrap_or(gic::distributor()) + PAGE / 2,
    ];
    let mut failed = None;
    for (name, instruction) in instructions {
        for device in devices {
            let result = execute_with(instruction, device as u64);
            failed = failed.or(result.err().map(|caught| (name, device, caught)));
        }
    }
    check!("maintenance_of_devices", failed.is_none(), "{:x?}", failed);
    equal!("maintenance_changes_nothing", read32(priorities), 0x4030_2010);
}

/// Checks that a single step ends after one instruction, trapped or not.
fn steps(platform: &Platform) {
    let nop = step(0xd503_201f, 0);
    if nop.is_ok_and(|(_, executed)| executed == 0) {
        skip("steps", "there are no single steps");
        return;
    }
    let (distributor, redistributor) = (gic::distributor(), gic::redistributor(0));
    let uart = platform.uart.unwrap_or(distributor);
    let steps = [
        ("step_nop", 0xd503_201f, 0),
        ("step_fast_device_read", 0xb940_0000, distributor + register::TYPER),
        ("step_fast_device_write", STR_WZR, distributor + register::ISENABLER),
        ("step_device_read", 0xb940_0000, redistributor + register::GICR_TYPER),
        ("step_device_write", STR_WZR, distributor + register::ICFGR + 4),
        ("step_uart_read", 0xb940_0000, uart + pl011::FR),
        // An SGI without a target, an identification register, and HVC of PSCI_VERSION: one for each path.
        ("step_sgi", 0xd518_cba0, 1 << 16),
        ("step_identification", read((3, 0, 0, 4, 0)), 0),
        ("step_hypercall", 0xd400_0002, 0x8400_0000),
        ("step_maintenance", 0xd50b_7e20, distributor),
    ];
    for (name, instruction, x0) in steps {
        let result = step(instruction, x0 as u64);
        check!(name, result.is_ok_and(|(_, executed)| executed == 1), "{:x?}", result);
    }
}

/// Checks that the registers of the OS lock, which trap, work.
fn os_lock() {
    let is_locked = || mrs!("oslsr_el1") & 1 << 1 != 0;
    let before = is_locked();
    let seen = [1, 0].map(|value| {
        msr!("oslar_el1", value);
        is_locked()
    });
    equal!("os_lock", seen, [true, false]);
    let double_lock = mrs!("osdlr_el1");
    msr!("osdlr_el1", double_lock);
    equal!("os_double_lock", mrs!("osdlr_el1"), double_lock);
    msr!("oslar_el1", u64::from(before));
}

#[repr(C, align(4096))]
struct Pages(UnsafeCell<[Table; 2]>);

// SAFETY: used by the first CPU alone.
unsafe impl Sync for Pages {}

static TABLES: Pages = Pages(UnsafeCell::new([const { Table([0; 512]) }; 2]));
static CODE: Pages = Pages(UnsafeCell::new([const { Table([0; 512]) }; 2]));

/// Checks that a trapped instruction does not count as a branch: the next one, on a guarded page, needs no landing pad.
fn branches() {
    const SPARE_GIBIBYTE: usize = 508;
    if mrs!("id_aa64pfr1_el1") & 0xf == 0 {
        skip("branches", "there are no guarded pages");
        return;
    }
    let [upper, lower] = [0, 1].map(|index| TABLES.0.get() as usize + index * PAGE);
    let code = CODE.0.get() as usize;
    // The last word of the first page traps; the second page, which is guarded, returns.
    let trapping = [
        read((3, 0, 0, 4, 0)), // an identification register
        0xb940_0000,           // ldr w0, [x0]: of GICD_TYPER
        0xb940_0400,           // ldr w0, [x0, #4]: of GICD_IIDR
        0xd518_cba1,           // msr icc_sgi1r_el1, x1
        0xd503_201f,           // nop, which does not trap
    ];
    let mut failed = None;
    for (index, page) in [(0, 0), (1, mmu::GUARDED)] {
        let entry = (lower + 8 * index) as *mut u64;
        // SAFETY: an entry of the table above, which is not in use yet.
        unsafe { entry.write_volatile((code + index * PAGE) as u64 | NORMAL | TABLE | page) };
    }
    // SAFETY: as above.
    unsafe { (upper as *mut u64).write_volatile(lower as u64 | TABLE) };
    let base = mmu::set_gibibyte(SPARE_GIBIBYTE, upper as u64 | TABLE);
    for instruction in trapping {
        // SAFETY: the pages above.
        unsafe {
            ((code + PAGE - 4) as *mut u32).write_volatile(instruction);
            ((code + PAGE) as *mut u32).write_volatile(0xd65f_03c0);
        }
        cache::publish_code(code + PAGE - 4, 8);
        instruction!("ic iallu", "dsb nsh", "isb");
        let result = bare::exception::catch(|| {
            // SAFETY: calls the two instructions.
            unsafe {
                asm!("blr {c}", c = in(reg) base + PAGE - 4, in("x0") gic::distributor() + register::TYPER,
                    in("x1") 1 << 16, clobber_abi("C"));
            }
        });
        failed = failed.or(result.err().map(|caught| (instruction, caught)));
    }
    check!("branch_type_ends_with_the_instruction", failed.is_none(), "{:x?}", failed);
    // To check the check: a branch to the guarded page needs a landing pad.
    let result = bare::exception::catch(|| {
        // SAFETY: faults, and the vectors return to what follows.
        unsafe { asm!("blr {c}", c = in(reg) base + PAGE, clobber_abi("C")) };
    });
    check!(
        "branch_target_checked",
        result.is_err_and(|c| c.class() == class::BRANCH_TARGET),
        "{:x?}",
        result
    );
    mmu::set_gibibyte(SPARE_GIBIBYTE, (SPARE_GIBIBYTE * GIBIBYTE) as u64 | DEVICE | VALID);
}

/// Loads and stores at EL1 with SCTLR_EL1.EE set. Translation is off meanwhile: its tables would be big-endian too.
macro_rules! big_endian {
    ($instruction:literal, $value:expr, $address:expr) => {{
        let mut value: u64 = $value;
        // SAFETY: one access to a device register; nothing else is accessed before SCTLR_EL1 is as it was.
        unsafe {
            asm!(
                "mrs {old}, sctlr_el1", "bic {new}, {old}, #1", "bic {new}, {new}, #4",
                "orr {new}, {new}, #(1 << 25)",
                "dsb sy", "msr sctlr_el1, {new}", "isb", $instruction, "dsb sy", "msr sctlr_el1, {old}", "isb",
                old = out(reg) _, new = out(reg) _, v = inout(reg) value, a = in(reg) $address, options(nostack)
            );
        }
        value
    }};
}

fn big_endian_el1(platform: &Platform, priorities: usize) {
    if mrs!("id_aa64mmfr0_el1") >> 8 & 0xf == 0 {
        skip("big_endian_el1", "EL1 has one byte order");
        return;
    }
    let distributor = gic::distributor();
    let kind = read32(distributor + register::TYPER);
    let swapped = u64::from(kind.swap_bytes());
    equal!(
        "big_endian_fast_read",
        big_endian!("ldr {v:w}, [{a}]", 0, distributor + register::TYPER),
        swapped
    );
    equal!("big_endian_word", big_endian!("ldr {v:w}, [{a}]", 0, priorities), 0x1020_3040);
    equal!("big_endian_byte", big_endian!("ldrb {v:w}, [{a}, #1]", 0, priorities), 0x20);
    big_endian!("strb {v:w}, [{a}, #1]", 0x70, priorities);
    equal!("big_endian_byte_write", read32(priorities), 0x4030_7010);
    big_endian!("str {v:w}, [{a}]", 0x1020_3080, priorities);
    equal!("big_endian_word_write", read32(priorities), 0x8030_2010);
    equal!("big_endian_signed", big_endian!("ldrsw {v:x}, [{a}]", 0, priorities), 0x1020_3080);
    write32(priorities, 0x4030_2010);
    let frame = gic::redistributor(0) + register::GICR_TYPER;
    equal!("big_endian_doubleword", big_endian!("ldr {v:x}, [{a}]", 0, frame), read64(frame).swap_bytes());
    let route = distributor + register::IROUTER + SPI as usize * 8;
    let old = read64(route);
    write64(route, 0);
    big_endian!("str {v:x}, [{a}]", 1 << 56, route);
    equal!("big_endian_doubleword_write", read64(route), 1);
    write64(route, old);
    let enable = distributor + register::ISENABLER + 4;
    let before = read32(enable);
    big_endian!("str {v:w}, [{a}]", u64::from((1u32 << (SPI - 32)).swap_bytes()), enable);
    equal!("big_endian_enable", read32(enable), before | 1 << (SPI - 32));
    write32(distributor + register::ICENABLER + 4, 1 << (SPI - 32));
    if let Console::Pl011(base) = platform.console() {
        let old = read32(base + pl011::IBRD);
        write16(base + pl011::IBRD, 0xa5c3);
        equal!("big_endian_uart", big_endian!("ldrh {v:w}, [{a}]", 0, base + pl011::IBRD), 0xc3a5);
        equal!(
            "big_endian_uart_signed",
            big_endian!("ldrsh {v:w}, [{a}]", 0, base + pl011::IBRD),
            0xffff_c3a5
        );
        big_endian!("strh {v:w}, [{a}]", 0x3412, base + pl011::IBRD);
        equal!("big_endian_uart_write", read16(base + pl011::IBRD), 0x1234);
        write32(base + pl011::IBRD, old);
    }
}

/// Runs `code` at EL0 with the address of a device register in x0. Returns the offset in bytes at which it ended, the registers,
/// and the exception class.
fn at_el0(code: &[u32], state: u64, register: usize) -> (u64, Registers, u64) {
    let page = place(code) as u64;
    let offset = |address: u64| address & (GIBIBYTE as u64 - 1);
    let start = (USER_RAM * GIBIBYTE) as u64 + offset(page);
    let mut registers = Registers { x: [0; 8], pc: start, state };
    registers.x[0] = (USER_DEVICES * GIBIBYTE) as u64 + offset(register as u64);
    let caught = lower::run(&mut registers);
    (registers.pc.wrapping_sub(start), registers, caught.class())
}

fn el0(priorities: usize) {
    let ram = bare::boot::image().start & !(GIBIBYTE - 1);
    mmu::set_gibibyte(USER_RAM, ram as u64 | NORMAL | USER | VALID);
    mmu::set_gibibyte(USER_DEVICES, (priorities & !(GIBIBYTE - 1)) as u64 | DEVICE | USER | VALID);
    instruction!("ic iallu", "dsb nsh", "isb");
    aarch64_el0(priorities);
    if mrs!("id_aa64pfr0_el1") & 0xf == 2 {
        thumb(priorities);
        arm(priorities);
    } else {
        skip("aarch32", "EL0 is AArch64 only");
    }
    for number in [USER_RAM, USER_DEVICES] {
        mmu::set_gibibyte(number, (number * GIBIBYTE) as u64 | DEVICE | VALID);
    }
}

fn aarch64_el0(priorities: usize) {
    let code = [LDR_W1, MOV_W2_5, SVC];
    let (end, registers, class) = at_el0(&code, state::AARCH64, priorities);
    equal!("el0_read", (end, &registers.x[1..3], class), (12, &[0x4030_2010, 5][..], class::SVC));
    if mrs!("id_aa64mmfr0_el1") >> 8 & 0xf == 0 && mrs!("id_aa64mmfr0_el1") >> 16 & 0xf == 0 {
        skip("el0_big_endian", "EL0 has one byte order");
        return;
    }
    let sctlr = mrs!("sctlr_el1");
    msr!("sctlr_el1", sctlr | 1 << 24);
    let (end, registers, class) = at_el0(&code, state::AARCH64, priorities);
    equal!("el0_big_endian", (end, &registers.x[1..3], class), (12, &[0x1020_3040, 5][..], class::SVC));
    // EL1 keeps its byte order.
    equal!("el1_beside_big_endian_el0", read32(priorities), 0x4030_2010);
    let kind = gic::distributor() + register::TYPER;
    let (_, registers, _) = at_el0(&code, state::AARCH64, kind);
    msr!("sctlr_el1", sctlr);
    equal!("el0_big_endian_fast", registers.x[1], u64::from(read32(kind).swap_bytes()));
}

fn thumb(priorities: usize) {
    // ldr r1, [r0] in 16 bits; movs r2, #5; svc #0.
    let (end, registers, class) = at_el0(&[0x2205_6801, 0xdf00], state::THUMB, priorities);
    equal!("thumb_short", (end, &registers.x[1..3], class), (6, &[0x4030_2010, 5][..], class::SVC32));
    // The same by the fast path.
    let kind = gic::distributor() + register::TYPER;
    let (end, registers, _) = at_el0(&[0x2205_6801, 0xdf00], state::THUMB, kind);
    equal!("thumb_fast", (end, &registers.x[1..3]), (6, &[u64::from(read32(kind)), 5][..]));
    // ldr.w r1, [r0] in 32 bits.
    let (end, registers, _) = at_el0(&[0x1000_f8d0, 0xdf00_2205], state::THUMB, priorities);
    equal!("thumb_long", (end, &registers.x[1..3]), (8, &[0x4030_2010, 5][..]));
    // itte eq; ldreq r1, [r0]; moveq r2, #1; movne r3, #1; svc #0; svc #0.
    let block = [0x6801_bf06, 0x2301_2201, 0xdf00_df00];
    let (end, registers, _) = at_el0(&block, state::THUMB | state::ZERO, priorities);
    equal!("thumb_it_block", (end, &registers.x[1..4]), (10, &[0x4030_2010, 1, 0][..]));
    let (end, registers, _) = at_el0(&block, state::THUMB, priorities);
    equal!("thumb_it_block_not_met", (end, &registers.x[1..4]), (10, &[0, 0, 1][..]));
    let (_, registers, _) = at_el0(&[0x2205_6801, 0xdf00], state::THUMB | state::BIG_ENDIAN, priorities);
    equal!("thumb_big_endian", registers.x[1], 0x1020_3040);
    // str r0, [r0, #4] in 16 bits, then movs and svc: to the next interrupts' priorities.
    let (end, registers, _) = at_el0(&[0x2205_6041, 0xdf00], state::THUMB, priorities);
    equal!("thumb_store", (end, registers.x[2], read32(priorities + 4)), (6, 5, 0));
    write32(priorities + 4, gic::PRIORITY * 0x0101_0101);
}

fn arm(priorities: usize) {
    // ldr r1, [r0]; mov r2, #5; svc #0.
    let code = [0xe590_1000, 0xe3a0_2005, 0xef00_0000];
    let (end, registers, class) = at_el0(&code, state::ARM, priorities);
    equal!("arm", (end, &registers.x[1..3], class), (12, &[0x4030_2010, 5][..], class::SVC32));
    let (_, registers, _) = at_el0(&code, state::ARM | state::BIG_ENDIAN, priorities);
    equal!("arm_big_endian", registers.x[1], 0x1020_3040);
}
