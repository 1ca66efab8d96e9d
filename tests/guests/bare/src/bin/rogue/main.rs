//! Guests that misbehave, one way at a time. None of it may harm the hypervisor or another guest.
//!
//! The boot argument `rogue=NAME` selects one, otherwise a typed letter does, with a menu. `rogue=all` runs all that return, one
//! after the other. Each prints `rogue start NAME`; those that return then print `rogue survived NAME`. A boot argument powers
//! the machine off afterwards, a typed letter returns to the menu. `seed=N` and `count=N` change the random ones.

#![no_std]
#![no_main]

mod calls;
mod dead;
mod devices;
mod registers;
mod translation;

use bare::platform::Platform;
use bare::{console, exception, gic, mrs, msr, say};

bare::entry!(main);

/// The parameters of a misbehaviour.
pub(crate) struct Task {
    /// The machine.
    pub(crate) platform: &'static Platform,
    /// Seed of random numbers.
    pub(crate) seed: u64,
    /// Number of repetitions from the boot arguments.
    pub(crate) count: Option<u64>,
}

impl Task {
    /// Returns the number of repetitions: that of the boot arguments, else `usual`.
    pub(crate) fn count(&self, usual: u64) -> u64 {
        self.count.unwrap_or(usual)
    }
}

/// The end of a misbehaviour.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The function returns.
    Back,
    /// The function does not return.
    Never,
}

type Misbehaviour = (char, &'static str, End, fn(&Task));

const ALL: [Misbehaviour; 28] = [
    ('a', "holes", End::Back, devices::holes),
    ('b', "gic", End::Back, devices::gic),
    ('c', "uart", End::Back, devices::uart),
    ('d', "odd-accesses", End::Back, devices::odd_accesses),
    ('e', "cpu-storm", End::Back, calls::cpu_storm),
    ('f', "hypercalls", End::Back, calls::random),
    ('g', "psci", End::Back, calls::psci_arguments),
    ('h', "registers", End::Back, registers::every),
    ('i', "maintenance", End::Back, registers::maintenance),
    ('j', "debug", End::Back, registers::debug),
    ('k', "far-addresses", End::Back, translation::far_addresses),
    ('l', "table-in-hole", End::Back, translation::table_in_hole),
    ('m', "table-in-device", End::Back, translation::table_in_device),
    ('n', "fetch-device", End::Back, translation::fetch_device),
    ('o', "random-tables", End::Back, translation::random_tables),
    ('p', "jump", End::Never, dead::jump),
    ('q', "stack", End::Never, dead::stack),
    ('r', "undefined", End::Never, dead::undefined),
    ('s', "aborts", End::Never, dead::aborts),
    ('t', "sleep", End::Never, dead::sleep),
    ('u', "spin", End::Never, dead::spin),
    ('v', "timer-storm", End::Never, dead::timer_storm),
    ('w', "sgi-storm", End::Never, dead::sgi_storm),
    ('x', "print", End::Never, dead::print),
    ('y', "root-in-hole", End::Never, dead::root_in_hole),
    ('z', "all-cpus-off", End::Never, dead::all_cpus_off),
    ('0', "reset", End::Never, dead::reset),
    ('1', "suspend", End::Never, dead::suspend),
];

fn main(platform: &'static Platform) {
    let task = Task { platform, seed: platform.number("seed").unwrap_or(1), count: platform.number("count") };
    exception::on_irq(take_irq);
    exception::on_fiq(take_fiq);
    match platform.argument("rogue") {
        Some("all") => {
            ALL.iter().filter(|(_, _, end, _)| *end == End::Back).for_each(|chosen| run(chosen, &task))
        }
        Some(name) => match ALL.iter().find(|(_, known, _, _)| *known == name) {
            Some(chosen) => run(chosen, &task),
            None => say!("rogue unknown {}", name),
        },
        None => menu(&task),
    }
    say!("rogue off");
}

fn menu(task: &Task) {
    loop {
        for (letter, name, end, _) in ALL {
            say!("rogue {}: {}{}", letter, name, if end == End::Never { ", without end" } else { "" });
        }
        say!("rogue which? (. switches off)");
        let letter = loop {
            match console::typed() {
                Some(byte) => break char::from(byte),
                None => bare::sync::relax(),
            }
        };
        if letter == '.' {
            return;
        }
        if let Some(chosen) = ALL.iter().find(|(known, _, _, _)| *known == letter) {
            run(chosen, task);
        }
    }
}

fn run((_, name, _, work): &Misbehaviour, task: &Task) {
    say!("rogue start {}", name);
    work(task);
    bare::register::mask_interrupts();
    gic::restart(task.platform);
    console::open(task.platform.console());
    say!("rogue survived {}", name);
}

fn take_irq() {
    let intid = gic::acknowledge();
    if intid < 1020 {
        gic::end(intid);
    }
}

fn take_fiq() {
    let intid = mrs!("icc_iar0_el1");
    msr!("icc_eoir0_el1", intid);
}
