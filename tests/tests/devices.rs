//! Disks and networks of Linux guests while their RAM moves.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;

use ballast_qemu::devices::{Content, Disk, Place, Smmu};
use serde_json::Value;
use system_tests::{Guest, Load, Setup, System, free_port};

/// Source of a pool of 128 MiB on controller 1, which guests use until it is claimed.
const POOL: &str = "pools { video { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x8000000>; \
                    controllers = <1>; }; };";

/// The loads of both guests.
const LOADS: [Load; 2] = [
    Load { guest: "alpha", disk: "alpha", peer: Some("192.168.0.12") },
    Load { guest: "beta", disk: "beta", peer: Some("192.168.0.11") },
];

/// Describes two guests with a disk and two interfaces each. The window of `alpha` is on controller 0, that of `beta` on 1.
fn guests() -> [Guest; 2] {
    let guest = |name, slots: [u16; 3], controller| {
        Guest::linux(name)
            .with_device_drivers()
            .vcpus(2)
            .ram_mib(320)
            .slots(&slots)
            .window(&format!("size = <0 0x4000000>; controllers = <{controller}>;"))
            .with("dmb-0 { size = <0 0x2000000>; controllers = <1 0>; };")
    };
    [guest("alpha", [1, 2, 5], 0), guest("beta", [3, 4, 7], 1)]
}

/// Starts the load in both guests.
#[track_caller]
fn start(system: &mut System, loads: [Load; 2]) {
    for load in loads {
        system.wait_for_shell(load.guest);
        load.serve(system);
    }
    for load in loads {
        load.start(system);
    }
}

/// Moves RAM of both guests back and forth by `count` jobs, of which four are pending at a time: first all RAM, then blocks.
/// Only the DMA windows stay.
#[track_caller]
fn migrate(system: &mut System, count: usize) {
    // No CPU is idle, and the default share of time would be slow.
    system.monitor("rate share 90");
    let mut pending = VecDeque::new();
    for index in 0..count + 4 {
        if index >= 4
            && let Some(number) = pending.pop_front()
        {
            let job = system.end_of_job(number);
            let is_window = |one: &Value| one["reason"] == "DMA window" && one["bytes"] == 64 << 20;
            assert!(job["unmoved"].as_array().unwrap().iter().all(is_window), "{job}");
        }
        if index < count {
            let (guest, controller) = (["alpha", "beta"][index % 2], ["mc1", "mc0"][index / 2 % 2]);
            let part = if index < 2 { "" } else { "dmb0 " };
            let job = system.json(&format!("migrate {guest} {part}{controller}"));
            pending.push_back(job["job"].as_u64().unwrap_or_else(|| panic!("{job}")));
        }
    }
}

/// Checks that neither the guests nor the SMMU saw an error.
#[track_caller]
fn end(system: &mut System, loads: [Load; 2]) {
    for load in loads {
        let (rounds, fetches) = load.end(system);
        println!("{}: {rounds} rounds of fio, {fetches} files fetched", load.guest);
    }
    system.check_devices();
    system.check_books();
}

/// Fetches a page from a guest over a forwarded port of the PC.
#[track_caller]
fn fetch(port: u16) -> String {
    let mut page = String::new();
    let fetched = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read_to_string(&mut page)
    });
    fetched.unwrap_or_else(|error| panic!("{error}"));
    page
}

#[test]
fn io_goes_on_while_memory_moves_is_claimed_and_evacuated() {
    let port = free_port();
    let setup = Setup::new().machine("devices").smmu(Smmu::Stage2).forward(port, 1);
    let mut system = setup.set(&guests(), POOL).boot();
    start(&mut system, LOADS);
    let report = system.json("devices");
    assert_eq!(report["smmus"][0]["stage"], 2, "{report}");
    assert!(fetch(port).contains("<h1>alpha</h1>"));

    migrate(&mut system, 50);
    for _ in 0..20 {
        let number = system.json("claim video 16M")["claim"].as_u64().unwrap();
        let claim = system.wait_for(&format!("claim {number}"), |claim| claim["state"] == "granted");
        assert_eq!(claim["size_bytes"], 16 << 20, "{claim}");
        let number = system.json(&format!("release {number}"))["claim"].as_u64().unwrap();
        system.wait_for(&format!("claim {number}"), |claim| claim["state"] == "released");
    }

    let report = system.json("evacuate mc1");
    let staying = report["staying"].as_array().unwrap();
    let window = staying.iter().find(|one| one["guest"] == "beta").unwrap_or_else(|| panic!("{report}"));
    assert_eq!(window["bytes"], 64 << 20, "{report}");
    assert!(window["reason"].as_str().unwrap().contains("DMA window"), "{report}");
    assert!(staying.iter().all(|one| one["guest"] != "alpha"), "{report}");
    system.end_of_job(report["job"].as_u64().unwrap());
    for load in LOADS {
        load.wait_for_rounds(&mut system, 1);
    }
    system.monitor("restore mc1");
    migrate(&mut system, 2);
    end(&mut system, LOADS);
    assert!(fetch(port).contains("<h1>alpha</h1>"));
    let interrupts = system.json("devices")["interrupts"].clone();
    assert!(
        interrupts.as_array().unwrap().iter().all(|line| line["count"].as_u64() > Some(0)),
        "{interrupts}"
    );
}

/// Moves the RAM of two guests on `kernel` during I/O.
fn io_goes_on(kernel: &str, smmu: Smmu) -> System {
    let setup = Setup::new().machine("devices").kernel(kernel).smmu(smmu);
    let mut system = setup.set(&guests(), POOL).boot();
    start(&mut system, LOADS);
    migrate(&mut system, 6);
    end(&mut system, LOADS);
    system
}

#[test]
fn io_goes_on_in_linux_6_1_behind_stage_1() {
    let mut system = io_goes_on("6.1", Smmu::Stage1);
    assert_eq!(system.json("devices")["smmus"][0]["stage"], 1);
}

#[test]
fn io_goes_on_in_linux_7_3_behind_what_qemu_offers() {
    io_goes_on("7.3", Smmu::Usual);
}

#[test]
fn io_goes_on_without_an_smmu_and_on_a_platform_device() {
    // Alpha's disk is the first virtio-mmio transport in the second page of transports.
    let loads = [Load { disk: "platform", ..LOADS[0] }, LOADS[1]];
    let content = Content::Blank(32 << 20);
    let setup = Setup::new().machine("devices").smmu(None);
    let setup = setup.disk(Disk { name: "platform".into(), place: Place::Mmio(8), content });
    let in_place = |guest: Guest, base: u32| {
        guest
            .property("assign-without-smmu; ")
            .window(&format!("pinned-in-place; reg = <0 {base:#x} 0x4000000>;"))
    };
    let [alpha, beta] = guests();
    let alpha = alpha.property("devices = \"/virtio_mmio@a001000\"; ");
    let guests = [in_place(alpha, 0x6000_0000), in_place(beta, 0xa000_0000)];
    let mut system = setup.set(&guests, POOL).boot();
    start(&mut system, loads);
    migrate(&mut system, 6);
    end(&mut system, loads);
    let report = system.json("devices");
    let devices = report["devices"].as_array().unwrap();
    assert!(devices.iter().all(|device| device["is_isolated"] == false), "{report}");
    let platform = devices.iter().find(|device| device["host"] == "/virtio_mmio@a001000").unwrap();
    assert!(platform["interrupt_count"].as_u64() > Some(0) && platform["kind"] == "virtio,mmio", "{report}");
    assert!(system.monitor("devices").contains("no SMMU: not isolated"));
    // The third line of the guest is that of the platform device.
    let taken = system.run("alpha", "grep virtio /proc/interrupts");
    assert!(taken.contains("66 Edge"), "{taken}");
}
