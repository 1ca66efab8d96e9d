//! Tests of the bindings with dt-schema: the bindings are valid, shipped configurations and guests' trees conform to
//! them, and broken ones do not.

use std::fs;
use std::path::{Path, PathBuf};

use guest_dts::config::{Configuration, Layout, Severity};
use guest_dts::finding::Finding;
use guest_dts::guest_tree::{Assigned, AssignedDevice, GuestTree, PciBus, PciSlot, platform};
use guest_dts::image::{BootPlan, Image};
use guest_dts::testing::{compile, compile_with_images, schema};
use guest_dts::tree::{AlignedBlob, Tree};

/// Returns the names and sources of the shipped sets.
fn sets() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = folder.read_dir().unwrap().flatten().map(|entry| entry.path());
    let mut sets: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "dts"))
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    sets.sort();
    assert!(sets.len() >= 6);
    sets
}

/// Writes `blob` to a file that belongs to the test `test`.
fn file(test: &str, name: &str, blob: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name).with_extension("dtb");
    fs::write(&path, blob).unwrap();
    path
}

fn validate(files: &[PathBuf]) -> String {
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    schema::validate(&files)
}

/// Builds the trees of all guests of the configuration `source`, with the guests' names.
fn guest_trees(source: &str) -> Vec<(String, Vec<u8>)> {
    let blob = compile_with_images(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut sink =
        |severity: Severity, finding: Finding<'_>| assert!(severity != Severity::Error, "{finding}");
    let configuration = Configuration::read(&tree, &mut sink).unwrap();
    let build = |guest: &guest_dts::config::Guest<'_>| {
        let layout = Layout::of(guest).unwrap();
        let plan = BootPlan::new(&Image::parse(guest.kernel).unwrap(), Some(8), layout.regions()).unwrap();
        let (kaslr_seed, rng_seed) = (Some(0x1234), Some([7; 32]));
        let input = GuestTree { guest, layout: &layout, plan: &plan, assigned: None, kaslr_seed, rng_seed };
        (guest.name.to_owned(), input.build().unwrap())
    };
    configuration.guests.iter().map(build).collect()
}

/// Applies each of `changes` to `good` alone, and asserts that dt-schema reports each of them.
fn assert_all_found(test: &str, good: &str, changes: &[(&str, &str)], compile: impl Fn(&str) -> AlignedBlob) {
    let name = |index: usize| format!("change-{index}-");
    let files: Vec<_> = changes
        .iter()
        .enumerate()
        .map(|(index, (from, to))| {
            assert!(good.contains(from), "{from}");
            file(test, &name(index), compile(&good.replace(from, to)).as_slice())
        })
        .collect();
    let said = validate(&files);
    for (index, (from, to)) in changes.iter().enumerate() {
        assert!(said.contains(&name(index)), "no error about {to:?} instead of {from:?}");
    }
}

#[test]
fn the_bindings_are_valid() {
    assert_eq!(schema::validate_bindings(), "");
}

#[test]
fn the_shipped_sets_conform() {
    let files: Vec<_> = sets()
        .iter()
        .map(|(name, source)| file("sets", name, compile_with_images(source).as_slice()))
        .collect();
    assert_eq!(validate(&files), "");
}

#[test]
fn memory_and_blocks_may_be_disabled() {
    let (_, good) = sets().into_iter().find(|(name, _)| name == "two-controllers").unwrap();
    let disabled = good
        .replace("dmb-1 {", "dmb-1 { status = \"disabled\";")
        .replace("memory {", "memory-9 { status = \"disabled\"; size = <0x200000>; }; memory {");
    assert!(disabled.matches("disabled").count() >= 2, "{disabled}");
    assert_eq!(validate(&[file("disabled", "disabled", compile_with_images(&disabled).as_slice())]), "");
}

#[test]
fn trees_of_guests_conform_in_every_mode() {
    let mut files = Vec::new();
    for (name, source) in sets() {
        for (guest, blob) in guest_trees(&source) {
            files.push(file("guests", &format!("{name}-{guest}"), &blob));
        }
    }
    let (_, source) = sets().into_iter().find(|(name, _)| name == "two-controllers").unwrap();
    for mode in ["dmb", "cma", "numa", "none"] {
        let mut source = source.replace("\"auto\"", &format!("\"{mode}\""));
        if mode == "numa" {
            // A NUMA node is one controller.
            source = source.replace("controllers = <0 1>;", "controllers = <0>;");
        }
        for (guest, blob) in guest_trees(&source) {
            files.push(file("guests", &format!("{mode}-{guest}"), &blob));
        }
    }
    assert_eq!(validate(&files), "");
}

#[test]
fn broken_configurations_are_refused_by_the_schema() {
    let (_, good) = sets().into_iter().find(|(name, _)| name == "pool-owner").unwrap();
    let changes = [
        ("vcpus = <1>;", "vcpus = <0>;"),
        ("vcpus = <1>;", ""),
        ("vcpus = <1>;", "vcpus = \"one\";"),
        ("kernel = <&kernel>;", ""),
        ("bootargs =", "bootarg ="),
        ("memory {", "ram {"),
        ("size = <0x0 0x18000000>;", ""),
        ("preferred;", "preferred = <1>;"),
        ("controllers = <1 0>;", ""),
        ("controllers = <1 0>;", "controllers = <1 300>;"),
        ("slice-us = <100>;", "slice-us = <1>;"),
        ("share-percent = <10>;", "share-percent = <100>;"),
        ("compatible = \"ballast,configuration\";", "compatible = \"ballast,configuratoin\";"),
        ("data = /incbin/(\"kernel\");", "date = /incbin/(\"kernel\");"),
        ("guests {", "gusts {"),
    ];
    assert_all_found("broken", &good, &changes, compile_with_images);
}

/// Returns a configuration with a pool of these properties.
fn with_pool(pool: &str) -> String {
    let (_, good) = sets().into_iter().find(|(name, _)| name == "pool-owner").unwrap();
    let (head, rest) = good.split_once("pools {").unwrap();
    let (_, tail) = rest.split_once("guests {").unwrap();
    format!("{head}pools {{ #address-cells = <2>; #size-cells = <2>; video {{ {pool} }}; }}; guests {{{tail}")
}

const GOOD_POOLS: [&str; 7] = [
    "compatible = \"shared-dmb-pool\"; reusable; size = <0 0x400000>;",
    "compatible = \"shared-dma-pool\"; reusable; size = <0 0x400000>; alignment = <0 0x4000000>; status = \"okay\";",
    "compatible = \"shared-dmb-pool\"; reusable; reg = <0 0x80000000 0 0x400000>; owner = <&owner>;",
    "compatible = \"shared-dmb-pool\"; reusable; reg = <0 0x80000000 0 0x400000>; owner = <&owner>; pinned-in-place;",
    "compatible = \"shared-dmb-pool\"; reusable; size = <0 0x400000>; controllers = <1 0>; unit-size = <0x200000>;",
    "compatible = \"shared-dmb-pool\"; reusable; size = <0 0x40000000>; unit-size = <0x40000000>; unit-wait-ms = <500>;",
    "compatible = \"shared-dmb-pool\"; reusable; reg = <0 0x80000000 0 0x40000000>; unit-size = <0x40000000>;",
];

fn is_complaint(severity: Severity) -> bool {
    matches!(severity, Severity::Error | Severity::Warning)
}

#[test]
fn valid_pools_conform_and_are_accepted() {
    let files: Vec<_> = GOOD_POOLS
        .iter()
        .enumerate()
        .map(|(index, pool)| {
            let blob = compile_with_images(&with_pool(pool));
            let tree = Tree::new(blob.as_slice()).unwrap();
            let mut sink = |severity: Severity, finding: Finding<'_>| {
                assert!(!is_complaint(severity), "{pool}: {finding}");
            };
            assert_eq!(Configuration::read(&tree, &mut sink).unwrap().pools.len(), 1);
            file("pools", &format!("pool-{index}-"), blob.as_slice())
        })
        .collect();
    assert_eq!(validate(&files), "");
}

#[test]
fn broken_pools_are_found_by_schema_and_by_reader() {
    let changes = [
        (0, "\"shared-dmb-pool\"", "\"shared-dmb-pool\", \"shared-dma-pool\""),
        (0, "reusable; ", ""),
        (0, "reusable;", "reusable; no-map;"),
        (0, "reusable;", "reusable; linux,cma-default;"),
        (0, "size = <0 0x400000>;", ""),
        (0, "size = <0 0x400000>;", "size = <0 0x400000>; alloc-ranges = <0 0x80000000 0 0x40000000>;"),
        (0, "size = <0 0x400000>;", "size = <0 0x400000>; pinned-in-place;"),
        (0, "size = <0 0x400000>;", "size = <0 0x400000>; unit-wait-ms = <500>;"),
        (0, "size = <0 0x400000>;", "size = <0 0x400000>; onwer = <&owner>;"),
        (2, "owner = <&owner>;", "owner = \"owner\";"),
        (2, "owner = <&owner>;", "alignment = <0 0x400000>;"),
        (2, "owner = <&owner>;", "controllers = <0>;"),
        (2, "owner = <&owner>;", "size = <0 0x400000>;"),
        (2, "0 0x400000>", "0 0x400000 0 0x90000000 0 0x400000>"),
        (4, "<1 0>", "<1 300>"),
        (4, "<0x200000>", "<0x1000>"),
        (4, "<0x200000>", "<0x400000>"),
        (4, "unit-size", "owner = <&owner>; unit-size"),
        (5, "<500>", "<0>"),
        (5, "<500>", "<3600001>"),
        (5, "<500>", "\"long\""),
    ];
    let mut files = Vec::new();
    for (index, (pool, from, to)) in changes.iter().enumerate() {
        assert!(GOOD_POOLS[*pool].contains(from), "{from}");
        let blob = compile_with_images(&with_pool(&GOOD_POOLS[*pool].replacen(from, to, 1)));
        let mut said = 0;
        let mut sink = |severity: Severity, _: Finding<'_>| said += u8::from(is_complaint(severity));
        Configuration::read(&Tree::new(blob.as_slice()).unwrap(), &mut sink).unwrap();
        assert!(said > 0, "the reader reports no error about {to:?} instead of {from:?}");
        files.push(file("broken-pools", &format!("change-{index}-"), blob.as_slice()));
    }
    let said = validate(&files);
    for (index, (_, from, to)) in changes.iter().enumerate() {
        assert!(
            said.contains(&format!("change-{index}-")),
            "the schema reports no error about {to:?} instead of {from:?}"
        );
    }
}

#[test]
fn p19_pools_obey_their_binding_and_broken_ones_do_not() {
    let (_, good) = sets().into_iter().find(|(name, _)| name == "pool-owner").unwrap();
    let blob = compile_with_images(&good);
    assert_eq!(validate(&[file("pools", "good", blob.as_slice())]), "");
    let changes = [
        ("reusable;", ""),
        ("reusable;", "reusable; no-map;"),
        ("reusable;", "reusable; linux,cma-default;"),
        ("\"shared-dmb-pool\"", "\"shared-dbm-pool\""),
    ];
    assert_all_found("pools", &good, &changes, compile_with_images);
}

#[test]
fn broken_reserved_memory_is_found() {
    let (_, source) = sets().into_iter().find(|(name, _)| name == "two-controllers").unwrap();
    let trees = guest_trees(&source.replace("\"auto\"", "\"dmb\""));
    let blob = AlignedBlob::new(&trees[0].1);
    let good = guest_dts::tree::TreeSource(Tree::new(blob.as_slice()).unwrap()).to_string();
    let changes = [
        ("\t\t\treusable;\n", ""),
        ("\t\t\treusable;\n", "\t\t\tno-map;\n"),
        ("\"designated-movable-block\"", "\"designated-movable-block\", \"shared-dmb-pool\""),
        ("\"arm,psci-1.0\", ", ""),
        ("\t\tmethod = \"hvc\";\n", ""),
        ("\t\talways-on;\n", ""),
        ("\"arm,gic-v3\"", "\"arm,gic-v2\""),
    ];
    assert_all_found("broken-guests", &good, &changes, compile);
}

/// A configuration of a guest with devices, and the node of the host's tree that it owns.
fn with_devices() -> String {
    let (_, good) = sets().into_iter().find(|(name, _)| name == "devices").unwrap();
    good.replace(
        "pci-functions = <0x08 0x10 0x28>;",
        "pci-functions = <0x08 0x10 0x28>; devices = \"/soc/serial@9040000\";",
    )
}

#[test]
fn devices_are_checked_by_schema_and_by_reader() {
    let good = with_devices();
    assert_eq!(validate(&[file("devices", "good", compile_with_images(&good).as_slice())]), "");
    let functions = "pci-functions = <0x08 0x10 0x28>;";
    let changes = [
        (functions, "pci-functions = <0x08 0x10000>;"),
        (functions, "pci-functions = <1 2 3 4 5 6 7 8 9>;"),
        (functions, "pci-functions = \"0000:00:01.0\";"),
        (functions, "pci-function = <0x08>;"),
        ("\"/soc/serial@9040000\"", "\"serial\""),
        ("\"/soc/serial@9040000\"", "<1>"),
        (functions, "assign-without-smmu = <1>;"),
        ("dma-window;", "dma-window = <1>;"),
        ("dma-window;", "dma-window; interleave;"),
        ("dma-window;", "dma-window; unit-size = <0x200000>;"),
        ("dma-window;", "dma-windows;"),
    ];
    assert_all_found("devices", &good, &changes, compile_with_images);
    for (from, to) in changes {
        let blob = compile_with_images(&good.replace(from, to));
        let mut said = 0;
        let mut sink = |severity: Severity, _: Finding<'_>| said += u8::from(is_complaint(severity));
        Configuration::read(&Tree::new(blob.as_slice()).unwrap(), &mut sink).unwrap();
        assert!(said > 0, "the reader reports no error about {to:?} instead of {from:?}");
    }
}

/// Returns the source of the tree of a guest with two PCI functions and a platform device.
fn tree_with_devices() -> String {
    let host = compile(
        "/dts-v1/; / { soc { serial@9040000 { compatible = \"arm,pl011\", \"arm,primecell\";
            reg = <0x9040000 0x1000>; interrupts = <0 8 4>; clocks = <1>; }; }; };",
    );
    let host = Tree::new(host.as_slice()).unwrap();
    let blob = compile_with_images(&with_devices());
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut sink =
        |severity: Severity, finding: Finding<'_>| assert!(severity != Severity::Error, "{finding}");
    let configuration = Configuration::read(&tree, &mut sink).unwrap();
    let guest = &configuration.guests[0];
    let layout = Layout::of(guest).unwrap();
    let plan = BootPlan::new(&Image::parse(guest.kernel).unwrap(), Some(8), layout.regions()).unwrap();
    let slot = |device, spi| PciSlot { device, spi: Some((spi, false)) };
    let assigned = Assigned {
        pci: Some(PciBus { slots: vec![slot(1, 32), slot(2, 33)], is_coherent: true }),
        devices: vec![AssignedDevice {
            node: host.find("/soc/serial@9040000").unwrap(),
            regs: vec![(platform::DEVICE_BASE, 0x1000)],
            spis: vec![(34, false)],
            is_coherent: false,
        }],
    };
    let (kaslr_seed, rng_seed) = (Some(0x1234), Some([7; 32]));
    let input =
        GuestTree { guest, layout: &layout, plan: &plan, assigned: Some(&assigned), kaslr_seed, rng_seed };
    let blob = AlignedBlob::new(&input.build().unwrap());
    guest_dts::tree::TreeSource(Tree::new(blob.as_slice()).unwrap()).to_string()
}

#[test]
fn trees_with_devices_conform_and_broken_ones_do_not() {
    let good = tree_with_devices();
    assert_eq!(validate(&[file("device-trees", "good", compile(&good).as_slice())]), "");
    let changes = [
        ("pci-host-ecam-generic", "pci-host-cam-generic"),
        ("\tbus-range = <0x0 0x0>;\n", ""),
        ("linux,pci-domain = <0x0>", "linux,pci-domain = <0x1>"),
        ("linux,pci-probe-only = <0x1>", "linux,pci-probe-only = <0x0>"),
        ("interrupt-map-mask = <0xf800 ", "interrupt-map-mask = <0x1800 "),
        ("\"simple-bus\"", "\"complex-bus\""),
        ("\tbus {", "\tdevices {"),
        ("\tdevice_type = \"pci\";\n", ""),
    ];
    assert_all_found("device-trees", &good, &changes, compile);
}
