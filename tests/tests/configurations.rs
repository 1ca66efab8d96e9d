//! Configurations: errors are reported on the console with the same text as by `ballast check`, valid guests start, and the
//! settings for the host's memory take effect.

use std::path::{Path, PathBuf};

use ballast_tools::configuration::{Findings, Target, UnknownNames, check_blob};
use serde_json::Value;
use system_tests::{Guest, Setup, System};

/// Returns a valid guest, which must start.
fn witness() -> Guest {
    Guest::payload("witness", "probe").bootargs("probe=echo").ram_mib(64).memory("controllers = <0>;")
}

fn probe(name: &str) -> Guest {
    Guest::payload(name, "probe").bootargs("probe=echo").ram_mib(64)
}

/// Returns the entry of guest `name` in `guests`.
#[track_caller]
fn row(system: &mut System, name: &str) -> Value {
    let report = system.json("guests");
    let row = report["guests"].as_array().unwrap().iter().find(|guest| guest["name"] == name);
    row.unwrap_or_else(|| panic!("no {name} in {report}")).clone()
}

#[track_caller]
fn wait_until(system: &mut System, name: &str, wanted: &str) -> Value {
    let until = std::time::Instant::now() + system_tests::patience();
    loop {
        let row = row(system, name);
        if row["state"] == wanted {
            return row;
        }
        assert!(std::time::Instant::now() < until, "{row}");
    }
}

/// Returns `text` with each number and its unit replaced by `N`, and white space by one space: the tool on the PC does not know
/// the size of the image.
fn without_numbers(text: &str) -> String {
    let numbers = regex::Regex::new(r"\d+( (bytes|.iB))?").unwrap();
    let spaces = regex::Regex::new(r"\s+").unwrap();
    spaces.replace_all(&numbers.replace_all(text, "N"), " ").into_owned()
}

/// Runs `ballast check --host` on the configuration of `setup`. Returns its output.
fn checked(setup: &Setup) -> Findings {
    let blob = std::fs::read(setup.configuration()).unwrap();
    check_blob(&blob, Target::Described(&setup.host_tree(), None), UnknownNames::Refused)
}

/// Checks that the log contains all messages of `ballast check --host`.
#[track_caller]
fn assert_same_words(system: &mut System, findings: &Findings) {
    assert!(!findings.lines.is_empty());
    system.monitor("log");
    let shown = without_numbers(&system.transcript());
    for line in &findings.lines {
        let (_, said) = line.split_once(": ").unwrap();
        assert!(shown.contains(&without_numbers(said)), "the console does not say `{said}`");
    }
}

#[test]
fn bad_guests_are_refused_in_the_words_of_the_check_and_others_start() {
    system_tests::payload("probe");
    let region = "memory { size = <0x4000000>; controllers = <0>; };";
    let guest = |name: &str, text: &str| {
        let vcpus = if text.contains("vcpus") { "" } else { "vcpus = <1>;" };
        let kernel = if text.contains("kernel") { "" } else { "kernel = <&probe>;" };
        let region = if text.contains("memory {") { "" } else { region };
        format!("{name} {{ {vcpus} {kernel} {text} {region} }};")
    };
    let guests = [
        guest("hungry", "memory { size = <0x60000000>; controllers = <1>; };"),
        guest("many", "vcpus = <9>;"),
        guest("askew", "memory { size = <0x4000000>; unit-size = <0x40000000>; };"),
        guest(
            "twice",
            "#address-cells = <2>; #size-cells = <2>; memory@50000000 { reg = <0 0x50000000 0 0x400000>; }; \
             memory@50200000 { reg = <0 0x50200000 0 0x400000>; };",
        ),
        guest("cells", "vcpus = <1 2>;"),
        guest("text", "kernel = <&text>;"),
        guest("typist", "no-migraton;"),
        guest("witness", "bootargs = \"probe=echo\";"),
    ];
    let source = format!(
        "/dts-v1/; / {{ compatible = \"ballast,configuration\"; images {{ \
         probe: probe {{ data = /incbin/(\"guests/probe.img\"); }}; \
         text: text {{ data = \"#!/bin/sh, which is no kernel\"; }}; }}; guests {{ {} }}; }};",
        guests.concat()
    );
    let setup = Setup::new().source(&source, &["witness"]);
    let findings = checked(&setup);
    let mut system = setup.boot();
    system.wait_for_monitor();
    wait_until(&mut system, "witness", "running");
    assert_same_words(&mut system, &findings);
    for (name, why) in [
        (
            "hungry",
            r"/guests/hungry/memory: size = 1536 MiB: controller 1 has .* missing; no single controller has room",
        ),
        ("many", r"/guests/many: vcpus = 9: the host has 4 CPUs, of which . are free"),
        ("askew", r"/guests/askew/memory: size = 64 MiB: must be a multiple of 1 GiB"),
        (
            "twice",
            r"/guests/twice/memory@50200000: reg = 4 MiB at 0x50200000: overlaps with /guests/twice/memory@50000000",
        ),
        ("cells", r"/guests/cells: vcpus = <0x1 0x2>: must be a number \(one cell\)"),
        (
            "text",
            r"/guests/text: kernel = .*: must be a kernel: this begins with neither the arm64 Image header",
        ),
        ("typist", r#"/guests/typist: no-migraton: unknown name; did you mean "no-migration"\?"#),
    ] {
        let row = row(&mut system, name);
        let reason = row["reason"].as_str().unwrap_or_default();
        assert_eq!(row["state"], "refused");
        assert!(regex::Regex::new(why).unwrap().is_match(reason), "{name}: {reason}");
        assert!(system.monitor(&format!("start {name}")).starts_with("error: it was refused: /guests/"));
        assert!(system.monitor(&format!("guest {name}")).contains("refused"));
    }
    // Only the witness has memory.
    let report = system.json("controllers");
    let of_guests =
        report["controllers"].as_array().unwrap().iter().map(|row| row["guest_bytes"].as_u64().unwrap());
    assert_eq!(of_guests.sum::<u64>(), 64 << 20);
}

#[test]
fn a_guest_that_lacks_memory_when_it_starts_reports_how_much() {
    let guests = [
        probe("early").ram_mib(700).memory("controllers = <0>;"),
        probe("late").ram_mib(800).memory("controllers = <0>;").with("start-manually;"),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    wait_until(&mut system, "early", "running");
    let before = system.json("controllers");
    assert_eq!(row(&mut system, "late")["state"], "off");
    system.monitor("start late");
    let reason = wait_until(&mut system, "late", "failed")["reason"].as_str().unwrap().to_owned();
    let wanted = r"^could not start: /guests/late/memory: size = 800 MiB: controller 0 has \d+ .iB free, \d+ .iB missing; it would fit on controller 1$";
    assert!(regex::Regex::new(wanted).unwrap().is_match(&reason), "{reason}");
    assert_eq!(system.json("controllers"), before);
    system.monitor("stop early");
    wait_until(&mut system, "early", "off");
    system.monitor("start late");
    wait_until(&mut system, "late", "running");
}

/// Writes a changed copy of the blob in `file`.
fn damaged(file: &Path, name: &str, damage: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut blob = std::fs::read(file).unwrap();
    damage(&mut blob);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, blob).unwrap();
    path
}

#[test]
fn truncated_and_corrupted_blobs_are_told_of() {
    let file = Setup::new().set(&[witness()], "").configuration();
    // Offset of the structure block (third word of the header).
    let blob = std::fs::read(&file).unwrap();
    let structure = u32::from_be_bytes(blob[8..12].try_into().unwrap()) as usize;
    let half = blob.len() / 2;
    let files = [
        damaged(&file, "truncated.dtb", |blob| blob.truncate(half)),
        damaged(&file, "header.dtb", |blob| blob.truncate(20)),
        damaged(&file, "magic.dtb", |blob| blob[0] = 0),
        damaged(&file, "tokens.dtb", |blob| blob[structure + 8..structure + 16].fill(0xff)),
        damaged(&file, "other.dtb", |blob| {
            let at = blob.windows(9).position(|bytes| bytes == b"ballast,c").unwrap();
            blob[at] = b'x';
        }),
    ];
    for file in files {
        let setup = Setup::new().blob(&file, &[]);
        let findings = checked(&setup);
        let mut system = setup.boot();
        system.wait_for_monitor();
        assert_same_words(&mut system, &findings);
        assert_eq!(system.monitor("guests").trim(), "There are no guests.", "{}", file.display());
    }
}

#[test]
fn blocks_and_pools_are_designated_or_kept_out_of_use() {
    let more = |pool: &str| {
        format!(
            "designated-movable-blocks {{ #address-cells = <2>; #size-cells = <2>; \
             fast {{ compatible = \"designated-movable-block\"; reusable; size = <0x8000000>; controllers = <1 0>; }}; \
             fixed {{ compatible = \"designated-movable-block\"; reusable; reg = <0 0x60000000 0 0x8000000>; }}; }}; \
             pools {{ #address-cells = <2>; #size-cells = <2>; \
             video {{ compatible = \"shared-dmb-pool\"; reusable; reg = <0 {pool} 0 0x1000000>; }}; }};"
        )
    };
    let movable = |system: &mut System| {
        let report = system.json("controllers");
        let rows = report["controllers"].as_array().unwrap();
        rows.iter().map(|row| row["dmb_bytes"].as_u64().unwrap() >> 20).collect::<Vec<_>>()
    };
    let setup = Setup::new().set(&[witness()], &more("0x61000000"));
    let findings = checked(&setup);
    assert_eq!(findings.error_count, 0, "{findings:?}");
    let mut system = setup.boot();
    wait_until(&mut system, "witness", "running");
    assert_same_words(&mut system, &findings);
    assert_eq!(movable(&mut system), [128, 128]);
    assert_eq!(system.json("frame 0x60000000")["zone"], "MOVABLE");
    assert!(system.transcript().contains("pool video of 16 MiB at 0x61000000"), "{}", system.transcript());
    drop(system);

    // A pool at a wrong place: no block takes effect, and the named memory is not used.
    let setup = Setup::new().set(&[witness()], &more("0x67800800"));
    let findings = checked(&setup);
    let mut system = setup.boot();
    wait_until(&mut system, "witness", "running");
    assert_same_words(&mut system, &findings);
    assert_eq!(movable(&mut system), [0, 0]);
    for address in ["0x60000000", "0x67ffffff", "0x687ff000"] {
        assert_eq!(system.json(&format!("frame {address}"))["state"], "reserved", "{address}");
    }
}

#[test]
fn pinned_ram_lies_in_place_and_nowhere_else() {
    let pinned = |name, base: u64| {
        Guest::payload(name, "probe").bootargs("probe=echo").ram_mib(32).with(&format!(
            "#address-cells = <2>; #size-cells = <2>; \
             memory@{base:x} {{ reg = <0 {base:#x} 0 0x4000000>; pinned-in-place; }};"
        ))
    };
    let guests = [
        pinned("right", 0x7000_0000),
        pinned("wrong", 0x4020_0000),
        pinned("outside", 0xfe00_0000),
        pinned("crowd", 0x7800_0000).vcpus(9),
        pinned("hungry", 0x7400_0000).with("memory-2 { size = <1 0>; };"),
    ];
    let mut system = Setup::new().set(&guests, "").names(&["right"]).boot();
    wait_until(&mut system, "right", "running");
    let map = system.json("guest right map");
    let region = map["regions"].as_array().unwrap().iter().find(|row| row["ipa"] == "0x70000000").unwrap();
    assert_eq!((&region["backing"], &region["controller"]), (&"pinned".into(), &"mc0".into()), "{map}");
    assert_eq!(region["backed_bytes"], 64 << 20);
    for (name, why) in
        [("wrong", "overlaps with Ballast's image"), ("outside", "must lie in one range of the host's RAM")]
    {
        let reason = row(&mut system, name)["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(why), "{name}: {reason}");
    }
    // A guest that cannot run on this host reserves nothing.
    assert_eq!(row(&mut system, "crowd")["state"], "refused");
    assert_eq!(system.json("frame 0x78000000")["state"], "free");
    assert_eq!(row(&mut system, "hungry")["state"], "refused");
    assert_eq!(system.json("frame 0x74000000")["state"], "free");
    for _ in 0..2 {
        system.monitor("stop right");
        wait_until(&mut system, "right", "off");
        system.monitor("start right");
        wait_until(&mut system, "right", "running");
    }
    // There are no other errors.
    system.monitor("log error");
    let is_error = |line: &&str| line.contains(" error ") && !line.contains("configuration: /guests/");
    let errors: Vec<String> = system.transcript().lines().filter(is_error).map(str::to_owned).collect();
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn nodes_of_the_host_are_rewritten_for_the_guest() {
    let overlay = "/ { reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges; \
        block@90000000 { compatible = \"designated-movable-block\"; reusable; reg = <0 0x90000000 0 0x8000000>; }; \
        log@a0000000 { compatible = \"ramoops\"; reg = <0 0xa0000000 0 0x10000>; }; }; \
        sensor { compatible = \"acme,sensor\"; interrupts-extended = <1 2 3>; note = \"kept\"; }; };";
    let nodes =
        "host-nodes = \"/reserved-memory/block@90000000\", \"/reserved-memory/log@a0000000\", \"/sensor\";";
    let guests = [
        probe("good").with(nodes),
        probe("bad").with("host-nodes = \"/nowhere\";"),
        probe("greedy").with("host-nodes = \"/psci\";"),
    ];
    let mut system = Setup::new().tree(overlay).set(&guests, "").names(&["good"]).boot();
    wait_until(&mut system, "good", "running");
    let tree = system.monitor("guest good tree");
    assert!(!tree.contains("block@90000000"), "{tree}");
    assert!(tree.contains("log@a0000000 {") && tree.contains("compatible = \"ramoops\";"), "{tree}");
    assert!(tree.contains("note = \"kept\";") && !tree.contains("interrupts-extended"), "{tree}");
    assert!(
        system
            .transcript()
            .contains("/reserved-memory/block@90000000: left out: a kernel without support for it")
    );
    for (name, why) in [
        ("bad", "must exist in the host's tree"),
        ("greedy", "must be another node: Ballast writes this one"),
    ] {
        let row = row(&mut system, name);
        let reason = row["reason"].as_str().unwrap_or_default();
        assert!(row["state"] == "refused" && reason.contains(why), "{name}: {reason}");
    }
}
