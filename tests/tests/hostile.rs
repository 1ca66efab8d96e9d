//! A guest that performs random operations on four vCPUs, beside one that must not be affected.
//!
//! `BALLAST_TEST_SEED`, a number, replaces the seeds.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Random, Setup, System, patience};

/// Total number of operations in the tests that the guest survives.
const OPERATIONS: u64 = 1_000_000;
/// Number of boots for these operations.
const BOOTS: u64 = 4;
/// Kinds of operations that the guest counts.
const KINDS: [&str; 14] = [
    "mrs",
    "msr",
    "sysl",
    "sys",
    "hvc",
    "smc",
    "single",
    "indexed",
    "pair",
    "exclusive",
    "ordered",
    "atomic",
    "simd",
    "maintenance",
];

/// Returns the seed from the environment, or `usual`, and prints it.
fn seed(usual: u64) -> u64 {
    let given = std::env::var("BALLAST_TEST_SEED").ok();
    let seed = given.map_or(usual, |text| text.parse().unwrap_or_else(|error| panic!("{text}: {error}")));
    // Printed for tests that pass, too.
    let thread = std::thread::current();
    let line = format!("seed {seed} of {}\n", thread.name().unwrap_or("?"));
    let _ = std::io::stderr().write_all(line.as_bytes());
    seed
}

/// Boots the guest, which owns a pool, with more boot arguments, and a witness that counts interrupts without end.
fn beside_a_witness(cpu: &str, arguments: &str) -> System {
    let hostile = Guest::payload("hostile", "hostile").bootargs(arguments).ram_mib(8).vcpus(4);
    let witness = Guest::payload("witness", "irqload")
        .bootargs("forever=1 rounds=200 patience=60")
        .ram_mib(16)
        .vcpus(2);
    let pool = "pools { prey { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x1000000>; controllers = <1>; \
                owner = <&{/guests/hostile}>; }; };";
    Setup::new()
        .controllers(6, &[256 << 20, 64 << 20])
        .cpu(cpu)
        .set(&[hostile.with("start-manually;"), witness.memory("controllers = <0>;")], pool)
        .boot()
}

/// Checks that the witness runs and has lost nothing, and that `check` finds no problem.
#[track_caller]
fn all_is_well(system: &mut System) {
    system.to_guest("witness");
    system.session().skip_to_now();
    for _ in 0..2 {
        let said = system.expect(r"irqload done [^\n]* lost \d+");
        assert!(said.ends_with(" lost 0") && !said.contains("LOST"), "{said}");
    }
    let guests = system.json("guests");
    let witness = &guests["guests"][1];
    assert_eq!((&witness["state"], &witness["start_count"]), (&"running".into(), &1.into()), "{witness}");
    let check = system.json("check");
    assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
}

/// Waits until the guest's entry in `guests` is as expected. Returns it.
#[track_caller]
fn wait_until(system: &mut System, mut is_it: impl FnMut(&mut System, &Value) -> bool) -> Value {
    let until = Instant::now() + patience();
    loop {
        let guest = system.json("guests")["guests"][0].clone();
        if is_it(system, &guest) {
            return guest;
        }
        assert!(Instant::now() < until, "{guest}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Stops the guest, as an operator can at any time.
#[track_caller]
fn stop(system: &mut System) {
    // It may end by itself, or Ballast may have ended it with a reason.
    let is_over = |guest: &Value| guest["state"] == "off" || guest["state"] == "failed";
    if !is_over(&system.json("guests")["guests"][0]) {
        system.monitor("stop hostile");
    }
    let guest = wait_until(system, |_, guest| is_over(guest));
    assert!(guest["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{guest}");
}

/// Waits until the witness has its memory, which is part of the compared accounts.
#[track_caller]
fn wait_for_witness(system: &mut System) {
    let until = Instant::now() + patience();
    while system.json("guests")["guests"][1]["state"] != "running" {
        assert!(Instant::now() < until, "the witness does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Performs a quarter of all operations, which the guest survives.
fn survives(cpu: &str, usual_seed: u64) {
    let share = OPERATIONS.div_ceil(BOOTS);
    let seed = seed(usual_seed);
    let mut system = beside_a_witness(cpu, &format!("seed={seed} ops={share}"));
    system.wait_for_monitor();
    wait_for_witness(&mut system);
    let before = system.json("controllers");
    system.monitor("start hostile");
    let guest = wait_until(&mut system, |_, guest| guest["state"] == "running" || guest["state"] == "off");
    assert_eq!(guest["start_count"], 1, "{guest}");
    // Check during the operations, too, while its memory moves back and forth.
    all_is_well(&mut system);
    let mut turn = 0;
    let guest = wait_until(&mut system, |system, guest| {
        turn += 1;
        // Refused when the guest is off.
        system.monitor(["migrate hostile mc1", "migrate hostile mc0"][turn % 2]);
        guest["state"] == "off"
    });
    assert_eq!((&guest["reason"], &guest["start_count"]), (&"powered off".into(), &1.into()), "{guest}");
    system.to_guest("hostile");
    let said = system.expect(r"hostile done ops \d+ caught \d+ rescued \d+");
    let number = |name: &str| {
        let pattern = format!(r"hostile {name} (\d+)");
        let found = regex::Regex::new(&pattern).unwrap().captures(&said);
        let found = found.unwrap_or_else(|| panic!("no {name} in {said}"));
        found[1].parse::<u64>().unwrap()
    };
    println!("{said}");
    let counts: Vec<u64> = KINDS.iter().map(|kind| number(kind)).collect();
    assert!(counts.iter().all(|&count| count > share / 200), "{said}");
    assert!(counts.iter().sum::<u64>() >= share && number("done ops") >= share, "{said}");
    all_is_well(&mut system);
    assert_eq!(before, system.json("controllers"), "all of its memory comes back");
    let moved = system.json("stats migration")["guests"][0]["moved_bytes"].clone();
    assert!(moved.as_u64() > Some(0), "{moved}");
    // Some random calls about its pool were valid.
    let claims = system.json("claims stats");
    assert!(claims["granted_count"].as_u64() > Some(0), "{claims}");
}

#[test]
fn random_operations_on_cortex_a72_harm_nobody() {
    survives("cortex-a72", 0x5eed_0001);
}

#[test]
fn other_random_operations_on_cortex_a72_harm_nobody() {
    survives("cortex-a72", 0x5eed_0002);
}

#[test]
fn random_operations_on_every_extension_harm_nobody() {
    survives("max", 0x5eed_0003);
}

#[test]
fn other_random_operations_on_every_extension_harm_nobody() {
    survives("max", 0x5eed_0004);
}

/// Performs all operations: the guest also changes its own translation and vectors, overwrites, ends or resets itself. No
/// other guest is affected.
fn dies_alone(cpu: &str, usual_seed: u64) {
    let mut random = Random::new(seed(usual_seed));
    let mut system = beside_a_witness(cpu, "mode=wild");
    system.wait_for_monitor();
    wait_for_witness(&mut system);
    let before = system.json("controllers");
    for _ in 0..10 {
        let seed = random.draw() >> 1;
        system.monitor("start hostile");
        system.to_guest("hostile");
        system.expect(r"hostile seed\?");
        system.send(&format!("{seed}\r"));
        system.expect(r"hostile start seed \d+ cpus 4");
        std::thread::sleep(Duration::from_millis(500));
        all_is_well(&mut system);
        let guest = system.json("guests")["guests"][0].clone();
        println!(
            "wild seed {seed}: {} after {} starts, {}",
            guest["state"], guest["start_count"], guest["reason"]
        );
        stop(&mut system);
        // What it claimed is released in migration's time.
        let until = Instant::now() + system_tests::patience();
        let mut after = system.json("controllers");
        while after != before {
            assert!(Instant::now() < until, "all of its memory comes back: {before} {after}");
            std::thread::sleep(Duration::from_millis(20));
            after = system.json("controllers");
        }
    }
}

#[test]
fn a_guest_that_spares_not_even_itself_dies_alone() {
    dies_alone("cortex-a72", 0x5eed_0005);
}

#[test]
fn a_guest_with_every_extension_dies_alone() {
    dies_alone("max", 0x5eed_0006);
}
