//! The cost of guest operations that involve a hypervisor: nanoseconds of the guest's counter per operation, the mean of a loop
//! of 4096. With `-icount shift=0`, one nanosecond is one instruction.
//!
//! Prints `bench NAME NANOSECONDS` for each operation, then `bench done`, and powers the machine off. The figures include the
//! loops and the handler, which are in assembly below.
//!
//! | name | operation |
//! |---|---|
//! | `hvc_psci_version` | HVC, PSCI_VERSION |
//! | `gicd_typer_read` | read of GICD_TYPER |
//! | `gicd_isenabler_write` | write of 0 to GICD_ISENABLER1 |
//! | `sgi_self` | SGI to the same CPU, until its handler has returned |
//! | `timer_virtual` | virtual timer interrupt, from setting the timer until its handler has returned |
//! | `ipi_round_trip` | SGI to another CPU, which sleeps in WFI, and back to this one, which sleeps too; needs two CPUs |
//! | `page_first_write` | first write to a page of RAM, the best and the only one of 4096 pages |
//!
//! With `devices=1` in the boot arguments, it measures the operations of [`devices`] instead.

#![no_std]
#![no_main]

mod devices;

use bare::platform::Platform;
use bare::{gic, mmu, msr, say, smp, timer};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

bare::entry!(main);

const ROUNDS: u64 = 4096;
/// The SGI that a CPU sends to itself and to others.
const SGI: u32 = 1;

/// For each CPU, in a cache line of its own: the counter of handled interrupts, and the register that masks the device's line.
#[repr(C, align(64))]
struct Flag {
    count: AtomicU32,
    mask: AtomicU64,
}

#[unsafe(no_mangle)]
static BENCH_FLAGS: [Flag; 2] = [const { Flag { count: AtomicU32::new(0), mask: AtomicU64::new(0) } }; 2];

core::arch::global_asm!(
    r#"
    .section .text.bench, "ax"

/* Each loop: x0 what to access, x1 how often, x2 this CPU's flag. Returns the ticks that passed. */
.macro loop_start
    isb
    mrs     x10, cntvct_el0
    .balign 16
.endm
.macro loop_end
    isb
    mrs     x11, cntvct_el0
    sub     x0, x11, x10
    ret
.endm

.global bench_hvc
bench_hvc:
    mov     x9, x1
    loop_start
1:  mov     w0, #0x84000000
    hvc     #0
    subs    x9, x9, #1
    b.ne    1b
    loop_end

.global bench_read
bench_read:
    loop_start
1:  ldr     w3, [x0]
    eor     w4, w4, w3
    subs    x1, x1, #1
    b.ne    1b
    loop_end

.global bench_write
bench_write:
    loop_start
1:  str     wzr, [x0]
    subs    x1, x1, #1
    b.ne    1b
    loop_end

/* x0: ICC_SGI1R_EL1 for oneself. The CPU takes interrupts meanwhile. */
.global bench_sgi
bench_sgi:
    loop_start
1:  str     wzr, [x2]
    msr     icc_sgi1r_el1, x0
    isb
2:  ldr     w3, [x2]
    cbz     w3, 2b
    subs    x1, x1, #1
    b.ne    1b
    loop_end

/* A virtual timer that is due at once. The handler switches it off. */
.global bench_timer
bench_timer:
    mov     x4, #1
    loop_start
1:  str     wzr, [x2]
    msr     cntv_tval_el0, xzr
    msr     cntv_ctl_el0, x4
    isb
2:  ldr     w3, [x2]
    cbz     w3, 2b
    subs    x1, x1, #1
    b.ne    1b
    loop_end

/* x0: the register that lets the device's line through. The handler masks it. */
.global bench_line
bench_line:
    mov     w4, #1
    loop_start
1:  str     wzr, [x2]
    str     w4, [x0]
2:  ldr     w3, [x2]
    cbz     w3, 2b
    subs    x1, x1, #1
    b.ne    1b
    loop_end

/* x0: ICC_SGI1R_EL1 for the other CPU. Interrupts are masked but for a moment after each sleep. */
.global bench_ipi
bench_ipi:
    loop_start
1:  str     wzr, [x2]
    dsb     ishst
    msr     icc_sgi1r_el1, x0
    isb
2:  dsb     sy
    wfi
    msr     daifclr, #2
    isb
    msr     daifset, #2
    ldr     w3, [x2]
    cbz     w3, 2b
    subs    x1, x1, #1
    b.ne    1b
    loop_end

/* The other CPU's part, without end. */
.global bench_answer
bench_answer:
1:  str     wzr, [x2]
2:  dsb     sy
    wfi
    msr     daifclr, #2
    isb
    msr     daifset, #2
    ldr     w3, [x2]
    cbz     w3, 2b
    dsb     ishst
    msr     icc_sgi1r_el1, x0
    isb
    b       1b

.global bench_touch
bench_touch:
    loop_start
1:  str     x1, [x0]
    add     x0, x0, #4096
    subs    x1, x1, #1
    b.ne    1b
    loop_end

/* The handler, as a kernel has it: saved is what a compiler expects of a call and what a nested exception would change;
   the number is looked at; the timer is switched off, if it is that; the flag counts. */
.macro not_expected
    .balign 128
    b       .
.endm
.macro vectors name, handler
    .balign 2048
    .global \name
\name:
    not_expected
    not_expected
    not_expected
    not_expected
    not_expected
    .balign 128
    stp     x0, x1, [sp, #-176]!
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x0, x1, [sp, #160]
    bl      \handler
    ldp     x0, x1, [sp, #160]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x18, x30, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp], #176
    eret
    .rept 10
    not_expected
    .endr
    .balign 128
.endm
    vectors bench_vectors, bench_handle
    vectors bench_line_vectors, bench_handle_line

bench_handle:
    mrs     x0, icc_iar1_el1
    dsb     sy
    cmp     w0, #1020
    b.hs    2f
    cmp     w0, #27
    b.ne    1f
    msr     cntv_ctl_el0, xzr
    isb
1:  mrs     x2, contextidr_el1
    ldr     w3, [x2]
    add     w3, w3, #1
    str     w3, [x2]
    msr     icc_eoir1_el1, x0
    isb
2:  ret

/* The same for the device's line alone: its register masks it. */
bench_handle_line:
    mrs     x0, icc_iar1_el1
    dsb     sy
    cmp     w0, #1020
    b.hs    2f
    mrs     x2, contextidr_el1
    ldr     x3, [x2, #8]
    str     wzr, [x3]
    ldr     w3, [x2]
    add     w3, w3, #1
    str     w3, [x2]
    msr     icc_eoir1_el1, x0
    isb
2:  ret
    .text
"#
);

/// A loop above. It takes the address to access, the number of iterations and this CPU's flag, and returns the ticks.
type Loop = unsafe extern "C" fn(u64, u64, &Flag) -> u64;

unsafe extern "C" {
    fn bench_hvc(unused: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_read(address: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_write(address: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_sgi(target: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_timer(unused: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_line(mask: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_ipi(target: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_touch(address: u64, rounds: u64, flag: &Flag) -> u64;
    fn bench_answer(target: u64, unused: u64, flag: &Flag) -> !;
    static bench_vectors: u8;
    static bench_line_vectors: u8;
}

fn main(platform: &'static Platform) {
    say!(
        "bench start {:?} entered at EL{} counter {} Hz",
        platform.host,
        platform.entry_level,
        timer::frequency()
    );
    if platform.number("devices") == Some(1) {
        devices::measure_all(platform);
        say!("bench done");
        return;
    }
    let distributor = gic::distributor() as u64;
    let own = gic::sgi_target(SGI, platform.cpus()[0]);
    measure("hvc_psci_version", bench_hvc, 0);
    measure("gicd_typer_read", bench_read, distributor + gic::register::TYPER as u64);
    measure("gicd_isenabler_write", bench_write, distributor + gic::register::ISENABLER as u64 + 4);
    take_interrupts(0);
    bare::register::unmask_interrupts();
    measure("sgi_self", bench_sgi, own);
    measure("timer_virtual", bench_timer, 0);
    bare::register::mask_interrupts();
    if platform.cpu_count > 1 {
        match smp::start(1, answer) {
            Ok(()) => measure_ipi(platform),
            Err(error) => say!("bench ipi_round_trip skipped: CPU_ON says {}", error),
        }
    } else {
        say!("bench ipi_round_trip skipped: one CPU");
    }
    measure_first_write(platform);
    say!("bench done");
}

fn measure(name: &str, body: Loop, operand: u64) {
    // SAFETY: the loops touch device registers, their CPU's flag, and registers that calls may change.
    let ticks = unsafe { body(operand, ROUNDS, &BENCH_FLAGS[0]) };
    report(name, ticks, ROUNDS);
}

fn measure_ipi(platform: &Platform) {
    while !smp::is_running(1) {
        bare::sync::relax();
    }
    // The other CPU sleeps by then.
    timer::delay(1000);
    measure("ipi_round_trip", bench_ipi, gic::sgi_target(SGI, platform.cpus()[1]));
}

/// Runs the second CPU.
fn answer(_index: usize) {
    take_interrupts(1);
    bare::register::mask_interrupts();
    let first = bare::boot::platform().map_or(0, |platform| platform.cpus()[0]);
    // SAFETY: as for `measure`; it never returns.
    unsafe { bench_answer(gic::sgi_target(SGI, first), 0, &BENCH_FLAGS[1]) }
}

/// Installs the handler above on this CPU, and enables its interrupts.
fn take_interrupts(index: usize) {
    // The handler finds the flag in a register that no other code here uses.
    msr!("contextidr_el1", core::ptr::from_ref(&BENCH_FLAGS[index]) as u64);
    msr!("vbar_el1", &raw const bench_vectors as u64);
    BENCH_FLAGS[index].count.store(0, Ordering::Relaxed);
    gic::enable(SGI);
    gic::enable(timer::VIRTUAL_INTID);
}

fn measure_first_write(platform: &Platform) {
    let free = platform.free_ram();
    let pages = ROUNDS.min((free.size() / mmu::PAGE) as u64);
    // From the top of RAM, which is unused.
    let start = free.end - pages as usize * mmu::PAGE;
    // SAFETY: RAM that neither the image nor the tree is in.
    let ticks = unsafe { bench_touch(start as u64, pages, &BENCH_FLAGS[0]) };
    report("page_first_write", ticks, pages);
}

/// Prints nanoseconds with two decimals.
fn report(name: &str, ticks: u64, rounds: u64) {
    let hundredths =
        u128::from(ticks) * 100_000_000_000 / u128::from(timer::frequency()) / u128::from(rounds.max(1));
    say!("bench {} {}.{:02}", name, hundredths / 100, hundredths % 100);
}
