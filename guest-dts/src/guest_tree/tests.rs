//! Tests of guests' trees, displayed as source.

mod devices;

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::config::{Configuration, Severity};
use crate::image::Image;
use crate::testing::{compile, compile_with_images};
use crate::tree::{AlignedBlob, TreeSource};

/// Returns the source of a guest with a region and blocks on two controllers, and `extra` lines.
fn source(extra: &str) -> String {
    format!(
        r#"/dts-v1/;
/ {{
    compatible = "ballast,configuration";
    images {{
        kernel: kernel {{ data = /incbin/("kernel"); }};
        ramdisk: ramdisk {{ data = /incbin/("ramdisk"); }};
    }};
    guests {{
        alpha {{
            #address-cells = <2>;
            #size-cells = <2>;
            vcpus = <2>;
            bootargs = "console=ttyAMA0";
            kernel = <&kernel>;
            ramdisk = <&ramdisk>;
            {extra}
            memory {{ size = <0x10000000>; controllers = <0>; }};
            dmb-0 {{ size = <0x8000000>; controllers = <0>; }};
            dmb-1 {{ size = <0x8000000>; controllers = <1>; }};
        }};
    }};
}};
"#
    )
}

/// Builds the tree of the guest of `source`. Returns it with all findings.
fn build(source: &str, host: Option<&str>) -> (String, Vec<String>) {
    let blob = compile_with_images(source);
    let host = host.map(compile);
    let host = host.as_ref().map(|blob| Tree::new(blob.as_slice()).unwrap());
    let mut said = Vec::new();
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut sink = |severity: Severity, finding: Finding<'_>| said.push(format!("{severity:?}: {finding}"));
    let configuration = Configuration::read(&tree, &mut sink).unwrap();
    let Some(guest) = configuration.guests.first() else { return (String::new(), said) };
    let layout = Layout::of(guest).unwrap();
    let plan = BootPlan::new(&Image::parse(guest.kernel).unwrap(), Some(8), layout.regions()).unwrap();
    let input = GuestTree {
        guest,
        layout: &layout,
        plan: &plan,
        assigned: None,
        kaslr_seed: Some(0x0123_4567_89ab_cdef),
        rng_seed: None,
    };
    said.push(Choice::of(guest).to_string());
    if host.is_some() {
        input.notes(host.as_ref(), &mut |finding| said.push(finding.to_string()));
    }
    match input.build_with_host(host.as_ref()) {
        Ok(built) => {
            let blob = AlignedBlob::new(&built);
            let tree = Tree::new(blob.as_slice()).unwrap();
            let source = TreeSource(tree).to_string();
            // `dtc` compiles the displayed source to the same tree.
            let again = compile(&source);
            assert_eq!(TreeSource(Tree::new(again.as_slice()).unwrap()).to_string(), source);
            (source, said)
        }
        Err(error) => {
            said.push(format!("Refused: {error}"));
            (String::new(), said)
        }
    }
}

/// Returns the findings and the named nodes of a built tree.
fn parts(built: &(String, Vec<String>), names: &[&str]) -> String {
    let mut out = built.1.join("\n") + "\n";
    if built.0.is_empty() {
        return out;
    }
    let blob = compile(&built.0);
    let tree = Tree::new(blob.as_slice()).unwrap();
    for node in tree.root().children().filter(|node| names.contains(&node.base_name())) {
        out += &crate::tree::NodeSource { node, limit: usize::MAX }.to_string();
    }
    out
}

#[test]
fn the_whole_tree_by_default() {
    let (tree, said) = build(&source(""), None);
    insta::assert_snapshot!(format!("{}\n{tree}", said.join("\n")));
}

#[test]
fn movable_memory_in_every_way() {
    let names = ["memory", "reserved-memory", "distance-map", "hypervisor", "chosen", "cpus"];
    let mut report = String::new();
    for mode in ["dmb", "cma", "numa", "none"] {
        report += &parts(&build(&source(&format!("movable-memory = \"{mode}\";")), None), &names);
    }
    insta::assert_snapshot!(report);
}

#[test]
fn auto_respects_boot_arguments() {
    for argument in ["kernelcore=64M", "movablecore=10%", "movable_node"] {
        let text = source("").replace("console=ttyAMA0", argument);
        let (tree, said) = build(&text, None);
        assert!(said.iter().any(|line| line.contains("boot arguments have")), "{said:?}");
        assert!(tree.contains(&format!("bootargs = \"{argument}\";")), "{tree}");
    }
}

const TEMPLATE: &str = r#"
    device-tree {
        #address-cells = <2>;
        #size-cells = <2>;
        chosen { note = "kept"; };
        aliases { video0 = "/video"; };
        reserved-memory {
            #address-cells = <1>;
            #size-cells = <1>;
            ranges;
            block@50000000 { compatible = "designated-movable-block"; reusable; reg = <0x50000000 0x400000>; };
            pool: pool@44000000 { compatible = "shared-dmb-pool"; reusable; reg = <0x44000000 0x400000 0x45000000 0x400000>; };
            idle@46000000 { compatible = "shared-dmb-pool"; reusable; reg = <0x46000000 0x400000>; };
            cma@47000000 { compatible = "shared-dma-pool"; reusable; reg = <0x47000000 0x400000>; };
            log@48000000 { compatible = "ramoops"; reg = <0x48000000 0x1000>; };
            off@49000000 { status = "disabled"; reg = <0x49000000 0x1000>; };
            late { compatible = "shared-dma-pool"; reusable; size = <0x400000>; alignment = <0x1000>; alloc-ranges = <0x40000000 0x8000000>; };
        };
        video { compatible = "acme,video"; memory-region = <&pool>; other; inner { deep { deeper; }; }; last { }; };
    };"#;

#[test]
fn a_template_is_added_by_the_rules() {
    let text = TEMPLATE.replace("#address-cells = <2>;\n        #size-cells = <2>;", "");
    let names = ["reserved-memory", "video", "chosen", "aliases"];
    let unaware = parts(&build(&source(&format!("movable-memory = \"none\"; {text}")), None), &names);
    let text = text.replace("block@50000000", "block@4a000000").replace("<0x50000000", "<0x4a000000");
    let aware = parts(&build(&source(&format!("movable-memory = \"dmb\"; {text}")), None), &names);
    let auto = parts(&build(&source(&text), None), &[]);
    insta::assert_snapshot!(format!("{unaware}\n{aware}\n{auto}"));
}

#[test]
fn cma_areas_are_limited_as_in_a_kernel() {
    let with = |count: u32| {
        let pools: String = (0..count)
            .map(|at| 0x4400_0000 + at * 0x40_0000)
            .map(|at| {
                format!(
                    "p@{at:x} {{ compatible = \"shared-dma-pool\"; reusable; reg = <0x{at:x} 0x400000>; }}; "
                )
            })
            .collect();
        let template =
            format!("reserved-memory {{ #address-cells = <1>; #size-cells = <1>; ranges; {pools} }};");
        let text = source(&format!("movable-memory = \"cma\"; device-tree {{ {template} }};"));
        build(&text, None).1.join("\n")
    };
    // Two blocks are areas already.
    assert!(!with(5).contains("Error"));
    assert!(with(6).contains("number 8 of at most 7 CMA areas"), "{}", with(6));
}

#[test]
fn additions_are_limited_by_the_heap() {
    let said = |template: &str| {
        let (tree, said) = build(&source(&format!("device-tree {{ {template} }};")), None);
        assert!(tree.is_empty() || tree.len() < 100 << 10);
        said.join("\n")
    };
    let bytes = |count: usize| "00".repeat(count);
    assert!(!said(&format!("blob {{ data = [{}]; }};", bytes(15 << 10))).contains("Error"));
    let large = said(&format!("blob {{ data = [{}]; }};", bytes(17 << 10)));
    assert!(large.contains("16 KiB"), "{large}");
    // Each of many `reg` entries becomes a node with a copy of the property.
    let entries: String =
        (0..64).map(|at| format!("0x{:x} 0x400000 ", 0x4000_0000 + at * 0x40_0000)).collect();
    let many = said(&format!(
        "reserved-memory {{ #address-cells = <1>; #size-cells = <1>; ranges;
         m@40000000 {{ compatible = \"shared-dma-pool\"; reusable; reg = <{entries}>; data = [{}]; }}; }};",
        bytes(1 << 10)
    ));
    assert!(many.contains("16 KiB"), "{many}");
}

#[test]
fn a_template_that_breaks_a_rule_is_refused() {
    let reserved = |node: &str| {
        format!(
            "movable-memory = \"cma\"; device-tree {{ reserved-memory {{ #address-cells = <2>; #size-cells = <2>; ranges; {node} }}; }};"
        )
    };
    let pool = "compatible = \"shared-dma-pool\"; reusable;";
    let cases = [
        "device-tree { model = \"mine\"; };".to_string(),
        "device-tree { chosen { bootargs = \"mine\"; }; };".to_string(),
        "device-tree { cpus { }; };".to_string(),
        "device-tree { memory@50000000 { }; };".to_string(),
        "device-tree { _x { }; };".to_string(),
        "device-tree { a-name-that-is-longer-than-the-specification-allows { }; };".to_string(),
        reserved(&format!("pool@44001000 {{ {pool} reg = <0 0x44001000 0 0x400000>; }};")),
        reserved(&format!("pool@40000000 {{ {pool} reg = <0 0x40000000 0 0x400000>; }};")),
        reserved(&format!("pool@50000000 {{ {pool} reg = <0 0x50000000 0 0x400000>; }};")),
        reserved(&format!("pool@4f800000 {{ {pool} reg = <0 0x4f800000 0 0x800000>; }};")),
        reserved(&format!("pool@30000000 {{ {pool} reg = <0 0x30000000 0 0x800000>; }};")),
        reserved(
            "a@44000000 { reg = <0 0x44000000 0 0x2000>; }; b@44001000 { reg = <0 0x44001000 0 0x2000>; };",
        ),
        reserved("a@44000000 { reg = <0 0x44000000 0 0x2000 0 0x44001000 0 0x1000>; };"),
        reserved("a@44000000 { reg = <0 0x44000000 0>; };"),
        reserved("a { reusable; no-map; size = <0 0x400000>; };"),
        reserved("a { compatible = \"x\"; };"),
    ];
    let mut report = String::new();
    for extra in &cases {
        report += &format!("{}\n", build(&source(extra), None).1.join("\n"));
    }
    insta::assert_snapshot!(report);
}

/// Host with reserved memory of every kind.
const HOST: &str = r#"/dts-v1/;
/ {
    #address-cells = <1>;
    #size-cells = <1>;
    interrupt-parent = <1>;
    reserved-memory {
        #address-cells = <1>;
        #size-cells = <1>;
        ranges;
        block@80000000 { compatible = "designated-movable-block"; reusable; reg = <0x80000000 0x400000>; };
        pool@81000000 { compatible = "shared-dmb-pool"; reusable; reg = <0x81000000 0x400000>; };
        used: used@82000000 { compatible = "shared-dmb-pool"; reusable; reg = <0x82000000 0x400000>; };
        log@30000000 { compatible = "ramoops"; reg = <0x30000000 0x1000>; };
        clash@40000000 { reg = <0x40000000 0x1000>; };
    };
    decoder { compatible = "acme,decoder"; interrupt-parent = <7>; memory-region = <&used>; };
    soc { uart { }; };
    psci { };
};"#;

#[test]
fn nodes_of_the_host_are_rewritten() {
    let pinned = "memory@80000000 { reg = <0 0x80000000 0 0x4000000>; pinned-in-place; };";
    let nodes = |list: &str| source(&format!("host-nodes = {list}; {pinned}"));
    let all = r#""/reserved-memory/block@80000000", "/reserved-memory/pool@81000000",
        "/reserved-memory/used@82000000", "/reserved-memory/log@30000000", "/decoder""#;
    let names = ["reserved-memory", "decoder"];
    let mut report = parts(&build(&nodes(all), Some(HOST)), &names);
    let aware = nodes(all).replace("vcpus =", "movable-memory = \"dmb\"; vcpus =");
    report += &parts(&build(&aware, Some(HOST)), &names);
    for wrong in [
        "\"/psci\"",
        "\"/soc/uart\"",
        "\"/nothing\"",
        "\"/reserved-memory\"",
        "\"/reserved-memory/clash@40000000\"",
    ] {
        report += &parts(&build(&nodes(wrong), Some(HOST)), &names);
    }
    insta::assert_snapshot!(report);
}

#[test]
fn addresses_of_the_hosts_nodes_get_the_cells_of_a_guests_root() {
    // Cells of the host's root, values of its UART, bus and PCI bridge, and a length that does not match.
    let hosts = [
        (
            "<1>",
            "<1>",
            "0x9000000 0x1000",
            "0x0 0xa000000 0x10000",
            "0x2000000 0 0xb000000 0xb000000 0 0x100000",
        ),
        (
            "<2>",
            "<1>",
            "1 0x9000000 0x1000",
            "0x0 1 0xa000000 0x10000",
            "0x2000000 0 0xb000000 1 0xb000000 0 0x100000",
        ),
        (
            "<1>",
            "<2>",
            "0x9000000 0 0x1000",
            "0x0 0xa000000 0x10000",
            "0x2000000 0 0xb000000 0xb000000 0 0x100000",
        ),
        (
            "<2>",
            "<2>",
            "1 0x9000000 0 0x1000",
            "0x0 1 0xa000000 0x10000",
            "0x2000000 0 0xb000000 1 0xb000000 0 0x100000",
        ),
    ];
    let named = source("host-nodes = \"/uart\", \"/soc\", \"/pcie\";");
    for (address, size, uart, soc, pcie) in hosts {
        let host = |soc: &str| {
            format!(
                "/dts-v1/; / {{ #address-cells = {address}; #size-cells = {size}; uart {{ reg = <{uart} {uart}>; }};
                 soc {{ #address-cells = <1>; #size-cells = <1>; ranges = <{soc}>; dma-ranges;
                 timer@100 {{ reg = <0x100 0x10>; }}; }};
                 pcie {{ #address-cells = <3>; #size-cells = <2>; ranges = <{pcie}>; }}; }};"
            )
        };
        let (tree, said) = build(&named, Some(&host(soc)));
        let high = if address == "<2>" { "0x1" } else { "0x0" };
        let entry = format!("{high} 0x9000000 0x0 0x1000");
        for expected in [
            format!("reg = <{entry} {entry}>;"),
            format!("ranges = <0x0 {high} 0xa000000 0x10000>;"),
            String::from("dma-ranges;"),
            String::from("reg = <0x100 0x10>;"),
            format!("ranges = <0x2000000 0x0 0xb000000 {high} 0xb000000 0x0 0x100000>;"),
        ] {
            assert!(tree.contains(&expected), "{address} {size}: {expected}: {said:?}\n{tree}");
        }
        if (address, size) != ("<2>", "<2>") {
            let said = build(&named, Some(&host(&format!("{soc} 1")))).1;
            assert!(said.last().unwrap().starts_with("Refused: /soc: ranges"), "{said:?}");
        }
    }
}

#[test]
fn every_vcpu_has_a_node_and_a_redistributor() {
    let text = source("").replace("vcpus = <2>", "vcpus = <16>");
    let (tree, said) = build(&text, None);
    assert!(tree.contains("cpu@f {") && !tree.contains("cpu@10"), "{said:?}");
    assert!(tree.contains("reg = <0x0 0x8000000 0x0 0x10000 0x0 0x80a0000 0x0 0x200000>;"), "{tree}");
}

#[test]
fn clusters_have_sixteen_vcpus() {
    assert_eq!([0, 15, 16, 33].map(platform::mpidr), [0, 0xf, 0x100, 0x201]);
}

#[test]
fn long_boot_arguments_are_refused() {
    let text = source("").replace("console=ttyAMA0", &"x".repeat(2040));
    let said = build(&text, None).1;
    assert!(said[0].contains("must be shorter than 2048 bytes, including the argument"), "{said:?}");
}

#[test]
fn no_block_lies_below_4_gib_while_another_lies_above() {
    let bases = |region: &str, blocks: &str| {
        let text =
            source("").replace("size = <0x10000000>", region).replacen("size = <0x8000000>", blocks, 1);
        let (tree, said) = build(&text, None);
        let bases: Vec<_> = tree.lines().filter_map(|line| line.trim().strip_prefix("dmb@")).collect();
        assert!(tree.contains("movablecore="), "{said:?}");
        bases.join(" ")
    };
    // All of it below, across, all above.
    assert_eq!(bases("size = <0x80000000>", "size = <0x38000000>"), "c0000000 { f8000000 {");
    assert_eq!(bases("size = <0x80000000>", "size = <0x3c000000>"), "100000000 { 13c000000 {");
    assert_eq!(bases("size = <0xc8000000>", "size = <0x8000000>"), "108000000 { 110000000 {");
}

#[test]
fn arguments_of_init_stay_last() {
    let (tree, _) = build(&source("").replace("ttyAMA0", "ttyAMA0 -- single"), None);
    assert!(tree.contains("bootargs = \"console=ttyAMA0 movablecore=256M -- single\";"), "{tree}");
}

#[test]
fn duplicate_additions_are_refused() {
    let host = "/dts-v1/; / { #address-cells = <2>; #size-cells = <2>; foo@1000 { phandle = <1>; };
        soc { reserved-memory { r { size = <0 1>; }; }; };
        reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;
        r@10000000 { reg = <0 0x10000000 0 0x1000>; }; pool { size = <0 0x400000>; }; }; };";
    let reserved = "device-tree { reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;
        pool { size = <0 0x1000>; }; }; };";
    let cases = [
        String::from("host-nodes = \"/foo\", \"/foo@1000\";"),
        String::from("host-nodes = \"/reserved-memory/pool\", \"/reserved-memory/pool\";"),
        String::from("host-nodes = \"//reserved-memory/r\";"),
        String::from("host-nodes = \"/soc/reserved-memory/r\";"),
        String::from("host-nodes = \"/foo\"; device-tree { bar { phandle = <1>; }; };"),
        String::from("device-tree { bar { phandle = <0xba110001>; }; };"),
        format!("host-nodes = \"/reserved-memory/pool\"; {reserved}"),
    ];
    let free = |text: &str| source(text).replace("kernel: kernel {", "kernel: kernel { phandle = <7>;");
    let said: Vec<_> = cases.iter().map(|text| build(&free(text), Some(host)).1.pop().unwrap()).collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn reserved_memory_without_a_place_is_checked() {
    let cases = [
        "size = <0 0x1000>; alloc-ranges = <1 2 3>;",
        "size = <0 0>;",
        "size = <0 0x1000>; alignment = <0 0x3000>;",
        "compatible = \"shared-dma-pool\"; reusable; size = <0 0x300000>;",
    ];
    let text = |case| {
        source(&format!(
            "device-tree {{ reserved-memory {{ #address-cells = <2>; #size-cells = <2>; ranges; a {{ {case} }}; }}; }};"
        ))
    };
    let said: Vec<_> = cases.iter().map(|case| build(&text(case), None).1.join("\n")).collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_guest_gets_the_timer_frequency_of_the_hosts_tree() {
    let host = |property: &str| {
        format!("/dts-v1/; / {{ timer {{ compatible = \"arm,armv8-timer\"; {property} }}; }};")
    };
    for (property, expected) in [
        ("clock-frequency = <62500000>;", Some("clock-frequency = <0x3b9aca0>;")),
        ("", None),
        ("clock-frequency = <0>;", None),
    ] {
        let (tree, _) = build(&source(""), Some(&host(property)));
        let timer = tree.split("timer {").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
        let line = timer.lines().map(str::trim).find(|line| line.starts_with("clock-frequency"));
        assert_eq!(line, expected, "{timer}");
    }
}
