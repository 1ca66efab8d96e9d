//! The sets of guests in guest-dts: each boots, with its guests' RAM on the right controllers.

use std::time::Instant;

use serde_json::Value;
use system_tests::{Setup, System};

fn boot(set: &str, names: &[&str]) -> System {
    let mut system = Setup::new().guests(set, names).boot();
    for name in names {
        system.wait_for_shell(name);
    }
    system
}

/// Returns the size in MiB of each of a guest's regions behind each controller: `("dmb-0", "mc1", 256)`.
fn parts(system: &mut System, guest: &str) -> Vec<(String, String, u64)> {
    let report = system.json(&format!("guest {guest} map"));
    let rows = report["regions"].as_array().unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let part = |row: &Value| {
        assert_eq!(row["backing"], "movable", "{row}");
        (text(row, "region"), text(row, "controller"), row["backed_bytes"].as_u64().unwrap() >> 20)
    };
    rows.iter().map(part).collect()
}

fn part(region: &str, controller: &str, mib: u64) -> (String, String, u64) {
    (region.into(), controller.into(), mib)
}

/// Returns the size in MiB of the movable blocks behind each controller.
fn movable(system: &mut System) -> Vec<u64> {
    let report = system.json("controllers");
    let rows = report["controllers"].as_array().unwrap();
    rows.iter().map(|row| row["dmb_bytes"].as_u64().unwrap() >> 20).collect()
}

#[test]
fn the_default_set_has_blocks_on_both_controllers_and_empties_one() {
    let names = ["alpha", "beta"];
    let mut system = boot("alpha-beta", &names);
    assert_eq!(movable(&mut system), [256, 1024]);
    for name in names {
        let parts = parts(&mut system, name);
        for expected in [part("dmb-0", "mc0", 96), part("dmb-1", "mc1", 96)] {
            assert!(parts.contains(&expected), "{name}: {parts:?}");
        }
    }
    let report = system.json("evacuate mc1");
    assert_eq!(report["staying"].as_array().unwrap().len(), 0, "{report}");
    let until = Instant::now() + system_tests::patience();
    while system.json("controllers")["controllers"][1]["state"] != "evacuated" {
        assert!(Instant::now() < until, "{}", system.json("jobs"));
    }
    for name in names {
        assert_eq!(system.run(name, "hostname"), name);
    }
}

#[test]
fn two_controllers_hold_the_blocks_of_one_guest() {
    let mut system = boot("two-controllers", &["alpha"]);
    assert_eq!(movable(&mut system), [512, 512]);
    let parts = parts(&mut system, "alpha");
    assert_eq!(parts[1..], [part("dmb-0", "mc0", 256), part("dmb-1", "mc1", 256)]);
    let zones = system.zones("alpha");
    let present: u64 = zones.iter().filter(|zone| zone.name == "Movable").map(|zone| zone.present).sum();
    assert_eq!(present, 512 << 20 >> 12);
}

#[test]
fn two_guests_on_controllers_of_their_own() {
    let mut system = boot("own-controllers", &["alpha", "beta"]);
    for (name, expected) in [("alpha", [256, 0]), ("beta", [0, 256])] {
        let mark = system.write_pages(name, 256);
        assert_eq!(system.pages_behind(&mark, 2), expected, "{name}");
    }
    for (name, controller) in [("alpha", "mc0"), ("beta", "mc1")] {
        assert!(parts(&mut system, name).iter().all(|(_, behind, _)| behind == controller), "{name}");
    }
}

#[test]
fn four_guests_in_turns_on_two_controllers() {
    let names = ["alpha", "beta", "gamma", "delta"];
    let mut system = boot("interleaved", &names);
    for name in names {
        // Interleaved by free memory: the image and the configuration are behind mc0.
        let parts = parts(&mut system, name);
        let [(_, first, low), (_, second, high)] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((first.as_str(), second.as_str(), low + high), ("mc0", "mc1", 256));
        assert!((112..=128).contains(low), "{parts:?}");
        let report = system.json(&format!("guest {name} map"));
        let rows = report["regions"].as_array().unwrap();
        let units: u64 = rows.iter().map(|row| row["medium_count"].as_u64().unwrap()).sum();
        assert_eq!(units, 128, "{report}");
    }
}

#[test]
fn a_hungry_guest_beside_the_owner_of_a_pool() {
    let mut system = boot("pool-owner", &["hungry", "owner"]);
    assert_eq!(movable(&mut system), [0, 320]);
    assert!(system.transcript().contains("pool video of 256 MiB at"));
    let total: u64 = parts(&mut system, "hungry").iter().map(|(_, _, mib)| mib).sum();
    assert_eq!(total, 896);
    // The pool is lent until its owner claims it: the guest has frames in it.
    let zones = system.json("zones");
    let rows = zones["zones"].as_array().unwrap();
    let row = rows.iter().find(|row| row["zone"] == "MOVABLE" && row["controller"] == "mc1").unwrap();
    assert!(row["free_bytes"].as_u64().unwrap() < row["managed_bytes"].as_u64().unwrap(), "{zones}");
    // The operator owns the other pool, and can claim all of it.
    assert!(system.monitor("claim video 4K").contains("the pool belongs to owner"));
    system.monitor("claim camera 64M");
    let until = Instant::now() + system_tests::patience();
    while system.json("claim 1")["state"] != "granted" {
        assert!(Instant::now() < until, "{}", system.json("claim 1"));
    }
    assert_eq!(system.json("pool camera")["claimed_bytes"], 64 << 20);
}
