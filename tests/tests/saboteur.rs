//! A hostile guest with a disk, beside one whose disk must not be affected.

use std::time::{Duration, Instant};

use ballast_qemu::devices::{Content, Disk, Place, Smmu};
use serde_json::Value;
use system_tests::{Guest, Load, Setup, System, patience};

const MIB: u64 = 1 << 20;
/// Registers of the host's distributor and of its SMMU.
const REGISTERS: [u64; 2] = [0x0800_0000, 0x0905_0000];
/// The guest address of the hostile guest's window. The host has no RAM there, so that a physical address is outside the window.
const WINDOW: u64 = 0xf000_0000;
const WINDOW_SIZE: u64 = 16 * MIB;

const POOL: &str = "pools { prey { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x1000000>; controllers = <1>; }; };";

fn disk(name: &str, slot: u8) -> Disk {
    Disk { name: name.into(), place: Place::Slot(slot), content: Content::Blank(16 * MIB) }
}

/// Describes the hostile guest with the disk in `slot`.
fn saboteur(name: &str, slot: u16) -> Guest {
    Guest::payload(name, "saboteur")
        .ram_mib(16)
        .slots(&[slot])
        .window(&format!("reg = <0 {WINDOW:#x} {WINDOW_SIZE:#x}>;"))
}

/// Runs an attack that ends. Returns its output.
#[track_caller]
fn attack(system: &mut System, line: &str) -> String {
    system.to_guest("saboteur");
    system.send(&format!("{line}\r"));
    let name = line.split(' ').next().unwrap_or_default();
    let said = system.expect(&format!("sabotage survived {name}\r"));
    system.expect("sabotage ready");
    said
}

/// Runs an attack by DMA to `address`, and checks that it is reported.
#[track_caller]
fn dma(system: &mut System, kind: &str, address: u64) {
    let before = system.devices_of("saboteur")[0]["fault_count"].as_u64();
    attack(system, &format!("{kind} {address:#x}"));
    let report =
        system.wait_for("devices saboteur", |report| report["devices"][0]["fault_count"].as_u64() > before);
    let (device, fault) = (&report["devices"][0], &report["faults"][0]);
    assert_eq!((&device["state"], &fault["stream"]), (&"attached".into(), &"0:0x8".into()), "{report}");
    assert_eq!(fault["event"], "F_TRANSLATION", "{report}");
    let told = fault["address"].as_str().and_then(|text| u64::from_str_radix(&text[2..], 16).ok()).unwrap();
    // The last access may be to another of the rings.
    assert_eq!(told & !0x3fff, address & !0x3fff, "{report}");
}

/// Checks that the hostile guest can use its disk.
#[track_caller]
fn honest(system: &mut System) {
    let said = attack(system, "honest");
    assert!(said.contains("honest Some(0) written true"), "{said}");
}

/// Returns the addresses that a device must not access: Ballast's image, its heap and tables, registers, another guest's window,
/// its own RAM, and the pool's claimed memory.
fn targets(system: &mut System, others: &[&str]) -> Vec<u64> {
    let said = system.transcript();
    let image = said.split("Ballast 0.1.0 at 0x").nth(1).and_then(|rest| rest.split(',').next());
    let image = image.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap();
    let claim = system.json("claim prey 4M")["claim"].as_u64().unwrap();
    let claim = system.wait_for(&format!("claim {claim}"), |claim| claim["state"] == "granted");
    let claimed = claim["base"].as_str().and_then(|text| u64::from_str_radix(&text[2..], 16).ok());
    let mut targets = vec![image, image + MIB, claimed.unwrap_or_else(|| panic!("{claim}")), 0x1_0000_0000];
    targets.extend(others.iter().map(|other| system.window_of(other)));
    targets.push(system.window_of("saboteur"));
    targets.extend(REGISTERS);
    targets.extend([WINDOW - 2 * MIB, WINDOW + WINDOW_SIZE, 0x7f_fff0_0000]);
    targets
}

/// Waits until the device of the hostile guest is in `state`.
#[track_caller]
fn wait_for_device(system: &mut System, state: &str) -> Value {
    system.wait_for("devices saboteur", |report| report["devices"][0]["state"] == state)
}

/// Resets the hostile guest, and checks that its disk works then.
#[track_caller]
fn restart(system: &mut System) {
    system.monitor("reset saboteur");
    system.to_guest("saboteur");
    system.expect("sabotage ready");
    honest(system);
}

/// Floods until the device is cut off.
#[track_caller]
fn flood(system: &mut System) {
    system.to_guest("saboteur");
    system.send("flood 0x40000000\r");
    let report = wait_for_device(system, "failed");
    assert_eq!(report["devices"][0]["reason"], "too many faults: cut off", "{report}");
    // Nothing is reported of a device that is cut off: the count stands still.
    let count = report["devices"][0]["fault_count"].clone();
    system.to_guest("saboteur");
    system.session().skip_to_now();
    system.expect(r"sabotage flood \d+");
    // The log follows on the line when it can.
    let until = Instant::now() + patience();
    while !system.transcript().contains("it is cut off until the guest starts again") {
        assert!(Instant::now() < until, "nothing is logged of the device that is cut off");
        std::thread::sleep(Duration::from_millis(50));
        system.monitor("devices saboteur");
        system.to_guest("saboteur");
    }
    assert!(system.transcript().contains("stream cut off"));
    let after = system.devices_of("saboteur")[0]["fault_count"].as_u64().unwrap();
    assert!(after <= count.as_u64().unwrap() + 100, "{after} after {count}");
    restart(system);
}

#[test]
fn a_neighbour_is_not_affected_by_a_hostile_device() {
    const WITNESS: Load = Load { guest: "witness", disk: "witness", peer: None };
    let guests = [
        saboteur("saboteur", 1),
        saboteur("resetter", 2).bootargs("sabotage=reset").property("start-manually;"),
        Guest::linux("witness")
            .with_device_drivers()
            .ram_mib(256)
            .slots(&[3])
            .window("size = <0 0x2000000>;"),
    ];
    let setup = Setup::new().controllers(4, &[512 * MIB, 256 * MIB]).smmu(Smmu::Stage2);
    let disks = [disk("saboteur", 1), disk("resetter", 2), disk("witness", 3)];
    let setup = disks.into_iter().fold(setup, Setup::disk);
    let mut system = setup.set(&guests, POOL).boot();
    system.wait_for_shell("witness");
    WITNESS.start(&mut system);
    honest(&mut system);
    for target in targets(&mut system, &["witness", "resetter"]) {
        for kind in ["data", "rings"] {
            dma(&mut system, kind, target);
        }
    }
    honest(&mut system);

    let said = attack(&mut system, "config");
    assert!(said.contains("config functions 1 same true"), "{said}");
    honest(&mut system);
    let said = attack(&mut system, "bars");
    assert!(said.contains("bars same true worked 5 of 5"), "{said}");
    let said = attack(&mut system, "interrupts 200");
    assert!(said.contains("of 200 missing 0"), "{said}");
    flood(&mut system);

    // A line that is never lowered: the guest gets no further than its handler, and alone is busy with it.
    system.to_guest("saboteur");
    system.send("storm\r");
    system.expect("sabotage start storm");
    system.wait_for("devices saboteur", |report| report["interrupts"][0]["count"].as_u64() > Some(5000));
    WITNESS.wait_for_rounds(&mut system, 1);
    assert!(system.monitor("guests").contains("saboteur"));
    system.monitor("stop saboteur");
    system.wait_for_state("saboteur", "off");
    wait_for_device(&mut system, "off");
    let off = system.accounts();

    // Ends in the middle of DMA, each followed by a start.
    for (line, ends) in [("off", true), ("crash", false), ("busy", false)] {
        system.monitor("start saboteur");
        system.to_guest("saboteur");
        system.expect("sabotage ready");
        honest(&mut system);
        system.send(&format!("{line}\r"));
        system.expect(&format!("sabotage start {line}"));
        if !ends {
            system.monitor("stop saboteur");
        }
        system.wait_for_state("saboteur", "off");
        assert_eq!(system.accounts(), off, "after {line}");
    }

    system.monitor("start resetter");
    system.wait_for("guests", |report| report["guests"][1]["start_count"].as_u64() > Some(40));
    system.monitor("stop resetter");
    system.wait_for_state("resetter", "off");
    assert_eq!(system.accounts(), off, "after resets");

    WITNESS.end(&mut system);
    system.check_books();
    let witness = system.devices_of("witness");
    assert_eq!(
        (&witness[0]["state"], &witness[0]["fault_count"]),
        (&"attached".into(), &0.into()),
        "{witness:?}"
    );
    // Linux, too, is reset and stopped during I/O, and finds its disk as new.
    for (ends, starts) in [("reset witness", ""), ("stop witness", "start witness")] {
        WITNESS.start(&mut system);
        system.monitor(ends);
        if !starts.is_empty() {
            system.wait_for_state("witness", "off");
            system.monitor(starts);
        }
        system.to_guest("witness");
        system.expect("witness: Linux .* ready");
        system.wait_for_shell("witness");
    }
    WITNESS.start(&mut system);
    WITNESS.wait_for_rounds(&mut system, 1);
    WITNESS.end(&mut system);
    // QEMU reports a full event queue, which a flood causes, as a global error.
    assert_eq!(system.json("devices")["smmus"][0]["state"], "working");
}

#[test]
fn a_hostile_device_behind_stage_1_is_reported_and_cut_off() {
    let guests = [saboteur("saboteur", 1), saboteur("witness", 2).bootargs("sabotage=busy")];
    let setup = Setup::new().controllers(3, &[256 * MIB, 64 * MIB]).smmu(Smmu::Stage1);
    let mut system = setup.disk(disk("saboteur", 1)).disk(disk("witness", 2)).set(&guests, POOL).boot();
    system.to_guest("saboteur");
    system.expect("sabotage ready");
    for target in targets(&mut system, &["witness"]) {
        dma(&mut system, "data", target);
    }
    flood(&mut system);
    system.to_guest("witness");
    system.session().skip_to_now();
    system.expect("sabotage busy \\d+");
    let said = system.transcript();
    assert!(!said.contains("busy bad"), "{said}");
    system.check_books();
}
