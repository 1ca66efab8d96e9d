use std::fmt::Write;

use proptest::prelude::*;

use crate::addr::{FRAME_SIZE, PAGEBLOCK_FRAMES};
use crate::controller::ControllerId;
use crate::phys::dmb::*;
use crate::phys::map::MovableMark;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

/// Returns the two controllers of the series' worked example, 1 GiB each, with a hole in the second.
fn machine() -> BootMap {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0x4000_0000, GIB).unwrap();
    map.add_ram(controller(1), 0x8000_0000, 0x1000_0000).unwrap();
    map.add_ram(controller(1), 0x3_0000_0000, GIB).unwrap();
    map.add_ram(controller(1), 0x3_5000_0000, 256 * MIB).unwrap();
    map.reserve(0x4020_0000, 0x10_0000, ReservationKind::Image, "image").unwrap();
    map.reserve(0x4800_0000, 3 * MIB, ReservationKind::Module, "ramdisk").unwrap();
    map.reserve(0x4a00_0000, 0x1_0000, ReservationKind::DeviceTree, "device tree").unwrap();
    map.reserve(0x3_1000_0000, 0x1000, ReservationKind::NoMap, "secure@310000000").unwrap();
    map
}

fn node(name: &str, kind: NodeKind, base: u64, size: u64) -> Node<'_> {
    Node {
        name,
        source: Source::Tree,
        kind,
        place: NodePlace::Static { base, size },
        entry: 0,
        is_reusable: true,
        is_no_map: false,
        is_cma_default: false,
    }
}

fn apply(
    map: &mut BootMap,
    movablecore: &[&str],
    kernelcore: &[&str],
    nodes: &[Node<'_>],
    floor: u64,
) -> Result<Designation, DesignationError> {
    let movablecore = Core::parse(CoreOption::Movable, movablecore.iter().copied())?;
    let kernelcore = Core::parse(CoreOption::Kernel, kernelcore.iter().copied())?;
    let wishes = Wishes { movablecore: movablecore.as_ref(), kernelcore: kernelcore.as_ref(), nodes, floor };
    designate(map, &wishes)
}

/// Applies `movablecore` to the machine and checks that a refusal changes nothing.
fn refusal(map: &BootMap, movablecore: &[&str], kernelcore: &[&str], nodes: &[Node<'_>]) -> String {
    let mut edited = map.clone();
    let error = apply(&mut edited, movablecore, kernelcore, nodes, 0).expect_err("a refusal");
    assert_eq!(edited.segments().collect::<Vec<_>>(), map.segments().collect::<Vec<_>>());
    assert!(edited.blocks().is_empty() && edited.pools().is_empty());
    error.to_string()
}

fn movable(map: &BootMap) -> Vec<(u64, u64)> {
    map.movable().map(|(range, _)| (range.base().get(), range.bytes())).collect()
}

#[test]
fn p15_blocks_from_the_command_line() {
    for value in [
        "256M@0x60000000,512M@0x320000000",
        "512M@0x320000000,256M@0x60000000",
        "0x10000000@1536M,512m@12800m",
    ] {
        let mut map = machine();
        let done = apply(&mut map, &[value], &[], &[], 0).unwrap();
        assert_eq!(movable(&map), [(0x6000_0000, 256 * MIB), (0x3_2000_0000, 512 * MIB)], "{value}");
        assert_eq!((done.block_frames * FRAME_SIZE, done.warning), (768 * MIB, None));
    }
}

#[test]
fn p15_adjacent_blocks_in_any_order_stay_apart() {
    let mut map = machine();
    apply(&mut map, &["64M@0x64000000,64M@0x60000000", "64M@0x68000000"], &[], &[], 0).unwrap();
    let marks: Vec<_> = map.movable().map(|(_, mark)| mark).collect();
    assert_eq!(marks, [1, 0, 2].map(MovableMark::Block));
    assert_eq!(map.blocks()[1].name.as_str(), "64M@0x60000000");
}

/// Checks the message for every kind of bad `movablecore=` and `kernelcore=`.
#[test]
fn p15_messages_for_bad_options() {
    let bad: &[(&[&str], &[&str])] = &[
        (&[""], &[]),
        (&["256M@0x60000000,"], &[]),
        (&[",256M"], &[]),
        (&["12Q"], &[]),
        (&["0x"], &[]),
        (&["089"], &[]),
        (&["1MM"], &[]),
        (&["-1M"], &[]),
        (&["1.5G"], &[]),
        (&["64M garbage"], &[]),
        (&["18446744073709551616"], &[]),
        (&["16E"], &[]),
        (&["101%"], &[]),
        (&["50%x"], &[]),
        (&["%"], &[]),
        (&["10%@0x60000000"], &[]),
        (&["64M@50%"], &[]),
        (&["64M@"], &[]),
        (&["@0x60000000"], &[]),
        (&["64M@0x60000000@2"], &[]),
        (&["64M@0x60000000 "], &[]),
        (&["0"], &[]),
        (&["0%"], &[]),
        (&["512M,256M"], &[]),
        (&["512M", "50%"], &[]),
        (&[], &["mirror"]),
        (&[], &["64M@0x60000000"]),
        (&[], &["64M,64M"]),
        (&["0@0x60000000"], &[]),
        (&["3M@0x60000000"], &[]),
        (&["2M@0x60100000"], &[]),
        (&["2M@0xfffffffe00000"], &[]),
        (&["0xffffffffffe00000@0x60000000"], &[]),
        (&["2M@0x1000"], &[]),
        (&["2M@0x20000000"], &[]),
        (&["512M@0x330000000"], &[]),
        (&["1G@0x340000000"], &[]),
        (&["32M@0x7f000000"], &[]),
        (&["4M@0x40200000"], &[]),
        (&["2M@0x48200000"], &[]),
        (&["64M@0x4a000000"], &[]),
        (&["2G@0x300000000"], &[]),
        (&["512M@0x300000000"], &[]),
        (&["64M@0x60000000,64M@0x63e00000"], &[]),
        (&["64M@0x60000000,64M@0x5c200000"], &[]),
        (&["2M@0x60000000,256M@0x60000000"], &[]),
    ];
    let mut text = String::new();
    for (movablecore, kernelcore) in bad {
        let options = movablecore
            .iter()
            .map(|value| format!("movablecore={value}"))
            .chain(kernelcore.iter().map(|value| format!("kernelcore={value}")));
        let options: Vec<_> = options.collect();
        writeln!(text, "{}\n  {}", options.join(" "), refusal(&machine(), movablecore, kernelcore, &[]))
            .unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn p15_a_full_table_names_its_size() {
    let items: Vec<_> = (0..=MAX_BLOCKS).map(|n| format!("2M@{:#x}", 0x6000_0000 + n * 0x40_0000)).collect();
    let value = items.join(",");
    insta::assert_snapshot!(
        refusal(&machine(), &[&value], &[], &[]),
        @r#"movablecore= item 20 "2M@0x64c00000": there can be at most 19 designated blocks"#
    );
    let mut map = machine();
    let value = items[..MAX_BLOCKS].join(",");
    apply(&mut map, &[&value], &[], &[], 0).unwrap();
    assert_eq!(map.blocks().len(), MAX_BLOCKS);
}

/// Checks the message for every kind of bad node.
#[test]
fn p16_p17_p20_messages_for_bad_nodes() {
    let good = node("dmb@60000000", NodeKind::Block, 0x6000_0000, 64 * MIB);
    let dynamic = |size, alignment, within| Node {
        place: NodePlace::Dynamic { size, alignment, within },
        ..node("dmb", NodeKind::Block, 0, 0)
    };
    let low = [FrameRange::inside(0x4800_0000, 16 * MIB).unwrap()];
    let bad: &[&[Node<'_>]] = &[
        &[Node { is_reusable: false, ..good }],
        &[Node { is_no_map: true, ..good }],
        &[good, Node { entry: 1, ..good }],
        &[node("dmb@60000000", NodeKind::Block, 0x6000_0000, 0)],
        &[node("dmb@60001000", NodeKind::Block, 0x6000_1000, 64 * MIB)],
        &[node("dmb@60000000", NodeKind::Block, 0x6000_0000, 64 * MIB + 4096)],
        &[node("dmb@48000000", NodeKind::Block, 0x4800_0000, 16 * MIB)],
        &[node("dmb@10000000", NodeKind::Block, 0x1000_0000, 16 * MIB)],
        &[node("dmb@7f000000", NodeKind::Block, 0x7f00_0000, 32 * MIB)],
        &[good, node("dmb@62000000", NodeKind::Block, 0x6200_0000, 64 * MIB)],
        &[Node { is_cma_default: true, ..node("pool@60000000", NodeKind::BlockPool, 0x6000_0000, 64 * MIB) }],
        &[Node { is_reusable: false, ..node("pool@60000000", NodeKind::BlockPool, 0x6000_0000, 64 * MIB) }],
        &[node("pool@60200001", NodeKind::BlockPool, 0x6020_0001, 64 * MIB)],
        &[good, node("pool@62000000", NodeKind::Pool, 0x6200_0000, 64 * MIB)],
        &[good, node("pool@5e000000", NodeKind::Pool, 0x5e00_0000, 128 * MIB)],
        &[good, Node { is_cma_default: true, ..node("pool@60000000", NodeKind::Pool, 0x6000_0000, 4 * MIB) }],
        &[
            node("pool@60000000", NodeKind::BlockPool, 0x6000_0000, 64 * MIB),
            node("pool@61000000", NodeKind::Pool, 0x6100_0000, 4 * MIB),
        ],
        &[node("pool@48000000", NodeKind::Pool, 0x4800_0000, 4 * MIB)],
        &[node("pool@48100000", NodeKind::Pool, 0x4810_0000, 4 * MIB)],
        &[dynamic(64 * MIB, Some(3 * MIB), &[])],
        &[dynamic(63 * MIB + 1, None, &[])],
        &[dynamic(0, None, &[])],
        &[dynamic(64 * GIB, None, &[])],
        &[dynamic(16 * MIB, None, &low)],
        &[dynamic(512 * MIB, Some(4 * GIB), &[])],
    ];
    let mut text = String::new();
    for nodes in bad {
        writeln!(text, "{}", refusal(&machine(), &[], &[], nodes)).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn p17_dynamic_blocks_go_to_the_top_with_their_alignment_raised() {
    let mut map = machine();
    let within = [FrameRange::inside(0x4000_0000, GIB).unwrap()];
    let small = Node {
        place: NodePlace::Dynamic { size: 2 * MIB, alignment: Some(4096), within: &[] },
        ..node("small", NodeKind::Block, 0, 0)
    };
    let low = Node {
        place: NodePlace::Dynamic { size: 64 * MIB, alignment: Some(64 * MIB), within: &within },
        ..node("low", NodeKind::BlockPool, 0, 0)
    };
    // A fixed place is settled first, whatever the order of the nodes.
    let fixed = node("fixed", NodeKind::Block, 0x7e00_0000, 32 * MIB);
    apply(&mut map, &[], &[], &[small, low, fixed], 0).unwrap();
    assert_eq!(movable(&map), [(0x7800_0000, 64 * MIB), (0x7e00_0000, 32 * MIB), (0x3_5fe0_0000, 2 * MIB)]);
    let pool = &map.pools()[0];
    assert_eq!((pool.name.as_str(), pool.range.base().get(), pool.block), ("low", 0x7800_0000, Some(2)));
}

#[test]
fn p18_a_pool_lies_in_one_block_or_outside_all() {
    let mut map = machine();
    let nodes = [
        node("pool@61000000", NodeKind::Pool, 0x6100_0000, 16 * MIB),
        node("dmb@60000000", NodeKind::Block, 0x6000_0000, 64 * MIB),
        node("cma@70000000", NodeKind::Pool, 0x7000_0000, 16 * MIB),
    ];
    apply(&mut map, &[], &[], &nodes, 0).unwrap();
    let pools: Vec<_> = map.pools().iter().map(|pool| (pool.name.as_str(), pool.block)).collect();
    assert_eq!(pools, [("pool@61000000", Some(0)), ("cma@70000000", None)]);
    assert_eq!(movable(&map), [(0x6000_0000, 64 * MIB)]);
    assert_eq!(map.clone().carve(256 * MIB, 4096, "early").unwrap().base().get(), 0x4a01_0000);
}

#[test]
fn nodes_of_the_configuration_say_the_same_and_more() {
    let configured = |node| Node { source: Source::Configuration, ..node };
    let behind = |name, kind, size, controllers| Node {
        place: NodePlace::Behind { size, alignment: 2 * MIB, controllers },
        ..configured(node(name, kind, 0, 0))
    };
    let order = [controller(0), controller(1)];
    let nodes = [
        configured(node("block", NodeKind::Block, 0x6000_0000, 64 * MIB)),
        // In a block it is a pool there; outside all it makes one.
        configured(node("inside", NodeKind::BlockPool, 0x6100_0000, 16 * MIB)),
        configured(node("outside", NodeKind::BlockPool, 0x7000_0000, 16 * MIB)),
        behind("first", NodeKind::Block, 128 * MIB, &order),
        behind("second", NodeKind::BlockPool, 700 * MIB, &order),
        behind("third", NodeKind::Pool, 16 * MIB, &order[1..]),
    ];
    let mut map = machine();
    apply(&mut map, &[], &[], &nodes, 0).unwrap();
    let blocks: Vec<_> = map
        .blocks()
        .iter()
        .map(|block| (block.name.as_str(), block.controller, block.source == Source::Configuration))
        .collect();
    let [low, high] = order;
    assert_eq!(
        blocks,
        [("block", low, true), ("outside", low, true), ("first", low, true), ("second", high, true)]
    );
    let pools: Vec<_> =
        map.pools().iter().map(|pool| (pool.name.as_str(), pool.block, pool.controller)).collect();
    assert_eq!(
        pools,
        [
            ("inside", Some(0), low),
            ("outside", Some(1), low),
            ("second", Some(3), high),
            ("third", None, high)
        ]
    );
    let refused = [
        refusal(&machine(), &[], &[], &[behind("big", NodeKind::Block, 2 * GIB, &order)]),
        refusal(&machine(), &[], &[], &[behind("none", NodeKind::BlockPool, 2 * MIB, &[controller(3)])]),
        refusal(
            &machine(),
            &[],
            &[],
            &[nodes[0], configured(node("part", NodeKind::BlockPool, 0x5f00_0000, 32 * MIB))],
        ),
    ];
    insta::assert_snapshot!(refused.join("\n"));
}

#[test]
fn p10_an_oversized_amount_is_clamped_with_a_warning() {
    let mut map = machine();
    let floor = default_floor(&map);
    let done = apply(&mut map, &["100G"], &[], &[], floor).unwrap();
    let left = map.unreserved_frames() - done.amount_frames;
    assert!(left >= floor && left < floor + PAGEBLOCK_FRAMES, "{left} of {floor}");
    insta::assert_snapshot!(
        done.warning.unwrap(),
        @"movable memory: 2560 MiB requested, 2530 MiB granted: NORMAL keeps 26220 KiB for Ballast and its tables"
    );
    let mut same = machine();
    apply(&mut same, &["100%"], &[], &[], floor).unwrap();
    assert_eq!(movable(&same), movable(&map));
}

#[test]
fn p10_an_exact_amount_is_given_from_the_top() {
    let mut map = machine();
    let done = apply(&mut map, &["512M"], &[], &[], 0).unwrap();
    assert_eq!((done.amount_frames * FRAME_SIZE, done.warning), (512 * MIB, None));
    assert_eq!(movable(&map), [(0x3_3000_0000, 256 * MIB), (0x3_5000_0000, 256 * MIB)]);
}

#[test]
fn p15_blocks_count_as_part_of_the_general_amount() {
    let mut map = machine();
    let done = apply(&mut map, &["256M@0x70000000,512M"], &[], &[], 0).unwrap();
    assert_eq!(movable(&map), [(0x7000_0000, 256 * MIB), (0x3_5000_0000, 256 * MIB)]);
    assert_eq!(done.warning, None);
    let mut map = machine();
    let done = apply(&mut map, &["256M@0x70000000,128M"], &[], &[], 0).unwrap();
    assert_eq!(movable(&map), [(0x7000_0000, 256 * MIB)]);
    insta::assert_snapshot!(
        done.warning.unwrap(),
        @"movablecore=: the general amount of 128 MiB is less than the 256 MiB of the designated blocks, which are kept"
    );
}

#[test]
fn p15_kernelcore_leaves_the_rest_movable() {
    let total = machine().ram_frames() * FRAME_SIZE;
    let mut map = machine();
    let done = apply(&mut map, &["256M@0x70000000"], &["2G"], &[], 0).unwrap();
    assert_eq!(done.amount_frames * FRAME_SIZE, total - 256 * MIB - 2 * GIB);
    // The option that keeps more for NORMAL counts.
    let mut map = machine();
    let done = apply(&mut map, &["128M"], &["1G"], &[], 0).unwrap();
    assert_eq!(done.amount_frames * FRAME_SIZE, 128 * MIB);
    // `kernelcore=` above all RAM makes nothing movable.
    let mut map = machine();
    let done = apply(&mut map, &[], &["100%"], &[], 0).unwrap();
    assert_eq!((done.amount_frames, done.warning), (0, None));
    // Blocks come before `kernelcore=`.
    let mut map = machine();
    let done = apply(&mut map, &["512M@0x320000000"], &["2304M"], &[], 0).unwrap();
    assert_eq!(movable(&map), [(0x3_2000_0000, 512 * MIB)]);
    insta::assert_snapshot!(
        done.warning.unwrap(),
        @"kernelcore=: 2304 MiB requested, but the designated blocks, which take precedence, leave 2 GiB"
    );
}

#[test]
fn blocks_must_leave_the_floor() {
    let mut map = machine();
    let floor = map.ram_frames() - 700 * 256;
    let error = apply(&mut map, &["768M@0x50000000"], &[], &[], floor).unwrap_err();
    insta::assert_snapshot!(
        error,
        @"designated movable blocks leave 1830844 KiB of NORMAL memory free; Ballast and its tables need 1860 MiB"
    );
}

#[test]
fn withheld_nodes_stay_out_of_use() {
    let mut map = machine();
    let nodes = [node("dmb@60001000", NodeKind::Block, 0x6000_1000, 64 * MIB)];
    assert!(apply(&mut map, &[], &[], &nodes, 0).is_err());
    withhold(&mut map, &nodes).unwrap();
    let reservation = map.reservation_in(FrameRange::inside(0x6000_1000, 4096).unwrap()).unwrap();
    assert_eq!((reservation.kind, reservation.name.as_str()), (ReservationKind::Withheld, "dmb@60001000"));
}

#[test]
fn options_are_found_on_the_command_line() {
    let line = "console movablecore=1G  xmovablecore=2G kernelcore=3G movablecore= movablecore";
    assert!(option_values(line, CoreOption::Movable).eq(["1G", ""]));
    assert!(option_values(line, CoreOption::Kernel).eq(["3G"]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases::cases(512, 4), failure_persistence: None, ..Default::default() })]

    /// No text after `movablecore=` panics, and a refused one changes nothing.
    #[test]
    fn no_text_panics(text in "\\PC{0,40}", wild in "[0-9xXa-fkKmMgGtTpPeE@%, ]{0,40}") {
        for value in [text.as_str(), wild.as_str()] {
            let mut map = machine();
            let before: Vec<_> = map.segments().collect();
            if apply(&mut map, &[value], &[value], &[], 0).is_err() {
                prop_assert_eq!(map.segments().collect::<Vec<_>>(), before);
            }
        }
    }

    /// Any order of the items designates the same blocks.
    #[test]
    fn p13_the_order_of_blocks_does_not_matter(
        items in proptest::collection::vec((0u64..64, 1u64..8), 1..6),
        rotation in 0usize..6,
    ) {
        let mut items: Vec<_> =
            items.iter().map(|(at, size)| format!("{}M@{:#x}", size * 4, 0x6000_0000 + at * 4 * MIB)).collect();
        let mut map = machine();
        let first = apply(&mut map, &[&items.join(",")], &[], &[], 0).is_ok();
        let found = movable(&map);
        let rotation = rotation % items.len();
        items.rotate_left(rotation);
        let mut map = machine();
        prop_assert_eq!(apply(&mut map, &[&items.join(",")], &[], &[], 0).is_ok(), first);
        prop_assert_eq!(movable(&map), found);
    }

    /// Designated ranges are always whole pageblocks of free RAM behind one controller and never overlap.
    #[test]
    fn designated_ranges_obey_the_rules(
        blocks in proptest::collection::vec((0u64..0x4_0000_0000, 1u64..0x4000_0000), 0..4),
        percent in 1u8..=100,
        dynamic in 1u64..0x4000_0000,
    ) {
        let mut map = machine();
        let nodes: Vec<_> = blocks
            .iter()
            .map(|(base, size)| node("n", NodeKind::Block, base & !(2 * MIB - 1), (size & !(2 * MIB - 1)).max(2 * MIB)))
            .chain([Node {
                place: NodePlace::Dynamic { size: (dynamic & !(2 * MIB - 1)).max(2 * MIB), alignment: None, within: &[] },
                ..node("d", NodeKind::BlockPool, 0, 0)
            }])
            .collect();
        let good: Vec<_> =
            nodes.iter().copied().filter(|node| apply(&mut map.clone(), &[], &[], &[*node], 0).is_ok()).collect();
        if apply(&mut map, &[&format!("{percent}%")], &[], &good, 1000).is_ok() {
            let marks: Vec<_> = map.movable().collect();
            for (index, (range, _)) in marks.iter().enumerate() {
                prop_assert!(range.is_aligned(PAGEBLOCK_FRAMES));
                prop_assert!(map.reservation_in(*range).is_none());
                let ram: u64 = map.ram().map(|(ram, _)| ram.intersection(*range).frames()).sum();
                prop_assert_eq!(ram, range.frames());
                prop_assert!(marks[..index].iter().all(|(other, _)| !other.overlaps(*range)));
            }
            let movable: u64 = marks.iter().map(|(range, _)| range.frames()).sum();
            prop_assert!(map.unreserved_frames() - movable >= 1000);
        }
    }
}
