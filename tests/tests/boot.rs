//! Guests boot, answer, and end without one another.

use system_tests::Setup;

#[test]
fn linux_boots_bare_on_every_machine() {
    for machine in ["two", "four", "unequal", "far"] {
        let mut system = Setup::bare_linux("6.12").machine(machine).boot();
        system.wait_for_shell("bare");
        assert_eq!(system.run("bare", "nproc"), "4", "{machine}");
    }
}

#[test]
fn two_guests_answer() {
    let mut system = Setup::new().boot();
    for name in ["alpha", "beta"] {
        system.wait_for_shell(name);
        assert_eq!(system.run(name, "nproc"), "2");
        assert!(system.run(name, "uname -r").starts_with("6.12."));
    }
    let guests = system.json("guests");
    for guest in guests["guests"].as_array().unwrap() {
        assert_eq!(guest["state"], "running");
        assert_eq!(guest["memory_bytes"], 512 << 20);
    }
    assert!(system.monitor("guests").contains("alpha"));
}
