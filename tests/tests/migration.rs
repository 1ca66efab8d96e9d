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

/// A guest that uses all of its memory in every way, on several CPUs, with every bit checked, while that memory moves
/// there and back `times` times. Some of its memory moves as units of 4 KiB, some of 2 MiB.
fn stress(setup: Setup, vcpus: u32, times: usize) {
    let memory = "memory@60000000 { reg = <0x0 0x60000000 0x1000000>; unit-size = <0x1000>; };";
    let guest = Guest::payload("stress", "stress").bootargs("window=4").vcpus(vcpus).ram_mib(32).with(memory);
    let mut system = setup.set(&[guest], "").boot();
    system.to_guest("stress");
    system.expect(r"stress filled");
    for time in 0..times {
        for controller in ["mc1", "mc0"] {
            let report = job(&mut system, &format!("migrate stress {controller}"));
            assert_eq!(report["unmoved_bytes"], 0, "{report}");
            // At first, some of it is where it is to go.
            if time > 0 {
                assert_eq!(report["moved_bytes"], 48 << 20, "{report}");
            }
        }
    }
    let said = system.transcript();
    assert!(
        !said.contains("ERROR"),
        "{}",
        said.lines().filter(|line| line.contains("ERROR")).collect::<String>()
    );
    system.to_guest("stress");
    system.session().skip_to_now();
    let said = system.expect(r"stress round \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

#[test]
fn stress_while_an_idle_cpu_moves_its_memory() {
    stress(Setup::new(), 3, 30);
}

#[test]
fn stress_while_its_own_cpus_move_its_memory() {
    stress(Setup::new().cpu("max"), 4, 20);
}
