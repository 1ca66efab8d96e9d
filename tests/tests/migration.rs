//! Memory that moves while its guest runs.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

/// Waits until job `number` is over, and yields its report.
#[track_caller]
fn wait_for_job(system: &mut System, number: u64) -> Value {
    let until = Instant::now() + system_tests::patience();
    loop {
        let job = system.json(&format!("job {number}"));
        if ["finished", "cancelled"].contains(&job["state"].as_str().unwrap_or_default()) {
            return job;
        }
        assert!(Instant::now() < until, "{job}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Gives a command that starts a job, and waits for its end.
#[track_caller]
fn job(system: &mut System, command: &str) -> Value {
    let number = system.json(command)["job"].as_u64().unwrap_or_else(|| panic!("no job of `{command}`"));
    wait_for_job(system, number)
}

#[test]
fn a_linux_guest_moves_there_and_back() {
    let mut system = Setup::new().set(&[Guest::linux("alpha").vcpus(2)], "").boot();
    system.wait_for_shell("alpha");
    system.run("alpha", "head -c 32M /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum");
    for _ in 0..3 {
        for controller in ["mc0", "mc1"] {
            let report = job(&mut system, &format!("migrate alpha {controller}"));
            assert_eq!(report["unmoved_bytes"], 0, "{report}");
        }
        system.run("alpha", "sha256sum -c /tmp/sum");
    }
}
