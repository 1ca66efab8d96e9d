//! Tests of devices and DMA windows.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::{compile, findings, one_guest, report};
use crate::config::*;
use crate::image::{BootPlan, Image};

/// A window as most guests have it.
const WINDOW: &str = "memory-9 { dma-window; size = <0x4000000>; };";

/// Calls `check` with the only guest of a configuration with the properties `guest`.
fn with_guest(guest: &str, check: impl FnOnce(&Guest<'_>)) {
    let blob = compile(&one_guest(guest, "", ""));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut sink =
        |severity: Severity, finding: Finding<'_>| assert!(severity != Severity::Error, "{finding}");
    check(&Configuration::read(&tree, &mut sink).unwrap().guests[0]);
}

#[test]
fn devices_are_read() {
    let text = format!(
        "pci-functions = <0x08 0x1f0>; devices = \"/soc/ethernet@1000\", \"/soc/dma@2000\"; assign-without-smmu; {WINDOW}"
    );
    with_guest(&text, |guest| {
        assert_eq!(guest.pci_functions.as_slice(), [0x08, 0x1f0]);
        assert_eq!(guest.devices.as_slice(), ["/soc/ethernet@1000", "/soc/dma@2000"]);
        assert!(guest.assigns_without_smmu && guest.has_devices());
        assert_eq!(guest.dma_window().map(|(index, window)| (index, window.size)), Some((0, 64 << 20)));
        assert_eq!(guest.reserved_ranges().count(), 0, "the range of a window is found at boot");
    });
    with_guest("", |guest| assert!(!guest.has_devices() && guest.dma_window().is_none()));
}

#[test]
fn pinned_memory_is_its_own_backing() {
    let text = "pci-functions = <8>; memory@80000000 { dma-window; pinned-in-place; reg = <0 0x80000000 0 0x4000000>; };
        memory@90000000 { pinned-in-place; reg = <0 0x90000000 0 0x1000>; };";
    with_guest(text, |guest| {
        let reserved: Vec<_> =
            guest.reserved_ranges().map(|range| (range.base().get(), range.size())).collect();
        assert_eq!(reserved, [(0x8000_0000, 64 << 20), (0x9000_0000, 0x1000)]);
    });
}

#[test]
fn wrong_devices_get_their_messages() {
    let with_window = [
        "pci-functions;",
        "pci-functions = \"0000:00:01.0\";",
        "pci-functions = [08];",
        "pci-functions = <0x10000>;",
        "pci-functions = <8 16 8>;",
        "pci-functions = <1 2 3 4 5 6 7 8 9 10>;",
        "devices;",
        "devices = <1>;",
        "devices = \"ethernet0\";",
        "devices = \"/\";",
        "devices = \"/a\", \"/b\", \"/a\";",
        "devices = \"/a\", \"/b\", \"/c\", \"/d\", \"/e\", \"/f\", \"/g\", \"/h\", \"/i\";",
        "pci-functions = <8>; assign-without-smmu = <1>;",
        "pci-function = <8>;",
        "assign-without-smmu;",
        "",
        "pci-functions = <8>; memory-8 { dma-window; size = <0x4000000>; };",
    ];
    let mut sources: Vec<_> =
        with_window.iter().map(|case| one_guest(&format!("{case} {WINDOW}"), "", "")).collect();
    let without_window = ["pci-functions = <8>;", "devices = \"/a\";", "assign-without-smmu;"];
    sources.extend(without_window.iter().map(|case| one_guest(case, "", "")));
    insta::assert_snapshot!(report(&sources));
}

#[test]
fn wrong_windows_get_their_messages() {
    let cases = [
        "memory-9 { dma-window = <1>; size = <0x4000000>; };",
        "memory-9 { dma-window; };",
        "memory-9 { dma-window; size = <0x4100000>; };",
        "memory-9 { dma-window; size = <0xe00000>; };",
        "memory-9 { dma-window; size = <0x1000000>; };",
        "memory-9 { dma-window; size = <0x40200000>; };",
        "memory-9 { dma-window; size = <0x4000000>; unit-size = <0x200000>; };",
        "memory-9 { dma-window; size = <0x4000000>; controllers = <0 1>; interleave; };",
        "memory-9 { dma-window; size = <0x4000000>; controllers = <9>; };",
        "memory-9 { dma-window; size = <0x20000000>; controllers = <1>; };",
        "memory@60100000 { dma-window; reg = <0 0x60100000 0 0x4000000>; };",
        "memory@7ffe000000 { dma-window; reg = <0x7f 0xfe000000 0 0x4000000>; };",
        "memory@fe000000 { dma-window; reg = <0 0xfe000000 0 0x4000000>; };",
        "memory@60000000 { dma-window; reg = <0 0x60000000 0 0x4000000>; }; memory@64000000 { reg = <0 0x64000000 0 0x4000000>; };",
        "memory@60000000 { dma-window; reg = <0 0x60000000 0 0x4000000>; }; memory@40000000 { reg = <0 0x40000000 0 0x4000000>; };",
        "memory-9 { dma-window; pinned-in-place; size = <0x4000000>; };",
        "dmb { dma-window; size = <0x4000000>; };",
    ];
    let sources: Vec<_> =
        cases.iter().map(|case| one_guest(&format!("pci-functions = <8>; {case}"), "", "")).collect();
    insta::assert_snapshot!(report(&sources));
}

#[test]
fn guests_share_no_devices() {
    let source = super::SETS[5].1;
    let functions = source.replace("<0x18 0x20 0x38>", "<0x18 0x10 0x38>");
    let devices = source.replace("pci-functions = <0x08 0x10 0x28>;", "devices = \"/eth\", \"/dma\";");
    let devices = devices.replace("pci-functions = <0x18 0x20 0x38>;", "devices = \"/usb\", \"/dma\";");
    assert!(functions != source && devices != source);
    insta::assert_snapshot!(report(&[functions, devices]));
}

/// Returns the layout of a guest, with the placement of its images.
fn layout(guest: &str) -> String {
    let mut text = String::new();
    with_guest(&format!("pci-functions = <8>; {guest}"), |guest| {
        let layout = Layout::of(guest).unwrap();
        let ranges = layout.ranges.iter().map(|ram| format!("{:?} {}\n", ram.source, ram.range));
        text.extend(ranges);
        let plan = BootPlan::new(&Image::parse(guest.kernel).unwrap(), Some(8), layout.regions()).unwrap();
        text += &format!("kernel {}, ramdisk {}, tree {}\n", plan.kernel, plan.ramdisk.unwrap(), plan.tree);
    });
    text
}

#[test]
fn the_window_is_laid_out_first() {
    let cases = [
        WINDOW,
        "memory-9 { dma-window; size = <0x40000000>; }; dmb { size = <0x400000>; };",
        "memory@60000000 { dma-window; reg = <0 0x60000000 0 0x4000000>; }; dmb { size = <0x400000>; };",
        "memory@7c000000 { dma-window; reg = <0 0x7c000000 0 0x4000000>; };",
        // A window above 4 GiB: no power of two applies.
        "memory@140000000 { dma-window; reg = <1 0x40000000 0 0x4000000>; };",
        // Blocks that would cross 4 GiB.
        "memory-9 { dma-window; size = <0x4000000>; }; memory-8 { size = <0x60000000>; }; dmb { size = <0x20000000>; };",
    ];
    let report: Vec<_> = cases.iter().map(|case| layout(case)).collect();
    insta::assert_snapshot!(report.join("\n"));
}

#[test]
fn images_need_ram_outside_the_window() {
    let source = one_guest("pci-functions = <8>;", "dma-window; size = <0x4000000>;", "");
    let said = findings(&source).join("\n");
    assert!(said.contains("kernel, ramdisk and device tree") && said.contains("the largest has 0"), "{said}");
}

#[test]
fn a_window_counts_as_memory_that_never_moves() {
    let blob = compile(&one_guest(&format!("pci-functions = <8>; {WINDOW}"), "", ""));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut configuration = Configuration::read(&tree, &mut |_: Severity, _: Finding<'_>| {}).unwrap();
    let room = ControllerRoom { id: 0, free: 1 << 30, unmovable: 32 << 20 };
    let host = Host { cpu_count: 1, controllers: [room].into_iter().collect() };
    assert!(configuration.guests[0].fit(&host).is_err());
    // Once boot has found a range, the window is out of the count.
    configuration.guests[0].regions[0].backing = PaRange::from_numbers(0x8000_0000, 64 << 20);
    assert_eq!(configuration.guests[0].fit(&host), Ok(()));
    assert_eq!(configuration.guests[0].reserved_ranges().count(), 1);
}
