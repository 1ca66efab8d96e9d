//! Instructions per operation, counted by valgrind's callgrind: the same on any PC, however busy.
//!
//! Each figure is the difference between two runs, one with twice the operations of the other, so that preparation does
//! not count. The cost of the loop around empty calls is subtracted. Both allocators are compiled for speed. The last
//! line lists the missed limits.

#[path = "workload/boot.rs"]
mod boot;
mod workload;

use std::process::Command;

use boot::Boot;
use workload::{Ballast, BuddySystem, Frames, Nothing, Work};

/// The minimum ratio of the instructions of buddy_system_allocator to Ballast's, for single frames in any pattern.
const SINGLE_LIMIT: f64 = 2.0;
/// The minimum ratio for larger blocks.
const BLOCK_LIMIT: f64 = 0.9;
/// The maximum ratio of the cost on the largest map to the cost on the smallest.
const FLAT_LIMIT: f64 = 1.05;

fn all() -> Vec<(String, Work, u64)> {
    let mut all = Vec::new();
    for order in [0, 1, 2, 3, 4, 6, 8, 9, 10, 12, 14, 16, 18] {
        all.push((format!("pair, order {order}"), Work::Pair(order), 2));
    }
    for order in [0, 3, 6, 9] {
        all.push((format!("fill, order {order}"), Work::Fill(order), 2));
        all.push((format!("drain in order, order {order}"), Work::Drain(order), 2));
        all.push((format!("drain at random, order {order}"), Work::DrainShuffled(order), 2));
    }
    all.push(("churn at 512 Ki free".into(), Work::Churn, 4));
    for gib in [1, 16, 256, 1024] {
        all.push((format!("pair, order 0, {gib} GiB"), Work::Pair(0), gib));
        all.push((format!("drain at random, order 0, {gib} GiB"), Work::DrainShuffled(0), gib));
    }
    all
}

fn child<F: Frames>(work: Work, gib: u64, count: usize) {
    let mut prepared = work.prepare::<F>(gib, count);
    work.run(&mut prepared);
    // Not dropped: the cost outside `run` must be the same for both counts.
    std::mem::forget(prepared);
}

/// Returns the instructions that callgrind counts in one run, in functions like `toggle`.
fn count(toggle: &str, child: &[&str]) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={toggle}"))
        .arg(std::env::current_exe().ok()?)
        .arg("--child")
        .args(child)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

/// Prints the cost of taking over the RAM of machines of several sizes.
fn boots() {
    println!(
        "\n{:<38} {:>12} {:>14} {:>12} {:>14}",
        "boot", "instructions", "for each GiB", "frame table", "written at boot"
    );
    for (index, boot) in Boot::all().into_iter().enumerate() {
        let Some(figure) = count("*Boot*boot*", &["boot", &index.to_string()]) else { return };
        let written = boot.written_bytes().map_or("-".into(), |bytes| format!("{} KiB", bytes >> 10));
        println!(
            "{:<38} {figure:>12} {:>14} {:>8} KiB {written:>14}",
            boot.name,
            figure / boot.gib,
            boot.table_bytes() >> 10,
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--child") {
        if arguments[at + 1] == "boot" {
            Boot::all().swap_remove(arguments[at + 2].parse().expect("an index")).run();
            return;
        }
        let (_, work, gib) = all().swap_remove(arguments[at + 1].parse().expect("an index"));
        let most = work.limit(gib).min(1 << 16);
        let count = if arguments[at + 3] == "half" { most / 2 } else { most };
        match arguments[at + 2].as_str() {
            "ballast" => child::<Ballast>(work, gib, count),
            "nothing" => child::<Nothing>(work, gib, count),
            _ => child::<BuddySystem>(work, gib, count),
        }
        return;
    }
    let only = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    println!(
        "{:<38} {:>8} {:>14} {:>7} {:>7}",
        "instructions per operation", "Ballast", "buddy_system", "ratio", "limit"
    );
    let mut missed = Vec::new();
    let mut by_size: Vec<(Work, f64)> = Vec::new();
    for (index, (name, work, gib)) in all().into_iter().enumerate() {
        if only.is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let most = work.limit(gib).min(1 << 16);
        let figure = |who| {
            let one = |part| count("*Work*run*", &[&index.to_string(), who, part]);
            let (whole, half) = (one("whole")?, one("half")?);
            Some((whole - half) as f64 / (most - most / 2) as f64)
        };
        let all = (figure("ballast"), figure("buddy_system"), figure("nothing"));
        let (Some(ours), Some(theirs), Some(calls)) = all else {
            println!("{name:<38} no figure: valgrind is not available");
            println!("limits missed: unknown, no figures");
            return;
        };
        // The cost of the loop and the calls belongs to neither.
        let (ours, theirs) = (ours - calls, theirs - calls);
        let (ratio, limit) = (theirs / ours, work.limit_of_ratio());
        let mark = if ratio < limit { "  missed" } else { "" };
        println!("{name:<38} {ours:>8.1} {theirs:>14.1} {ratio:>7.2} {limit:>7.2}{mark}");
        if ratio < limit {
            missed.push(name.clone());
        }
        if name.ends_with(" GiB") {
            by_size.push((work, ours));
        }
    }
    for work in [Work::Pair(0), Work::DrainShuffled(0)] {
        let figures = || by_size.iter().filter(|(of, _)| *of == work).map(|(_, figure)| *figure);
        let (least, most) = (figures().fold(f64::MAX, f64::min), figures().fold(0.0, f64::max));
        if most == 0.0 {
            continue;
        }
        let ratio = most / least;
        let mark = if ratio > FLAT_LIMIT { "  missed" } else { "" };
        let name = format!("{work:?}, largest to smallest map");
        println!("{name:<38} {:>8} {:>14} {ratio:>7.2} {FLAT_LIMIT:>7.2}{mark}", "", "");
        if ratio > FLAT_LIMIT {
            missed.push(name);
        }
    }
    if only.is_none_or(|only| "boot".contains(only.as_str())) {
        boots();
    }
    match missed.as_slice() {
        [] => println!("\nlimits missed: none"),
        missed => println!("\nlimits missed: {}", missed.join("; ")),
    }
}

impl Work {
    /// Returns the minimum ratio of the other allocator's instructions to Ballast's.
    fn limit_of_ratio(self) -> f64 {
        match self {
            Self::Pair(0) | Self::Fill(0) | Self::Drain(0) | Self::DrainShuffled(0) | Self::Churn => {
                SINGLE_LIMIT
            }
            _ => BLOCK_LIMIT,
        }
    }
}
