//! Boot memory maps that are laid out from device trees.

use std::format;
use std::string::String;
use std::vec::Vec;

use core::sync::atomic::AtomicU32;
use guest_dts::config::{Configuration, Layout, Severity};
use guest_dts::guest_tree::platform::IPA_LIMIT;
use guest_dts::testing::{compile, compile_with_images};
use guest_dts::tree::Tree;
use stage2::owner::GuestId;
use stage2::phys::map::BootMap;
use stage2::phys::pool::Pools;
use stage2::phys::zone::Zone;

use super::*;

/// QEMU's `virt` with 4 CPUs and two controllers of 1 GiB.
const HOST: &str = include_str!("../board/tests/qemu_virt.dts");

/// Lays out the map of `HOST` with `command_line` and a configuration of `blocks`. Returns the map and the messages.
fn laid_out(command_line: &str, blocks: &str) -> (BootMap, Vec<String>) {
    laid_out_on(HOST, command_line, blocks)
}

/// Lays out the map of the host with the tree `host`.
fn laid_out_on(host: &str, command_line: &str, blocks: &str) -> (BootMap, Vec<String>) {
    let (host, blob) = (
        compile(host),
        compile(&format!(
            "/dts-v1/; / {{ compatible = \"ballast,configuration\"; {blocks} guests {{ }}; }};"
        )),
    );
    let (host, tree) = (Tree::new(host.as_slice()).unwrap(), Tree::new(blob.as_slice()).unwrap());
    let board = Board::read_with(&host, Some(command_line)).unwrap();
    let mut told = Vec::new();
    let mut tell = |severity: Severity, text: fmt::Arguments<'_>| told.push(format!("{severity:?}: {text}"));
    let mut configuration = Configuration::read(&tree, &mut |_, _| {}).unwrap();
    let mut map = BootMap::new();
    let loaded = Loaded {
        image: Some((0x4020_0000, 0x10_0000)),
        tree: Some((0x4800_0000, 0x1_0000)),
        ..Loaded::default()
    };
    let table = lay_out(&mut map, &host, &board, &loaded, Some(&mut configuration), &mut tell).unwrap();
    assert!(map.reservation_in(table).is_some(), "the frame table is kept");
    (map, told)
}

#[test]
fn blocks_of_all_sources_are_laid_out_around_loaded_files() {
    let block = "designated-movable-blocks { fast { compatible = \"designated-movable-block\"; reusable; \
                 size = <0x8000000>; controllers = <1>; }; };";
    let (map, told) = laid_out("movablecore=64M@0x50000000", block);
    let blocks: Vec<_> =
        map.blocks().iter().map(|block| (block.range.base().get(), block.range.bytes() >> 20)).collect();
    assert_eq!(blocks.len(), 2, "{told:?}");
    assert!(blocks.contains(&(0x5000_0000, 64)), "{blocks:?}");
    assert!(blocks.iter().any(|&(base, size)| base >= 0x8000_0000 && size == 128), "{blocks:?}");
    assert!(told.iter().all(|line| line.starts_with("Note: designated movable block ")), "{told:?}");
}

#[test]
fn a_block_over_the_image_is_told_and_nothing_is_designated() {
    let (map, told) = laid_out("movablecore=64M@0x40000000,64M@0x50000000", "");
    assert_eq!(map.blocks().len(), 0);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("Error: designated movable blocks: movablecore= item 1"), "{told:?}");
    assert!(told[0].ends_with("; nothing is designated"), "{told:?}");
}

#[test]
fn pageblocks_with_no_map_memory_are_not_used() {
    let container = "reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges; \
                     secure@503ff000 { reg = <0 0x503ff000 0 0x2000>; no-map; }; \
                     last@ffffffff0000 { reg = <0xffff 0xffff0000 0 0x10000>; no-map; }; \
                     shared@60001000 { reg = <0 0x60001000 0 0x1000>; }; };";
    let (map, told) = laid_out_on(&HOST.replace("\tpsci {", &format!("{container}\n\tpsci {{")), "", "");
    let kept = |name| {
        let mut reservations = map.reservations().iter();
        let range = reservations.find(|reservation| reservation.name.as_str() == name).unwrap().range;
        (range.base().get(), range.bytes())
    };
    assert_eq!(kept("secure@503ff000"), (0x5020_0000, 0x40_0000), "{told:?}");
    assert_eq!(kept("last@ffffffff0000"), (0xffff_ffe0_0000, 0x20_0000));
    assert_eq!(kept("shared@60001000"), (0x6000_1000, 0x1000));
}

#[test]
fn a_pool_with_the_name_of_one_of_the_hosts_is_refused() {
    let container = "reserved-memory { #address-cells = <2>; #size-cells = <2>; ranges; \
                     video { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x400000>; }; };";
    let host = HOST.replace("\tpsci {", &format!("{container}\n\tpsci {{"));
    let pool = |name: &str| {
        format!(
            "pools {{ #address-cells = <2>; #size-cells = <2>; \
             {name} {{ compatible = \"shared-dmb-pool\"; reusable; reg = <0 0x60000000 0 0x400000>; }}; }};"
        )
    };
    let (map, told) = laid_out_on(&host, "", &pool("audio"));
    assert_eq!(map.pools().len(), 2, "{told:?}");
    let (map, told) = laid_out_on(&host, "", &pool("video"));
    assert_eq!(
        told,
        [
            "Error: configuration: /pools/video: must have a name whose first 31 characters differ from the names of the \
             pools in the host's tree",
            "Error: designated movable blocks: errors in the configuration; nothing is designated"
        ]
    );
    let range = FrameRange::inside(0x6000_0000, 0x40_0000).unwrap();
    assert!(map.pools().is_empty() && map.reservation_in(range).is_some(), "it is withheld");
}

#[test]
fn a_pool_whose_window_does_not_fit_has_no_owner() {
    let pool = "pools { #address-cells = <2>; #size-cells = <2>; video { compatible = \"shared-dmb-pool\"; reusable; \
                reg = <0 0x60000000 0 0x400000>; owner = <&alpha>; pinned-in-place; }; };";
    let blob = compile_with_images(&format!(
        "/dts-v1/; / {{ compatible = \"ballast,configuration\"; {pool} \
         images {{ kernel: kernel {{ data = /incbin/(\"kernel\"); }}; }}; \
         guests {{ alpha: alpha {{ vcpus = <1>; kernel = <&kernel>; memory {{ size = <0x10000000>; }}; }}; }}; }};"
    ));
    let tree = Tree::new(blob.as_slice()).unwrap();
    let configuration = Configuration::read(&tree, &mut |_, finding| panic!("{finding}")).unwrap();
    let (map, told) = laid_out("", pool.replace("owner = <&alpha>; pinned-in-place;", "").as_str());
    assert_eq!(map.pools().len(), 1, "{told:?}");
    let layout = Layout::of(&configuration.guests[0]).unwrap();
    let owner = Owner { id: GuestId::default(), layout: &layout, ipa_limit: IPA_LIMIT };
    let owned = |owner: Option<Owner<'_>>| {
        let (mut pools, mut told) = (Pools::of(&map), Vec::new());
        let mut tell =
            |severity: Severity, text: fmt::Arguments<'_>| told.push(format!("{severity:?}: {text}"));
        set_owners(&mut pools, &configuration.pools, |name| owner.filter(|_| name == "alpha"), &mut tell);
        let pool = pools.iter().next().unwrap().1;
        (pool.bound.is_some(), told)
    };
    assert_eq!(owned(Some(owner)), (true, Vec::new()));
    let (is_owned, told) = owned(Some(Owner { ipa_limit: 0x6000_0000, ..owner }));
    assert!(
        !is_owned && told[0].starts_with("Error: pool video: no owner, because for guest alpha "),
        "{told:?}"
    );
    assert!(told[0].contains("must end by 0x60000000"), "{told:?}");
    let (is_owned, told) = owned(None);
    assert!(!is_owned, "{told:?}");
    assert_eq!(told, ["Warning: pool video: no owner, because guest alpha was refused"]);
}

#[test]
fn ram_above_the_linear_map_is_left_to_guests() {
    // The host's second controller, at 1, 8, 16, 64 and 128 TiB.
    for (shift, is_high) in [(40, false), (43, false), (44, false), (46, true), (47, true)] {
        let base = 1u64 << shift;
        let cells = format!("<{:#x} 0x00 0x00 0x40000000>", base >> 32);
        let host = HOST.replace("<0x00 0x80000000 0x00 0x40000000>", &cells);
        assert_ne!(host, HOST);
        let (map, told) = laid_out_on(&host, "", "");
        let words: Vec<_> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let totals = memory.controller_totals(ControllerId::try_new(1).unwrap());
        let (normal, movable) = if is_high { (0, 1 << 18) } else { (1 << 18, 0) };
        assert_eq!((totals.normal.present, totals.movable.present), (normal, movable), "{told:?}");
        assert_eq!(told.iter().any(|line| line.contains("64 TiB")), is_high, "{told:?}");
    }
    let all_high = HOST.replace("<0x00 0x40000000 0x00", "<0x8000 0x40000000 0x00");
    let all_high = all_high.replace("<0x00 0x80000000 0x00", "<0x8000 0x80000000 0x00");
    let host = compile(&all_high);
    let tree = Tree::new(host.as_slice()).unwrap();
    let board = Board::read(&tree).unwrap();
    let error = lay_out(&mut BootMap::new(), &tree, &board, &Loaded::default(), None, &mut |_, _| {});
    assert_eq!(error.unwrap_err().what, "frame table");
}

#[test]
fn an_image_outside_ram_cannot_be_laid_out() {
    let host = compile(HOST);
    let tree = Tree::new(host.as_slice()).unwrap();
    let board = Board::read(&tree).unwrap();
    let loaded = Loaded { tree: Some((u64::MAX, u64::MAX)), ..Loaded::default() };
    let error = lay_out(&mut BootMap::new(), &tree, &board, &loaded, None, &mut |_, _| {}).unwrap_err();
    assert_eq!(error.what, "device tree");
}

#[test]
fn pinned_ram_of_a_refused_guest_is_available_to_the_next() {
    let guest = |name: &str, more: &str| {
        format!(
            "{name} {{ vcpus = <1>; kernel = <&kernel>; #address-cells = <2>; #size-cells = <2>; \
             memory {{ size = <0 0x4000000>; }}; {more} }};"
        )
    };
    let pinned = "memory@50000000 { reg = <0 0x50000000 0 0x10000000>; pinned-in-place; };";
    let source = |hungry: &str| {
        format!(
            "/dts-v1/; / {{ compatible = \"ballast,configuration\"; #address-cells = <2>; #size-cells = <2>; \
             images {{ kernel: kernel {{ data = /incbin/(\"kernel\"); }}; }}; guests {{ {hungry} {} }}; }};",
            guest("next", "memory-1 { size = <0 0x30000000>; controllers = <0>; };")
        )
    };
    // Returns the messages, the guests that are left, and the reserved bytes of NORMAL.
    let fitted = |hungry: &str| {
        let (host, blob) = (compile(HOST), compile_with_images(&source(hungry)));
        let (host, tree) = (Tree::new(host.as_slice()).unwrap(), Tree::new(blob.as_slice()).unwrap());
        let board = Board::read(&host).unwrap();
        let mut configuration = Configuration::read(&tree, &mut |_, _| {}).unwrap();
        let mut told = Vec::new();
        let mut tell =
            |severity: Severity, text: fmt::Arguments<'_>| told.push(format!("{severity:?}: {text}"));
        let mut map = BootMap::new();
        lay_out(&mut map, &host, &board, &Loaded::default(), Some(&mut configuration), &mut tell).unwrap();
        let words: Vec<_> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
        let memory = Memory::new();
        memory.boot(&map, &words, NORMAL_FLOOR_FRAMES).unwrap();
        fit(&board, &memory, 4, &mut configuration, &mut tell);
        let names: Vec<_> = configuration.guests.iter().map(|guest| String::from(guest.name)).collect();
        (told, names, memory.zone_totals(Zone::Normal).reserved() * FRAME_SIZE)
    };
    let (told, names, reserved) = fitted(&guest("hungry", pinned));
    assert_eq!((told.len(), names), (1, ["hungry".into()].to_vec()), "{told:?}");
    assert!(told[0].starts_with("Error: configuration: /guests/next/memory-1: size "), "{told:?}");
    assert!(reserved >= 256 << 20);
    // The first guest needs 4 GiB more than there are: the second gets the memory that was reserved for it.
    let more = format!("{pinned} memory-2 {{ size = <1 0>; }};");
    let (told, names, after) = fitted(&guest("hungry", &more));
    assert_eq!((told.len(), names), (1, ["next".into()].to_vec()), "{told:?}");
    assert!(told[0].starts_with("Error: configuration: /guests/hungry/memory-2: size "), "{told:?}");
    assert_eq!(after, reserved - (256 << 20));
}

#[test]
fn boot_memory_stays_if_the_tree_reserves_part_of_it() {
    let loaded = Loaded {
        image: Some((0x4020_0000, 0xc_0000)),
        start: Some((0x402c_0000, 0x4_0000)),
        ..Loaded::default()
    };
    for (reserved, other) in [
        ("", None),
        // Next to it, and over the part of the image that stays.
        ("/memreserve/ 0x40300000 0x1000; /memreserve/ 0x40200000 0xc0000;", None),
        ("/memreserve/ 0x402ff000 0x100000;", Some("reserved")),
        ("/memreserve/ 0x40000000 0x10000000;", Some("reserved")),
        ("/memreserve/ 0x402c0010 0x10;", Some("reserved")),
    ] {
        let host = compile(&HOST.replacen("/dts-v1/;", &format!("/dts-v1/; {reserved}"), 1));
        let host = Tree::new(host.as_slice()).unwrap();
        let board = Board::read_with(&host, None).unwrap();
        let mut map = BootMap::new();
        lay_out(&mut map, &host, &board, &loaded, None, &mut |_, _| {}).unwrap();
        assert_eq!(other_in_start(&map, &loaded), other, "{reserved}");
    }
    // A loader has put the image outside the RAM of the tree, or at its end.
    for (base, other) in [(0xbff0_0000, None), (0xbfff_0000, Some("no RAM")), (0x3000_0000, Some("no RAM"))] {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::try_new(0).unwrap(), 0x4000_0000, 2 << 30).unwrap();
        map.remove_ram(FrameRange::covering(0xc000_0000, 1 << 30).unwrap()).unwrap();
        let loaded = Loaded { start: Some((base, 0x2_0000)), ..Loaded::default() };
        assert_eq!(other_in_start(&map, &loaded), other);
    }
}

/// A guest with a DMA window of `size` MiB and `more` properties.
fn with_window(name: &str, size: u64, more: &str) -> String {
    format!(
        "{name} {{ vcpus = <1>; kernel = <&kernel>; #address-cells = <2>; #size-cells = <2>; \
         memory {{ size = <0 {:#x}>; dma-window; {more} }}; memory-1 {{ size = <0 0x4000000>; }}; }};",
        size << 20
    )
}

/// Lays out `HOST` with `command_line`, `top` and `guests`. Returns the places of the windows by guest, and the messages.
fn placed(command_line: &str, top: &str, guests: &str) -> (Vec<u64>, Vec<String>) {
    let source = format!(
        "/dts-v1/; / {{ compatible = \"ballast,configuration\"; #address-cells = <2>; #size-cells = <2>; {top} \
         images {{ kernel: kernel {{ data = /incbin/(\"kernel\"); }}; }}; guests {{ {guests} }}; }};"
    );
    let (host, blob) = (compile(HOST), compile_with_images(&source));
    let (host, tree) = (Tree::new(host.as_slice()).unwrap(), Tree::new(blob.as_slice()).unwrap());
    let board = Board::read_with(&host, Some(command_line)).unwrap();
    let mut configuration = Configuration::read(&tree, &mut |_, _| {}).unwrap();
    let mut told = Vec::new();
    let mut tell = |severity: Severity, text: fmt::Arguments<'_>| told.push(format!("{severity:?}: {text}"));
    let mut map = BootMap::new();
    lay_out(&mut map, &host, &board, &Loaded::default(), Some(&mut configuration), &mut tell).unwrap();
    for range in configuration.guests.iter().flat_map(|guest| guest.reserved_ranges()) {
        let frames = FrameRange::covering(range.base().get(), range.size()).unwrap();
        assert!(range.is_aligned(PAGEBLOCK_SIZE), "{range}");
        assert_eq!(map.reservation_in(frames).map(|other| other.range), Some(frames));
        assert!(map.blocks().iter().all(|block| !block.range.overlaps(frames)));
        assert!(map.pools().iter().all(|pool| !pool.range.overlaps(frames)));
    }
    let kept = map.reservations().iter().filter(|other| other.kind == ReservationKind::Pinned).count();
    assert_eq!(kept, configuration.guests.iter().flat_map(|guest| guest.reserved_ranges()).count());
    let bases = configuration.guests.iter().flat_map(|guest| guest.reserved_ranges());
    (bases.map(|range| range.base().get()).collect(), told)
}

#[test]
fn dma_windows_lie_where_they_are_allowed() {
    let blocks = "designated-movable-blocks { fast { compatible = \"designated-movable-block\"; reusable; \
                  size = <0x8000000>; controllers = <1>; }; }; pools { #address-cells = <2>; #size-cells = <2>; own { compatible = \"shared-dma-pool\"; reusable; \
                  reg = <0 0x7f000000 0 0x1000000>; }; };";
    let guests =
        with_window("alpha", 64, "controllers = <1>;") + &with_window("beta", 32, "controllers = <0>;");
    let (bases, told) = placed("", blocks, &guests);
    // Below the block at the end of controller 1, and below the pool at the end of controller 0.
    assert_eq!(bases, [0xb400_0000, 0x7d00_0000], "{told:?}");
    assert!(
        told.iter().any(|line| line == "Note: guest alpha: DMA window of 64 MiB at 0xb4000000"),
        "{told:?}"
    );
    // Only controller 1 has 896 MiB outside the block.
    let block = "movablecore=512M@0x50000000";
    let preferred = with_window("alpha", 896, "controllers = <0>; preferred;");
    assert_eq!(placed(block, "", &preferred).0, [0x8800_0000]);
    let (bases, told) = placed(block, "", &preferred.replace("preferred;", ""));
    let expected = "Error: configuration: /guests/alpha/memory: size = 896 MiB: must be free in one range outside blocks and \
                    pools on an allowed controller; the longest free range has 256 MiB";
    assert!(bases.is_empty() && told.iter().any(|line| line == expected), "{told:?}");
    let (bases, told) = placed("", "", &with_window("alpha", 64, "controllers = <3>;"));
    assert!(
        bases.is_empty() && told[0].contains("controllers = 3: no such controller: the host has 2"),
        "{told:?}"
    );
}

#[test]
fn a_dma_window_leaves_memory_for_ballast() {
    // A loaded file splits controller 0, and the block fills most of controller 1.
    let guests = with_window("alpha", 894, "") + &with_window("beta", 128, "");
    let (bases, told) = placed("movablecore=1010M@0x80000000", "", &guests);
    assert_eq!(bases, [0x4820_0000], "{told:?}");
    assert!(told.iter().any(|line| line.contains("size = 128 MiB: must leave")), "{told:?}");
    // Pinned RAM of a guest whose window has no room is not kept; `placed` checks that.
    let pinned = "memory-2@70000000 { reg = <0 0x70000000 0 0x1000000>; pinned-in-place; }; memory-1";
    let guest = with_window("alpha", 1024, "controllers = <0>;").replace("memory-1", pinned);
    let (bases, told) = placed("", "", &guest);
    assert!(
        bases.is_empty() && told.iter().any(|line| line.contains("must be free in one range")),
        "{told:?}"
    );
}
