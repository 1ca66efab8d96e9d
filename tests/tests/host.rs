//! The host's device tree: Ballast relies on it alone, and reports what is missing.

use system_tests::{Guest, Setup};

/// Checks that Ballast stops with `message` on a host with `overlay` in its tree and `arguments` on the command line.
#[track_caller]
fn stops_with(overlay: &str, arguments: &str, message: &str) {
    let mut system = Setup::new().no_guests().tree(overlay).append(arguments).boot();
    let said = system.expect(r"Ballast cannot start: [^\r]*\r\n");
    assert!(said.trim_end().ends_with(&format!("Ballast cannot start: {message}")), "{said}");
}

#[test]
fn a_tree_that_lacks_a_needed_node_is_refused_with_its_name() {
    for (overlay, message) in [
        (
            "&{/psci} { compatible = \"nothing\"; };",
            "node compatible with \"arm,psci-1.0\", \"arm,psci-0.2\" or \"arm,psci\": missing: required (starts and \
             stops CPUs)",
        ),
        (
            "/delete-node/ &{/timer};",
            "node compatible with \"arm,armv8-timer\": missing: required (the timers' interrupts)",
        ),
        ("&{/psci} { method = \"svc\"; };", "/psci: method = \"svc\": must be \"smc\" or \"hvc\""),
        (
            "&{/cpus/cpu@1} { enable-method = \"spin-table\"; };",
            "/cpus/cpu@1: enable-method = \"spin-table\": must be \"psci\"",
        ),
        ("&{/cpus/cpu@3} { reg = <2>; };", "/cpus/cpu@3: reg = 0x2: must differ from every other CPU's"),
        (
            "&{/memory@80000000} { reg = <0x0 0x7ff00000 0x0 0x40000000>; };",
            "/memory@40000000: reg = 1 GiB at 0x40000000: overlaps with another range of RAM",
        ),
    ] {
        stops_with(overlay, "", message);
    }
}

#[test]
fn controllers_that_do_not_fit_the_ram_are_refused_by_name() {
    for (argument, message) in [
        (
            "controllers=1G@1G",
            "command line: controllers = 1 GiB at 0x80000000: must belong to a controller: it is RAM",
        ),
        (
            "controllers=1G@1G,2G@1G",
            "command line: controllers = \"2G@1G\": overlaps with another controller",
        ),
        (
            "controllers=1G@1G,1G@2G,1G@16G",
            "command line: controllers = \"1G@16G\": must lie completely in RAM of the `memory` nodes",
        ),
    ] {
        stops_with("", argument, message);
    }
}

/// Boots a host. Returns the sizes of its controllers in MiB.
fn sizes(setup: Setup) -> Vec<u64> {
    let guest = Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32);
    let mut system = setup.set(&[guest], "").boot();
    let report = system.json("controllers");
    let controllers = report["controllers"].as_array().unwrap();
    controllers.iter().map(|controller| controller["total_bytes"].as_u64().unwrap() >> 20).collect()
}

#[test]
fn the_command_line_cuts_controllers_anew() {
    assert_eq!(sizes(Setup::new().append("controllers=512M@1G+1G@2G,512M@1536M")), [1536, 512]);
}

#[test]
fn without_numa_node_ids_each_range_is_a_controller() {
    let overlay = "&{/memory@40000000} { /delete-property/ numa-node-id; };
                   &{/memory@80000000} { /delete-property/ numa-node-id; };";
    assert_eq!(sizes(Setup::new().tree(overlay)), [1024, 1024]);
}

#[test]
fn reservations_of_the_tree_stay_reserved() {
    let overlay = "/ { reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;
                       firmware@90000000 { reg = <0x0 0x90000000 0x0 0x200000>; no-map; }; }; };";
    let guest = Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32);
    let mut system = Setup::new().tree(overlay).set(&[guest], "").boot();
    let frame = system.json("frame 0x90000000");
    assert_eq!(frame["state"], "reserved", "{frame}");
    let next = system.json("frame 0x90200000");
    assert_ne!(next["state"], "reserved", "{next}");
}

#[test]
fn boot_memory_that_the_tree_reserves_is_not_released() {
    let image = std::fs::read(system_tests::image()).unwrap();
    // QEMU loads it 2 MiB into RAM.
    let last = 0x4020_0000 + u64::from_le_bytes(image[16..24].try_into().unwrap()) - 0x1000;
    let overlay = format!(
        "/ {{ reserved-memory {{ #address-cells = <2>; #size-cells = <2>; ranges;
         firmware@{last:x} {{ reg = <0x0 {last:#x} 0x0 0x1000>; }}; }}; }};"
    );
    for (overlay, is_given_back) in [("", true), (&overlay, false)] {
        let guest = Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32);
        let mut system = Setup::new().tree(overlay).set(&[guest], "").boot();
        let frame = system.json(&format!("frame {last:#x}"));
        assert_eq!(frame["state"] != "reserved", is_given_back, "{frame}");
        let log = system.json("log").to_string();
        assert_eq!(
            log.contains(&format!("stays reserved: it lies in firmware@{last:x}")),
            !is_given_back,
            "{log}"
        );
        let check = system.json("check");
        assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
    }
}

#[test]
fn a_cpu_that_does_not_start_is_left_out() {
    // No CPU has this affinity, so PSCI refuses to start it. Other CPUs follow.
    let overlay = "&{/cpus/cpu@1} { reg = <0x77>; };";
    let guest = Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32);
    let mut system = Setup::new().tree(overlay).set(&[guest], "").boot();
    system.expect(r"cannot start the CPU with MPIDR 0x77: PSCI returned");
    assert_eq!(system.json("cpus")["cpus"].as_array().unwrap().len(), 3);
}

#[test]
fn devices_that_a_loader_leaves_running_are_stopped() {
    let loader = system_tests::raw_payload("gicloader");
    let device = format!("loader,file={},addr=0xb0000000,cpu-num=0,force-raw=on", loader.display());
    let guest = Guest::payload("pair", "irqload").bootargs("rounds=100").ram_mib(32).vcpus(2);
    let mut system = Setup::new().set(&[guest], "").option("-device").option(&device).boot();
    // The ITS and the LPIs of all four CPUs are off. Interrupts arrive, although one was never ended.
    system.expect("GIC ITS at 0x8080000: left enabled by the loader, disabled");
    system.expect("LPIs of 4 CPUs: left enabled by the loader, disabled");
    system.to_guest("pair");
    let said = system.expect(r"irqload done [^\n]* lost \d+");
    assert!(said.ends_with(" lost 0"), "{said}");
}
