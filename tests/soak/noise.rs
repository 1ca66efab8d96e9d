//! Accidental input: random bytes, completions and the prefix key, at the monitor and at guests.

use std::time::Duration;

use system_tests::{Random, System};

use crate::fleet::{Kind, Member};

/// The prefix key.
const PREFIX: u8 = 0x1d;
/// Discards the monitor's line, ends a running command, and shows only the console in front.
const QUIET: &[u8] = b"\x1dm\x03\x03q\r\x1dm\x15\rconsole front\r";
/// Beginnings of lines that Tab can complete. They are never entered.
const BEGINNINGS: [&str; 12] = [
    "\t",
    "m\t",
    "migrate \t a\t d\t m\t",
    "pin alpha \t",
    "claim \t",
    "claim video 1\t",
    "release \t",
    "evac\t mc\t",
    "guest al\t t\t",
    "log \t",
    "help st\t",
    "watch 1 gu\t",
];

/// Types noise at a console, then brings the monitor to the front. Returns the number of bytes.
///
/// # Panics
/// The monitor does not come back.
pub(crate) fn make(system: &mut System, random: &mut Random, members: &[Member]) -> u64 {
    system.bring_to_front(system_tests::Console::Monitor);
    let mut bytes = Vec::new();
    for _ in 0..=random.below(8) {
        match random.below(4) {
            0 => at_monitor(&mut bytes, random),
            1 => completions(&mut bytes, random),
            2 => prefixes(&mut bytes, random),
            _ => at_guest(&mut bytes, random, members),
        }
        bytes.extend([PREFIX, b'm']);
    }
    send(system, &bytes);
    send(system, QUIET);
    // Wait until the noise has been processed.
    std::thread::sleep(Duration::from_millis(200));
    system.session().skip_to_now();
    // A key may have brought another console to the front: wait for the monitor.
    system.monitor("console front");
    bytes.len() as u64
}

fn send(system: &mut System, bytes: &[u8]) {
    if let Err(error) = system.session().send(bytes) {
        panic!("{error}");
    }
}

/// Returns random bytes and line ends without Tab and history keys, which could enter a valid command.
fn at_monitor(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(800) {
        let byte = match random.below(10) {
            0 => *random.pick(b"\r\n\x03\x7f\x08\x15\x0b\x01\x05"),
            1..=6 => b' ' + random.below(95) as u8,
            _ => random.draw() as u8,
        };
        // Ctrl-N, Ctrl-P, Ctrl-R and Escape bring earlier lines back.
        if ![PREFIX, b'\t', 0x0e, 0x10, 0x12, 0x1b].contains(&byte) {
            bytes.push(byte);
        }
    }
    bytes.extend(b"\x15");
}

fn completions(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        bytes.extend(random.pick(&BEGINNINGS).bytes());
        // Keys that move in the line, and to earlier lines.
        for _ in 0..random.below(6) {
            bytes.extend(*random.pick(&[b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D"]));
        }
        bytes.extend(b"\t\x15");
    }
}

/// Returns the prefix key and a key that may follow it, except the one for a break, which Linux takes for SysRq.
fn prefixes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(20) {
        bytes.extend([PREFIX, *random.pick(b"mna?012345678xZ\x1d")]);
    }
}

/// Returns harmless bytes for a guest.
fn at_guest(bytes: &mut Vec<u8>, random: &mut Random, members: &[Member]) {
    let index = random.below(members.len());
    let member = &members[index];
    // Keys that are typed while Linux boots can have any effect.
    if member.kind == Kind::Linux && !member.is_ready {
        return;
    }
    bytes.extend([PREFIX, b'1' + index as u8]);
    match member.kind {
        // A line without a line end.
        Kind::Linux => {
            for _ in 0..random.below(60) {
                bytes.push(if random.below(8) == 0 { b'\t' } else { b' ' + random.below(95) as u8 });
            }
            bytes.extend(b"\x03");
        }
        // Each byte starts a check of all memory.
        Kind::Pattern => bytes.extend((0..random.below(3)).map(|_| b'a' + random.below(26) as u8)),
        _ => {
            let noise = (0..random.below(1000)).map(|_| random.draw() as u8).filter(|&byte| byte != PREFIX);
            bytes.extend(noise);
        }
    }
}
