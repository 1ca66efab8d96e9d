//! The monitor's reports, from a running system.

use std::time::Duration;

use serde_json::Value;
use system_tests::{Guest, Setup, System};

/// Boots a guest whose vCPUs interrupt each other without end, and a Linux guest.
fn busy() -> System {
    let load = Guest::payload("load", "irqload").bootargs("forever=1 rounds=200").ram_mib(32).vcpus(2);
    let mut system = Setup::new().set(&[Guest::linux("linux"), load], "").boot();
    system.wait_for_shell("linux");
    system
}

/// Returns the number at `key` of the entry `name` in list `list` of a report.
#[track_caller]
fn number(report: &Value, list: &str, name: &str, key: &str) -> u64 {
    let entry = report[list].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    entry[key].as_u64().unwrap_or_else(|| panic!("no {key} in {entry}"))
}

#[test]
fn exits_of_guests_are_counted() {
    let mut system = busy();
    let before = system.json("stats");
    system.run("linux", "dmesg | tail -n 50; ls -l /bin | tail -n 50");
    std::thread::sleep(Duration::from_secs(1));
    let after = system.json("stats");
    for (guest, keys) in [
        ("linux", &["exit_uart_count", "exit_interrupt_count", "injected_count", "el2_ns"][..]),
        ("load", &["exit_sgi_count", "exit_interrupt_count", "injected_count"]),
    ] {
        for key in keys {
            let [before, after] = [&before, &after].map(|report| number(report, "guests", guest, key));
            assert!(after > before, "{key} of {guest}: {before}, then {after}");
        }
    }
    for (guest, vcpus) in [("linux", 1), ("load", 2)] {
        // The boot used hypercalls and the distributor, and caused no aborts.
        assert!(number(&after, "guests", guest, "exit_gicd_count") > 0);
        assert_eq!(number(&after, "guests", guest, "exit_other_count"), 0);
        let exits = after["guests"].as_array().unwrap().iter().find(|entry| entry["name"] == guest).unwrap();
        let reasons = exits.as_object().unwrap().iter();
        let sum: u64 = reasons
            .filter(|(key, _)| key.starts_with("exit_") && *key != "exit_count")
            .map(|(_, count)| count.as_u64().unwrap())
            .sum();
        assert_eq!(exits["exit_count"], sum);
        // Summed over the vCPUs, two of which run at the same time in `load`.
        let el2 = number(&after, "guests", guest, "el2_ns");
        assert!(el2 < vcpus * after["uptime_ns"].as_u64().unwrap());
    }
    assert!(number(&after, "guests", "linux", "exit_hypercall_count") > 0);
}

#[test]
fn events_are_traced() {
    let mut system = busy();
    assert!(system.monitor("trace").contains("Nothing was recorded"));
    assert_eq!(system.monitor("trace on"), "Recording.");
    system.run("linux", "ls -l /bin | tail -n 5");
    std::thread::sleep(Duration::from_secs(1));
    let report = system.json("trace load 200");
    let events = report["events"].as_array().unwrap();
    assert_eq!(events.len(), 200);
    let times: Vec<u64> = events.iter().map(|event| event["time_ns"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(events.iter().all(|event| event["guest"] == "load"));
    for kind in ["exit", "inject"] {
        assert!(events.iter().any(|event| event["kind"] == kind), "no {kind}");
    }
    let report = system.json("trace exit 5");
    assert!(report["events"].as_array().unwrap().iter().all(|event| event["kind"] == "exit"));
    assert_eq!(system.monitor("trace off"), "Not recording.");
    // The load still counts correctly: nothing was lost on the traced paths.
    system.to_guest("load");
    system.session().skip_to_now();
    let said = system.expect(r"irqload done [^\n]* lost \d+");
    assert!(said.ends_with(" lost 0"), "{said}");
    let [one, other] = [0, 1].map(|_| {
        std::thread::sleep(Duration::from_millis(500));
        system.json("trace load")["events"].clone()
    });
    assert_eq!(one, other, "events after it was turned off");
}

/// Returns a validator for hyp/schema/reports.json.
fn schema() -> jsonschema::Validator {
    let path = ballast_qemu::place::root().join("hyp/schema/reports.json");
    let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

/// Command lines with reports, in addition to all commands without a required argument.
fn reports(system: &mut System) -> Vec<String> {
    let mut lines: Vec<String> = [
        "help start",
        "guest linux",
        "guest linux tree",
        "guest linux map",
        "map mc0",
        "frame 0x40200000",
        "frame 0x48000000",
        "frame 0x1000",
        "stats linux",
        "stats migration",
        "trace exit 10",
        "trace linux",
        "log info",
        "console all",
        "console front",
        "console linux limit 8K",
        "start linux",
        "stop nobody",
        "nothing",
    ]
    .map(String::from)
    .into();
    for command in system.json("help")["commands"].as_array().unwrap() {
        let (name, usage) = (command["name"].as_str().unwrap(), command["usage"].as_str().unwrap());
        if usage.split(' ').skip(1).all(|word| word.starts_with('[')) && name != "top" {
            lines.push(name.into());
        }
    }
    lines
}

#[test]
fn every_report_is_as_the_schema_says_and_fits_the_screen() {
    let mut system = busy();
    let schema = schema();
    system.monitor("trace on");
    // Memory has moved, with tracing on.
    let moved = system.json("migrate linux mc1");
    assert!(schema.is_valid(&moved), "{moved}");
    for line in ["pause 1", "resume 1", "rate limit 1G", "restore mc0", "evacuate mc9", "job 1", "cancel 1"] {
        let report = system.json(line);
        assert!(schema.is_valid(&report), "{line}: {report}");
    }
    for line in [
        "pin linux ram0 mc0,mc1 preferred",
        "unpin linux",
        "evacuate mc1",
        "jobs",
        "restore mc1",
        "rate limit 1M",
        "migrate load mc1",
        "pause 4",
        "resume 4",
        "rate limit off",
        "jobs",
    ] {
        let report = system.json(line);
        assert!(schema.is_valid(&report) && report["report"] != "error", "{line}: {report}");
    }
    // A frame at the end of RAM, and one of the first guest.
    let map = system.json("map mc0");
    let range = &map["ranges"][0];
    let base = u64::from_str_radix(&range["base"].as_str().unwrap()[2..], 16).unwrap();
    let cell = range["cells"].as_str().unwrap().chars().position(|cell| cell == '1').unwrap() as u64;
    let used = format!("{:#x}", base + cell * range["unit_bytes"].as_u64().unwrap());
    for pa in ["0xbffff000", &used] {
        let report = system.json(&format!("retire {pa}"));
        assert!(schema.is_valid(&report), "{report}");
        let bytes = ["retired_bytes", "doomed_bytes"].map(|key| report[key].as_u64().unwrap());
        assert_eq!(bytes.iter().sum::<u64>(), 4096, "{report}");
        assert_eq!(report["job"].is_null(), bytes[1] == 0, "{report}");
    }
    for line in reports(&mut system) {
        let report = system.json(&line);
        let errors: Vec<String> = schema.iter_errors(&report).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}: {report} {errors:?}");
        let refuses = ["frame 0x1000", "start linux", "stop nobody", "nothing"].contains(&line.as_str());
        assert_eq!(report["report"] == "error", refuses, "{line}: {report}");

        // Wait for the jobs of `balance` before it is called again.
        let is_open = |job: &Value| job["state"] == "queued" || job["state"] == "running";
        while line == "balance" && system.json("jobs")["jobs"].as_array().unwrap().iter().any(is_open) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let text = system.monitor(&line);
        // Lines of the log are removed from output.
        assert!(!text.is_empty() || line.starts_with("log"), "{line} says nothing");
        assert_eq!(text.starts_with("error: "), refuses, "{line}: {text}");
        let is_free =
            line == "log" || line.starts_with("trace") || line.contains("tree") || line == "console all";
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(is_free || widest <= 80, "{line} is {widest} wide:\n{text}");
    }
}
