//! The accounts of Ballast's memory while no guest runs, which must be equal before and after.

use std::collections::BTreeMap;

use system_tests::System;

/// The account of Ballast's own memory.
const OWN: &str = "own_bytes";

/// Bytes by category.
pub(crate) type Books = BTreeMap<String, u64>;

/// Reads the accounts: free or retired memory by zone and controller, and Ballast's own memory. Retired memory counts as free.
///
/// # Panics
/// A report lacks a field.
pub(crate) fn read(system: &mut System) -> Books {
    let mut books = Books::new();
    let zones = system.json("zones");
    for zone in zones["zones"].as_array().into_iter().flatten() {
        let (name, controller) = (&zone["zone"], &zone["controller"]);
        let bytes = |key: &str| zone[key].as_u64().unwrap_or_else(|| panic!("no {key}: {zone}"));
        books.insert(format!("free in {name} of {controller}"), bytes("free_bytes") + bytes("retired_bytes"));
        books.insert(format!("isolated in {name} of {controller}"), bytes("isolated_bytes"));
    }
    let mem = system.json("mem");
    for key in ["guest_bytes", "table_bytes", OWN, "reserved_bytes"] {
        books.insert(key.into(), mem[key].as_u64().unwrap_or_else(|| panic!("no {key}: {mem}")));
    }
    books
}

/// Compares two readings. EL2's heap never gives frames back: it may have grown by up to `heap_growth` bytes, all of them
/// taken from zone NORMAL. Everything else must be equal.
///
/// # Panics
/// The readings differ.
pub(crate) fn compare(before: &Books, after: &Books, heap_growth: u64) {
    let grown = after[OWN].saturating_sub(before[OWN]);
    assert!(grown <= heap_growth, "own memory grew by {grown} bytes, by more than {heap_growth}");
    let is_free_normal = |name: &str| name.starts_with("free in \"NORMAL\" of");
    let free_normal = |books: &Books| -> u64 {
        books
            .iter()
            .filter(|(name, _)| is_free_normal(name) && !name.ends_with("null"))
            .map(|(_, bytes)| bytes)
            .sum()
    };
    assert_eq!(free_normal(after) + grown, free_normal(before), "{before:#?} {after:#?}");
    let differences: Vec<String> = before
        .iter()
        .filter(|(name, _)| *name != OWN && (grown == 0 || !is_free_normal(name)))
        .filter(|(name, bytes)| after.get(*name) != Some(*bytes))
        .map(|(name, bytes)| format!("{name}: {bytes}, then {:?}", after.get(name)))
        .collect();
    assert!(differences.is_empty(), "frames are leaked or lost: {differences:#?}");
    if grown > 0 {
        println!("EL2's heap grew by {} KiB", grown >> 10);
    }
}

/// Runs `check`, which walks the whole frame table and all guests' tables.
///
/// # Panics
/// The check finds a problem.
pub(crate) fn check(system: &mut System) {
    let check = system.json("check");
    assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
}
