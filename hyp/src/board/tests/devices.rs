//! SMMUs, PCI host bridges, and the streams and interrupts of devices.

use super::*;

/// QEMU's `virt` as in [`QEMU_VIRT`], with `iommu=smmuv3`.
const WITH_SMMU: &str = include_str!("qemu_virt_smmu.dts");

/// Returns `WITH_SMMU` with each `from`, which must be there, replaced by its `to`.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(String::from(WITH_SMMU), |source, (from, to)| {
        assert!(source.contains(from), "{from}");
        source.replacen(from, to, 1)
    })
}

/// Calls `read` with the tree and the board of `source`.
fn with_tree(source: &str, read: impl FnOnce(&Tree<'_>, &Board<'_>)) {
    let blob = compile(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    read(&tree, &Board::read(&tree).unwrap_or_else(|error| panic!("{error}")));
}

/// Returns the text of an error.
fn said<T: core::fmt::Debug>(result: Result<T, Finding<'_>>) -> String {
    format!("{}", result.unwrap_err())
}

/// Follows the maps of all bridges, as a configuration may ask for.
pub(super) fn follow_maps(tree: &Tree<'_>, board: &Board<'_>) {
    for bridge in &board.bridges {
        for rid in [0, 8, 0xff, 0x100, 0xffff] {
            if let Ok(Some(stream)) = bridge.stream(&board.smmus, rid) {
                let map = StreamMap::read(bridge.node).unwrap().unwrap();
                assert!(map.users(&board.smmus, stream).any(|user| user == rid));
            }
            assert!(bridge.config_page(rid).is_none_or(|page| bridge.ecam.end() > page.get()));
        }
        for pin in 0..=5 {
            let _ = bridge.interrupt(31, pin);
        }
    }
    for node in tree.nodes() {
        let _ = (device_streams(&board.smmus, node), device_interrupts(node));
    }
    HostBridge::errors(tree).for_each(|error| assert!(!format!("{error}").is_empty()));
}

proptest! {
    /// Following the maps of any tree ends.
    #[test]
    fn changed_maps_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        static BLOB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut bytes = BLOB.get_or_init(|| compile(WITH_SMMU).as_slice().to_vec()).clone();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let blob = guest_dts::tree::AlignedBlob::new(&bytes);
        if let Ok(tree) = Tree::new(blob.as_slice())
            && let Ok(board) = Board::read(&tree)
        {
            follow_maps(&tree, &board);
        }
    }
}

#[test]
fn smmu_and_bridge_of_qemu_are_read() {
    with_board(WITH_SMMU, |board| {
        let [smmu] = &board.smmus[..] else { panic!("{:?}", board.smmus) };
        assert_eq!((smmu.registers, smmu.is_coherent), (range(0x905_0000, 0x2_0000), true));
        let intid = |interrupt: Option<Interrupt>| interrupt.map(|one| (one.intid, one.trigger));
        assert_eq!(intid(smmu.event_interrupt), Some((32 + 0x4a, Trigger::Edge)));
        assert_eq!(intid(smmu.error_interrupt), Some((32 + 0x4d, Trigger::Edge)));
        let [bridge] = &board.bridges[..] else { panic!("{:?}", board.bridges) };
        assert_eq!((bridge.ecam, bridge.buses), (range(0x40_1000_0000, 0x1000_0000), (0, 0xff)));
        assert_eq!((bridge.domain, bridge.is_coherent), (Some(0), true));
        assert_eq!(bridge.windows[0].cpu, range(0x1000_0000, 0x2eff_0000));
        assert_eq!((bridge.windows[1].pci, bridge.windows[1].is_64_bit), (0x80_0000_0000, true));
        assert_eq!(bridge.config_page(0x0110).map(|pa| pa.get()), Some(0x40_1011_0000));
        assert_eq!(bridge.stream(&board.smmus, 0x0110), Ok(Some(Stream { smmu: 0, id: 0x110 })));
        // Device 5, INTB: SPI 3 + (5 + 1) % 4, level-sensitive.
        let interrupt = Interrupt { intid: 32 + 5, trigger: Trigger::Level };
        assert_eq!(bridge.interrupt(5, 2), Ok(interrupt));
        assert_eq!(bridge.interrupt(0, 1).unwrap().intid, 35);
        assert!(said(bridge.interrupt(0, 5)).contains("interrupt-map: must have an entry for the pin"));
    });
    with_board(QEMU_VIRT, |board| {
        assert!(board.smmus.is_empty());
        assert!(board.bridges.iter().all(|bridge| bridge.stream(&[], 8) == Ok(None)));
    });
}

#[test]
fn a_broken_smmu_is_an_error_of_those_who_need_it() {
    let small = changed(&[("reg = <0x00 0x9050000 0x00 0x20000>", "reg = <0x00 0x9050000 0x00 0x10000>")]);
    with_board(&small, |board| {
        assert!(board.smmus.is_empty());
        assert_eq!(board.warnings.iter().count(), 1);
        let error = said(board.bridges[0].stream(&board.smmus, 8));
        assert!(error.starts_with("/smmuv3@9050000: reg = "), "{error}");
    });
    let disabled =
        changed(&[("compatible = \"arm,smmu-v3\"", "status = \"disabled\"; compatible = \"arm,smmu-v3\"")]);
    with_board(&disabled, |board| {
        assert_eq!(board.warnings.iter().count(), 0);
        let error = said(board.bridges[0].stream(&board.smmus, 8));
        assert!(error.contains("status: must be \"okay\""), "{error}");
    });
    let other = changed(&[("compatible = \"arm,smmu-v3\"", "compatible = \"arm,mmu-500\"")]);
    with_board(&other, |board| {
        let error = said(board.bridges[0].stream(&board.smmus, 8));
        assert!(error.contains("iommu-map = ") && error.contains("has no driver for others"), "{error}");
    });
}

#[test]
fn a_combined_interrupt_serves_both_purposes() {
    let combined = changed(&[
        (
            "interrupt-names = \"eventq\", \"priq\", \"cmdq-sync\", \"gerror\"",
            "interrupt-names = \"combined\"",
        ),
        (
            "interrupts = <0x00 0x4a 0x01 0x00 0x4b 0x01 0x00 0x4c 0x01 0x00 0x4d 0x01>",
            "interrupts = <0 0x4a 4>",
        ),
    ]);
    with_board(&combined, |board| {
        let smmu = &board.smmus[0];
        assert_eq!(smmu.event_interrupt.map(|one| one.intid), Some(32 + 0x4a));
        assert_eq!(smmu.event_interrupt, smmu.error_interrupt);
    });
}

#[test]
fn bridges_that_cannot_be_used_say_why() {
    for (from, to, expected) in [
        (
            "compatible = \"pci-host-ecam-generic\"",
            "compatible = \"vendor,pcie\"",
            "compatible = \"vendor,pcie\": must list \"pci-host-ecam-generic\"",
        ),
        (
            "#address-cells = <0x03>",
            "#address-cells = <0x02>",
            "#address-cells = <0x2>: must be 3 on a PCI bus",
        ),
        (
            "bus-range = <0x00 0xff>",
            "bus-range = <0x01 0x00>",
            "bus-range = <0x1 0x0>: must be the first and the last bus",
        ),
        ("reg = <0x40 0x10000000 0x00 0x10000000>;", "", "reg is missing"),
    ] {
        with_tree(&changed(&[(from, to)]), |tree, board| {
            assert!(board.bridges.is_empty(), "{to}");
            let errors: Vec<_> = HostBridge::errors(tree).map(|error| format!("{error}")).collect();
            assert!(errors.len() == 1 && errors[0].contains(expected), "{errors:?}");
        });
    }
    // An ECAM of 16 buses from bus 0x20 on.
    let few = changed(&[
        ("bus-range = <0x00 0xff>", "bus-range = <0x20 0xff>"),
        ("reg = <0x40 0x10000000 0x00 0x10000000>", "reg = <0x40 0x10000000 0x00 0x1000000>"),
    ]);
    with_board(&few, |board| {
        let bridge = &board.bridges[0];
        assert_eq!(bridge.buses, (0x20, 0x2f));
        assert_eq!(bridge.config_page(0x2f08).map(|pa| pa.get()), Some(0x40_10f0_8000));
        assert_eq!([0x1fff, 0x3000].map(|rid| bridge.config_page(rid)), [None; 2]);
    });
}

#[test]
fn stream_maps_are_followed() {
    let map = |map: &str| changed(&[("iommu-map = <0x00 0x8007 0x00 0x10000>;", map)]);
    // Functions of one device share a stream, and bus 1 passes no SMMU.
    let masked = map("iommu-map = <0 0x8007 0x1000 0x100>; iommu-map-mask = <0xfff8>;");
    with_board(&masked, |board| {
        let bridge = &board.bridges[0];
        let stream = Stream { smmu: 0, id: 0x1008 };
        assert_eq!(bridge.stream(&board.smmus, 0x0b), Ok(Some(stream)));
        assert_eq!(bridge.stream(&board.smmus, 0x108), Ok(None));
        let map = StreamMap::read(bridge.node).unwrap().unwrap();
        assert_eq!(map.users(&board.smmus, stream).collect::<Vec<_>>(), (8..16).collect::<Vec<_>>());
    });
    // The first of two entries counts; both lead to the same StreamIDs.
    let twice = map("iommu-map = <8 0x8007 0x10 8>, <8 0x8007 0x40 8>, <0x20 0x8007 0x10 8>;");
    with_board(&twice, |board| {
        let map = StreamMap::read(board.bridges[0].node).unwrap().unwrap();
        let users = |id| map.users(&board.smmus, Stream { smmu: 0, id }).collect::<Vec<_>>();
        assert_eq!((users(0x12), users(0x42), users(7)), ([0xa, 0x22].into(), Vec::new(), Vec::new()));
    });
    with_board(&map("iommu-map = <0 0x8007 0xfffffff8 0x10000>;"), |board| {
        assert_eq!(board.bridges[0].stream(&board.smmus, 7), Ok(Some(Stream { smmu: 0, id: u32::MAX })));
        let error = said(board.bridges[0].stream(&board.smmus, 8));
        assert!(error.ends_with("iommu-map = 4294967296: must be a StreamID below 2^32"), "{error}");
    });
    with_board(&map("iommu-map = <0 0x8007 0>;"), |board| {
        assert!(said(board.bridges[0].stream(&board.smmus, 8)).contains("entries of four cells"));
    });
}

#[test]
fn streams_and_interrupts_of_platform_devices_are_read() {
    let device = |properties: &str| {
        changed(&[("pl031@9010000 {", &format!("net@a100000 {{ {properties} }}; pl031@9010000 {{"))])
    };
    let read = |properties: &str| {
        let mut found = None;
        with_tree(&device(properties), |tree, board| {
            let node = tree.find("/net@a100000").unwrap();
            let streams = device_streams(&board.smmus, node).map_err(|error| format!("{error}"));
            let interrupts = device_interrupts(node).map_err(|error| format!("{error}"));
            let ids = streams.map(|streams| streams.iter().map(|stream| stream.id).collect::<Vec<_>>());
            let intids = interrupts.map(|all| all.iter().map(|one| one.intid).collect::<Vec<_>>());
            found = Some((ids, intids, is_coherent(node)));
        });
        found.unwrap()
    };
    let good = read("iommus = <0x8007 5>, <0x8007 6>; interrupts = <0 80 4>, <0 81 1>; dma-noncoherent;");
    assert_eq!(good, (Ok([5, 6].into()), Ok([112, 113].into()), false));
    // QEMU's root has `dma-coherent`.
    assert_eq!(read(""), (Ok(Vec::new()), Ok(Vec::new()), true));
    let (streams, interrupts, _) = read("iommus = <0x8007>; interrupts = <1 8 4>;");
    assert!(streams.unwrap_err().contains("must be entries of a phandle and one cell"));
    assert!(interrupts.unwrap_err().contains("must be shared interrupts of type 0 (SPI)"));
    let many: String = (0..17).map(|number| format!("<0 {number} 4>,")).collect();
    let many = format!("interrupts = {};", many.trim_end_matches(','));
    assert!(read(&many).1.unwrap_err().contains("at most 16 interrupts of a device"));
}
