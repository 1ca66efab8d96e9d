//! Bare-metal guests that check what a guest may rely on, and guests that misbehave.

use system_tests::{Guest, Setup};

/// Runs the whole of `probe` on `vcpus` vCPUs of a `cpu`.
#[track_caller]
fn probe(cpu: &str, vcpus: u32) {
    let mut system =
        Setup::new().cpu(cpu).set(&[Guest::payload("p", "probe").vcpus(vcpus).ram_mib(128)], "").boot();
    system.to_guest("p");
    let said = system.expect(r"probe done \d+ ok \d+ failed");
    let failed: Vec<&str> = said.lines().filter(|line| line.contains(" FAIL ")).collect();
    assert!(said.ends_with(" 0 failed"), "{failed:#?}");
}

#[test]
fn the_platform_on_cortex_a53() {
    probe("cortex-a53", 2);
}

#[test]
fn the_platform_on_cortex_a72() {
    probe("cortex-a72", 4);
}

#[test]
fn the_platform_on_neoverse_n1() {
    probe("neoverse-n1", 2);
}

#[test]
fn the_platform_on_max() {
    probe("max", 2);
}

#[test]
fn interrupts_under_load_lose_nothing() {
    let guests = [
        Guest::payload("a", "irqload").vcpus(2).bootargs("rounds=2000").ram_mib(64),
        Guest::payload("b", "irqload").vcpus(2).bootargs("rounds=2000").ram_mib(64),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    for name in ["a", "b"] {
        system.to_guest(name);
        let said = system.expect(r"irqload done [^\n]* lost \d+\r");
        assert!(said.trim_end().ends_with("lost 0"), "{said}");
    }
}

#[test]
fn a_guest_that_misbehaves_harms_nobody() {
    let guests = [
        Guest::payload("bad", "rogue").bootargs("rogue=all").vcpus(2).ram_mib(64),
        Guest::linux("good").vcpus(2),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    system.wait_for_shell("good");
    system.to_guest("bad");
    system.expect("rogue off");
    assert_eq!(system.run("good", "echo still fine"), "still fine");
}

#[test]
fn all_memory_can_be_used_in_every_way() {
    let guest = Guest::payload("s", "stress").vcpus(4).bootargs("rounds=12").ram_mib(96);
    let mut system = Setup::new().set(&[guest], "").boot();
    system.to_guest("s");
    let said = system.expect(r"stress done rounds \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}
