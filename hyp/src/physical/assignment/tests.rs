//! Devices of guests, by the rules, on QEMU's `virt` with an SMMU.

use core::fmt;
use core::sync::atomic::AtomicU32;
use std::format;
use std::string::String;

use guest_dts::testing::{compile, compile_with_images};
use stage2::addr::FRAME_SIZE;
use stage2::phys::frame::Footprint;
use stage2::phys::map::BootMap;
use stage2::phys::zone::Zone;

use super::*;
use crate::physical::{Loaded, NORMAL_FLOOR_FRAMES, fit, lay_out};

const HOST: &str = include_str!("../../board/tests/qemu_virt_smmu.dts");
const WINDOW: &str = "memory { size = <0 0x4000000>; dma-window; };";
const IN_PLACE: &str = "memory@60000000 { reg = <0 0x60000000 0 0x4000000>; dma-window; pinned-in-place; };";
/// Platform devices: two in one page, two in pages of their own, and one that is behind no SMMU.
const DEVICES: &str = "
    a: net@a100000 { reg = <0 0xa100000 0 0x200>; iommus = <0x8007 0x10001>; interrupts = <0 80 4>; };
    b: net@a100200 { reg = <0 0xa100200 0 0x200>; iommus = <0x8007 0x10002>; interrupts = <0 81 4>; };
    c: net@a110010 { reg = <0 0xa110010 0 0x1ff0>, <0 0xa110000 0 0x10>; iommus = <0x8007 0x10003>, <0x8007 0x10004>;
                     interrupts = <0 82 1>, <0 83 4>; dma-noncoherent; };
    d: net@a120000 { reg = <0 0xa120000 0 0x1000>; iommus = <0x8007 0x10005>; interrupts = <0 83 4>; };
    e: net@a130000 { reg = <0 0xa130000 0 0x1000>; interrupts = <0 85 4>; };
    off: net@a140000 { reg = <0 0xa140000 0 0x1000>; iommus = <0x8007 0x10006>; status = \"disabled\"; };";

/// The outcome of a resolution.
struct Outcome {
    told: Vec<String>,
    guests: Vec<String>,
    reserved: u64,
}

/// Returns a guest of 128 MiB and what `more` describes: nodes of windows, then properties.
fn guest(name: &str, more: &str) -> String {
    let (window, properties) = more.split_at(more.rfind("};").map_or(0, |at| at + 2));
    format!(
        "{name} {{ vcpus = <1>; kernel = <&kernel>; #address-cells = <2>; #size-cells = <2>; {properties} {window} \
         memory-9 {{ size = <0 0x8000000>; }}; }};"
    )
}

/// Resolves the devices of `guests` on `host` and passes the assignments to `read`.
fn resolve_on(
    host: &str,
    guests: &str,
    probe: &dyn Probe,
    read: impl FnOnce(&Board<'_>, &[Option<Assignment<'_>>]),
) -> Outcome {
    let source = format!(
        "/dts-v1/; / {{ compatible = \"ballast,configuration\"; #address-cells = <2>; #size-cells = <2>; \
         images {{ kernel: kernel {{ data = /incbin/(\"kernel\"); }}; }}; guests {{ {guests} }}; }};"
    );
    let (host, blob) = (compile(host), compile_with_images(&source));
    let (host, tree) = (Tree::new(host.as_slice()).unwrap(), Tree::new(blob.as_slice()).unwrap());
    let board = Board::read(&host).unwrap();
    let mut configuration = Configuration::read(&tree, &mut |severity, finding| {
        assert!(severity != Severity::Error, "{finding}")
    })
    .unwrap();
    let mut told = Vec::new();
    let mut tell = |severity: Severity, text: fmt::Arguments<'_>| {
        if severity != Severity::Note {
            told.push(format!("{severity:?}: {text}"));
        }
    };
    let mut map = BootMap::new();
    lay_out(&mut map, &host, &board, &Loaded::default(), Some(&mut configuration), &mut tell).unwrap();
    let words: Vec<_> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
    let memory = Memory::new();
    memory.boot(&map, &words, NORMAL_FLOOR_FRAMES).unwrap();
    fit(&board, &memory, 4, &mut configuration, &mut tell);
    let assignments = resolve(&board, &host, &memory, &mut configuration, probe, &mut tell);
    assert_eq!(assignments.len(), configuration.guests.len());
    read(&board, &assignments);
    Outcome {
        told,
        guests: configuration.guests.iter().map(|guest| String::from(guest.name)).collect(),
        reserved: memory.zone_totals(Zone::Normal).reserved() * FRAME_SIZE,
    }
}

/// Returns `HOST` with `DEVICES`.
fn host() -> String {
    HOST.replacen("pl031@9010000 {", &format!("{DEVICES} pl031@9010000 {{"), 1)
}

/// Checks that the only guest, with `more`, is refused with `expected` in its error.
fn refused(host: &str, more: &str, expected: &str) {
    let outcome = resolve_on(host, &guest("alpha", more), &Unprobed, |_, _| {});
    let errors: Vec<_> = outcome.told.iter().filter(|line| line.starts_with("Error: ")).collect();
    assert!(outcome.guests.is_empty() && errors.len() == 1, "{expected}: {:?}", outcome.told);
    assert!(errors[0].contains(expected), "{expected}: {errors:?}");
}

#[test]
fn functions_of_two_guests_are_resolved() {
    let guests = guest("alpha", &format!("{WINDOW} pci-functions = <0x08 0x10>;"))
        + &guest("beta", &format!("{WINDOW} pci-functions = <0x18 0x38>;"))
        + &guest("gamma", "");
    let outcome = resolve_on(HOST, &guests, &Unprobed, |_, assignments| {
        let [Some(alpha), Some(beta), None] = assignments else { panic!("{assignments:?}") };
        let [first, second] = &alpha.functions[..] else { panic!("{alpha:?}") };
        assert_eq!((first.device, second.device), (1, 2));
        assert_eq!(first.stream, Some(Stream { smmu: 0, id: 8 }));
        assert_eq!(second.config.get(), 0x40_1001_0000);
        assert_eq!(alpha.lines.iter().map(|line| line.intid).collect::<Vec<_>>(), [36, 37]);
        // Slots 3 and 7 have one line.
        assert_eq!(beta.functions.iter().map(|function| function.line).collect::<Vec<_>>(), [Some(0); 2]);
        let (one, other) = (alpha.window.unwrap(), beta.window.unwrap());
        assert_eq!((one.ipa, one.size, other.ipa), (0x4000_0000, 64 << 20, 0x4000_0000));
        assert!(one.pa.is_multiple_of(2 << 20) && one.pa.abs_diff(other.pa) >= 64 << 20);
        let tree = alpha.tree();
        let slots = tree.pci.as_ref().map(|pci| pci.slots.iter().map(|slot| (slot.device, slot.spi)));
        assert_eq!(slots.unwrap().collect::<Vec<_>>(), [(1, Some((32, false))), (2, Some((33, false)))]);
        assert!(tree.pci.unwrap().is_coherent);
    });
    assert_eq!((outcome.told.len(), outcome.guests.len()), (0, 3), "{:?}", outcome.told);
}

#[test]
fn platform_devices_are_resolved() {
    let guests =
        guest("alpha", &format!("{WINDOW} devices = \"/net@a110010\", \"/net@a100000\", \"/net@a100200\";"));
    let outcome = resolve_on(&host(), &guests, &Unprobed, |_, assignments| {
        let [Some(alpha)] = assignments else { panic!("{assignments:?}") };
        let [c, a, b] = &alpha.devices[..] else { panic!("{alpha:?}") };
        let page = |base, size| PaRange::from_numbers(base, size).unwrap();
        assert_eq!(c.pages, [(0x3800_0000, page(0xa11_0000, 0x2000))]);
        assert_eq!(c.regs, [(0x3800_0010, 0x1ff0), (0x3800_0000, 0x10)]);
        assert_eq!((&c.lines[..], c.is_coherent, c.streams.len()), (&[0, 1][..], false, 2));
        // One page holds the registers of both, and is mapped once.
        assert_eq!((&a.pages[..], b.pages.len()), (&[(0x3800_2000, page(0xa10_0000, 0x1000))][..], 0));
        assert_eq!((a.regs[0], b.regs[0]), ((0x3800_2000, 0x200), (0x3800_2200, 0x200)));
        let tree = alpha.tree();
        assert_eq!(tree.devices[0].spis, [(32, true), (33, false)]);
        assert_eq!(alpha.streams().len(), 4);
    });
    assert!(outcome.told.is_empty(), "{:?}", outcome.told);
}

#[test]
fn devices_that_break_a_rule_are_refused() {
    let devices = |names: &str| format!("{WINDOW} devices = {names};");
    let host = host();
    for (names, expected) in [
        ("\"/nothing\"", "/guests/alpha: devices = \"/nothing\": must be the path of a node"),
        ("\"/net@a140000\"", "devices = \"/net@a140000\": must name a device that is enabled"),
        ("\"/net@a100000\"", "/net@a100000: reg = 4 KiB at 0xa100000: overlaps with /net@a100200"),
        ("\"/net@a130000\"", "devices = \"/net@a130000\": must be behind an SMMUv3"),
        ("\"/pl011@9000000\"", "devices = \"/pl011@9000000\": must be behind an SMMUv3"),
    ] {
        refused(&host, &devices(names), expected);
    }
    let trusted = |name: &str| format!("{IN_PLACE} assign-without-smmu; devices = \"{name}\";");
    for (name, expected) in [
        ("/pl011@9000000", "/pl011@9000000: reg = 4 KiB at 0x9000000: overlaps with the console's UART"),
        ("/smmuv3@9050000", "/smmuv3@9050000: reg = 128 KiB at 0x9050000: overlaps with an SMMU"),
        ("/intc@8000000", "overlaps with the GIC's distributor"),
        ("/memory@40000000", "overlaps with the host's RAM"),
        ("/pcie@10000000", "overlaps with a PCI host bridge; assign its functions"),
        ("/psci", "/psci: reg is missing"),
        ("/timer", "/timer: reg is missing"),
    ] {
        refused(&host, &trusted(name), expected);
    }
    for (interrupt, expected) in [
        ("<0 1 4>", "interrupts = <0x0 0x1 0x4>: must not have the interrupt of the console's UART"),
        ("<0 0x4a 1>", "must not have an interrupt of an SMMU"),
        ("<1 8 4>", "must be shared interrupts of type 0 (SPI)"),
    ] {
        refused(&host.replacen("<0 85 4>", interrupt, 1), &trusted("/net@a130000"), expected);
    }
    let stream = |from: &str, to: &str| host.replacen(from, to, 1);
    let shared =
        "/net@a120000: iommus: must be StreamIDs that only functions and devices of the same guest have";
    refused(&stream("<0x8007 0x10005>", "<0x8007 0x10004>"), &devices("\"/net@a120000\""), shared);
    // The host bridge's functions have the StreamIDs below 0x10000.
    refused(&stream("<0x8007 0x10005>", "<0x8007 0x108>"), &devices("\"/net@a120000\""), shared);
}

#[test]
fn functions_that_break_a_rule_are_refused() {
    let functions = |rids: &str| format!("{WINDOW} pci-functions = <{rids}>;");
    let few = HOST.replacen("bus-range = <0x00 0xff>", "bus-range = <0x00 0x0f>", 1);
    let place =
        "/guests/alpha: pci-functions = 0x1008: must be on a bus of one of the host's PCI host bridges";
    refused(&few, &functions("0x1008"), place);
    let other = HOST.replacen("\"pci-host-ecam-generic\"", "\"vendor,pcie\"", 1);
    refused(&other, &functions("8"), "/pcie@10000000: compatible = \"vendor,pcie\": must list");
    let map = |map: &str| HOST.replacen("iommu-map = <0x00 0x8007 0x00 0x10000>;", map, 1);
    refused(&map(""), &functions("8"), "pci-functions = 0x8: must be behind an SMMUv3 by the host's tree");
    let masked = map("iommu-map = <0 0x8007 0 0x10000>; iommu-map-mask = <0xfffe>;");
    refused(&masked, &functions("8"), "pci-functions = 0x8: must have a StreamID that only");
    let both = functions("8 9");
    let outcome = resolve_on(&masked, &guest("alpha", &both), &Unprobed, |_, _| {});
    assert_eq!(outcome.guests.len(), 1, "{:?}", outcome.told);
    let unmapped = HOST.replacen("interrupt-map = ", "other-map = ", 1);
    refused(&unmapped, &functions("8"), "/pcie@10000000: interrupt-map is missing");
}

#[test]
fn what_another_guest_has_is_refused() {
    let pair = |one: &str, other: &str| {
        guest("alpha", &format!("{WINDOW} {one}")) + &guest("beta", &format!("{WINDOW} {other}"))
    };
    let device = |name: &str| format!("devices = \"/{name}\";");
    // The line of slot 5 is that of slot 1.
    for (one, other, expected) in [
        (
            "pci-functions = <0x08>;",
            "pci-functions = <0x28>;",
            "/guests/beta: pci-functions = 0x28: must have an INTx line",
        ),
        (
            &device("net@a110010"),
            &device("eth@a120000"),
            "/eth@a120000: interrupts = <0x0 0x53 0x4>: must be interrupts",
        ),
        (
            &device("eth@a120000"),
            "devices = \"/eth\";",
            "/guests/beta: devices = \"/eth\": already used by /guests/alpha",
        ),
    ] {
        let host = host().replacen("net@a120000", "eth@a120000", 1);
        let outcome = resolve_on(&host, &pair(one, other), &Unprobed, |_, _| {});
        assert_eq!((outcome.guests.len(), outcome.told.len()), (1, 1), "{:?}", outcome.told);
        assert!(outcome.told[0].contains(expected), "{:?}", outcome.told);
    }
    // Both devices in one page: neither guest gets its own.
    let outcome =
        resolve_on(&host(), &pair(&device("net@a100000"), &device("net@a100200")), &Unprobed, |_, _| {});
    assert!(outcome.told[0].contains("must not share a page of 4 KiB with a device of another guest"));
    // The next guest does not suffer from it, and the memory of the refused one is free again.
    let alone = resolve_on(&host(), &guest("alpha", WINDOW), &Unprobed, |_, _| {});
    let after =
        resolve_on(&host(), &pair(&device("net@a120000"), &device("net@a110010")), &Unprobed, |_, _| {});
    assert_eq!((after.guests.len(), after.reserved), (1, alone.reserved), "{:?}", after.told);
}

#[test]
fn devices_without_an_smmu_need_permission_and_a_window_in_place() {
    let host = host();
    let of = |window: &str| format!("{window} assign-without-smmu; devices = \"/net@a130000\";");
    refused(&host, &of(WINDOW), "/guests/alpha/memory: pinned-in-place is missing: add it and `reg`");
    let outcome = resolve_on(&host, &guest("alpha", &of(IN_PLACE)), &Unprobed, |_, assignments| {
        let window = assignments[0].as_ref().and_then(|alpha| alpha.window).unwrap();
        assert_eq!((window.ipa, window.pa), (0x6000_0000, 0x6000_0000));
    });
    assert!(outcome.told.is_empty(), "{:?}", outcome.told);
    // Without an SMMU, sharing a page with an unassigned device is a warning.
    let host = host.replace("iommus = <0x8007 0x10001>;", "");
    let more = format!("{IN_PLACE} assign-without-smmu; devices = \"/net@a100000\";");
    let outcome = resolve_on(&host, &guest("alpha", &more), &Unprobed, |_, _| {});
    assert_eq!((outcome.guests.len(), outcome.told.len()), (1, 1), "{:?}", outcome.told);
    let expected =
        "Warning: configuration: /net@a100000: the guest reaches the registers of /net@a100200, too";
    assert!(outcome.told[0].starts_with(expected), "{:?}", outcome.told);
}

/// A host whose only function on bus 0 is a root port in slot 2 with a function behind it.
struct Probed;

impl Probe for Probed {
    fn is_present(&self, _: u8, rid: u16) -> bool {
        [0x10, 0x100].contains(&rid)
    }

    fn root_pin(&self, _: u8, rid: u16) -> Option<RootPin> {
        let pin = if rid == 0x100 { 2 } else { 0 };
        Some(RootPin { device: 2, pin })
    }
}

#[test]
fn configuration_space_tells_what_the_tree_does_not() {
    let of = |rid: &str| guest("alpha", &format!("{WINDOW} pci-functions = <{rid}>;"));
    resolve_on(HOST, &of("0x100"), &Probed, |_, assignments| {
        let alpha = assignments[0].as_ref().unwrap();
        assert_eq!((alpha.functions[0].line, alpha.lines[0].intid), (Some(0), 32 + 3 + 3));
    });
    resolve_on(HOST, &of("0x10"), &Probed, |_, assignments| {
        assert_eq!(assignments[0].as_ref().unwrap().functions[0].line, None);
    });
    let outcome = resolve_on(HOST, &of("0x18"), &Probed, |_, _| {});
    assert!(outcome.told[0].contains("must be the RID of a function that answers"), "{:?}", outcome.told);
    // Others that share the StreamID do not exist.
    let masked =
        HOST.replacen("<0x00 0x8007 0x00 0x10000>;", "<0 0x8007 0 0x10000>; iommu-map-mask = <0xfff8>;", 1);
    let outcome = resolve_on(&masked, &of("0x10"), &Probed, |_, _| {});
    assert!(outcome.told.is_empty(), "{:?}", outcome.told);
    // On a PC, the interrupt of a function behind a root port is not known.
    resolve_on(HOST, &of("0x100"), &Unprobed, |_, assignments| {
        assert_eq!(assignments[0].as_ref().unwrap().functions[0].line, None);
    });
}
