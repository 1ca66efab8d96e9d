//! What an operator is told: behind which controllers guests shall lie, what they have, why jobs ended.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

const MIB: u64 = 1 << 20;

/// A pool of 256 MiB in a designated block on controller 1.
const POOL: &str = "pools { video { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x10000000>; \
                    controllers = <1>; }; };";

/// Asks `command` until what it reports is such that `is_it`.
#[track_caller]
fn wait_for(system: &mut System, command: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + system_tests::patience();
    loop {
        let report = system.json(command);
        if is_it(&report) {
            return report;
        }
        assert!(Instant::now() < until, "{report}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn boot() -> System {
    let guest = Guest::payload("echo", "probe").bootargs("probe=echo").ram_mib(64);
    let mut system = Setup::new().set(&[guest.memory("controllers = <0>;")], POOL).boot();
    wait_for(&mut system, "guests", |report| report["guests"][0]["state"] == "running");
    system
}

#[test]
fn turns_spread_what_lies_behind_one_controller_and_pins_are_shown() {
    let mut system = boot();
    let before = system.json("guest echo")["placements"].clone();
    assert_eq!(
        (&before[0]["mode"], &before[0]["controllers"], &before[0]["is_pinned"]),
        (&"listed".into(), &serde_json::json!(["mc0"]), &false.into()),
        "{before}"
    );
    let number = system.json("pin echo all mc0,mc1 interleave")["job"].clone();
    let job = wait_for(&mut system, &format!("job {number}"), |job| job["state"] == "finished");
    // In proportion to what is free: near one half.
    let moved = job["moved_bytes"].as_u64().unwrap() / MIB;
    assert!((16..=48).contains(&moved) && job["unmoved_bytes"] == 0, "{job}");
    let map = system.json("guest echo map");
    let backed = |name: &str| -> u64 {
        let parts = map["regions"].as_array().unwrap().iter().filter(|part| part["controller"] == name);
        parts.map(|part| part["backed_bytes"].as_u64().unwrap() / MIB).sum()
    };
    assert_eq!((backed("mc0"), backed("mc1")), (64 - moved, moved), "{map}");
    let pin = &map["placements"][0];
    assert_eq!(
        (&pin["mode"], &pin["controllers"], &pin["is_pinned"]),
        (&"interleave".into(), &serde_json::json!(["mc0", "mc1"]), &true.into()),
        "{pin}"
    );
    let shown = system.monitor("guest echo");
    assert!(shown.contains("mc0,mc1 in turns  pin"), "{shown}");
    // The guest has noticed nothing.
    system.to_guest("echo");
    system.send("still here\x04");
    system.expect("probe echo 10 bytes");
    assert_eq!(system.json("check")["problem_count"], 0);
}

#[test]
fn what_guests_and_pools_have_and_why_jobs_end_is_told() {
    let mut system = boot();
    let mem = system.json("mem");
    let pools = ["pool_bytes", "pool_in_dmb_bytes"].map(|key| mem[key].as_u64().unwrap() / MIB);
    assert_eq!(pools, [256, 256], "{mem}");

    // The second job has not begun when the guest stops.
    system.monitor("rate limit 1M");
    let jobs = ["mc1", "mc0"].map(|to| system.json(&format!("migrate echo {to}"))["job"].clone());
    system.monitor("trace on");
    system.monitor("stop echo");
    let off = wait_for(&mut system, "guests", |report| report["guests"][0]["state"] == "off");
    let sizes = ["memory_bytes", "resident_bytes"].map(|key| off["guests"][0][key].as_u64().unwrap() / MIB);
    assert_eq!(sizes, [64, 0], "{off}");
    assert!(system.monitor("guests").contains("0 B of 64 MiB"));
    for number in jobs {
        let job = system.json(&format!("job {number}"));
        assert_eq!(job["state"], "cancelled", "{job}");
        assert_eq!(job["reason"], "its guest stopped or was reset", "{job}");
    }
    assert!(system.monitor("jobs").contains("its guest stopped"));

    assert!(system.monitor("trace life").contains("stopped"));
    let said = system.monitor("trace inject");
    assert!(!said.contains("trace on records"), "it records already: {said}");
    for view in ["all", "front"] {
        let said = system.monitor(&format!("console {view}"));
        // What the guest has printed meanwhile may come before.
        assert_eq!(
            (said.matches("Showing").count(), said.lines().last()),
            (1, Some(&*format!("Showing: {view}.")))
        );
    }

    let said = system.monitor("claim video 3K");
    assert!(said.contains("3K rounded up to 4 KiB"), "{said}");
    wait_for(&mut system, "claim 1", |claim| claim["state"] == "granted");
    system.monitor("release video");
    wait_for(&mut system, "pools", |pools| pools["pools"][0]["claimed_bytes"] == 0);
    wait_for(&mut system, "stats claims", |stats| stats["released_count"] == 1);
    assert_eq!(system.json("check")["problem_count"], 0);
}
