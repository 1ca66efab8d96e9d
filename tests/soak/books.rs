//! What Ballast has, when no guest runs: it has to be the same before and after.

use std::collections::BTreeMap;

use system_tests::System;

/// Bytes by what they are.
pub(crate) type Books = BTreeMap<String, u64>;

/// Reads the books: frames that are free or retired by zone and controller, and what Ballast itself has. What is retired
/// was free, or would be.
///
/// # Panics
/// A report lacks something.
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
/// They differ.
pub(crate) fn compare(before: &Books, after: &Books) {
    let differs = |(name, bytes): &(&String, &u64)| after.get(*name) != Some(*bytes);
    let differences: Vec<String> = before
        .iter()
        .filter(differs)
        .map(|(name, bytes)| format!("{name}: {bytes}, then {:?}", after.get(name)))
        .collect();
    assert!(differences.is_empty(), "frames are leaked or lost: {differences:#?}");
}

/// Lets Ballast walk its whole frame table and all guests' tables.
///
/// # Panics
/// Something is wrong.
pub(crate) fn check(system: &mut System) {
    let check = system.json("check");
    assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
}
