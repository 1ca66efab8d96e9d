use super::descriptor::Descriptor;
use super::fake::{FakeStage2, Machine, Outcome};
use super::*;
use crate::addr::FRAME_SIZE;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::rc::Rc;

const K4: u64 = FRAME_SIZE;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

fn ipa(value: u64) -> Ipa {
    Ipa::try_new(value).unwrap()
}

fn pa(value: u64) -> Pa {
    Pa::try_new(value).unwrap()
}

fn mark(value: u8) -> Mark {
    Mark::new_truncate(value)
}

/// Returns a machine of 64 table frames, and a guest with an address space of 40 bits.
fn guest() -> (Rc<Machine>, FakeStage2) {
    let machine = Machine::new(64);
    let stage2 = machine.stage2(40, 44);
    (machine, stage2)
}

/// Moves the leaf at `ipa` to `pa`, as migration does.
fn move_leaf(stage2: &FakeStage2, ipa: Ipa, pa: Pa) -> Result<Leaf, TableError> {
    let mut old = None;
    let run = stage2.break_leaves(ipa, 1, Mark::NONE, mark(1), |leaf| old = Some(leaf))?;
    stage2.synchronise();
    let made = stage2.make_leaf(&run, 0, Some(pa));
    if made.is_err() {
        stage2.make_leaf(&run, 0, None).unwrap();
    }
    stage2.publish();
    made.map(|_| old.unwrap())
}

/// IPA, size, PA and access of the leaves, merged where they continue each other.
fn extents(stage2: &FakeStage2) -> Vec<(u64, u64, u64, Access)> {
    let mut all: Vec<(u64, u64, u64, Access)> = Vec::new();
    for leaf in stage2.leaves(ipa(0), 1 << 48) {
        merge(&mut all, (leaf.ipa().get(), leaf.size(), leaf.pa().get(), leaf.attributes().access));
    }
    all
}

/// Appends an extent, or extends the last one if it continues that.
fn merge(all: &mut Vec<(u64, u64, u64, Access)>, next: (u64, u64, u64, Access)) {
    match all.last_mut() {
        Some((ipa, size, pa, access)) if (*ipa + *size, *pa + *size, *access) == (next.0, next.2, next.3) => {
            *size += next.1;
        }
        _ => all.push(next),
    }
}

#[track_caller]
fn assert_sound(machine: &Machine) {
    machine.check_coherent();
    assert_eq!(machine.violations(), Vec::<String>::new());
}

#[test]
fn the_largest_leaves_that_fit_are_chosen() {
    let (machine, mut stage2) = guest();
    // From one frame below 1 GiB to one frame above 2 GiB + 4 MiB, congruent PA.
    let (from, to) = (G1 - K4, 2 * G1 + 2 * M2 + K4);
    stage2.map(ipa(from), pa(0x10_0000_0000 + from), to - from, Attributes::RAM).unwrap();
    let levels: Vec<_> = stage2.leaves(ipa(0), 1 << 40).map(|leaf| leaf.level()).collect();
    assert_eq!(levels, [Level::L3, Level::L1, Level::L2, Level::L2, Level::L3]);
    assert_eq!(extents(&stage2), [(from, to - from, 0x10_0000_0000 + from, Access::ReadWrite)]);
    assert_eq!(stage2.translate(ipa(G1 + 5)), Some(pa(0x10_0000_0000 + G1 + 5)));
    assert_eq!(stage2.translate(ipa(to)), None);
    assert_sound(&machine);
}

#[test]
fn incongruent_addresses_take_smaller_leaves() {
    let (_, mut stage2) = guest();
    stage2.map(ipa(G1), pa(G1 + M2), G1, Attributes::RAM).unwrap();
    assert_eq!(stage2.leaves(ipa(G1), G1).filter(|leaf| leaf.level() == Level::L2).count(), 512);
    stage2.map(ipa(4 * G1), pa(K4), 2 * M2, Attributes::RAM).unwrap();
    assert!(stage2.leaves(ipa(4 * G1), G1).all(|leaf| leaf.level() == Level::L3));
}

#[test]
fn small_address_spaces_start_at_level_2() {
    let machine = Machine::new(64);
    let mut stage2 = machine.stage2(34, 36);
    assert_eq!(stage2.table_count(), 16);
    let last = (1 << 34) - M2;
    stage2.map(ipa(last), pa(M2), M2, Attributes::RAM).unwrap();
    stage2.map(ipa(8 * G1), pa(8 * G1), G1, Attributes::RAM).unwrap();
    assert_eq!(stage2.translate(ipa(last + 7)), Some(pa(M2 + 7)));
    assert_eq!(stage2.leaf(ipa(8 * G1)).unwrap().level(), Level::L2);
    assert_eq!(stage2.table_count(), 16);
    assert_eq!(stage2.leaf(ipa(1 << 34)), None);
    stage2.unmap(ipa(0), 1 << 34, |_| ()).unwrap();
    assert_eq!(machine.frames_taken(), 16);
}

#[test]
fn large_address_spaces_start_at_level_0() {
    let machine = Machine::new(64);
    let mut stage2 = machine.stage2(48, 48);
    stage2.map(ipa((1 << 48) - G1), pa(G1), G1, Attributes::RAM).unwrap();
    assert_eq!(stage2.table_count(), 2);
    assert_eq!(stage2.translate(ipa((1 << 48) - 1)), Some(pa(2 * G1 - 1)));
    stage2.demote(ipa((1 << 48) - 1)).unwrap();
    let levels: Vec<_> = stage2.leaves(ipa(0), 1 << 48).map(|leaf| leaf.level()).collect();
    assert_eq!(levels, [Level::L2; 512]);
    assert_sound(&machine);
}

#[test]
fn refusals_name_the_address() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(G1), pa(G1), M2, Attributes::RAM).unwrap();
    let map = |stage2: &mut FakeStage2, i: u64, p: u64, size| {
        stage2.map(ipa(i), pa(p), size, Attributes::RAM).unwrap_err()
    };
    assert_eq!(map(&mut stage2, G1 - K4, 0, 2 * K4), TableError::AlreadyMapped(ipa(G1)));
    assert_eq!(map(&mut stage2, G1 + K4, 0, K4), TableError::AlreadyMapped(ipa(G1 + K4)));
    assert!(matches!(map(&mut stage2, 5, 0, K4), TableError::Misaligned { .. }));
    assert!(matches!(map(&mut stage2, 0, 0, 5), TableError::Misaligned { .. }));
    assert!(matches!(map(&mut stage2, 0, 1 << 44, K4), TableError::PaOutside { .. }));
    assert!(matches!(map(&mut stage2, 1 << 40, 0, K4), TableError::IpaOutside { .. }));
    assert_eq!(
        stage2.unmap(ipa(G1 + K4), K4, |_| ()),
        Err(TableError::SplitsLeaf { ipa: ipa(G1), level: Level::L2 })
    );
    assert_eq!(
        stage2.unmap(ipa(0), G1 + K4, |_| ()),
        Err(TableError::SplitsLeaf { ipa: ipa(G1), level: Level::L2 })
    );
    assert_eq!(stage2.demote(ipa(0)), Err(TableError::NotMapped(ipa(0))));
    assert_eq!(TableError::AlreadyMapped(ipa(G1)).to_string(), "IPA 0x40000000: already mapped");
    assert_sound(&machine);
}

#[test]
fn a_map_that_runs_out_of_tables_takes_none() {
    let (machine, mut stage2) = guest();
    let before = machine.frames_taken();
    // Two 4 KiB ends in different 1 GiB entries: two tables each.
    let (from, size) = (G1 - K4, G1 + 2 * K4);
    assert_eq!(stage2.tables_needed(ipa(from), pa(from), size), Ok(4));
    for allowance in 0..4 {
        machine.allowance.set(allowance);
        assert_eq!(
            stage2.map(ipa(from), pa(from), size, Attributes::RAM),
            Err(TableError::OutOfTables { needed: 4, available: allowance })
        );
        assert_eq!(machine.frames_taken(), before);
        assert_eq!(stage2.leaves(ipa(0), 1 << 40).count(), 0);
    }
    machine.allowance.set(4);
    stage2.map(ipa(from), pa(from), size, Attributes::RAM).unwrap();
    assert_eq!(machine.frames_taken(), before + 4);
    assert_eq!(stage2.table_count(), before + 4);
    assert_sound(&machine);
}

#[test]
fn demotion_and_promotion_keep_everything() {
    let (machine, mut stage2) = guest();
    machine.set_hardware_flags(true);
    let attributes = Attributes { accessed: false, ..Attributes::RAM };
    stage2.map(ipa(G1), pa(4 * G1), G1, attributes).unwrap();
    machine.touch([(ipa(G1 + 3 * M2 + 5 * K4), true), (ipa(G1), false)]);
    stage2.demote(ipa(G1 + 3 * M2)).unwrap();
    stage2.demote(ipa(G1 + 3 * M2)).unwrap();
    assert_eq!(stage2.leaf(ipa(G1 + 3 * M2)).unwrap().level(), Level::L3);
    // The access came before or during the demotion, so every part of the leaf counts as accessed.
    assert!(stage2.leaf(ipa(G1 + 3 * M2 + 9 * K4)).unwrap().attributes().accessed);
    assert_eq!(stage2.table_count(), 4);
    assert_sound(&machine);
    assert_eq!(stage2.can_promote(ipa(G1), Level::L1), Err(TableError::NotOneBlock(ipa(G1 + 3 * M2))));
    stage2.promote(ipa(G1 + 3 * M2), Level::L2).unwrap();
    let block = stage2.promote(ipa(G1 + 3 * M2), Level::L1).unwrap();
    assert_eq!((block.pa(), block.level()), (pa(4 * G1), Level::L1));
    assert_eq!(block.attributes(), Attributes { accessed: true, ..attributes });
    assert_eq!(stage2.table_count(), 2);
    assert_sound(&machine);
    assert_eq!(stage2.demote(ipa(G1)).map(|leaf| leaf.level()), Ok(Level::L1));
    machine.allowance.set(0);
    assert!(matches!(stage2.demote(ipa(G1)), Err(TableError::OutOfTables { .. })));
    assert_eq!(stage2.leaf(ipa(G1)).unwrap().level(), Level::L2);
}

#[test]
fn promotion_names_what_stands_in_the_way() {
    let (_, mut stage2) = guest();
    stage2.map(ipa(0), pa(K4), M2, Attributes::RAM).unwrap();
    assert_eq!(stage2.promote(ipa(0), Level::L2), Err(TableError::NotOneBlock(ipa(0))), "not aligned");
    stage2.map(ipa(M2), pa(M2), M2 - K4, Attributes::RAM).unwrap();
    assert_eq!(stage2.promote(ipa(M2), Level::L2), Err(TableError::NotOneBlock(ipa(2 * M2 - K4))), "hole");
    stage2.map(ipa(2 * M2 - K4), pa(2 * M2 - K4), K4, Attributes::ROM).unwrap();
    assert_eq!(stage2.promote(ipa(M2), Level::L2), Err(TableError::NotOneBlock(ipa(2 * M2 - K4))), "unlike");
    stage2.unmap(ipa(2 * M2 - K4), K4, |_| ()).unwrap();
    stage2.map(ipa(2 * M2 - K4), pa(2 * M2 - K4), K4, Attributes::RAM).unwrap();
    stage2.protect(ipa(M2 + K4), mark(1)).unwrap();
    assert_eq!(stage2.promote(ipa(M2), Level::L2), Err(TableError::InMotion(ipa(M2 + K4))));
    stage2.unprotect(ipa(M2 + K4)).unwrap();
    assert_eq!(stage2.can_promote(ipa(M2), Level::L2), Ok(()));
    assert_eq!(stage2.promote(ipa(M2), Level::L3), Err(TableError::NotDivisible(ipa(M2))));
    assert_eq!(stage2.promote(ipa(G1), Level::L2), Err(TableError::NotMapped(ipa(G1))));
}

#[test]
fn a_moved_leaf_keeps_its_access_flag() {
    let (machine, mut stage2) = guest();
    machine.set_hardware_flags(true);
    let idle = Attributes { accessed: false, ..Attributes::RAM };
    stage2.map(ipa(M2), pa(M2), M2, idle).unwrap();
    machine.touch([(ipa(M2 + 5), true)]);
    let old = move_leaf(&stage2, ipa(M2), pa(8 * M2)).unwrap();
    assert_eq!(old.pa(), pa(M2));
    let new = stage2.leaf(ipa(M2)).unwrap();
    assert_eq!(new.pa(), pa(8 * M2));
    assert_eq!(new.attributes(), Attributes { accessed: true, ..idle });
    assert_sound(&machine);
    assert!(matches!(move_leaf(&stage2, ipa(M2), pa(K4)), Err(TableError::PaOutside { .. })));
    assert_eq!(stage2.leaf(ipa(M2)).unwrap().pa(), pa(8 * M2));
    assert_eq!(move_leaf(&stage2, ipa(0), pa(0)), Err(TableError::NotMapped(ipa(0))));
}

#[test]
fn a_batch_is_broken_synchronised_once_and_made() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(M2 - 4 * K4), pa(K4), 8 * K4, Attributes::RAM).unwrap();
    machine.touch((0..8).map(|i| (ipa(M2 - 4 * K4 + i * K4), true)));
    let run = stage2.break_leaves(ipa(M2 - 3 * K4), 64, Mark::NONE, mark(1), |_| ()).unwrap();
    assert_eq!(run.leaf_count(), 3, "a run stays in its table");
    let again = stage2.break_leaves(ipa(M2), 2, Mark::NONE, mark(1), |_| ()).unwrap();
    assert_eq!(again.leaf_count(), 2);
    let leaf = stage2.leaf(ipa(M2)).unwrap();
    assert!(leaf.is_broken() && leaf.mark() == mark(1) && leaf.pa() == pa(5 * K4));
    assert_eq!(stage2.translate(ipa(M2)), None);
    assert_eq!(stage2.make_leaf(&run, 0, None), Err(TableError::NotBroken(ipa(M2 - 3 * K4))), "too early");
    assert_eq!(stage2.unmap(ipa(M2), K4, |_| ()), Err(TableError::InMotion(ipa(M2))));
    assert_eq!(
        stage2.break_leaves(ipa(M2), 1, Mark::NONE, mark(1), |_| ()),
        Err(TableError::InMotion(ipa(M2)))
    );
    let syncs = machine.synchronise_count.get();
    stage2.synchronise();
    assert_eq!(machine.synchronise_count.get(), syncs + 1);
    for index in 0..3 {
        stage2.make_leaf(&run, index, Some(pa((0x100 + index as u64) * K4))).unwrap();
    }
    stage2.make_leaf(&again, 0, None).unwrap();
    assert_eq!(stage2.make_leaf(&again, 0, None), Err(TableError::NotBroken(ipa(M2))), "made already");
    stage2.make_leaf(&again, 1, None).unwrap();
    stage2.publish();
    assert_eq!(machine.access(ipa(M2 - 2 * K4), true), Outcome::Reaches(pa(0x101 * K4)));
    assert_eq!(machine.access(ipa(M2 + K4 + 1), true), Outcome::Reaches(pa(6 * K4 + 1)));
    assert_eq!(stage2.leaf(ipa(M2)).unwrap().mark(), Mark::NONE);
    assert_sound(&machine);
}

#[test]
fn a_protected_leaf_can_be_read_until_it_is_switched() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(M2), pa(M2), M2, Attributes::RAM).unwrap();
    machine.touch([(ipa(M2 + 5), true)]);
    let leaf = stage2.protect(ipa(M2), mark(2)).unwrap();
    assert!(leaf.is_protected());
    assert_eq!(leaf.attributes(), Attributes::RAM);
    stage2.synchronise();
    assert_eq!(machine.access(ipa(M2), false), Outcome::Reaches(pa(M2)));
    assert_eq!(machine.access(ipa(M2), true), Outcome::PermissionFault);
    assert_eq!(stage2.protect(ipa(M2), mark(1)).unwrap_err(), TableError::InMotion(ipa(M2)));
    assert_eq!(stage2.demote(ipa(M2)), Err(TableError::InMotion(ipa(M2))));
    let run = stage2.break_leaves(ipa(M2), 1, mark(2), mark(3), |_| ()).unwrap();
    stage2.synchronise();
    stage2.make_leaf(&run, 0, Some(pa(6 * M2))).unwrap();
    stage2.publish();
    assert_eq!(machine.access(ipa(M2), true), Outcome::Reaches(pa(6 * M2)));
    assert_sound(&machine);
}

#[test]
fn a_split_leaf_leads_to_both_places() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(M2), pa(M2), M2, Attributes::RAM).unwrap();
    assert_eq!(stage2.split(ipa(M2), 1, pa(8 * M2)), Err(TableError::NotBroken(ipa(M2))));
    machine.touch([(ipa(M2 + 5), true), (ipa(M2 + 99 * K4), true), (ipa(M2 + 100 * K4), true)]);
    stage2.protect(ipa(M2), mark(2)).unwrap();
    stage2.synchronise();
    stage2.split(ipa(M2), 100, pa(8 * M2)).unwrap();
    assert_eq!(machine.access(ipa(M2 + 99 * K4), true), Outcome::Reaches(pa(8 * M2 + 99 * K4)));
    assert_eq!(machine.access(ipa(M2 + 100 * K4), true), Outcome::Reaches(pa(M2 + 100 * K4)));
    assert!(stage2.leaves(ipa(M2), M2).all(|leaf| !leaf.is_protected() && leaf.mark() == Mark::NONE));
    assert_sound(&machine);
}

#[test]
fn a_change_that_needs_break_before_make_is_refused_on_a_valid_leaf() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(0), pa(0), K4, Attributes::RAM).unwrap();
    let slot = stage2.slot(ipa(0)).unwrap();
    let old = load(slot.entry);
    let change = |attributes, to| {
        let new = Descriptor::leaf(Level::L3, to, attributes);
        (new, exchange(slot.entry, ipa(0), old, new))
    };
    for (new, refused) in [change(Attributes::DEVICE, pa(0)), change(Attributes::RAM, pa(K4))] {
        assert_eq!(refused, Err(TableError::BreakBeforeMake { ipa: ipa(0), old, new }));
    }
    assert_eq!(load(slot.entry), old);
    let (new, changed) = change(Attributes::ROM, pa(0));
    assert_eq!((changed, load(slot.entry)), (Ok(Ok(())), new));
    assert_eq!(change(Attributes::ROM, pa(0)).1, Ok(Err(new)), "another change came first");
    assert_eq!(machine.access(ipa(0), true), Outcome::PermissionFault);
}

#[test]
fn harvested_flags_come_back_with_the_next_access() {
    let (machine, mut stage2) = guest();
    machine.set_hardware_flags(true);
    stage2.map(ipa(M2 - 4 * K4), pa(0), 8 * K4, Attributes::RAM).unwrap();
    stage2.map(ipa(G1), pa(G1), M2, Attributes::RAM).unwrap();
    let accessed = |stage2: &FakeStage2| {
        let mut bytes = 0;
        stage2.harvest_accessed(ipa(0), 2 * G1, |leaf| {
            bytes += if leaf.attributes().accessed { leaf.size() } else { 0 };
        });
        stage2.synchronise();
        bytes
    };
    assert_eq!(accessed(&stage2), 8 * K4 + M2);
    assert_eq!(accessed(&stage2), 0);
    machine.access(ipa(M2), false);
    assert_eq!(accessed(&stage2), K4);
    machine.access(ipa(M2), false);
    machine.access(ipa(G1 + 5), false);
    assert_eq!(accessed(&stage2), K4 + M2);
    machine.set_hardware_flags(false);
    assert_eq!(machine.access(ipa(M2), false), Outcome::AccessFlagFault);
    assert!(stage2.mark_accessed(ipa(M2)));
    assert!(!stage2.mark_accessed(ipa(M2)));
    assert!(!stage2.mark_accessed(ipa(1 << 41)));
    assert_eq!(machine.access(ipa(M2), false), Outcome::Reaches(pa(4 * K4)));
    assert_sound(&machine);
}

#[test]
fn unmapping_yields_the_leaves_and_frees_the_tables() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(M2 - K4), pa(M2 - K4), 2 * M2, Attributes::RAM).unwrap();
    stage2.map(ipa(G1), pa(G1), G1, Attributes::RAM).unwrap();
    machine.touch([(ipa(M2 - K4), true), (ipa(M2), true), (ipa(G1 + 5), false)]);
    let mut leaves = Vec::new();
    let bytes = stage2.unmap(ipa(0), 3 * M2, |leaf| leaves.push((leaf.ipa(), leaf.level()))).unwrap();
    assert_eq!(bytes, 2 * M2);
    assert_eq!(leaves.len(), 1 + 1 + 511);
    assert_eq!(leaves[1], (ipa(M2), Level::L2));
    assert_eq!(stage2.table_count(), 2);
    assert_sound(&machine);
    let mut left = Vec::new();
    stage2.unmap(ipa(0), 1 << 40, |leaf| left.push((leaf.pa(), leaf.size()))).unwrap();
    assert_eq!(left, [(pa(G1), G1)]);
    assert_eq!(machine.frames_taken(), 2, "the concatenated tables of the start level");
    assert_sound(&machine);
}

#[test]
fn a_leaf_in_motion_cannot_be_unmapped() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(0), pa(0), 2 * M2, Attributes::RAM).unwrap();
    stage2.demote(ipa(0)).unwrap();
    machine.touch([(ipa(0), true), (ipa(M2), false)]);
    stage2.protect(ipa(M2), mark(2)).unwrap();
    assert_eq!(stage2.unmap(ipa(0), 2 * M2, |_| ()), Err(TableError::InMotion(ipa(M2))));
    let run = stage2.break_leaves(ipa(0), 3, Mark::NONE, mark(1), |_| ()).unwrap();
    assert_eq!(stage2.unmap(ipa(0), 2 * M2, |_| ()), Err(TableError::InMotion(ipa(0))));
    stage2.synchronise();
    assert_eq!(stage2.make_leaves(&run, |index| pa(index as u64 * K4)), Ok(3));
    stage2.publish();
    stage2.unprotect(ipa(M2)).unwrap();
    stage2.synchronise();
    assert_eq!(stage2.unmap(ipa(0), 2 * M2, |_| ()), Ok(2 * M2));
    assert_sound(&machine);
}

/// Tests the fakes themselves.
#[test]
fn the_fake_catches_missing_maintenance() {
    let (machine, mut stage2) = guest();
    stage2.map(ipa(0), pa(0), K4, Attributes::RAM).unwrap();
    machine.touch([(ipa(0), true)]);
    stage2.publish();
    // The output address changes while the leaf is valid.
    let slot = stage2.slot(ipa(0)).unwrap();
    let moved = load(slot.entry).with_output(pa(M2));
    slot.entry.store(moved.bits(), Ordering::Relaxed);
    stage2.publish();
    assert!(machine.violations()[0].starts_with("break-before-make"), "{:?}", machine.violations());

    let (machine, mut stage2) = guest();
    stage2.map(ipa(0), pa(0), K4, Attributes::RAM).unwrap();
    machine.touch([(ipa(0), true)]);
    stage2.publish();
    break_entry(stage2.slot(ipa(0)).unwrap().entry);
    stage2.maintenance().invalidate(ipa(0), K4, Level::L3, Cached::Leaves);
    assert!(machine.violations()[0].starts_with("invalidation"), "{:?}", machine.violations());
    machine.check_coherent();
    assert!(machine.violations()[1].starts_with("stale"), "{:?}", machine.violations());
}

// The rest compares the tables with a map after each of a random sequence of operations.

#[derive(Clone, Copy, Debug)]
enum Operation {
    Map { at: u64, to: u64, size: u64, access: Access },
    Unmap { at: u64, size: u64 },
    Demote(u64),
    Promote(u64, Level),
    Move { at: u64, to: u64 },
    BreakAndMake { at: u64, most: usize, to: u64 },
    Protect(u64),
    Unprotect(u64),
    Split { at: u64, moved: usize, to: u64 },
    Harvest { at: u64, size: u64 },
}

/// Returns addresses near the edges of leaves of each size.
fn address() -> impl Strategy<Value = u64> {
    (
        0..3u64,
        0..3u64,
        0..4u64,
        prop_oneof![3 => Just(0), 1 => Just(511)],
        prop_oneof![3 => Just(0u64), 1 => Just(511)],
    )
        .prop_map(|(g, m, k, high_m, high_k)| {
            g * G1 + (m + high_m).min(511) * M2 + (k.saturating_sub(1) + high_k).min(511) * K4
        })
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (1..6u64).prop_map(|n| n * K4),
        4 => (1..3u64).prop_map(|n| n * M2),
        1 => Just(G1),
        1 => Just(M2 + K4),
    ]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![1 => Just(Access::ReadOnly), 2 => Just(Access::ReadWrite)]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (address(), address(), length(), access())
            .prop_map(|(at, to, size, access)| Operation::Map { at, to, size, access }),
        // A PA that is congruent with the IPA, so that large leaves are likely.
        4 => (address(), length(), access())
            .prop_map(|(at, size, access)| Operation::Map { at, to: 4 * G1 + at, size, access }),
        2 => (address(), length()).prop_map(|(at, size)| Operation::Unmap { at, size }),
        3 => address().prop_map(Operation::Demote),
        3 => (address(), prop_oneof![Just(Level::L1), Just(Level::L2)])
            .prop_map(|(at, level)| Operation::Promote(at, level)),
        2 => (address(), address()).prop_map(|(at, to)| Operation::Move { at, to }),
        2 => (address(), 1..9usize, address())
            .prop_map(|(at, most, to)| Operation::BreakAndMake { at, most, to }),
        2 => address().prop_map(Operation::Protect),
        2 => address().prop_map(Operation::Unprotect),
        2 => (address(), 0..513usize, address())
            .prop_map(|(at, moved, to)| Operation::Split { at, moved, to }),
        1 => (address(), length()).prop_map(|(at, size)| Operation::Harvest { at, size }),
    ]
}

/// Model of the tables: size, PA and access of each range, by IPA.
#[derive(Default)]
struct Model {
    pieces: BTreeMap<u64, (u64, u64, Access)>,
}

impl Model {
    /// Splits the piece that crosses `at`.
    fn cut(&mut self, at: u64) {
        if let Some((&start, &(size, to, access))) = self.pieces.range(..at).next_back()
            && start + size > at
        {
            self.pieces.insert(start, (at - start, to, access));
            self.pieces.insert(at, (start + size - at, to + (at - start), access));
        }
    }

    fn remove(&mut self, at: u64, size: u64) {
        self.cut(at);
        self.cut(at + size);
        let starts: Vec<u64> = self.pieces.range(at..at + size).map(|(start, _)| *start).collect();
        for start in starts {
            self.pieces.remove(&start);
        }
    }

    fn put(&mut self, at: u64, size: u64, to: u64, access: Access) {
        self.remove(at, size);
        self.pieces.insert(at, (size, to, access));
    }

    fn has_any(&self, at: u64, size: u64) -> bool {
        self.pieces.range(..at + size).next_back().is_some_and(|(start, piece)| start + piece.0 > at)
    }

    fn find(&self, at: u64) -> Option<(u64, Access)> {
        let (start, (size, to, access)) = self.pieces.range(..=at).next_back()?;
        (start + size > at).then(|| (to + (at - start), *access))
    }

    /// Returns the pieces, merged where they continue each other.
    fn extents(&self) -> Vec<(u64, u64, u64, Access)> {
        let mut all = Vec::new();
        self.pieces.iter().for_each(|(&at, &(size, to, access))| merge(&mut all, (at, size, to, access)));
        all
    }
}

fn apply(operation: Operation, stage2: &mut FakeStage2, machine: &Machine, model: &mut Model) {
    match operation {
        Operation::Map { at, to, size, access } => {
            let attributes = Attributes { access, ..Attributes::RAM };
            let expected = stage2.tables_needed(ipa(at), pa(to), size);
            let before = stage2.table_count();
            match stage2.map(ipa(at), pa(to), size, attributes) {
                Ok(()) => {
                    assert!(!model.has_any(at, size));
                    assert_eq!(Ok(stage2.table_count() - before), expected);
                    model.put(at, size, to, access);
                }
                Err(TableError::AlreadyMapped(_)) => assert!(model.has_any(at, size)),
                Err(TableError::OutOfTables { needed, .. }) => assert_eq!(Ok(needed), expected),
                Err(error) => panic!("{error}"),
            }
        }
        Operation::Unmap { at, size } => {
            let mut seen = Vec::new();
            if stage2.unmap(ipa(at), size, |leaf| seen.push(leaf)).is_ok() {
                for leaf in seen {
                    assert_eq!(model.find(leaf.ipa().get()).unwrap().0, leaf.pa().get());
                }
                model.remove(at, size);
            }
        }
        Operation::Demote(at) => _ = stage2.demote(ipa(at)),
        Operation::Promote(at, level) => {
            let may = stage2.can_promote(ipa(at), level);
            assert_eq!(stage2.promote(ipa(at), level).map(|_| ()), may);
        }
        Operation::Move { at, to } => {
            if let Ok(old) = move_leaf(stage2, ipa(at), pa(to)) {
                model.put(at, old.size(), to, old.attributes().access);
            }
        }
        Operation::BreakAndMake { at, most, to } => {
            let mut size = 0;
            let visit = |leaf: Leaf| size = leaf.size();
            let Ok(run) = stage2.break_leaves(ipa(at), most, Mark::NONE, mark(1), visit) else { return };
            assert!(stage2.make_leaf(&run, 0, None).is_err());
            stage2.synchronise();
            for index in 0..run.leaf_count() {
                let there = to + index as u64 * size;
                let start = at + index as u64 * size;
                let (_, access) = model.find(start).unwrap();
                match stage2.make_leaf(&run, index, Some(pa(there))) {
                    Ok(_) => model.put(start, size, there, access),
                    Err(_) => assert!(stage2.make_leaf(&run, index, None).is_ok()),
                }
            }
            stage2.publish();
        }
        Operation::Protect(at) => {
            if stage2.protect(ipa(at), mark(2)).is_ok() {
                stage2.synchronise();
                assert_ne!(
                    stage2.slot(ipa(at)).map(|_| machine.access(ipa(at), true)),
                    Some(Outcome::Reaches(pa(0)))
                );
            }
        }
        Operation::Unprotect(at) => {
            if stage2.unprotect(ipa(at)).is_ok() {
                stage2.synchronise();
            }
        }
        Operation::Split { at, moved, to } => {
            if let Ok(old) = stage2.split(ipa(at), moved, pa(to)) {
                let part = old.level().below().unwrap().size();
                if moved > 0 {
                    let access = old.attributes().access;
                    model.put(old.ipa().get(), moved as u64 * part, to, access);
                }
            }
        }
        Operation::Harvest { at, size } => {
            stage2.harvest_accessed(ipa(at), size, |_| ());
            stage2.synchronise();
        }
    }
}

fn compare(stage2: &FakeStage2, machine: &Machine, model: &Model) {
    assert_eq!(extents(stage2), model.extents());
    assert_eq!(stage2.table_count(), machine.frames_taken());
    assert_sound(machine);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases::cases(256, 3), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_agrees_with_a_map(
        operations in prop::collection::vec(operation(), 1..if cfg!(miri) { 8 } else { 40 }),
        touched in prop::collection::vec((address(), any::<bool>()), 0..6),
        hardware_flags: bool,
        frames in 3..24usize,
    ) {
        let machine = Machine::new(frames);
        machine.set_hardware_flags(hardware_flags);
        let mut stage2 = machine.stage2(40, 44);
        let mut model = Model::default();
        machine.touch(touched.into_iter().map(|(at, is_write)| (ipa(at), is_write)));
        for operation in operations {
            apply(operation, &mut stage2, &machine, &mut model);
            compare(&stage2, &machine, &model);
        }
        let protected = stage2.leaves(ipa(0), 1 << 40).filter(|leaf| leaf.is_in_motion());
        for leaf in protected.collect::<Vec<_>>() {
            stage2.unprotect(leaf.ipa()).unwrap();
        }
        stage2.synchronise();
        let bytes = model.pieces.values().map(|piece| piece.0).sum::<u64>();
        prop_assert_eq!(stage2.unmap(ipa(0), 1 << 40, |_| ()), Ok(bytes));
        prop_assert_eq!(machine.frames_taken(), 2);
        compare(&stage2, &machine, &Model::default());
    }
}
