//! Mitigations of speculative execution: the choice by core and firmware, and the calls of firmware.

use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};
use serde_json::Value;
use system_tests::{Guest, LoadedImage, Setup, System};

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ballast-firmware-{name}-{}", std::process::id()))
}

fn guest(arguments: &str) -> Guest {
    Guest::payload("p", "probe").bootargs(arguments).ram_mib(32)
}

/// Returns the mitigations in `cpus`, which must be the same for all CPUs.
#[track_caller]
fn choice(system: &mut System) -> [Value; 3] {
    let report = system.json("cpus");
    let keys = ["branch_mitigation", "branch_loop_count", "store_bypass_mitigation"];
    let of = |cpu: &Value| keys.map(|key| cpu[key].clone());
    let cpus = report["cpus"].as_array().unwrap();
    assert!(cpus.iter().all(|cpu| of(cpu) == of(&cpus[0])), "{report}");
    of(&cpus[0])
}

/// Returns the arguments of SMCCC_ARCH_WORKAROUND_2 calls by CPU `cpu`, from firmware's lines `cpu N stores E`.
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
        assert_eq!(log.contains("guests can train the branch predictor"), warns, "{log}");
        assert_eq!(
            log.contains("mitigations=off: guests can attack"),
            arguments == "mitigations=off",
            "{log}"
        );
        assert_eq!(log.contains("mitigations=none: not one of"), arguments == "mitigations=none", "{log}");
    }
}

// On Neoverse-N1, all tests of `platform` use the loop.
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
            // Tracing takes the same path.
            system.monitor("trace on");
            system.monitor("reset p");
            system.to_guest("p");
        }
    }
    system.monitor("stop p");
    system.expect("p: stopped by the operator");
    let cpu = system.json("guests")["guests"][0]["cpus"][0].as_u64().unwrap();
    let calls = stores(&log, cpu);
    // On when the CPU came up, then alternately off for the guest and on for EL2, and on at the end.
    assert!(
        calls[0] && calls[1..].iter().enumerate().all(|(at, &is_on)| is_on == (at % 2 == 1)),
        "{calls:?}"
    );
    assert_eq!(calls.last(), Some(&true), "{calls:?}");
    // At least 10 traps, twice in each run of the guest, but not the 1000 others.
    let offs = calls.iter().filter(|&&is_on| !is_on).count();
    assert!((44..600).contains(&offs), "{offs}");
    for other in (0..4).filter(|&other| other != cpu) {
        assert_eq!(stores(&log, other), [true]);
    }
    // All entries of that CPU call firmware, which needs only the newest call.
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

/// Returns the path of a copy of Ballast's image with HVC and SMC exchanged.
fn image_with_conduits_exchanged() -> PathBuf {
    const HVC: [u8; 4] = 0xd400_0002_u32.to_le_bytes();
    const SMC: [u8; 4] = 0xd400_0003_u32.to_le_bytes();
    let elf = std::fs::read(system_tests::elf()).unwrap();
    let text = object::File::parse(&*elf).unwrap().section_by_name(".text").unwrap().size() as usize;
    let mut image = std::fs::read(system_tests::image()).unwrap();
    let mut count = 0;
    for word in image[..text].chunks_exact_mut(4) {
        if let Some(at) = [HVC, SMC].iter().position(|one| word == one) {
            word.copy_from_slice(&[SMC, HVC][at]);
            count += 1;
        }
    }
    assert!(count >= 18, "{count} calls of firmware");
    let path = file("conduits");
    std::fs::write(&path, image).unwrap();
    path
}

/// An HVC from EL2 reaches firmware only if another hypervisor runs below, which the test does not have. So it replaces HVC by
/// SMC, and SMC by HVC, which is then a fatal exception.
#[test]
fn firmware_is_called_by_hvc_if_the_tree_says_so() {
    let (log, image) = (file("hvc"), image_with_conduits_exchanged());
    let guest = Guest::payload("p", "probe").bootargs("probe=psci,ids").ram_mib(32).vcpus(2);
    let setup = Setup::of(&image).firmware(&log).tree("&{/psci} { method = \"hvc\"; };");
    let mut system = setup.set(&[guest], "").boot();
    system.to_guest("p");
    let said = system.expect(r"probe done \d+ ok \d+ failed\r\n");
    assert!(said.trim_end().ends_with(" 0 failed"), "{said}");
    // Each CPU calls it when it comes up, and the vectors do on CPUs with a vCPU.
    let said = std::fs::read_to_string(&log).unwrap();
    assert!((0..4).all(|cpu| said.contains(&format!("cpu {cpu} stores 1\n"))), "{said}");
    assert!(said.contains(" history\n") && !said.contains("lost"), "{said}");
    std::fs::remove_file(image).unwrap();
    let _ = std::fs::remove_file(&log);
}

/// Start of RAM of machine `two`: two controllers of 1 GiB.
const RAM: u64 = 0x4000_0000;
/// Address of EL2's windows onto guests' memory (hyp/src/hyp_mem/mmu.rs), and their number, of 2 MiB each, for four CPUs.
const WINDOWS: u64 = 0x8000_0800_0000;
const WINDOW_COUNT: u64 = 8;

/// Returns the descriptor at `index` of the table at `pa`.
fn descriptor(system: &System, pa: u64, index: u64) -> u64 {
    let mut bytes = [0; 8];
    let offset = pa - RAM + 8 * index;
    system.read_controller((offset >> 30) as usize, offset & 0x3fff_ffff, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Returns the level 2 descriptors of all windows in EL2's tables.
fn windows(system: &System, image: &LoadedImage) -> Vec<u64> {
    let root = u64::from_le_bytes(image.read(system, "hyp_mem3mmu4ROOT").try_into().unwrap());
    let address = |descriptor: u64| {
        assert_eq!(descriptor & 3, 3, "a table: {descriptor:#x}");
        descriptor & 0xffff_ffff_f000
    };
    let of = |va: u64| {
        let level1 = address(descriptor(system, root, va >> 39 & 511));
        let level2 = address(descriptor(system, level1, va >> 30 & 511));
        descriptor(system, level2, va >> 21 & 511)
    };
    (0..WINDOW_COUNT).map(|index| of(WINDOWS + (index << 21))).collect()
}

#[test]
fn no_guests_memory_stays_mapped_at_el2_after_a_job() {
    let memory = "memory@60000000 { reg = <0x0 0x60000000 0x400000>; unit-size = <0x1000>; };";
    let guest = Guest::payload("p", "pattern").bootargs("mode=write").ram_mib(64).with(memory);
    let mut system = Setup::new().set(&[guest], "").boot();
    system.to_guest("p");
    system.expect("pattern ready");
    let image = LoadedImage::find(&system);
    assert_eq!(windows(&system, &image), [0; WINDOW_COUNT as usize]);
    for controller in ["mc1", "mc0"] {
        let number = system.json(&format!("migrate p {controller}"))["job"].as_u64().unwrap();
        let report = loop {
            let report = system.json(&format!("job {number}"));
            if report["state"] == "finished" {
                break report;
            }
        };
        assert_eq!(report["unmoved_bytes"], 0, "{report}");
        assert_eq!(windows(&system, &image), [0; WINDOW_COUNT as usize]);
    }
}
