//! Tests with the shipped configurations and broken ones.

mod devices;

use std::format;
use std::string::String;
use std::vec::Vec;

use super::*;
use crate::guest_tree::GuestTree;
use crate::image::{BootPlan, Image};
use crate::testing::compile_with_images as compile;
use crate::tree::AlignedBlob;

/// The shipped sets.
const SETS: [(&str, &str); 6] = [
    ("alpha-beta", include_str!("../../alpha-beta.dts")),
    ("two-controllers", include_str!("../../two-controllers.dts")),
    ("own-controllers", include_str!("../../own-controllers.dts")),
    ("interleaved", include_str!("../../interleaved.dts")),
    ("pool-owner", include_str!("../../pool-owner.dts")),
    ("devices", include_str!("../../devices.dts")),
];

/// A configuration with two guests of 2 vCPUs and 512 MiB each, without placement.
const TWO_GUESTS: &str = r#"/dts-v1/;
/ {
    compatible = "ballast,configuration";
    images { kernel: kernel { data = /incbin/("kernel"); }; };
    guests {
        alpha { vcpus = <2>; kernel = <&kernel>; memory { size = <0x0 0x20000000>; }; };
        beta { vcpus = <2>; kernel = <&kernel>; memory { size = <0x0 0x20000000>; }; };
    };
};
"#;

/// Returns a host with two controllers and four CPUs, like the machine of `make run`.
fn host() -> Host {
    let room = |id| ControllerRoom { id, free: 1000 << 20, unmovable: 300 << 20 };
    Host { cpu_count: 4, controllers: [room(0), room(1)].into_iter().collect() }
}

/// Returns all findings about `source`.
fn findings(source: &str) -> Vec<String> {
    let blob = compile(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut found = Vec::new();
    let mut sink = |severity: Severity, finding: Finding<'_>| found.push(format!("{severity:?}: {finding}"));
    match Configuration::read(&tree, &mut sink) {
        Ok(mut configuration) => {
            configuration.fit_blocks(&host(), &mut sink);
            configuration.fit(&host(), &mut sink);
        }
        Err(finding) => found.push(format!("Refused: {finding}")),
    }
    found
}

#[test]
fn the_shipped_sets_are_valid_and_fit() {
    for (name, source) in SETS {
        let said = findings(source);
        assert!(said.iter().all(|line| line.starts_with("Note: ")), "{name}: {said:?}");
    }
}

#[test]
fn guests_of_the_sets_get_trees() {
    for (name, source) in SETS {
        let blob = compile(source);
        let tree = Tree::new(blob.as_slice()).unwrap();
        let mut sink =
            |severity: Severity, finding: Finding<'_>| assert!(severity == Severity::Note, "{finding}");
        let configuration = Configuration::read(&tree, &mut sink).unwrap();
        for guest in &configuration.guests {
            let layout = Layout::of(guest).unwrap();
            let image = Image::parse(guest.kernel).unwrap();
            let plan =
                BootPlan::new(&image, guest.ramdisk.map(|data| data.len() as u64), layout.regions()).unwrap();
            let input = GuestTree {
                guest,
                layout: &layout,
                plan: &plan,
                assigned: None,
                kaslr_seed: None,
                rng_seed: None,
            };
            let blob = AlignedBlob::new(&input.build().unwrap());
            let built = Tree::new(blob.as_slice()).unwrap();
            assert_eq!(built.find("/cpus").unwrap().children().count(), guest.vcpu_count as usize, "{name}");
        }
    }
}

/// Returns a configuration of one guest with the properties `guest`, a region with `region`, and `root` beside
/// `/guests`.
fn one_guest(guest: &str, region: &str, root: &str) -> String {
    let defaults = ["vcpus = <1>;", "kernel = <&kernel>;"];
    let defaults: Vec<_> =
        defaults.iter().filter(|line| !guest.contains(line.split(' ').next().unwrap())).copied().collect();
    let region = if region.is_empty() { "size = <0x10000000>;" } else { region };
    format!(
        r#"/dts-v1/;
/ {{
    compatible = "ballast,configuration";
    images {{ kernel: kernel {{ data = /incbin/("kernel"); }}; ramdisk: ramdisk {{ data = /incbin/("ramdisk"); }}; }};
    guests {{ alpha: alpha {{ #address-cells = <2>; #size-cells = <2>; {} {guest} memory {{ {region} }}; }}; }};
    {root}
}};
"#,
        defaults.join(" ")
    )
}

/// Returns all findings about `sources`.
fn report(sources: &[String]) -> String {
    let mut report = String::new();
    for source in sources {
        let found = findings(source);
        assert!(!found.is_empty(), "no findings about {}", source.lines().nth(4).unwrap_or(""));
        report += &format!("{}\n", found.join("\n"));
    }
    report
}

#[test]
fn wrong_guests_get_their_messages() {
    let cases = [
        "vcpus = <0>;",
        "vcpus = <17>;",
        "vcpus = \"two\";",
        "vcpus = <5>;",
        "host-cpus = <0 1>;",
        "host-cpus = <4>;",
        "host-cpus = <70000>;",
        "vcpus = <2>; host-cpus = <1 1>;",
        "host-cpus = [01];",
        "bootargs = <1>;",
        "bootargs = \"a\", \"b\";",
        "kernel = <99>;",
        "kernel = <&alpha>;",
        "kernel = <&ramdisk>;",
        "ramdisk = \"file\";",
        "start-manually = <1>;",
        "page-size = <8192>;",
        "page-size = <0x10000>;",
        "movable-memory = \"sometimes\";",
        "migration-limit-kBps = <0>;",
        "host-nodes = \"soc\";",
        "host-nodes = <1>;",
        "bootarg = \"console=ttyAMA0\";",
        "vcpu = <2>;",
        "frobnicate;",
        "mem { };",
        "dmb { size = <0x200000>; };",
        "dmb { size = <0x300000>; };",
        "dmb { size = <0x400000>; reg = <0 0 0 0>; };",
        "memory-1 { };",
        "movable-memory = \"numa\";",
        "movable-memory = \"numa\"; memory-2 { size = <0x200000>; controllers = <16>; };",
        "movable-memory = \"numa\"; memory-2 { size = <0x200000>; controllers = <0 1>; interleave; };",
        "memory@50000000 { reg = <0 0x50000000>; };",
        "memory@50000000 { reg = <0 0x50000000 0 0x1800>; };",
        "memory@10000000 { reg = <0 0x10000000 0 0x1000>; };",
        "memory@ff00000000 { reg = <0xff 0 1 0x1000>; };",
        "memory@50000000 { reg = <0 0x50000000 0 0x1000>; }; memory@50000800 { reg = <0 0x50000000 0 0x2000>; };",
    ];
    let mut sources: Vec<_> = cases.iter().map(|case| one_guest(case, "", "")).collect();
    sources.push(one_guest("", "", "").replace("vcpus = <1>;", ""));
    sources.push(one_guest("", "", "").replace("kernel = <&kernel>;", ""));
    sources.push(one_guest("", "", "").replace("alpha: alpha", "alpha: ballast"));
    sources.push(one_guest("", "", "").replace("alpha: alpha", "alpha: 7"));
    sources.push(one_guest("", "", "").replace("alpha: alpha", "alpha: alpha@1"));
    sources.push(one_guest("", "", "").replace("memory {", "ram {"));
    insta::assert_snapshot!(report(&sources));
}

#[test]
fn wrong_regions_get_their_messages() {
    let cases = [
        "size = <0>;",
        "size = <1 2 3>;",
        "size = <0x10000800>;",
        "size = <0x200000>;",
        "size = <0xffff 0xffe00000>;",
        "size = <0x10000000>; unit-size = <0x1000000>;",
        "size = <0x10000000>; unit-size = <0x40000000>;",
        "size = <0x10000000>; controllers = <2>;",
        "size = <0x10000000>; controllers = <0 0>;",
        "size = <0x10000000>; controllers = <300>;",
        "size = <0x10000000>; controllers;",
        "size = <0x10000000>; controllers = <0>; interleave;",
        "size = <0x10000000>; interleave;",
        "size = <0x10000000>; preferred;",
        "size = <0x10000000>; pinned-in-place;",
        "size = <0x40000000>; controllers = <1>;",
        "size = <0x40000000>; controllers = <0>; preferred;",
        "size = <0x80000000>; controllers = <0 1>; interleave;",
        "size = <0x80000000>;",
    ];
    let sources: Vec<_> = cases.iter().map(|case| one_guest("", case, "")).collect();
    insta::assert_snapshot!(report(&sources[..16]));
    // With `preferred`, the memory comes from another controller.
    assert_eq!(findings(&sources[16]), Vec::<String>::new());
    insta::assert_snapshot!("wrong_regions_of_several_controllers", report(&sources[17..]));
}

#[test]
fn wrong_pools_get_their_messages() {
    let pools = |text: &str| {
        one_guest("", "", &format!("pools {{ #address-cells = <2>; #size-cells = <2>; {text} }};"))
    };
    let good = "compatible = \"shared-dmb-pool\"; reusable;";
    let mut cases: Vec<_> = [
        String::from("a { compatible = \"shared-dmb-pool\"; size = <0x200000>; };"),
        format!("a {{ {good} }};"),
        format!("a {{ {good} size = <0x100000>; }};"),
        format!("a {{ {good} size = <0x200000>; no-map; }};"),
        format!("a {{ {good} size = <0x200000>; linux,cma-default; }};"),
        format!("a {{ {good} size = <0x200000>; alignment = <0x300000>; }};"),
        format!("a {{ {good} size = <0x200000>; owner = <77>; }};"),
        format!("a {{ {good} size = <0x200000>; owner = <&kernel>; }};"),
        format!("a {{ {good} reg = <0 0x40100000 0 0x200000>; }};"),
        format!("a {{ {good} reg = <0 0x40200000 0 0>; }};"),
        format!("a {{ {good} reg = <0 0x40200000 0 0x200000>; controllers = <0>; }};"),
        format!("a {{ {good} reg = <0 0x40200000 0 0x400000>; }}; b {{ {good} reg = <0 0x40400000 0 0x200000>; }};"),
        String::from("a { compatible = \"shared-dmb-pool\", \"shared-dma-pool\"; reusable; size = <0x200000>; };"),
        String::from("a { compatible = \"pool\"; reusable; size = <0x200000>; };"),
        String::from("a { reusable; size = <0x200000>; };"),
        format!("a {{ {good} size = <0x200000>; onwer = <&alpha>; }};"),
        format!("a {{ {good} size = <0x200000>; unit-size = <0x1000>; }};"),
        format!("a {{ {good} size = <0x200000>; unit-size = <0x400000>; }};"),
        format!("a {{ {good} size = <0x200000>; unit-size = <0x200000>; owner = <&alpha>; }};"),
        format!("a {{ {good} size = <0x60000000>; unit-size = <0x40000000>; }};"),
        format!("a {{ {good} reg = <0 0x40200000 0 0x40000000>; unit-size = <0x40000000>; }};"),
        format!("a {{ {good} size = <0x200000>; unit-wait-ms = <100>; }};"),
        format!("a {{ {good} size = <0x200000>; unit-size = <0x200000>; unit-wait-ms = <0>; }};"),
    ]
    .iter()
    .map(|text| pools(text))
    .collect();
    let blocks = "designated-movable-blocks { #address-cells = <2>; #size-cells = <2>;
        x { compatible = \"designated-movable-block\"; reusable; reg = <0 0x50000000 0 0x400000>; };
        y { compatible = \"designated-movable-block\"; reusable; reg = <0 0x50200000 0 0x400000>; }; };";
    cases.push(one_guest("", "", blocks));
    cases.push(pools(&format!("a {{ {good} size = <0x40000000>; controllers = <1>; }};")));
    cases.push(pools(&format!("a {{ {good} size = <0x200000>; controllers = <9>; }};")));
    let straddling = |compatible: &str| {
        let pool = format!(
            "pools {{ #address-cells = <2>; #size-cells = <2>;
             a {{ compatible = \"{compatible}\"; reusable; reg = <0 0x50200000 0 0x400000>; }}; }};"
        );
        one_guest("", "", &(blocks.lines().take(2).collect::<String>() + "};" + &pool))
    };
    cases.extend([straddling("shared-dmb-pool"), straddling("shared-dma-pool")]);
    insta::assert_snapshot!(report(&cases));
}

#[test]
fn a_wrong_root_gets_its_message() {
    let good = one_guest("", "", "");
    let cases = [
        good.replace("ballast,configuration", "ballast,configuratoin"),
        good.replace("compatible = \"ballast,configuration\";", ""),
        good.replace("guests {", "guest {"),
        good.replace("alpha: alpha {", "alpha: alpha { status = \"disabled\";"),
        one_guest("", "", "pool { };"),
        one_guest("", "", "migration { slice-us = <1>; share-percent = <100>; limit-kbps = <1>; };"),
        one_guest("", "", "").replace("ramdisk: ramdisk {", "ramdisk: ramdisk { hash;"),
    ];
    insta::assert_snapshot!(report(&cases));
}

/// Returns a configuration with a mistyped name in each of Ballast's own nodes, and the expected findings.
fn with_typos() -> (String, [&'static str; 9]) {
    let pools = "pools { #address-cells = <2>; #size-cells = <2>; \
                 video { compatible = \"shared-dmb-pool\"; reusable; size = <0x400000>; contollers = <0>; }; }; \
                 migration { share-per-cent = <5>; }; \
                 designated-movable-blocks { x { compatible = \"designated-movable-block\"; reusable; \
                 size = <0x400000>; algnment = <0x400000>; }; };";
    let text = one_guest(
        "vcpus = <1>; kernel = <&kernel>; no-migraton; dbm { size = <0x400000>; };",
        "size = <0x10000000>; prefered; controllers = <0>;",
        pools,
    );
    let text = text
        .replace("/ {", "/ { modl = \"x\";")
        .replace("guests {", "guests { start-manualy;")
        .replace("ramdisk: ramdisk {", "ramdisk: ramdisk { dat = [00];");
    let said = [
        "/: modl = \"x\": unknown name; did you mean \"model\"?",
        "/migration: share-per-cent = <0x5>: unknown name; did you mean \"share-percent\"?",
        "/guests: start-manualy: unknown name",
        "/images/ramdisk: dat = [00]: unknown name; did you mean \"data\"?",
        "/guests/alpha: no-migraton: unknown name; did you mean \"no-migration\"?",
        "/guests/alpha/dbm: unknown name; did you mean \"dmb\"?",
        "/guests/alpha/memory: prefered: unknown name; did you mean \"preferred\"?",
        "/designated-movable-blocks/x: algnment = <0x400000>: unknown name; did you mean \"alignment\"?",
        "/pools/video: contollers = <0x0>: unknown name; did you mean \"controllers\"?",
    ];
    (text, said)
}

#[test]
fn unknown_names_are_errors_and_refuse_what_they_stand_in() {
    let (text, said) = with_typos();
    assert_eq!(findings(&text), said.map(|line| format!("Error: {line}")));
    let blob = compile(&text);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    assert!(
        configuration.guests.is_empty() && configuration.pools.is_empty() && configuration.has_refused_blocks
    );
    assert_eq!(format!("{}", configuration.refused[0].finding), said[4]);
}

#[test]
fn unknown_names_are_warnings_where_the_root_or_the_caller_allows_them() {
    let (text, said) = with_typos();
    let said = said.map(|line| format!("Warning: {line}"));
    let lenient = text.replace("/ {", "/ { lenient;");
    assert_eq!(findings(&lenient), said);
    let blob = compile(&text);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut found = Vec::new();
    let mut sink = |severity: Severity, finding: Finding<'_>| found.push(format!("{severity:?}: {finding}"));
    let configuration = Configuration::read_with(&tree, UnknownNames::Allowed, &mut sink).unwrap();
    assert_eq!((configuration.guests.len(), configuration.pools.len()), (1, 1));
    assert_eq!(found, said);
    // The template is the operator's: names in it are not checked.
    assert_eq!(findings(&one_guest("device-tree { no-migraton; };", "", "")), Vec::<String>::new());
    // Names that are always refused stay refused.
    let pool = "pools { video { compatible = \"shared-dmb-pool\"; reusable; size = <0x400000>; no-map; }; };";
    let said = findings(&one_guest("", "", pool).replace("/ {", "/ { lenient;"));
    assert_eq!(said, ["Error: /pools/video: no-map: must be removed: the memory is `reusable` by guests"]);
}

#[test]
fn all_errors_of_a_node_are_reported_at_once() {
    let block = "dmb { size = <0x300000>; controllers = <0 300 0 301>; unit-size = <1>; };";
    assert_eq!(
        findings(&one_guest(
            &format!("ramdisk = \"file\"; vcpus = <3>; host-cpus = <1 1>; {block}"),
            "size = <0x1800>; unit-size = <0x40000000>; interleave;",
            ""
        )),
        [
            "/guests/alpha: ramdisk = \"file\": must be the phandle of a child of /images",
            "/guests/alpha: host-cpus = <0x1 0x1>: must list as many CPUs as `vcpus` says",
            "/guests/alpha: host-cpus = 1: must be listed once and below 65536",
            "/guests/alpha/dmb: unit-size = <0x1>: must be 4 KiB, 2 MiB or 1 GiB: <0x1000>, <0x200000> or <0x40000000>",
            "/guests/alpha/dmb: controllers = 300: must lie between 0 and 255",
            "/guests/alpha/dmb: controllers = 0: must be listed once",
            "/guests/alpha/dmb: controllers = 301: must lie between 0 and 255",
            "/guests/alpha/dmb: size = 3 MiB: must be a multiple of 2 MiB",
            "/guests/alpha/dmb: size = 3 MiB: must be a multiple of 4 MiB for a guest with pages of 4 KiB",
            "/guests/alpha/memory: controllers is missing: add the controllers to `interleave`",
            "/guests/alpha/memory: size = 6 KiB: must be a multiple of 1 GiB",
        ]
        .map(|line| format!("Error: {line}"))
    );
    let pool = "pools { #address-cells = <2>; #size-cells = <2>; \
                a { compatible = \"shared-dmb-pool\"; size = <0x300000>; alignment = <0x300000>; unit-size = <0x40000000>; }; \
                b { compatible = \"shared-dmb-pool\"; reusable; reg = <0 0x40100000 0 0x200000>; unit-size = <0x40000000>; }; };";
    assert_eq!(
        findings(&one_guest("", "", pool)),
        [
            "/pools/a: reusable is missing: add `reusable;` (guests may borrow the pool)",
            "/pools/a: size = 3 MiB: must be a multiple of 2 MiB",
            "/pools/a: alignment = <0x300000>: must be a power of two",
            "/pools/a: size = 3 MiB: must be a multiple of 1 GiB",
            "/pools/b: reg = 2 MiB at 0x40100000: must be a multiple of 2 MiB",
            "/pools/b: reg = 2 MiB at 0x40100000: must be a multiple of 1 GiB",
        ]
        .map(|line| format!("Error: {line}"))
    );
}

#[test]
fn counts_are_limited() {
    let flags: String = (0..200).map(|index| format!("flag-{index};")).collect();
    let said = findings(&one_guest(&flags, "", ""));
    assert_eq!(said.len(), FINDING_LIMIT + 1);
    assert_eq!(said.last().unwrap(), "Warning: configuration: too many messages; the rest are not shown");
    let nodes: String = (0..1100).map(|index| format!("node-{index} {{ }};")).collect();
    let said = findings(&one_guest("", "", &format!("pools {{ {nodes} }};")));
    assert_eq!(said, ["Refused: /pools/node-1016: number 1025 of at most 1024 nodes"]);
    let reserved: String = (0..65)
        .map(|index| format!("r{index}@{0:x} {{ reg = <0x{0:x} 0x1000>; }};", 0x4800_0000 + index * 0x1000))
        .collect();
    let template = format!(
        "device-tree {{ reserved-memory {{ #address-cells = <1>; #size-cells = <1>; ranges; {reserved} }}; }};"
    );
    let said = findings(&one_guest(&template, "", ""));
    assert!(said[0].ends_with("number 65 of at most 64 nodes of reserved memory"), "{said:?}");
}

#[test]
fn disabled_nodes_are_ignored() {
    let more = "memory-1 { status = \"disabled\"; size = <1 0>; }; dmb-9 { status = \"disabled\"; size = <0x1000>; };";
    let text = one_guest(more, "", "");
    assert_eq!(findings(&text), findings(&one_guest("", "", "")));
    let blob = compile(&text);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    let guest = &configuration.guests[0];
    assert_eq!((guest.regions.len(), guest.dmbs.len()), (1, 0));
    // Enabled nodes count.
    assert!(!findings(&text.replace("disabled", "okay")).is_empty());
}

#[test]
fn boot_arguments_that_conflict_with_movablecore_cause_a_warning() {
    let text = |mode: &str, arguments: &str| {
        findings(&one_guest(
            &format!(
                "vcpus = <1>; kernel = <&kernel>; movable-memory = \"{mode}\"; bootargs = \"{arguments}\"; dmb-0 {{ size = <0x400000>; }};"
            ),
            "",
            "",
        ))
    };
    let warned = |said: &[String]| said.iter().filter(|line| line.starts_with("Warning: ")).count();
    for arguments in ["quiet movablecore=64M", "kernelcore=1G", "movable_node"] {
        let said = text("movablecore", arguments);
        assert_eq!(warned(&said), 1, "{said:?}");
        assert!(
            said.iter().any(|line| line.contains("bootargs") && line.contains("must not have movablecore=")),
            "{said:?}"
        );
        // In this mode Ballast adds nothing, so the argument is the operator's choice.
        assert_eq!(warned(&text("auto", arguments)), 0, "{:?}", text("auto", arguments));
    }
    assert_eq!(warned(&text("movablecore", "quiet")), 0);
}

#[test]
fn refused_blocks_are_withheld() {
    let read = |pools: &str| {
        let blob = compile(&one_guest(
            "",
            "",
            &format!("pools {{ #address-cells = <2>; #size-cells = <2>; {pools} }};"),
        ));
        let tree = Tree::new(blob.as_slice()).unwrap();
        let mut configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
        configuration.fit_blocks(&host(), &mut |_: Severity, _: Finding<'_>| {});
        let withheld: Vec<_> =
            configuration.withheld.iter().map(|range| (range.base().get(), range.size())).collect();
        (configuration.has_refused_blocks, configuration.pools.len(), withheld)
    };
    let good = "a { compatible = \"shared-dmb-pool\"; reusable; reg = <0 0x50000000 0 0x400000>; };";
    assert_eq!(read(good), (false, 1, Vec::new()));
    let misaligned = good.replace("0x50000000", "0x50001000");
    assert_eq!(read(&misaligned), (true, 0, [(0x5000_1000, 0x40_0000)].into()));
    let twice = format!("{good} {}", good.replace("a {", "b {"));
    assert_eq!(read(&twice), (true, 1, [(0x5000_0000, 0x40_0000)].into()));
    // The number of withheld ranges is not limited.
    let many: String = (0..40)
        .map(|index| {
            misaligned
                .replace("a {", &format!("a{index} {{"))
                .replace("0x50001000", &format!("{:#x}", 0x5000_1000 + (index << 23)))
        })
        .collect();
    assert_eq!(read(&many).2.len(), 40);
    let large = "a { compatible = \"shared-dmb-pool\"; reusable; size = <1 0>; };";
    assert_eq!(read(large), (true, 0, Vec::new()));
}

#[test]
fn a_pool_of_units_is_aligned_for_them() {
    let pool = "pools { a { compatible = \"shared-dmb-pool\"; reusable; size = <0x40000000>; unit-size = <0x40000000>; }; };";
    let blob = compile(&one_guest("", "", pool));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    let Extent::Dynamic { alignment, .. } = configuration.pools[0].extent else { panic!("it has a place") };
    assert_eq!(alignment, 1 << 30);
}

#[test]
fn memory_that_never_moves_must_fit_into_normal() {
    let said = findings(&one_guest("no-migration;", "size = <0x14000000>; controllers = <0>;", ""));
    assert!(said[0].contains("controller 0 has 300 MiB free, 20 MiB missing"), "{said:?}");
    assert!(findings(&one_guest("", "size = <0x14000000>; controllers = <0>;", "")).is_empty());
}

#[test]
fn a_pool_in_place_must_not_lie_over_its_owners_ram() {
    let pool = |base: &str| {
        let text = format!(
            "pools {{ #address-cells = <2>; #size-cells = <2>; a {{ compatible = \"shared-dmb-pool\"; reusable; \
             owner = <&alpha>; pinned-in-place; reg = <0 {base} 0 0x200000>; }}; }};"
        );
        findings(&one_guest("", "", &text))
    };
    assert!(pool("0x40200000")[0].contains("overlaps with the owner's RAM"), "{:?}", pool("0x40200000"));
    assert!(pool("0xc0000000").is_empty(), "{:?}", pool("0xc0000000"));
}

#[test]
fn pools_with_names_that_are_cut_alike_are_refused() {
    let pool = |name: &str, base: &str| {
        format!("{name} {{ compatible = \"shared-dmb-pool\"; reusable; reg = <0 {base} 0 0x200000>; }};")
    };
    let said = findings(&one_guest(
        "",
        "",
        &format!(
            "pools {{ #address-cells = <2>; #size-cells = <2>; {} {} }};",
            pool("frame-buffers-of-the-camera-line-left", "0x60000000"),
            pool("frame-buffers-of-the-camera-line-right", "0x60200000")
        ),
    ));
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("right: must have a name whose first 31 characters differ"), "{said:?}");
}

#[test]
fn guests_that_cannot_run_alone_are_refused_before_memory_is_reserved() {
    let blob = compile(&one_guest("host-cpus = <4>;", "", ""));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    assert_eq!(configuration.guests.len(), 1);
    configuration.fit_cpus(4, &mut |_: Severity, _: Finding<'_>| {});
    assert_eq!((configuration.guests.len(), configuration.refused.len()), (0, 1));
}

#[test]
fn a_long_text_is_cut() {
    let said = findings(&one_guest(&format!("movable-memory = \"{}\";", "x".repeat(1000)), "", ""));
    assert!(said[0].len() < 300 && said[0].contains("/* 1000 bytes */: must be"), "{said:?}");
}

#[test]
fn a_second_guest_of_the_same_name_is_refused() {
    // dtc refuses equal names, so the test patches one of two different names.
    let source = TWO_GUESTS.replace("beta {", "alphb {");
    let blob = compile(&source);
    let mut bytes = blob.as_slice().to_vec();
    let at = bytes.windows(6).position(|bytes| bytes == b"alphb\0").unwrap();
    bytes[at + 4] = b'a';
    let blob = AlignedBlob::new(&bytes);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    assert_eq!(configuration.guests.len(), 1);
    assert_eq!(
        format!("{}", configuration.refused[0].finding),
        "/guests/alpha: already used by /guests/alpha"
    );
}

#[test]
fn a_guest_that_starts_manually_needs_its_memory_only_then() {
    let text = TWO_GUESTS.replace("0x20000000", "0x38000000").replace("vcpus = <2>", "vcpus = <1>");
    let text = text.replace("alpha {", "alpha { start-manually;");
    let text = text.replace("size = <0x0", "controllers = <0>; size = <0x0");
    let said = findings(&text);
    assert_eq!(said, Vec::<String>::new());
    let blob = compile(&text);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    let alpha = &configuration.guests[configuration.guest_index("alpha").unwrap()];
    assert_eq!(alpha.fit(&host()), Ok(()));
    let mut full = host();
    full.controllers[0].free = 100 << 20;
    let said = format!("{}", alpha.fit(&full).unwrap_err());
    assert_eq!(
        said,
        "/guests/alpha/memory: size = 896 MiB: controller 0 has 100 MiB free, 796 MiB missing; \
         it would fit on controller 1"
    );
}

#[test]
fn one_bad_guest_does_not_keep_the_others_from_starting() {
    let text = TWO_GUESTS.replacen("vcpus = <2>", "vcpus = <0>", 1);
    let blob = compile(&text);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    configuration.fit(&host(), &mut |_: Severity, _: Finding<'_>| {});
    assert_eq!(configuration.guests.iter().map(|guest| guest.name).collect::<Vec<_>>(), ["beta"]);
    assert_eq!(configuration.refused.len(), 1);
    assert_eq!(configuration.refused[0].name, "alpha");
}

#[test]
fn guests_share_neither_cpus_nor_pinned_memory() {
    let text = SETS[2].1.replace("host-cpus = <2 3>", "host-cpus = <1 2>");
    let pinned = TWO_GUESTS
        .replace("size = <0x0 0x20000000>;", "reg = <0x0 0x60000000 0x0 0x10000000>; pinned-in-place;");
    let pinned = pinned.replace("vcpus = <2>;", "#address-cells = <2>; #size-cells = <2>; vcpus = <2>;");
    let hungry =
        TWO_GUESTS.replace("0x20000000", "0x40000000").replace("size = ", "controllers = <1>; size = ");
    let many = SETS[3].1.replace("vcpus = <1>", "vcpus = <2>");
    insta::assert_snapshot!(report(&[text, pinned, hungry, many]));
}

#[test]
fn memory_is_laid_out_with_blocks_on_top() {
    let guest = "memory@48000000 { reg = <0 0x48000000 0 0x8000000>; }; dmb-1 { size = <0x10000000>; };
        memory-2 { size = <0x8000000>; }; dmb-2 { size = <0x400000>; }; memory-3 { size = <0x40000000>; unit-size = <0x40000000>; };";
    let blob = compile(&one_guest(guest, "", ""));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut sink =
        |severity: Severity, finding: Finding<'_>| assert!(severity == Severity::Note, "{finding}");
    let configuration = Configuration::read(&tree, &mut sink).unwrap();
    let layout = Layout::of(&configuration.guests[0]).unwrap();
    let ranges: Vec<_> = layout.ranges.iter().map(|ram| format!("{:?} {}", ram.source, ram.range)).collect();
    insta::assert_snapshot!(ranges.join("\n"));
    assert_eq!(layout.regions().count(), 4, "without blocks");
    assert_eq!(layout.range_at(0x4fff_ffff).unwrap().source, RamSource::Region(0));
    assert_eq!(layout.range_at(0x3fff_ffff), None);
}

#[test]
fn a_default_guest_comes_from_the_command_line() {
    let kernel = [0xd5u8; 64];
    let make = |line| Configuration::default_guest(&kernel, None, "quiet", line);
    let configuration = make("memory=256M cpus=2").unwrap();
    let guest = &configuration.guests[0];
    assert_eq!((guest.vcpu_count, guest.ram_size(), guest.bootargs), (2, 256 << 20, "quiet"));
    assert_eq!(make("").unwrap().guests[0].ram_size(), 512 << 20);
    let mut messages: Vec<String> = ["memory=1", "memory=", "memory=1X", "cpus=0", "cpus=99", "cpus=x"]
        .iter()
        .map(|line| format!("{}", make(line).unwrap_err()))
        .collect();
    let gzip = Configuration::default_guest(b"\x1f\x8b\x08\0", None, "", "");
    messages.push(format!("{}", gzip.unwrap_err()));
    let mut large = make("memory=8G cpus=8").unwrap();
    large.fit(&host(), &mut |severity: Severity, finding: Finding<'_>| {
        messages.push(format!("{severity:?}: {finding}"))
    });
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_configuration_is_small_enough_for_the_stack() {
    assert!(size_of::<Configuration<'_>>() <= 12 << 10, "{}", size_of::<Configuration<'_>>());
    assert!(size_of::<Finding<'_>>() <= 128, "{}", size_of::<Finding<'_>>());
}

#[test]
fn a_pool_of_units_is_made_of_whole_ones() {
    let read = |pool: &str| {
        let good = "compatible = \"shared-dmb-pool\"; reusable;";
        let text = one_guest("", "", &format!("pools {{ huge {{ {good} {pool} }}; }};"));
        let blob = compile(&text);
        let tree = Tree::new(blob.as_slice()).unwrap();
        let configuration = Configuration::read(&tree, &mut |_, finding| panic!("{finding}")).unwrap();
        let pool = &configuration.pools[0];
        let Extent::Dynamic { alignment, .. } = pool.extent else { panic!() };
        (pool.unit, alignment, pool.unit_wait_ms)
    };
    let large = "size = <0x40000000>; unit-size = <0x40000000>;";
    assert_eq!(read(large), (Unit::Large, 1 << 30, 60_000));
    assert_eq!(read(&format!("{large} unit-wait-ms = <250>;")), (Unit::Large, 1 << 30, 250));
    assert_eq!(read("size = <0x400000>; unit-size = <0x200000>;"), (Unit::Medium, 2 << 20, 60_000));
    assert_eq!(read("size = <0x400000>;"), (Unit::Any, 2 << 20, 60_000));
}

#[test]
fn a_pool_is_shown_in_place_only_to_an_owner() {
    let owned = SETS[4].1.replace("owner = <&owner>;", "owner = <&owner>; pinned-in-place;");
    assert_ne!(owned, SETS[4].1);
    let blob = compile(&owned);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    assert!(configuration.pools[0].is_pinned_in_place);
    let nobodys = compile(&SETS[4].1.replace("owner = <&owner>;", "pinned-in-place;"));
    let tree = Tree::new(nobodys.as_slice()).unwrap();
    let mut said = String::new();
    let _ =
        Configuration::read(&tree, &mut |_: Severity, finding: Finding<'_>| said += &format!("{finding}\n"));
    assert!(said.contains("/pools/video") && said.contains("add the guest that sees the pool"), "{said}");
}
