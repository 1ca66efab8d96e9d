//! Tests of assigned devices in a guest's tree.

use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::source;
use crate::config::{Configuration, Layout, Severity};
use crate::finding::Finding;
use crate::guest_tree::*;
use crate::image::{BootPlan, Image};
use crate::testing::{compile, compile_with_images};
use crate::tree::{AlignedBlob, Tree, TreeSource};

/// A host with devices.
const HOST: &str = r#"/dts-v1/;
/ {
    #address-cells = <1>;
    #size-cells = <1>;
    clk: clock { #clock-cells = <0>; };
    soc {
        compatible = "simple-bus";
        #address-cells = <1>;
        #size-cells = <1>;
        ranges = <0 0xf0000000 0x10000000>;
        ethernet@1000800 {
            compatible = "acme,ethernet-2", "acme,ethernet";
            status = "okay";
            reg = <0x1000800 0x400 0x1002000 0x1000>;
            reg-names = "mac", "ptp";
            interrupts = <0 77 4 0 78 1>;
            interrupt-names = "rx", "ptp";
            clocks = <&clk>;
            clock-names = "bus";
            resets = <&clk>;
            pinctrl-0 = <&clk>;
            pinctrl-names = "default";
            reset-gpios = <&clk 3 0>;
            phy-supply = <&clk>;
            iommus = <&clk>;
            dma-coherent;
            phy-mode = "rgmii";
            local-mac-address = [02 00 00 00 00 01];
            phy-handle = <&phy>;
            phy-device = <&clk>;
            mdio {
                #address-cells = <1>;
                #size-cells = <0>;
                phy: ethernet-phy@1 { reg = <1>; interrupts = <5>; reset-gpios = <&clk 1 0>; };
                switch: switch@2 { reg = <2>; };
            };
        };
        dma: dma@2000 { compatible = "acme,dma"; reg = <0x2000 0x100>; other = <&switch>; };
        dma@3000 { compatible = "acme,dma"; reg = <0x3000 0x100>; };
        bridge@4000 { reg = <0x4000 0x100>; ranges; };
        "this-name-is-longer-than-31-letters@5000" { reg = <0x5000 0x100>; };
    };
};
"#;

/// Returns the lines of a configuration of a guest with devices.
fn guest(extra: &str) -> String {
    source(&format!(
        "pci-functions = <8 16 24>; devices = \"/soc/ethernet@1000800\"; {extra}
         memory-9 {{ dma-window; size = <0x4000000>; controllers = <0>; }};"
    ))
}

/// Builds the tree of the guest of `source` with the host's devices at `paths`, on a bus that is coherent or not. Returns
/// the tree's source or the error.
fn build(source: &str, paths: &[&str], is_coherent: bool) -> Result<String, String> {
    let host =
        compile(&HOST.replace(
            "\"this-name-is-longer-than-31-letters@5000\"",
            "this-name-is-longer-than-31-letters@5000",
        ));
    let host = Tree::new(host.as_slice()).unwrap();
    let blob = compile_with_images(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut first = None;
    let mut sink = |severity: Severity, finding: Finding<'_>| {
        if severity == Severity::Error {
            first.get_or_insert(finding.to_string());
        }
    };
    let configuration = Configuration::read(&tree, &mut sink).unwrap();
    if let Some(error) = first {
        return Err(error);
    }
    let guest = &configuration.guests[0];
    let layout = Layout::of(guest).unwrap();
    let plan = BootPlan::new(&Image::parse(guest.kernel).unwrap(), Some(8), layout.regions()).unwrap();
    let slot = |device, spi| PciSlot { device, spi };
    let slots = vec![slot(1, Some((32, false))), slot(2, Some((33, true))), slot(3, None)];
    let devices = paths.iter().enumerate().map(|(index, path)| {
        let base = platform::DEVICE_BASE + index as u64 * 0x1_0000;
        AssignedDevice {
            node: host.find(path).unwrap(),
            regs: match path.contains("ethernet") {
                true => vec![(base + 0x800, 0x400), (base + 0x2000, 0x1000)],
                false => vec![(base, 0x100)],
            },
            spis: if path.contains("ethernet") { vec![(34, false), (35, true)] } else { vec![] },
            is_coherent,
        }
    });
    let assigned = Assigned { pci: Some(PciBus { slots, is_coherent }), devices: devices.collect() };
    let input = GuestTree {
        guest,
        layout: &layout,
        plan: &plan,
        assigned: Some(&assigned),
        kaslr_seed: None,
        rng_seed: None,
    };
    let built = input.build_with_host(Some(&host)).map_err(|error| error.to_string())?;
    let blob = AlignedBlob::new(&built);
    let source = TreeSource(Tree::new(blob.as_slice()).unwrap()).to_string();
    let again = compile(&source);
    assert_eq!(TreeSource(Tree::new(again.as_slice()).unwrap()).to_string(), source);
    Ok(source)
}

const ETHERNET: &str = "/soc/ethernet@1000800";

/// Returns the source of the nodes of `tree` called `names`.
fn parts(tree: &str, names: &[&str]) -> String {
    super::parts(&(String::from(tree), Vec::new()), names)
}

#[test]
fn devices_are_in_the_tree() {
    let tree = build(&guest(""), &[ETHERNET, "/soc/dma@2000", "/soc/dma@3000"], true).unwrap();
    insta::assert_snapshot!(parts(&tree, &["chosen", "memory", "interrupt-controller", "pcie", "bus"]));
    let tree = build(&guest(""), &["/soc/dma@2000"], false).unwrap();
    assert!(!tree.contains("dma-coherent"), "{tree}");
    let tree = build(&guest(""), &[], false).unwrap();
    assert!(!tree.contains("\tbus {"), "{tree}");
}

#[test]
fn a_window_above_4_gib_has_64_bit_addresses() {
    let text = guest("").replace(
        "memory-9 { dma-window; size = <0x4000000>;",
        "memory@140000000 { dma-window; reg = <1 0x40000000 0 0x4000000>;",
    );
    let tree = build(&text, &[ETHERNET], true).unwrap();
    assert!(tree.contains("dma-ranges = <0x3000000 0x1 0x40000000 0x1 0x40000000 0x0 0x4000000>"), "{tree}");
    assert!(tree.contains("dma-ranges = <0x1 0x40000000 0x1 0x40000000 0x0 0x4000000>"), "{tree}");
}

#[test]
fn the_template_adds_to_devices() {
    let template = "device-tree { fixed: clock { compatible = \"fixed-clock\"; #clock-cells = <0>; clock-frequency = <1>; };
        bus { note; ethernet { clocks = <&fixed>; phy-mode = \"sgmii\"; led { }; }; dma@38020000 { only-this; }; }; };";
    let paths = [ETHERNET, "/soc/dma@2000", "/soc/dma@3000"];
    let tree = build(&guest(template), &paths, true).unwrap();
    insta::assert_snapshot!(parts(&tree, &["clock", "bus"]));
}

#[test]
fn broken_devices_and_additions_are_refused() {
    let template = |bus: &str| guest(&format!("device-tree {{ {bus} }};"));
    let mut said = Vec::new();
    for (text, paths) in [
        (guest(""), ["/soc/bridge@4000"].as_slice()),
        (guest(""), &["/soc/this-name-is-longer-than-31-letters@5000"]),
        (template("bus { ranges; };"), &[ETHERNET]),
        (template("bus { ethernet { reg = <1>; }; };"), &[ETHERNET]),
        (template("bus { ethernet { dma-coherent; }; };"), &[ETHERNET]),
        (template("bus { ethernet@38000000 { }; };"), &[ETHERNET]),
        (template("bus { usb { }; };"), &[ETHERNET]),
        (template("pcie { };"), &[ETHERNET]),
        (template("chosen { linux,pci-probe-only = <0>; };"), &[ETHERNET]),
        (guest("host-nodes = \"/soc\";"), &[ETHERNET]),
    ] {
        said.push(build(&text, paths, true).map_or_else(|error| error, |tree| format!("accepted: {tree}")));
    }
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_default_cma_area_does_not_take_up_the_window() {
    let bootargs = |text: &str| {
        let tree = build(text, &[], true).unwrap();
        let line = tree.lines().find(|line| line.contains("bootargs")).unwrap();
        String::from(line.trim())
    };
    let default_area = "device-tree { reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges;
        cma { compatible = \"shared-dma-pool\"; reusable; linux,cma-default; size = <0 0x400000>; }; }; };";
    let report = [
        bootargs(&guest("")),
        bootargs(&guest("").replace("console=ttyAMA0", "cma=16M swiotlb=512")),
        bootargs(&guest("").replace("console=ttyAMA0", "quiet -- init")),
        bootargs(&guest("").replace("bootargs = \"console=ttyAMA0\";", "movable-memory = \"none\";")),
        bootargs(&guest("movable-memory = \"cma\";")),
        bootargs(&guest(default_area)),
    ];
    insta::assert_snapshot!(report.join("\n"));
}
