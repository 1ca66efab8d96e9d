//! The physical map in reports: four controllers, with movable blocks on three of them.

use serde_json::Value;
use system_tests::{Guest, Setup, System};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const FRAME: u64 = 4096;

fn rows<'a>(report: &'a Value, key: &str) -> &'a Vec<Value> {
    report[key].as_array().unwrap_or_else(|| panic!("no {key} in {report}"))
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {row}"))
}

/// Checks that `check` finds no problem, and every frame is accounted for.
#[track_caller]
fn assert_in_order(system: &mut System, ram: u64) {
    let check = system.json("check");
    assert_eq!(rows(&check, "problems").len(), 0, "{check}");
    assert_eq!((number(&check, "problem_count"), number(&check, "refused_count")), (0, 0), "{check}");
    assert_eq!(number(&check, "ram_frame_count"), ram / FRAME, "{check}");
    assert_eq!(number(&check, "busy_count"), 0, "{check}");
    assert_eq!(number(&check, "frame_count"), ram / FRAME, "{check}");
}

#[test]
fn four_controllers_with_blocks_on_three_of_them() {
    let blocks = [
        (0x1_0000_0000_u64, 128 * MIB, "mc3"),
        (0x9000_0000, 256 * MIB, "mc1"),
        (0xc000_0000, 512 * MIB, "mc2"),
    ];
    let mut system = Setup::new()
        .machine("four")
        .set(&[Guest::linux("alpha").ram_mib(512), Guest::linux("beta").ram_mib(256)], "")
        .append("movablecore=128M@4G,256M@0x90000000,0x20000000@3G")
        .boot();
    system.wait_for_shell("alpha");
    system.wait_for_shell("beta");

    // Blocks have the requested sizes and places; guests' RAM is allocated from them first.
    let report = system.json("dmb");
    let found = rows(&report, "blocks");
    assert_eq!(found.len(), blocks.len(), "{report}");
    let mut lent = 0;
    for (row, (base, size, controller)) in found.iter().zip(blocks) {
        assert_eq!((&row["base"], number(row, "size_bytes")), (&Value::from(format!("{base:#x}")), size));
        assert_eq!((&row["controller"], &row["source"]), (&controller.into(), &"command line".into()));
        let uses = ["free_bytes", "lent_bytes", "claimed_bytes", "fixed_bytes"].map(|key| number(row, key));
        assert_eq!(uses.iter().sum::<u64>(), size, "{row}");
        assert_eq!((uses[2], uses[3]), (0, 0), "{row}");
        lent += uses[1];
    }
    assert_eq!(lent, 768 * MIB, "{report}");

    // Zones: every frame is in one, spans may overlap, and no zone has a span without frames.
    let report = system.json("zones");
    let mut present = 0;
    for row in rows(&report, "zones") {
        if row["controller"].is_null() {
            present += number(row, "present_bytes");
        }
        let is_empty = number(row, "present_bytes") == 0;
        assert_eq!(number(row, "spanned_bytes") == 0, is_empty, "{row}");
        assert_eq!(row["start"].is_null(), is_empty, "{row}");
        let blocks = row["free_blocks"].as_array().unwrap().iter().enumerate();
        let free: u64 = blocks.map(|(order, count)| (FRAME << order) * count.as_u64().unwrap()).sum();
        assert_eq!(free, number(row, "free_bytes"), "{row}");
    }
    assert_eq!(present, 4 * GIB);
    let movable = rows(&report, "zones").iter().find(|row| row["zone"] == "MOVABLE").unwrap();
    assert_eq!(movable["start"], "0x90000000");
    assert_eq!(number(movable, "present_bytes"), 896 * MIB);
    assert_eq!(number(movable, "spanned_bytes"), 0x1_0000_0000 + 128 * MIB - 0x9000_0000);

    let report = system.json("mem");
    assert_eq!(number(&report, "ram_bytes"), 4 * GIB, "{report}");
    assert_eq!(number(&report, "movable_only_bytes"), 896 * MIB, "{report}");
    let frame = system.json("frame 0x9fffffff");
    assert_eq!((&frame["zone"], &frame["dmb"]), (&"MOVABLE".into(), &1.into()), "{frame}");
    let frame = system.json("frame 0xa0000000");
    assert_eq!((&frame["zone"], &frame["dmb"]), (&"NORMAL".into(), &Value::Null), "{frame}");
    let report = system.json("pagetypeinfo");
    for row in rows(&report, "types").iter().filter(|row| row["zone"] == "MOVABLE") {
        assert_eq!(row["type"], "Movable", "{report}");
    }

    // The accounts are correct while guests run, after one has stopped, and after it has started again.
    assert_in_order(&mut system, 4 * GIB);
    let check = system.json("check");
    assert!(number(&check, "mapped_count") > 0, "guests' blocks are looked up in stage 2: {check}");
    let used = number(&system.json("mem"), "free_bytes");
    system.monitor("stop alpha");
    let mut freed = 0;
    for _ in 0..100 {
        freed = number(&system.json("mem"), "free_bytes") - used;
        if freed >= 512 * MIB {
            break;
        }
    }
    assert!(freed >= 512 * MIB, "{freed}");
    assert_in_order(&mut system, 4 * GIB);
    system.monitor("start alpha");
    system.wait_for_shell("alpha");
    assert_in_order(&mut system, 4 * GIB);
}

#[test]
fn one_bad_item_and_nothing_is_designated() {
    let guests = [Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32)];
    let mut system = Setup::new()
        .machine("four")
        .set(&guests, "")
        .append("movablecore=256M@0x90000000,256M@0xbf000000")
        .boot();
    let log = system.expect("nothing is designated");
    assert!(log.contains("movablecore= item 2 \"256M@0xbf000000\""), "{log}");
    let dmb = system.json("dmb");
    assert_eq!(rows(&dmb, "blocks").len(), 0, "{dmb}");
    assert_eq!(number(&system.json("mem"), "movable_only_bytes"), 0);
    assert_in_order(&mut system, 4 * GIB);
}

#[test]
fn a_map_of_64_gib_with_holes_boots() {
    let guests = [Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32)];
    let mut system = Setup::new().machine("sparse").set(&guests, "").boot();
    system.wait_for_monitor();
    let ram = number(&system.json("mem"), "ram_bytes");
    assert_eq!(ram, 64 * GIB);
    // 12.2 bytes for each frame. Only the necessary part is initialised at boot.
    let table = number(&system.json("version"), "frame_table_bytes");
    assert!(table <= 64 * GIB / FRAME * 16, "{table}");
    assert_in_order(&mut system, ram);
}
