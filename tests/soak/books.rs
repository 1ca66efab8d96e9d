//! The accounts of Ballast's memory while no guest runs, which must be equal before and after.

use std::collections::BTreeMap;

use system_tests::System;

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
    for key in ["guest_bytes", "table_bytes", "own_bytes", "reserved_bytes"] {
        books.insert(key.into(), mem[key].as_u64().unwrap_or_else(|| panic!("no {key}: {mem}")));
    }
    books
}

/// Compares two readings.
///
/// # Panics
/// The readings differ.
pub(crate) fn compare(before: &Books, after: &Books) {
    let differs = |(name, bytes): &(&String, &u64)| after.get(*name) != Some(*bytes);
    let differences: Vec<String> = before
        .iter()
        .filter(differs)
        .map(|(name, bytes)| format!("{name}: {bytes}, then {:?}", after.get(name)))
        .collect();
    assert!(differences.is_empty(), "frames are leaked or lost: {differences:#?}");
}

/// Runs `check`, which walks the whole frame table and all guests' tables.
///
/// # Panics
/// The check finds a problem.
pub(crate) fn check(system: &mut System) {
    let check = system.json("check");
    assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
}
