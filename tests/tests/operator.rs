//! Information for the operator: the controllers that guests may use, the memory that they have, and the reasons why jobs ended.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

const MIB: u64 = 1 << 20;

/// Source of a pool of 256 MiB in a designated block on controller 1.
const POOL: &str = "pools { video { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x10000000>; \
                    controllers = <1>; }; };";

/// Repeats `command` until `is_it` returns true for its report.
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
    boot_with("controllers = <0>;", "")
}

/// Boots a guest of 64 MiB with `memory` in its region and `more` in its node.
fn boot_with(memory: &str, more: &str) -> System {
    let guest = Guest::payload("echo", "probe").bootargs("probe=echo").ram_mib(64);
    let mut system = Setup::new().set(&[guest.memory(memory).with(more)], POOL).boot();
    wait_for(&mut system, "guests", |report| report["guests"][0]["state"] == "running");
    system
}

#[test]
fn interleaving_spreads_memory_of_one_controller_and_pins_are_shown() {
    let mut system = boot();
    let before = system.json("guest echo")["placements"].clone();
    assert_eq!(
        (&before[0]["mode"], &before[0]["controllers"], &before[0]["is_pinned"]),
        (&"listed".into(), &serde_json::json!(["mc0"]), &false.into()),
        "{before}"
    );
    let number = system.json("pin echo all mc0,mc1 interleave")["job"].clone();
    let job = wait_for(&mut system, &format!("job {number}"), |job| job["state"] == "finished");
    // In proportion to free memory: near one half.
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
    assert!(shown.contains("mc0,mc1 (interleaved)  pin"), "{shown}");
    // The guest has noticed nothing.
    system.to_guest("echo");
    system.send("still here\x04");
    system.expect("probe echo 10 bytes");
    assert_eq!(system.json("check")["problem_count"], 0);
}

/// Returns the state of controller `at`, with the bytes behind it that guests use and that are in use.
fn controller(system: &mut System, at: usize) -> (String, u64, u64) {
    let row = system.json("controllers")["controllers"][at].clone();
    let bytes = |key: &str| row[key].as_u64().unwrap();
    (row["state"].as_str().unwrap().to_owned(), bytes("guest_bytes"), bytes("used_bytes"))
}

#[test]
fn a_controller_with_memory_in_use_is_closed_and_not_evacuated() {
    let mut system = boot_with("controllers = <1>;", "");
    let answer = system.json("evacuate mc1");
    let staying = answer["staying"].as_array().unwrap();
    let region = staying.iter().find(|one| one["guest"] == "echo").unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(
        (&region["bytes"], &region["region"], &region["reason"]),
        (&(64 * MIB).into(), &"ram0".into(), &"strict placement: mc1 only".into()),
        "{answer}"
    );
    let job = format!("job {}", answer["job"]);
    let job =
        wait_for(&mut system, &job, |job| !["queued", "running"].contains(&job["state"].as_str().unwrap()));
    assert_eq!((&job["state"], &job["unmoved_bytes"]), (&"incomplete".into(), &(64 * MIB).into()), "{job}");
    let (state, of_guests, used) = controller(&mut system, 1);
    assert_eq!((state.as_str(), of_guests), ("closed", 64 * MIB));
    assert!(used >= 64 * MIB, "{used}");
    let shown = system.monitor("controllers");
    assert!(shown.contains("(closed, ") && !shown.contains("evacuated"), "{shown}");
    let shown = system.monitor("jobs");
    assert!(shown.contains("incomplete") && !shown.contains("100.0 %"), "{shown}");

    // Without the guest, only Ballast's own memory may be left.
    let number = system.json("pin echo all mc0")["job"].clone();
    wait_for(&mut system, &format!("job {number}"), |job| job["state"] == "finished");
    let (state, of_guests, used) = controller(&mut system, 1);
    assert_eq!((of_guests, state == "evacuated"), (0, used == 0), "{state} with {used} bytes in use");
    assert!(used < MIB, "{used}");
    assert_eq!(system.json("check")["problem_count"], 0);
}

#[test]
fn jobs_against_the_placement_are_refused_and_memory_elsewhere_is_shown() {
    let mut system = boot_with("", "no-migration;");
    for command in ["migrate echo mc1", "migrate echo ram0 mc0 --force", "pin echo all mc1"] {
        let said = system.monitor(command);
        assert!(said.contains("error: echo is configured with no-migration"), "{command}: {said}");
    }
    assert_eq!(system.json("jobs")["jobs"], serde_json::json!([]));
    assert_eq!(system.json("guest echo")["placements"][0]["is_pinned"], false);

    let mut system = boot();
    let said = system.monitor("migrate echo mc1");
    assert!(
        said.contains("error: ram0 of echo must stay behind mc0 (strict, set by the configuration)"),
        "{said}"
    );
    assert_eq!(system.json("jobs")["jobs"], serde_json::json!([]));
    let number = system.json("migrate echo mc1 --force")["job"].clone();
    wait_for(&mut system, &format!("job {number}"), |job| job["state"] == "finished");
    let region = system.json("guest echo")["placements"][0].clone();
    assert_eq!(
        (&region["controllers"], &region["resident_on"], &region["resident_bytes"]),
        (&serde_json::json!(["mc0"]), &serde_json::json!(["mc1"]), &serde_json::json!([64 * MIB])),
        "{region}"
    );
    let shown = system.monitor("guest echo");
    assert!(shown.contains("mc1 64 MiB"), "{shown}");
}

#[test]
fn twenty_controllers_are_named_used_and_evacuated() {
    let sizes: Vec<u64> = (0..20).map(|at| if at == 0 { 512 * MIB } else { 32 * MIB }).collect();
    let guest =
        Guest::payload("echo", "probe").bootargs("probe=echo").ram_mib(16).memory("controllers = <19>;");
    let mut system = Setup::new().controllers(2, &sizes).set(&[guest], "").boot();
    wait_for(&mut system, "guests", |report| report["guests"][0]["state"] == "running");
    let report = system.json("controllers");
    let names: Vec<&str> =
        report["controllers"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, (0..20).map(|at| format!("mc{at}")).collect::<Vec<_>>(), "{report}");
    let region = |system: &mut System| system.json("guest echo")["placements"][0]["resident_on"].clone();
    assert_eq!(region(&mut system), serde_json::json!(["mc19"]));
    let number = system.json("pin echo all mc17,mc18 interleave")["job"].clone();
    wait_for(&mut system, &format!("job {number}"), |job| job["state"] == "finished");
    assert_eq!(region(&mut system), serde_json::json!(["mc17", "mc18"]));
    let answer = system.json("evacuate mc17");
    wait_for(&mut system, &format!("job {}", answer["job"]), |job| job["state"] == "finished");
    assert_eq!(controller(&mut system, 17), ("evacuated".to_owned(), 0, 0), "{answer}");
    let pairs = system.json("stats migration")["pairs"].clone();
    let moved = |from: &str, to: &str| {
        let mut pairs =
            pairs.as_array().unwrap().iter().filter(|pair| pair["from"] == from && pair["to"] == to);
        pairs.next().map_or(0, |pair| pair["moved_bytes"].as_u64().unwrap() / MIB)
    };
    assert_eq!((moved("mc19", "mc17"), moved("mc19", "mc18"), moved("mc17", "mc18")), (8, 8, 8), "{pairs}");
    system.to_guest("echo");
    system.send("still here\x04");
    system.expect("probe echo 10 bytes");
    assert_eq!(system.json("check")["problem_count"], 0);
}

#[test]
fn retirement_of_claimed_frames_waits_and_of_ballasts_own_is_refused() {
    let mut system = boot();
    system.monitor("claim video 2M");
    let claim = wait_for(&mut system, "claim 1", |claim| claim["state"] == "granted");
    let base = claim["base"].as_str().unwrap().to_owned();
    let answer = system.json(&format!("retire {base}"));
    let held = &answer["held"][0];
    assert_eq!(
        (&held["holder"], &held["state"], &answer["job"]),
        (&"claim 1 of video".into(), &"waiting".into(), &Value::Null),
        "{answer}"
    );
    system.monitor("release 1");
    wait_for(&mut system, &format!("frame {base}"), |frame| frame["state"] == "retired");

    // Frames of Ballast and of the guest's tables: B and T on the map.
    let cells = |system: &mut System, wanted: &str| -> Option<u64> {
        let map = system.json("map");
        let ranges = map["ranges"].as_array().unwrap().clone();
        ranges.iter().find_map(|range| {
            let base = u64::from_str_radix(&range["base"].as_str().unwrap()[2..], 16).unwrap();
            let unit = range["unit_bytes"].as_u64().unwrap();
            let at = range["cells"].as_str().unwrap().find(wanted)?;
            Some(base + at as u64 * unit)
        })
    };
    let reserved = cells(&mut system, "R").unwrap();
    let said = system.monitor(&format!("retire {reserved:#x}"));
    assert!(said.contains("cannot be retired"), "{said}");
    assert_eq!(system.json("check")["problem_count"], 0);
}

#[test]
fn memory_of_guests_and_pools_and_reasons_for_the_end_of_jobs_are_shown() {
    let mut system = boot();
    let mem = system.json("mem");
    let pools = ["pool_bytes", "pool_in_dmb_bytes"].map(|key| mem[key].as_u64().unwrap() / MIB);
    assert_eq!(pools, [256, 256], "{mem}");

    // The second job has not started when the guest stops.
    system.monitor("rate limit 1M");
    let jobs = ["mc1", "mc0"].map(|to| system.json(&format!("migrate echo {to} --force"))["job"].clone());
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
    assert!(!said.contains("trace on starts"), "it records already: {said}");
    for view in ["all", "front"] {
        let said = system.monitor(&format!("console {view}"));
        // Output of the guest may come before.
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
