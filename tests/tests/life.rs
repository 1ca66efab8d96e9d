//! Guests that end, restart, and are stopped.

use system_tests::{Guest, Setup, System};

fn two() -> System {
    Setup::new().set(&[Guest::linux("alpha").vcpus(2), Guest::linux("beta").vcpus(2)], "").boot()
}

/// Returns the free bytes on all controllers.
fn free_bytes(system: &mut System) -> u64 {
    let report = system.json("controllers");
    report["controllers"].as_array().unwrap().iter().map(|c| c["free_bytes"].as_u64().unwrap()).sum()
}

fn state(system: &mut System, name: &str) -> String {
    let report = system.json("guests");
    let guest = report["guests"].as_array().unwrap().iter().find(|guest| guest["name"] == name).unwrap();
    guest["state"].as_str().unwrap().to_owned()
}

/// Waits until a guest is in a state.
#[track_caller]
fn wait_until(system: &mut System, name: &str, wanted: &str) {
    let until = std::time::Instant::now() + system_tests::patience();
    while state(system, name) != wanted {
        assert!(std::time::Instant::now() < until, "{name} is {}", state(system, name));
    }
}

#[test]
fn reboot_and_poweroff_of_one_leave_the_other_running() {
    let mut system = two();
    system.wait_for_shell("alpha");
    system.wait_for_shell("beta");
    system.run("beta", "echo kept > /tmp/file");

    system.to_guest("alpha");
    system.send("reboot\r");
    system.expect(r"alpha: Linux .* ready");
    system.wait_for_shell("alpha");
    let uptime: f64 = system.run("alpha", "cut -d ' ' -f 1 /proc/uptime").parse().unwrap();
    let others: f64 = system.run("beta", "cut -d ' ' -f 1 /proc/uptime").parse().unwrap();
    assert!(uptime < others, "alpha is up for {uptime} s, beta for {others} s");

    system.to_guest("alpha");
    system.send("poweroff\r");
    wait_until(&mut system, "alpha", "off");
    assert_eq!(state(&mut system, "beta"), "running");
    assert_eq!(system.run("beta", "cat /tmp/file"), "kept");

    system.monitor("start alpha");
    wait_until(&mut system, "alpha", "running");
    system.wait_for_shell("alpha");
    assert_eq!(system.run("alpha", "nproc"), "2");
}

#[test]
fn memory_of_a_guest_is_free_when_it_is_off() {
    let guests = [
        Guest::payload("a", "probe").bootargs("probe=echo").ram_mib(128),
        Guest::payload("b", "probe").bootargs("probe=echo").ram_mib(64),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    wait_until(&mut system, "a", "running");
    wait_until(&mut system, "b", "running");
    let both = free_bytes(&mut system);
    system.monitor("stop a");
    wait_until(&mut system, "a", "off");
    let one = free_bytes(&mut system);
    assert!(one >= both + (128 << 20), "{both} free with both, {one} with one");
    system.monitor("start a");
    wait_until(&mut system, "a", "running");
    assert_eq!(free_bytes(&mut system), both);
}

#[test]
fn a_hundred_resets_leak_nothing() {
    let guests =
        [Guest::payload("a", "probe").bootargs("probe=echo").vcpus(2).ram_mib(64), Guest::linux("linux")];
    let mut system = Setup::new().set(&guests, "").boot();
    wait_until(&mut system, "a", "running");
    wait_until(&mut system, "linux", "running");
    let before = free_bytes(&mut system);
    for _ in 0..100 {
        system.monitor("reset a");
        wait_until(&mut system, "a", "running");
    }
    assert_eq!(free_bytes(&mut system), before);
    system.wait_for_shell("linux");
    system.monitor("reset linux");
    system.wait_for_shell("linux");
    assert_eq!(free_bytes(&mut system), before);
}

#[test]
fn stop_and_start_over_the_console() {
    let mut system = two();
    system.wait_for_shell("beta");
    system.monitor("stop beta");
    wait_until(&mut system, "beta", "off");
    assert_eq!(state(&mut system, "alpha"), "running");
    system.monitor("start beta");
    system.wait_for_shell("beta");
}

/// Returns the registers that a guest finds, as it prints them.
fn registers_found(system: &mut System) -> Vec<String> {
    system.to_guest("r");
    let said = system.expect(r"residue vectors (?s).*residue found \d+\r\n");
    system.expect(r"residue left \d{2,}");
    wait_until(system, "r", "off");
    said.lines().filter(|line| line.starts_with("residue ")).map(str::to_owned).collect()
}

#[test]
fn a_guest_finds_no_register_as_the_one_before_left_it() {
    for cpu in ["cortex-a72", "max"] {
        let guest = Guest::payload("r", "residue").ram_mib(32);
        let mut system = Setup::new().cpu(cpu).set(&[guest], "").boot();
        let fresh = registers_found(&mut system);
        assert!(fresh.contains(&"residue vectors 0x0".to_owned()), "{fresh:?}");
        system.monitor("start r");
        assert_eq!(registers_found(&mut system), fresh, "{cpu}");
    }
}
