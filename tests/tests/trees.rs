//! Guests' device trees: the ways to describe movable memory and controllers to Linux, and their effects.

use std::path::{Path, PathBuf};

use guest_dts::testing::{compile, schema};
use guest_dts::tree::{AlignedBlob, Tree, TreeSource};
use system_tests::{Guest, Setup, System};

/// RAM of each guest in MiB: unmovable memory on controller 0, and a block each on controllers 1 and 2.
const STAYS: u64 = 192;
const BLOCKS: [u64; 2] = [64, 128];
/// Maximum difference of MemTotal from that of a guest with plain RAM, in KiB: the data of a zone or a node.
const SLACK_KIB: u64 = 1536;

fn pages(mib: u64) -> u64 {
    mib << 20 >> 12
}

fn guest(mode: &str) -> Guest {
    let [first, second] = BLOCKS.map(|mib| mib << 20);
    let blocks = format!(
        "movable-memory = \"{mode}\"; dmb-1 {{ size = <{first}>; controllers = <1>; }}; \
         dmb-2 {{ size = <{second}>; controllers = <2>; }};"
    );
    Guest::linux(mode).ram_mib(STAYS).with(&blocks).memory("controllers = <0>;")
}

/// Returns the tree of `guest` as source, and checks it against the monitor's.
#[track_caller]
fn received(system: &mut System, guest: &str) -> (AlignedBlob, String) {
    let blob = AlignedBlob::new(&system.device_tree(guest));
    let source = TreeSource(Tree::new(blob.as_slice()).unwrap()).to_string();
    let told = system.monitor(&format!("guest {guest} tree"));
    // Linux removes the seeds from its tree when it has used them; the monitor does not show them.
    let lines = |text: &str| -> Vec<String> {
        text.trim().lines().filter(|line| !line.contains("-seed = ")).map(str::to_owned).collect()
    };
    assert_eq!(lines(&told), lines(&source));
    (blob, source)
}

/// Writes `blob` for dt-validate.
fn file(name: &str, blob: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.dtb"));
    std::fs::write(&path, blob).unwrap();
    path
}

/// Boots four guests with different descriptions of their movable memory.
#[track_caller]
fn four_ways(kernel: &str) -> System {
    let modes = ["auto", "cma", "numa", "none"];
    let mut system = Setup::new().machine("four").kernel(kernel).set(&modes.map(guest), "").boot();
    for mode in modes {
        system.wait_for_shell(mode);
    }
    let movable: u64 = BLOCKS.iter().sum();
    let plain = system.meminfo("none", "MemTotal");
    let plain_cma = system.meminfo("none", "CmaTotal");

    // ZONE_MOVABLE consists of exactly the blocks.
    let zones = system.zones("auto");
    let zone = zones.iter().find(|zone| zone.name == "Movable").unwrap();
    assert_eq!((zone.present, zone.start_pfn), (pages(movable), 0x40000 + pages(STAYS)));
    let in_all: u64 = zones.iter().map(|zone| zone.present).sum();
    assert_eq!(in_all, pages(STAYS + movable));
    assert!(system.run("auto", "cat /proc/cmdline").ends_with(&format!(" movablecore={movable}M")));

    // Each block is a CMA area.
    assert_eq!(system.meminfo("cma", "CmaTotal"), plain_cma + (movable << 10));
    assert!(system.zones("cma").iter().all(|zone| zone.name != "Movable" || zone.present == 0));

    // Each controller is a node.
    let present = |zones: &[system_tests::Zone], node| -> u64 {
        zones.iter().filter(|zone| zone.node == node).map(|zone| zone.present).sum()
    };
    let zones = system.zones("numa");
    let [first, second] = BLOCKS;
    assert_eq!(
        [0, 1, 2, 3].map(|node| present(&zones, node)),
        [pages(STAYS), pages(first), pages(second), 0]
    );
    let nodes =
        system.run("numa", "cd /sys/devices/system/node; cat online node*/distance node0/cpulist; cd");
    assert_eq!(nodes, "0-2\n10 11 11\n11 10 11\n11 11 10\n0");

    assert!(system.zones("none").iter().all(|zone| zone.name != "Movable" || zone.present == 0));
    for mode in ["auto", "cma", "numa"] {
        let total = system.meminfo(mode, "MemTotal");
        assert!(total + SLACK_KIB >= plain, "{mode}: {total} KiB of {plain} KiB");
        received(&mut system, mode);
    }

    // The memory of a program is in the blocks, behind controllers 1 and 2.
    let mark = system.write_pages("auto", 512);
    let behind = system.pages_behind(&mark, 4);
    assert_eq!((behind[0], behind[1] + behind[2], behind[3]), (0, 512, 0), "{behind:?}");
    system
}

#[test]
fn movable_memory_on_linux_6_1() {
    four_ways("6.1");
}

#[test]
fn movable_memory_on_linux_7_3() {
    four_ways("7.3");
}

#[test]
fn movable_memory_on_linux_6_12_and_its_trees() {
    let mut system = four_ways("6.12");
    let mut files = Vec::new();
    for mode in ["auto", "cma", "numa", "none"] {
        let (blob, source) = received(&mut system, mode);
        files.push(file(mode, blob.as_slice()));
        let broken = source.replacen("method = \"hvc\"", "method = \"svc\"", 1);
        assert_ne!(broken, source);
        let path = file(&format!("{mode}-broken"), compile(&broken).as_slice());
        let said = schema::validate(&[&path]);
        assert!(said.contains("-broken") && said.contains("method"), "{mode}: {said}");
    }
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    assert_eq!(schema::validate(&files), "");
}

#[test]
fn seven_blocks_are_seven_cma_areas_in_every_kernel() {
    let blocks: String = (1..=7).map(|at| format!("dmb-{at} {{ size = <0x400000>; }}; ")).collect();
    let guest =
        |name, kernel| Guest::linux_of(name, kernel).with(&format!("movable-memory = \"cma\"; {blocks}"));
    let plain = Guest::linux("plain").ram_mib(284);
    let guests = [guest("old", "6.1"), guest("middle", "6.12"), guest("new", "7.3"), plain];
    let mut system = Setup::new().set(&guests, "").boot();
    system.wait_for_shell("plain");
    let plain = system.meminfo("plain", "CmaTotal");
    for name in ["old", "middle", "new"] {
        system.wait_for_shell(name);
        assert_eq!(system.meminfo(name, "CmaTotal"), plain + ((7 * 4) << 10), "{name}");
    }
}

#[test]
fn a_kernel_that_does_not_know_blocks_loses_them() {
    let mut system = Setup::new().machine("four").set(&[guest("dmb")], "").boot();
    system.wait_for_shell("dmb");
    assert!(system.transcript().contains("must be one that supports \"designated-movable-block\""));
    let (blob, source) = received(&mut system, "dmb");
    assert_eq!(source.matches("compatible = \"designated-movable-block\";").count(), 2);
    assert_eq!(schema::validate(&[&file("dmb", blob.as_slice())]), "");
    // Only memory outside the blocks is left.
    let left = system.meminfo("dmb", "MemTotal");
    assert!(left < STAYS << 10, "{left} KiB");
}
