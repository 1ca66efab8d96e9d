//! Machines, and the ways to provide a guest. Kernels and CPUs are in `matrix`.

use system_tests::{Guest, Setup, payload, raw_payload};

#[test]
fn three_kernels_at_once() {
    let guests = [
        Guest::linux_of("old", "6.1"),
        Guest::linux_of("middle", "6.12"),
        Guest::linux_of("new", "7.3").vcpus(2),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    for (name, release) in [("old", "6.1."), ("middle", "6.12."), ("new", "7.")] {
        system.wait_for_shell(name);
        assert!(system.run(name, "uname -r").starts_with(release));
    }
}

#[test]
fn one_guest_with_four_vcpus() {
    let mut system = Setup::new().set(&[Guest::linux("quad").vcpus(4).ram_mib(1024)], "").boot();
    system.wait_for_shell("quad");
    assert_eq!(system.run("quad", "nproc"), "4");
    // Each CPU works on its own.
    let counted =
        system.run("quad", "for c in 0 1 2 3; do taskset -c $c sh -c 'echo $((21 * 2))' & done; wait");
    assert_eq!(counted, "42\n42\n42\n42");
}

#[test]
fn one_guest_with_one_vcpu_on_a_machine_of_one_cpu() {
    let mut system = Setup::new().controllers(1, &[1 << 30]).set(&[Guest::linux("solo")], "").boot();
    system.wait_for_shell("solo");
    assert_eq!(system.run("solo", "nproc"), "1");
    assert!(system.monitor("guests").contains("running"));
}

#[test]
fn linux_boots_bare_on_every_machine() {
    for machine in ["two", "four", "unequal", "far"] {
        let mut system = Setup::bare_linux("6.12").machine(machine).boot();
        system.wait_for_shell("bare");
        assert_eq!(system.run("bare", "nproc"), "4", "{machine}");
    }
}

#[test]
fn ballast_sees_the_controllers_of_every_machine() {
    let guests = [Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32)];
    for (machine, ranges) in [
        ("two", &[(0x4000_0000_u64, 1024_u64), (0x8000_0000, 1024)][..]),
        ("four", &[(0x4000_0000, 1024), (0x8000_0000, 1024), (0xc000_0000, 1024), (0x1_0000_0000, 1024)]),
        ("unequal", &[(0x4000_0000, 512), (0x6000_0000, 2048), (0xe000_0000, 768)]),
        ("far", &[(0x4000_0000, 1024), (0x10_0000_0000, 1024)]),
    ] {
        let mut system = Setup::new().machine(machine).set(&guests, "").boot();
        let report = system.json("controllers");
        let controllers = report["controllers"].as_array().unwrap();
        assert_eq!(controllers.len(), ranges.len(), "{machine}: {report}");
        for (controller, (base, mib)) in controllers.iter().zip(ranges) {
            let range = &controller["ranges"][0];
            assert_eq!(range["base"], format!("{base:#x}"), "{machine}: {report}");
            assert_eq!(range["size_bytes"], mib << 20, "{machine}: {report}");
        }
    }
}

#[test]
fn a_raw_program_without_a_header_runs() {
    let guest = Guest::raw_payload("raw", "probe").bootargs("probe=psci").ram_mib(64);
    let mut system = Setup::new().set(&[guest], "").boot();
    system.to_guest("raw");
    system.expect(r"probe done \d+ ok 0 failed");
}

#[test]
fn one_kernel_by_guest_loader_needs_no_configuration() {
    let kernel = ballast_qemu::store::get("6.12").unwrap().file;
    let ramdisk = ballast_qemu::ramdisk::get().unwrap();
    let mut system = Setup::new()
        .modules(&kernel, "console=ttyAMA0 hostname=loaded", Some(&ramdisk), "guest")
        .append("memory=384M cpus=2")
        .boot();
    system.wait_for_monitor();
    let guests = system.json("guests");
    let guest = &guests["guests"][0];
    assert_eq!((&guest["memory_bytes"], &guest["vcpu_count"]), (&(384 << 20).into(), &2.into()));
    let name = guest["name"].as_str().unwrap().to_owned();
    let mut system = {
        drop(system);
        Setup::new()
            .modules(&kernel, "console=ttyAMA0 hostname=loaded", Some(&ramdisk), &name)
            .append("memory=384M cpus=2")
            .boot()
    };
    system.wait_for_shell(&name);
    assert_eq!(system.run(&name, "nproc; hostname"), "2\nloaded");
}

#[test]
fn a_raw_program_by_guest_loader_runs() {
    let mut system = Setup::new().modules(&raw_payload("probe"), "probe=psci", None, "guest").boot();
    system.bring_to_front(system_tests::Console::Guest(0));
    system.expect(r"probe done \d+ ok 0 failed");
}

/// Ballast releases the memory that it needs only during boot.
#[test]
fn ballast_takes_little_for_itself() {
    let guests = ["p", "q"].map(|name| Guest::payload(name, "probe").bootargs("probe=echo").ram_mib(32));
    let mut system = Setup::new().set(&guests, "").boot();
    let version = system.json("version");
    let [image, own] = ["image_bytes", "own_bytes"].map(|key| version[key].as_u64().unwrap());
    // On 4 CPUs, the frame table apart. The target of 1 MiB is missed since the image outgrew its own; it must not grow.
    assert!(image + own <= 1184 << 10, "image {image} bytes, beside it {own}");
    assert!(system.monitor("check").contains("Nothing is wrong."));
}

#[test]
fn the_image_is_small_and_has_the_linux_header() {
    let image = std::fs::read(system_tests::image()).unwrap();
    assert_eq!(&image[56..60], b"ARM\x64");
    // The target (`ballast_qemu::image::TARGET_SIZE`) is missed so far, which `make image` says; it must not grow. Devices took
    // 100 KiB.
    assert!(image.len() <= 672 << 10, "{} bytes", image.len());
    // A kernel's image size, which reserves what follows the file, is at least the file's (booting.rst).
    let size = u64::from_le_bytes(image[16..24].try_into().unwrap());
    assert!(size >= image.len() as u64);
    assert!(payload("probe").exists());
}
