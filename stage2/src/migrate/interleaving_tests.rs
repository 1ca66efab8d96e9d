//! Explores interleavings of worker, vCPUs and console within a bound, and checks memory contents and the allocator.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fake::{Actor, Explorer, Host, K4, M2, Scheduler, controller, explore, ipa, only};
use super::*;
use crate::addr::{Frame, PAGEBLOCK_FRAMES};
use crate::owner::GuestId;

const BASE: u64 = 0x4000_0000;
/// Number of runs of one search. The environment variable INTERLEAVINGS sets a larger one, for a complete search.
const RUNS: u64 = if cfg!(miri) { 2 } else { 1_000 };

struct World {
    host: Host,
    guest: GuestId,
    /// Number of vCPUs and consoles that are not done.
    busy: AtomicUsize,
}

impl World {
    /// Makes a guest with one area in blocks of `order`. vCPUs touch `pages` of it.
    fn new(order: u8, pages: &[u64], busy: usize, scheduler: Arc<Scheduler>) -> Self {
        let mut host = Host::new(2 * PAGEBLOCK_FRAMES, Some(scheduler));
        let guest = host.add_guest();
        host.add_ram(guest, BASE, M2, order, only(0));
        for page in pages {
            let pa = host.any_space(guest).with(|s| s.translate(at(*page))).unwrap();
            host.hardware.watch(at(*page), Frame::containing(pa));
        }
        host.engine.submit(Request::migrate(Scope::Guest(guest), controller(1))).unwrap();
        Self { host, guest, busy: AtomicUsize::new(busy) }
    }

    /// Runs the worker until it is idle and the other threads are done.
    fn work(&self) {
        loop {
            let step = self.host.engine.step(&self.host, 40_000, Payer::Idle);
            match step {
                Step::Idle if self.busy.load(Ordering::Relaxed) == 0 => return,
                Step::Idle | Step::Busy => self.host.relax(),
                Step::More | Step::Spare | Step::Wait(_) => self.host.hardware.pause(),
            }
        }
    }

    fn done(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    fn touch(&self, vcpu: usize, page: u64, is_write: bool) {
        self.host.access(self.guest, vcpu, at(page), is_write);
        self.host.hardware.pause();
    }

    /// Increments word 1 with Load-Exclusive and Store-Exclusive.
    fn increment(&self, vcpu: usize, page: u64) {
        let hardware = &self.host.hardware;
        loop {
            let monitor = match hardware.load_exclusive(self.guest, vcpu, at(page)) {
                Ok(monitor) => monitor,
                Err(fault) => {
                    self.host.handle(self.guest, at(page), fault);
                    continue;
                }
            };
            hardware.pause();
            match hardware.store_exclusive(self.guest, vcpu, at(page), monitor) {
                Ok(true) => return,
                Ok(false) => {}
                // The exception return clears the monitor: start again from the load.
                Err(fault) => self.host.handle(self.guest, at(page), fault),
            }
        }
    }

    fn check(&self, is_moved: bool) {
        self.host.check();
        if is_moved {
            assert!(self.host.behind(self.guest).iter().eq([controller(1)]));
        }
    }
}

fn at(page: u64) -> crate::addr::Ipa {
    ipa(BASE + page * K4)
}

/// Explores all orders with one preemption, up to the bound with two, and random ones with any number.
fn search(build: impl Fn(Arc<Scheduler>) -> World, actors: &[Actor<'_, World>], check: impl Fn(&World)) {
    let asked = std::env::var("INTERLEAVINGS").ok().and_then(|runs| runs.parse().ok());
    let runs = asked.unwrap_or(RUNS);
    for explorer in [
        Explorer::Every { preemptions: 1, runs },
        Explorer::Every { preemptions: 2, runs },
        Explorer::Random { runs: runs / 4 + 1, seed: 42 },
    ] {
        let run_count = explore(explorer, &build, actors, &check);
        println!("{explorer:?}: {run_count} runs");
    }
}

#[test]
fn two_writers_and_a_moving_page_area() {
    search(
        |scheduler| World::new(0, &[3, 40], 2, scheduler),
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 3, true);
                world.increment(0, 40);
                world.touch(0, 3, true);
                world.done();
            },
            &|world: &World| {
                world.touch(1, 40, true);
                world.increment(1, 40);
                world.touch(1, 3, false);
                world.touch(1, 3, true);
                world.done();
            },
        ],
        |world| world.check(true),
    );
}

#[test]
fn two_writers_and_a_moving_block() {
    // A page in the first part of the copy, and one within the stall bound of the end.
    search(
        |scheduler| World::new(9, &[3, 500], 2, scheduler),
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 3, false);
                world.touch(0, 3, true);
                world.increment(0, 500);
                world.done();
            },
            &|world: &World| {
                world.touch(1, 500, false);
                world.increment(1, 500);
                world.touch(1, 3, true);
                world.done();
            },
        ],
        |world| world.check(true),
    );
}

#[test]
fn a_writer_helps_while_another_one_writes() {
    search(
        |scheduler| {
            let world = World::new(9, &[3, 500], 2, scheduler);
            world.host.engine.policy().set_stall_frames(512);
            world
        },
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 500, true);
                world.touch(0, 3, true);
                world.done();
            },
            &|world: &World| {
                world.increment(1, 3);
                world.touch(1, 500, true);
                world.done();
            },
        ],
        |world| world.check(true),
    );
}

#[test]
fn a_stall_bound_that_changes_in_the_middle() {
    search(
        |scheduler| World::new(9, &[3, 500], 3, scheduler),
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 500, true);
                world.done();
            },
            &|world: &World| {
                world.touch(1, 3, true);
                world.touch(1, 500, true);
                world.done();
            },
            &|world: &World| {
                world.host.engine.policy().set_stall_frames(512);
                world.host.hardware.pause();
                world.host.engine.policy().set_stall_frames(0);
                world.done();
            },
        ],
        |world| world.check(true),
    );
}

fn turn_round(order: u8) {
    search(
        |scheduler| World::new(order, &[3, 500], 2, scheduler),
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 3, true);
                world.increment(0, 500);
                world.done();
            },
            &|world: &World| {
                let (engine, host) = (&world.host.engine, &world.host);
                host.hardware.pause();
                let _ = engine.cancel(host, JobId::new(1));
                let scope = Scope::Guest(world.guest);
                engine.submit(Request::migrate(scope, controller(0))).unwrap();
                host.hardware.pause();
                engine.submit(Request::migrate(scope, controller(1))).unwrap();
                world.done();
            },
        ],
        |world| world.check(true),
    );
}

#[test]
fn jobs_about_pages_are_cancelled_and_turned_round() {
    turn_round(0);
}

#[test]
fn jobs_about_blocks_are_cancelled_and_turned_round() {
    turn_round(9);
}

#[test]
fn no_memory_for_tables_or_targets() {
    for (order, fail_after) in [(0, 0), (0, 5), (9, 0), (9, 1)] {
        search(
            |scheduler| {
                let world = World::new(order, &[3, 500], 1, scheduler);
                world.host.hardware.fail_tables.store(true, Ordering::Relaxed);
                world.host.hardware.allocator().fail_after = Some(fail_after);
                world
            },
            &[&World::work, &|world: &World| {
                for _ in 0..3 {
                    world.touch(0, 3, true);
                    world.increment(0, 500);
                }
                world.done();
            }],
            |world| world.check(false),
        );
    }
}

#[test]
fn two_writers_and_an_area_that_is_coalesced() {
    search(
        |scheduler| {
            let mut host = Host::new(4 * PAGEBLOCK_FRAMES, Some(scheduler));
            let guest = host.add_guest();
            host.add_ram(guest, BASE, M2, 0, only(0));
            // The last page is in another block, so the area has to move.
            let scope = Scope::Range(guest, at(511), K4);
            host.engine.submit(Request::migrate(scope, controller(1))).unwrap();
            host.run_jobs();
            let spare = host.allocate(guest, 0, &only(0), at(0)).unwrap();
            host.engine.submit(Request::migrate(scope, controller(0))).unwrap();
            host.run_jobs();
            host.release(guest, spare, 0, crate::phys::frame::Contents::Dirty);
            assert_eq!(host.leaf_counts(guest), [0, 0, 512]);
            for page in [3, 40] {
                let pa = host.any_space(guest).with(|s| s.translate(at(page))).unwrap();
                host.hardware.watch(at(page), Frame::containing(pa));
            }
            World { host, guest, busy: AtomicUsize::new(2) }
        },
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 3, true);
                world.increment(0, 40);
                world.touch(0, 3, true);
                world.done();
            },
            &|world: &World| {
                world.touch(1, 40, true);
                world.increment(1, 40);
                world.touch(1, 3, false);
                world.done();
            },
        ],
        |world| {
            world.check(false);
            assert_eq!(world.host.leaf_counts(world.guest), [0, 1, 0]);
        },
    );
}

fn end_guest(order: u8) {
    search(
        |scheduler| World::new(order, &[3, 500], 2, scheduler),
        &[
            &World::work,
            &|world: &World| {
                world.touch(0, 3, true);
                world.increment(0, 500);
                world.done();
            },
            &|world: &World| {
                // Its vCPUs are stopped first.
                while world.busy.load(Ordering::Relaxed) > 1 {
                    world.host.relax();
                }
                world.host.is_gone.store(true, Ordering::Relaxed);
                world.host.engine.abandon(&world.host, world.host.any_space(world.guest));
                world.host.check();
                world.done();
            },
        ],
        |world| world.check(false),
    );
}

#[test]
fn a_guest_ends_while_its_pages_move() {
    end_guest(0);
}

#[test]
fn a_guest_ends_while_its_blocks_move() {
    end_guest(9);
}
