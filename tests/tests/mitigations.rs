//! Mitigations of speculative execution: the choice by core and firmware, and what firmware is really called for.

use std::path::{Path, PathBuf};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ballast-firmware-{name}-{}", std::process::id()))
}

fn guest(arguments: &str) -> Guest {
    Guest::payload("p", "probe").bootargs(arguments).ram_mib(32)
}

/// What `cpus` says of branches and of store bypass, the same for all CPUs.
#[track_caller]
fn choice(system: &mut System) -> [Value; 3] {
    let report = system.json("cpus");
    let keys = ["branch_mitigation", "branch_loop_count", "store_bypass_mitigation"];
    let of = |cpu: &Value| keys.map(|key| cpu[key].clone());
    let cpus = report["cpus"].as_array().unwrap();
    assert!(cpus.iter().all(|cpu| of(cpu) == of(&cpus[0])), "{report}");
    of(&cpus[0])
}

/// The values of E that firmware was called with by CPU `cpu`, by its lines `cpu N stores E`.
fn stores(log: &Path, cpu: u64) -> Vec<bool> {
    let said = std::fs::read_to_string(log).unwrap();
    let values = said.lines().filter_map(|line| line.strip_prefix(&format!("cpu {cpu} stores ")));
    values.map(|value| value == "1").collect()
}

#[test]
fn each_core_gets_its_mitigation_and_the_console_says_which() {
    for (cpu, arguments, expected, warns) in [
        ("cortex-a53", "", ["not needed".into(), Value::Null, "not needed".into()], false),
        ("cortex-a72", "", ["vulnerable".into(), Value::Null, "vulnerable".into()], true),
        ("cortex-a72", "mitigations=off", ["off".into(), Value::Null, "vulnerable".into()], false),
        ("cortex-a76", "", ["loop".into(), 24.into(), "ssbs".into()], false),
        ("cortex-a76", "mitigations=off", ["off".into(), Value::Null, "off".into()], false),
        ("neoverse-n2", "mitigations=clrbhb", ["clrbhb".into(), Value::Null, "ssbs".into()], false),
        ("max", "mitigations=none", ["not needed".into(), Value::Null, "ssbs".into()], false),
    ] {
        let mut system = Setup::new().cpu(cpu).append(arguments).set(&[guest("probe=echo")], "").boot();
        assert_eq!(choice(&mut system), expected, "{cpu} {arguments}");
        let log = system.json("log").to_string();
        assert_eq!(log.contains("guests can train its branch predictor"), warns, "{log}");
        assert_eq!(
            log.contains("mitigations=off: guests can attack"),
            arguments == "mitigations=off",
            "{log}"
        );
        assert_eq!(log.contains("mitigations=none: not one of"), arguments == "mitigations=none", "{log}");
    }
}

// On Neoverse-N1, all of `platform` runs behind the loop.
#[test]
fn every_platform_check_holds_behind_clrbhb() {
    let setup = Setup::new().cpu("cortex-a53").append("mitigations=clrbhb");
    let mut system = setup.set(&[Guest::payload("p", "probe").ram_mib(32).vcpus(2)], "").boot();
    system.to_guest("p");
    let said = system.expect(r"probe done \d+ ok \d+ failed\r\n");
    assert!(said.trim_end().ends_with(" 0 failed"), "{said}");
}

#[test]
fn firmware_hears_what_a_guest_chooses_and_el2_runs_mitigated() {
    let log = file("bypass");
    let mut system = Setup::new().firmware(&log).set(&[guest("probe=bypass")], "").boot();
    system.to_guest("p");
    for life in 1..=2 {
        system.expect(r"probe bypass is 0\r\n");
        system.expect(r"probe bypass asked 0 0\r\n");
        if life == 1 {
            let expected = ["firmware".into(), Value::Null, "firmware".into()];
            assert_eq!(choice(&mut system), expected);
            // Tracing goes the same way.
            system.monitor("trace on");
            system.monitor("reset p");
            system.to_guest("p");
        }
    }
    system.monitor("stop p");
    system.expect("p: stopped by the operator");
    let cpu = system.json("guests")["guests"][0]["cpus"][0].as_u64().unwrap();
    let calls = stores(&log, cpu);
    // On when the CPU came up; then off for the guest and on for EL2 in turns, and on in the end.
    assert!(
        calls[0] && calls[1..].iter().enumerate().all(|(at, &is_on)| is_on == (at % 2 == 1)),
        "{calls:?}"
    );
    assert_eq!(calls.last(), Some(&true), "{calls:?}");
    // Twice in each life for at least 10 traps, but not for the 1000 others.
    let offs = calls.iter().filter(|&&is_on| !is_on).count();
    assert!((44..600).contains(&offs), "{offs}");
    for other in (0..4).filter(|&other| other != cpu) {
        assert_eq!(stores(&log, other), [true]);
    }
    // And all entries of that CPU went by firmware, which is asked for no more than the newest call.
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains(&format!("cpu {cpu} history\n")), "{said}");
    assert!(!said.contains("targets") && !said.contains("lost"), "{said}");
    let _ = std::fs::remove_file(&log);
}

#[test]
fn every_platform_check_holds_behind_a_firmware_call() {
    let log = file("platform");
    let guest = Guest::payload("p", "probe").ram_mib(32).vcpus(2);
    let mut system = Setup::new().firmware(&log).set(&[guest], "").boot();
    system.to_guest("p");
    let said = system.expect(r"probe done \d+ ok \d+ failed\r\n");
    assert!(said.trim_end().ends_with(" 0 failed"), "{said}");
    assert!(!std::fs::read_to_string(&log).unwrap().contains("lost"));
    let _ = std::fs::remove_file(&log);
}
