use crate::phys::map::*;
use proptest::prelude::*;

fn controller(number: u8) -> ControllerId {
    ControllerId::try_new(number).unwrap()
}

fn range(start: u64, end: u64) -> FrameRange {
    FrameRange::from_numbers(start, end).unwrap()
}

#[test]
fn neighbours_behind_one_controller_merge() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0x4000_0000, 0x1000_0000).unwrap();
    map.add_ram(controller(0), 0x6000_0000, 0x1000_0000).unwrap();
    map.add_ram(controller(1), 0x7000_0000, 0x1000_0000).unwrap();
    map.add_ram(controller(0), 0x5000_0000, 0x1000_0000).unwrap();
    let ram: Vec<_> = map.ram().collect();
    assert_eq!(ram, [(range(0x40000, 0x70000), controller(0)), (range(0x70000, 0x80000), controller(1))]);
}

#[test]
fn ram_of_two_controllers_cannot_overlap() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0x4000_0000, 0x1000_0000).unwrap();
    let error = map.add_ram(controller(1), 0x4fff_f000, 0x2000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "RAM 0x4ffff000-0x4fffffff: claimed by controller 1, but already behind controller 0"
    );
    assert_eq!(map.ram_frames(), 0x10000);
}

#[test]
fn p12_marks_and_reservations_survive_later_edits_of_ram() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0x4000_0000, 0x4000_0000).unwrap();
    map.reserve(0x4000_0000, 0x20_0000, ReservationKind::Image, "image").unwrap();
    map.mark_movable(range(0x60000, 0x70000), MovableMark::Block(3));
    let before: Vec<_> = map.segments().collect();
    // A firmware map that arrives late: all RAM is taken out and added again in other pieces.
    map.remove_ram(range(0, 0x1_0000_0000)).unwrap();
    assert_eq!(map.segments().count(), 0);
    map.add_ram(controller(0), 0x6800_0000, 0x1800_0000).unwrap();
    map.add_ram(controller(0), 0x4000_0000, 0x2800_0000).unwrap();
    assert_eq!(map.segments().collect::<Vec<_>>(), before);
    assert_eq!(before[2].movable, Some(MovableMark::Block(3)));
    assert_eq!(before[2].range, range(0x60000, 0x70000));
}

#[test]
fn p12_marks_split_at_their_edges_and_differing_ones_do_not_merge() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0, 0x4000_0000).unwrap();
    map.mark_movable(range(0x1000, 0x2000), MovableMark::Block(0));
    map.mark_movable(range(0x2000, 0x3000), MovableMark::Block(1));
    map.mark_movable(range(0x3000, 0x4000), MovableMark::Amount);
    let edges: Vec<_> = map.segments().map(|s| (s.range.start(), s.range.end())).collect();
    assert_eq!(edges, [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000), (0x4000, 0x40000)]);
}

#[test]
fn carving_avoids_reservations_and_movable_memory() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0x4000_0000, 0x100_0000).unwrap();
    map.reserve(0x4008_0000, 0x8_0000, ReservationKind::Image, "image").unwrap();
    map.mark_movable(range(0x40200, 0x40e00), MovableMark::Block(0));
    let small = map.carve(0x1000, 0x1000, "heap").unwrap();
    assert_eq!(small.start(), 0x40000);
    let large = map.carve(0x10_0000, 0x1000, "frame table").unwrap();
    assert_eq!(large, range(0x40100, 0x40200));
    let aligned = map.carve(0x1001, 0x20_0000, "tables").unwrap();
    assert_eq!(aligned, range(0x40e00, 0x40e02));
    let error = map.carve(0x40_0000, 0x1000, "too much").unwrap_err();
    assert_eq!(
        error.to_string(),
        "too much: no 0x400000 bytes aligned to 0x1000 in NORMAL memory (largest free range 0x1fe000)"
    );
    assert_eq!(map.carve(1, 3, "odd").unwrap_err().to_string(), "odd: alignment 0x3 is not a power of two");
}

#[test]
fn memory_above_a_limit_becomes_movable() {
    let mut map = BootMap::new();
    // The limit is frame 0x40000, in the middle of the first range; odd ends of pageblocks on both sides of it.
    map.add_ram(controller(0), 0x3f10_0000, 0x200_0000).unwrap();
    map.add_ram(controller(1), 0x8000_0000, 0x1000).unwrap();
    map.reserve(0x4020_0000, 0x1000, ReservationKind::Image, "image").unwrap();
    map.restrict_to_movable(0x40000, "high").unwrap();
    let segments: Vec<_> =
        map.segments().map(|s| (s.range.start(), s.range.end(), s.movable, s.reservation)).collect();
    let (movable, carved) = (Some(MovableMark::Amount), Some(ReservationKind::Carved));
    assert_eq!(
        segments,
        [
            (0x3f100, 0x40000, None, None),
            (0x40000, 0x40200, movable, None),
            (0x40200, 0x40201, None, Some(ReservationKind::Image)),
            (0x40201, 0x40400, None, carved),
            (0x40400, 0x41000, movable, None),
            (0x41000, 0x41100, None, carved),
            (0x80000, 0x80001, None, carved),
        ]
    );
}

#[test]
fn a_full_map_is_an_error_and_changes_nothing() {
    let mut map = BootMap::new();
    for index in 0..MAX_RAM_RANGES as u64 {
        map.add_ram(controller(0), index << 32, 0x1000_0000).unwrap();
    }
    let error = map.add_ram(controller(0), 0xffff_0000_0000, 0x1000).unwrap_err();
    assert!(matches!(error, MapError::RamFull { .. }));
    assert_eq!(map.remove_ram(range(1, 2)).unwrap_err(), MapError::RamFull { range: range(1, 2) });
    assert_eq!(map.ram_frames(), 0x10000 * MAX_RAM_RANGES as u64);
}

#[test]
fn no_map_wins_among_overlapping_reservations() {
    let mut map = BootMap::new();
    map.add_ram(controller(0), 0, 0x10_0000).unwrap();
    map.reserve(0x1000, 0x4000, ReservationKind::Firmware, "wide").unwrap();
    map.reserve(0x2000, 0x1000, ReservationKind::NoMap, "secure").unwrap();
    let kinds: Vec<_> = map.segments().map(|s| (s.range.start(), s.reservation)).collect();
    assert_eq!(
        kinds,
        [
            (0, None),
            (1, Some(ReservationKind::Firmware)),
            (2, Some(ReservationKind::NoMap)),
            (3, Some(ReservationKind::Firmware)),
            (5, None)
        ]
    );
}

#[derive(Clone, Debug)]
enum Edit {
    Add(u8, u64, u64),
    Remove(u64, u64),
    Reserve(u64, u64, ReservationKind),
    Mark(u64, u64, MovableMark),
}

const FRAMES: usize = 64;

fn edit() -> impl Strategy<Value = Edit> {
    let span = || (0..FRAMES as u64, 0..FRAMES as u64 / 2);
    let kind = prop_oneof![
        Just(ReservationKind::Firmware),
        Just(ReservationKind::NoMap),
        Just(ReservationKind::Image)
    ];
    let mark = prop_oneof![Just(MovableMark::Amount), (0u8..3).prop_map(MovableMark::Block)];
    prop_oneof![
        (0u8..3, span()).prop_map(|(c, (start, length))| Edit::Add(c, start, length)),
        span().prop_map(|(start, length)| Edit::Remove(start, length)),
        (span(), kind).prop_map(|((start, length), kind)| Edit::Reserve(start, length, kind)),
        (span(), mark).prop_map(|((start, length), mark)| Edit::Mark(start, length, mark)),
    ]
}

#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Cell {
    controller: Option<ControllerId>,
    is_reserved: bool,
    is_no_map: bool,
    movable: Option<MovableMark>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases::cases(512, 8), failure_persistence: None, ..Default::default() })]

    /// Segments after any sequence of edits equal an array with one cell for each frame, in as few segments as
    /// possible.
    #[test]
    fn segments_equal_a_plain_array(edits in proptest::collection::vec(edit(), 0..24)) {
        let mut map = BootMap::new();
        let mut cells = [Cell::default(); FRAMES * 2];
        for edit in edits {
            match edit {
                Edit::Add(c, start, length) => {
                    let cells = &mut cells[start as usize..(start + length) as usize];
                    let is_free = cells.iter().all(|cell| cell.controller.is_none_or(|other| other == controller(c)));
                    prop_assert_eq!(map.add_ram(controller(c), start * FRAME_SIZE, length * FRAME_SIZE).is_ok(), is_free);
                    if is_free {
                        cells.iter_mut().for_each(|cell| cell.controller = Some(controller(c)));
                    }
                }
                Edit::Remove(start, length) => {
                    map.remove_ram(range(start, start + length)).unwrap();
                    cells[start as usize..(start + length) as usize].iter_mut().for_each(|cell| cell.controller = None);
                }
                Edit::Reserve(start, length, kind) => {
                    map.reserve(start * FRAME_SIZE, length * FRAME_SIZE, kind, "r").unwrap();
                    for cell in &mut cells[start as usize..(start + length) as usize] {
                        cell.is_reserved = true;
                        cell.is_no_map |= kind.is_no_map();
                    }
                }
                Edit::Mark(start, length, mark) => {
                    map.mark_movable(range(start, start + length), mark);
                    cells[start as usize..(start + length) as usize].iter_mut().for_each(|cell| cell.movable = Some(mark));
                }
            }
        }
        let mut seen = [Cell::default(); FRAMES * 2];
        let mut previous: Option<Segment> = None;
        for segment in map.segments() {
            for number in segment.range.start()..segment.range.end() {
                seen[number as usize] = Cell {
                    controller: Some(segment.controller),
                    is_reserved: segment.reservation.is_some(),
                    is_no_map: segment.reservation.is_some_and(ReservationKind::is_no_map),
                    movable: segment.movable,
                };
            }
            if let Some(before) = previous {
                prop_assert!(before.range.end() <= segment.range.start());
            }
            previous = Some(segment);
        }
        for (number, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.controller.is_some()) {
            prop_assert_eq!(seen[number], *cell, "frame {}", number);
        }
        prop_assert_eq!(seen.iter().filter(|cell| cell.controller.is_some()).count() as u64, map.ram_frames());
    }
}
