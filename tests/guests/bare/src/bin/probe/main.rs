//! Checks of a guest's platform from inside: PSCI, identification registers, aborts, device accesses of every kind, the interrupt
//! controller, the PL011, timers, FP/SIMD.
//!
//! Prints `probe NAME ok`, `probe NAME FAIL DETAIL` or `probe NAME skip REASON` for each check, then
//! `probe done N ok M failed`, and powers the machine off. The boot argument `probe=GROUP[,GROUP…]` selects groups of
//! `fp psci ids aborts mmio trapped gic many timers uart`. With `probe=echo` the program counts input (uart.rs), with
//! `probe=bypass` it calls SMCCC_ARCH_WORKAROUND_2 (bypass.rs).
//!
//! All checks also hold on QEMU's board without a hypervisor, except those for features that it lacks, which are skipped.

#![no_std]
#![no_main]

mod aborts;
mod bypass;
mod cpus;
mod fp;
mod gic;
mod ids;
mod irq;
mod many;
mod mmio;
mod psci;
mod report;
mod timers;
mod trapped;
mod uart;

use bare::platform::Platform;
use bare::say;

bare::entry!(main);

type Group = (&'static str, fn(&'static Platform));

// FP comes first, before the vector registers are used.
const GROUPS: [Group; 10] = [
    ("fp", fp::run),
    ("psci", psci::run),
    ("ids", ids::run),
    ("aborts", aborts::run),
    ("mmio", mmio::run),
    ("trapped", trapped::run),
    ("gic", gic::run),
    ("many", many::run),
    ("timers", timers::run),
    ("uart", uart::run),
];

fn main(platform: &'static Platform) {
    say!("probe start {:?} {} CPUs", platform.host, platform.cpu_count);
    let chosen = platform.argument("probe");
    if chosen == Some("echo") {
        uart::echo(platform);
        return;
    }
    if chosen == Some("bypass") {
        bypass::run();
    }
    for (name, run) in GROUPS {
        if chosen.is_none_or(|list| list.split(',').any(|group| group == name)) {
            run(platform);
        }
    }
    report::close();
}
