//! Concurrent use of memory by several CPUs, in every order that loom finds: `tools/proof.sh loom`.
#![cfg(loom)]

use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

use loom::sync::Arc;
use loom::thread;
use stage2::addr::{Frame, Ipa};
use stage2::controller::ControllerId;
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::check::{Check, Translation};
use stage2::phys::alloc::{Memory, MemoryKind, Request, Requester, Retired};
use stage2::phys::frame::{Contents, Footprint};
use stage2::phys::map::BootMap;
use stage2::phys::placement::Placement;
use stage2::phys::zone::Zone;
use stage2::range::FrameRange;

const BASE: u64 = 0x4000_0000;
const PAGEBLOCK: u64 = 2 << 20;

fn guest(number: u8) -> GuestId {
    GuestId::try_new(number).expect("a guest")
}

/// Returns memory of a few pageblocks behind one controller.
fn memory(pageblocks: u64) -> Arc<Memory<'static>> {
    static MAPS: [OnceLock<BootMap>; 3] = [const { OnceLock::new() }; 3];
    let map = &MAPS[pageblocks as usize];
    // On a stack of its own: loom's are small.
    let make = move || {
        map.get_or_init(|| {
            let mut map = BootMap::new();
            map.add_ram(ControllerId::default(), BASE, pageblocks * PAGEBLOCK).expect("RAM");
            map
        });
    };
    if map.get().is_none() {
        std::thread::spawn(make).join().expect("a map");
    }
    let map = map.get().expect("made above");
    let words: Vec<AtomicU32> = (0..Footprint::of(map).words()).map(|_| AtomicU32::new(0)).collect();
    let memory = Memory::new();
    memory.boot(map, words.leak(), 0).expect("boot");
    Arc::new(memory)
}

fn request(order: u8, owner: u8) -> Request {
    let owner = Owner::Guest(guest(owner));
    Request { order, kind: MemoryKind::Movable, owner, placement: Placement::Any, mapping: None }
}

/// Checks that all frames are free and merged, and that the records are consistent.
fn assert_all_free(memory: &Memory<'_>, pageblocks: u64) {
    let totals = memory.zone_totals(Zone::Normal);
    assert_eq!((totals.free, totals.isolated), (pageblocks * 512, 0));
    let mut check = Check::new();
    let nowhere = |_: GuestId, _: Ipa| Translation::Nowhere;
    while !check.step(memory, &nowhere, 64, &mut |problem| panic!("{problem}")) {}
    assert_eq!(check.summary().busy_count, 0);
}

/// Runs a model in which a CPU is preempted at most three times.
fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 100_000;
    builder.check(test);
}

#[test]
fn each_cpu_gets_a_frame_of_its_own() {
    loom::model(|| {
        let memory = memory(1);
        let request = |owner| Request { kind: MemoryKind::Unmovable, ..request(0, owner) };
        let take = move |memory: &Memory<'_>, owner| memory.allocate(&request(owner)).expect("a frame").frame;
        let give = |memory: &Memory<'_>, owner, frame| {
            memory.free(frame, 0, Owner::Guest(guest(owner)), Contents::Dirty).expect("a frame in use");
        };
        let other = {
            let memory = memory.clone();
            thread::spawn(move || {
                let frame = take(&memory, 1);
                give(&memory, 1, frame);
                frame
            })
        };
        let frame = take(&memory, 0);
        assert!(memory.free(frame, 0, Owner::Guest(guest(1)), Contents::Dirty).is_err());
        give(&memory, 0, frame);
        other.join().expect("the other CPU");
        assert_all_free(&memory, 1);
    });
}

/// Allocates a single frame for `owner`.
fn take(memory: &Memory<'_>, kind: MemoryKind, owner: u8) -> Frame {
    memory.allocate(&Request { kind, ..request(0, owner) }).expect("a frame").frame
}

fn give(memory: &Memory<'_>, owner: u8, frame: Frame) {
    memory.free(frame, 0, Owner::Guest(guest(owner)), Contents::Dirty).expect("a frame in use");
}

/// Frees `frames` on another CPU.
fn on_another_cpu(memory: &Arc<Memory<'static>>, frames: [Frame; 2]) -> thread::JoinHandle<[(); 2]> {
    let memory = memory.clone();
    thread::spawn(move || frames.map(|frame| give(&memory, 1, frame)))
}

/// Returns three frames of guest 1 in one pageblock. A fourth, beside them, is free.
fn three_frames(memory: &Memory<'_>, kind: MemoryKind) -> [Frame; 3] {
    let [first, second, third, fourth] = core::array::from_fn(|_| take(memory, kind, 1));
    give(memory, 1, first);
    [second, third, fourth]
}

#[test]
fn frees_against_reading_the_usage_of_the_pageblock() {
    loom::model(|| {
        let memory = memory(1);
        let [second, third, fourth] = three_frames(&memory, MemoryKind::Movable);
        let other = on_another_cpu(&memory, [second, third]);
        // The usage of the pageblock before, between or after the two frees.
        let glance = memory.glance(second).expect("RAM");
        assert!((509..=511).contains(&glance.free), "{glance:?}");
        assert_eq!(glance.free + glance.lent(), 512);
        other.join().expect("the other CPU");
        assert!(memory.free(third, 0, Owner::Guest(guest(1)), Contents::Dirty).is_err(), "it is free");
        give(&memory, 1, fourth);
        assert_all_free(&memory, 1);
    });
}

#[test]
fn frees_against_isolation() {
    loom::model(|| {
        let memory = memory(1);
        let [second, third, fourth] = three_frames(&memory, MemoryKind::Movable);
        let other = on_another_cpu(&memory, [second, third]);
        let range = FrameRange::try_new(second, 1).expect("a range");
        let isolated = memory.isolate(range, Requester::Anyone).expect("movable frames only");
        assert!(memory.allocate(&request(0, 0)).is_err(), "all free frames are isolated");
        other.join().expect("the other CPU");
        // Frames freed since then are isolated too.
        assert!(memory.allocate(&request(0, 0)).is_err(), "all free frames are isolated");
        let totals = memory.zone_totals(Zone::Normal);
        assert_eq!((totals.free, totals.isolated), (0, 511));
        memory.end_isolation(isolated);
        give(&memory, 1, fourth);
        assert_all_free(&memory, 1);
    });
}

#[test]
fn frees_against_a_request_that_changes_the_type_of_the_pageblock() {
    loom::model(|| {
        let memory = memory(1);
        let [second, third, fourth] = three_frames(&memory, MemoryKind::Movable);
        let other = on_another_cpu(&memory, [second, third]);
        // There is no other pageblock, so the request changes its type.
        let stolen = take(&memory, MemoryKind::Unmovable, 0);
        let next = take(&memory, MemoryKind::Unmovable, 0);
        assert_ne!(stolen, next);
        other.join().expect("the other CPU");
        [stolen, next].into_iter().for_each(|frame| give(&memory, 0, frame));
        give(&memory, 1, fourth);
        assert_all_free(&memory, 1);
    });
}

#[test]
fn two_cpus_get_different_frames_and_give_them_back() {
    model(|| {
        let memory = memory(1);
        let other = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                let block = memory.allocate(&request(0, 1)).expect("a frame");
                memory.free(block.frame, 0, Owner::Guest(guest(1)), Contents::Dirty).expect("its own");
                block.frame
            })
        };
        let block = memory.allocate(&request(0, 0)).expect("a frame");
        let again = memory.allocate(&request(3, 0)).expect("a block");
        assert_ne!(block.frame, again.frame);
        memory.free(again.frame, 3, Owner::Guest(guest(0)), Contents::Dirty).expect("its own");
        other.join().expect("no panic");
        memory.free(block.frame, 0, Owner::Guest(guest(0)), Contents::Dirty).expect("its own");
        // A pageblock left split merges when a whole pageblock is requested.
        let whole = memory.allocate(&request(9, 0)).expect("the pageblock");
        memory.free(whole.frame, 9, Owner::Guest(guest(0)), Contents::Dirty).expect("its own");
        assert_all_free(&memory, 1);
    });
}

#[test]
fn the_last_frame_goes_to_one_of_two_cpus() {
    model(|| {
        let memory = memory(1);
        let _most = memory.allocate(&request(8, 0)).expect("a half");
        let ask = |memory: &Memory<'_>, owner| memory.allocate(&request(8, owner)).is_ok();
        let other = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || ask(&memory, 1))
        };
        let mine = ask(&memory, 2);
        assert!(mine ^ other.join().expect("no panic"));
    });
}

#[test]
fn isolation_against_a_cpu_that_allocates_and_frees() {
    model(|| {
        let memory = memory(2);
        let held = memory.allocate(&request(0, 1)).expect("a frame");
        let other = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.free(held.frame, 0, Owner::Guest(guest(1)), Contents::Dirty).expect("its own");
                memory.allocate(&request(0, 1)).ok().map(|block| block.frame)
            })
        };
        let first = Frame::try_new(held.frame.number() & !511).expect("a frame");
        let range = FrameRange::try_new(first, 512).expect("a pageblock");
        let isolated = memory.isolate(range, Requester::Anyone).expect("movable frames only");
        let is_taken = memory.take_isolated(&isolated, range, Owner::Hypervisor).is_ok();
        let got = other.join().expect("no panic");
        if is_taken {
            assert!(got.is_none_or(|frame| !range.contains(frame)), "nobody else has a frame of it");
            memory.release_range(range, Owner::Hypervisor, Contents::Dirty).expect("its own");
        }
        memory.end_isolation(isolated);
        if let Some(frame) = got {
            memory.free(frame, 0, Owner::Guest(guest(1)), Contents::Dirty).expect("its own");
        }
        let whole = memory.allocate(&request(10, 0)).expect("all of it");
        memory.free(whole.frame, 10, Owner::Guest(guest(0)), Contents::Dirty).expect("its own");
        assert_all_free(&memory, 2);
    });
}

#[test]
fn retiring_against_a_cpu_that_frees() {
    model(|| {
        let memory = memory(1);
        let held = memory.allocate(&request(4, 1)).expect("a block");
        let bad = FrameRange::try_new(held.frame.checked_add(5).expect("a frame"), 1).expect("a range");
        let other = {
            let memory = Arc::clone(&memory);
            thread::spawn(move || {
                memory.free(held.frame, 4, Owner::Guest(guest(1)), Contents::Dirty).expect("its own");
            })
        };
        let mut done = Retired::default();
        let rest = memory.retire_some(bad, &mut done);
        assert!(rest.is_empty());
        assert_eq!(done.now + done.doomed, 1);
        other.join().expect("no panic");
        let totals = memory.zone_totals(Zone::Normal);
        assert_eq!((totals.free, totals.retired), (511, 1));
    });
}
