//! A guest that attacks by means of its disk: DMA to memory that is not its own, its device's configuration space, interrupts.
//!
//! It reads attacks from the console, `NAME` or `NAME NUMBER`, a line each. The boot argument `sabotage=NAME` replaces the
//! console by one attack. The lowest RAM is taken for the DMA window. Each attack prints `sabotage start NAME`, the results, and
//! `sabotage survived NAME` if it ends.

#![no_std]
#![no_main]

mod attacks;
mod endless;
mod pci;
mod virtio;

use bare::platform::Platform;
use bare::{console, say};

bare::entry!(main);

/// An attack with its number, if it has one.
type Attack = fn(&'static Platform, Option<u64>);

const ALL: [(&str, Attack); 12] = [
    ("honest", attacks::honest),
    ("data", attacks::data),
    ("rings", attacks::rings),
    ("config", attacks::config),
    ("bars", attacks::bars),
    ("interrupts", attacks::interrupts),
    ("reset", attacks::reset),
    ("off", attacks::off),
    ("crash", attacks::crash),
    ("flood", endless::flood),
    ("storm", endless::storm),
    ("busy", endless::busy),
];

/// Length of the longest line.
const LINE: usize = 64;

fn main(platform: &'static Platform) {
    if let Some(name) = platform.argument("sabotage") {
        run(platform, name, None);
        return;
    }
    loop {
        say!("sabotage ready");
        let mut bytes = [0; LINE];
        let length = read_line(&mut bytes);
        let line = core::str::from_utf8(&bytes[..length]).unwrap_or_default();
        let mut words = line.split_whitespace();
        if let Some(name) = words.next() {
            run(platform, name, words.next().and_then(number));
        }
    }
}

/// Runs the attack called `name`.
fn run(platform: &'static Platform, name: &str, number: Option<u64>) {
    let Some((_, attack)) = ALL.iter().find(|(known, _)| *known == name) else {
        say!("sabotage unknown {}", name);
        return;
    };
    say!("sabotage start {}", name);
    attack(platform, number);
    say!("sabotage survived {}", name);
}

/// Reads a line from the console. Returns its length.
fn read_line(bytes: &mut [u8]) -> usize {
    let mut length = 0;
    loop {
        match console::typed() {
            Some(b'\r' | b'\n') => return length,
            Some(byte) => {
                if let Some(place) = bytes.get_mut(length) {
                    *place = byte;
                    length += 1;
                }
            }
            None => {}
        }
    }
}

/// Reads a number, hexadecimal with `0x` or else decimal.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}
