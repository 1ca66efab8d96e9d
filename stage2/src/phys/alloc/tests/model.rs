//! Memory against a plain model: one record a frame.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::isolation::{BLOCK, pool, pools};
use crate::addr::PAGEBLOCK_FRAMES;
use crate::phys::alloc::check::{Check, Translate, Translation};
use crate::phys::alloc::tests::*;
use crate::phys::alloc::{Isolated, Requester};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Model {
    Reserved,
    Free,
    Retired,
    /// In use: owner, first frame and order.
    Used(Owner, u64, u8),
}

#[derive(Clone, Copy, Debug)]
struct FrameModel {
    model: Model,
    zone: Zone,
    controller: ControllerId,
    pool: Option<PoolId>,
    is_block: bool,
    is_isolated: bool,
    is_doomed: bool,
}

/// An empty stage 2: these tests map nothing.
struct Nothing;

impl Translate for Nothing {
    fn translate(&self, _: GuestId, _: Ipa) -> Translation {
        Translation::Nowhere
    }
}

pub(crate) fn assert_in_order(memory: &Memory<'_>, map: &BootMap) {
    let mut check = Check::new();
    let mut problems = Vec::new();
    while !check.step(memory, &Nothing, 64, &mut |problem| problems.push(problem.to_string())) {}
    assert_eq!(problems, Vec::<String>::new());
    let summary = check.summary();
    assert_eq!((summary.frames, summary.busy_count), (map.ram_frames(), 0));
}

#[derive(Clone, Debug)]
enum Step {
    Allocate {
        order: u8,
        kind: MemoryKind,
        owner: u8,
        on: Option<u8>,
    },
    /// Allocates `count` single frames and frees all but every `keep`th.
    Singles {
        kind: MemoryKind,
        owner: u8,
        count: u8,
        keep: usize,
    },
    Free(prop::sample::Index),
    /// A free that must be refused.
    Wrong(prop::sample::Index, u8),
    Divide(prop::sample::Index),
    Unite(prop::sample::Index),
    Retire(prop::sample::Index, u64),
    Isolate(prop::sample::Index, u64, Option<u8>),
    Take(prop::sample::Index, u64),
    Release(prop::sample::Index, u64),
    EndIsolation,
}

fn steps() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let order = prop_oneof![6 => 0u8..10, 1 => Just(9u8), 1 => 9u8..13];
    let kind = prop_oneof![2 => Just(MemoryKind::Movable), 1 => Just(MemoryKind::Unmovable)];
    let allocate = (order, kind, 0u8..3, proptest::option::of(0u8..2))
        .prop_map(|(order, kind, owner, on)| Step::Allocate { order, kind, owner, on });
    let kind = prop_oneof![1 => Just(MemoryKind::Movable), 1 => Just(MemoryKind::Unmovable)];
    let singles = (kind, 0u8..3, 1u8..70, 2usize..9).prop_map(|(kind, owner, count, keep)| Step::Singles {
        kind,
        owner,
        count,
        keep,
    });
    prop_oneof![
        12 => allocate,
        4 => singles,
        3 => (index(), 0u8..4).prop_map(|(at, how)| Step::Wrong(at, how)),
        7 => index().prop_map(Step::Free),
        2 => index().prop_map(Step::Divide),
        2 => index().prop_map(Step::Unite),
        1 => (index(), 1u64..600).prop_map(|(at, frames)| Step::Retire(at, frames)),
        3 => (index(), 1u64..3000, proptest::option::of(0u8..2)).prop_map(|(at, f, pool)| Step::Isolate(at, f, pool)),
        3 => (index(), 1u64..1500).prop_map(|(at, frames)| Step::Take(at, frames)),
        3 => (index(), 1u64..1500).prop_map(|(at, frames)| Step::Release(at, frames)),
        2 => Just(Step::EndIsolation),
    ]
}

struct World<'m, 'a> {
    memory: &'m Memory<'a>,
    places: BTreeMap<u64, FrameModel>,
    numbers: Vec<u64>,
    isolated: Option<(Isolated, Option<u8>)>,
}

impl<'m, 'a> World<'m, 'a> {
    fn new(memory: &'m Memory<'a>, map: &BootMap) -> Self {
        let mut places = BTreeMap::new();
        for segment in map.segments() {
            for number in segment.range.start()..segment.range.end() {
                let place = FrameModel {
                    model: if segment.reservation.is_some() { Model::Reserved } else { Model::Free },
                    zone: if segment.movable.is_some() { Zone::Movable } else { Zone::Normal },
                    controller: segment.controller,
                    pool: segment.pool.and_then(PoolId::try_new),
                    is_block: matches!(segment.movable, Some(MovableMark::Block(_))),
                    is_isolated: false,
                    is_doomed: false,
                };
                places.insert(number, place);
            }
        }
        let numbers = places.keys().copied().collect();
        Self { memory, places, numbers, isolated: None }
    }

    fn used(&self) -> Vec<(u64, u8, Owner)> {
        let heads = self.places.iter().filter_map(|(&number, place)| match place.model {
            Model::Used(owner, head, order) if head == number => Some((number, order, owner)),
            _ => None,
        });
        heads.collect()
    }

    fn pick(&self, index: &prop::sample::Index) -> Option<(u64, u8, Owner)> {
        let used = self.used();
        (!used.is_empty()).then(|| used[index.index(used.len())])
    }

    fn set(&mut self, numbers: core::ops::Range<u64>, mut change: impl FnMut(u64, &mut FrameModel)) {
        for (&number, place) in self.places.range_mut(numbers) {
            change(number, place);
        }
    }

    /// Returns whether a free block of `order`, at most a pageblock's, could be allocated.
    fn has_free(&self, order: u8, only: Option<ControllerId>, zone: Zone, kind: MemoryKind) -> bool {
        let size = 1u64 << order;
        self.places.keys().filter(|number| number.is_multiple_of(size)).any(|&first| {
            (first..first + size).all(|number| {
                self.places.get(&number).is_some_and(|place| {
                    place.model == Model::Free
                        && !place.is_isolated
                        && place.zone == zone
                        && only.is_none_or(|only| only == place.controller)
                        && (kind == MemoryKind::Movable || place.pool.is_none())
                })
            })
        })
    }

    fn allocate(&mut self, order: u8, kind: MemoryKind, owner: u8, on: Option<u8>) {
        let only = on.map(controller);
        let placement = only.map_or(Placement::Any, Placement::only);
        let owner = guest(owner);
        let request = Request { order, kind, owner, placement, mapping: None };
        match self.memory.allocate(&request) {
            Ok(block) => {
                let first = block.frame.number();
                assert!(first.is_multiple_of(1 << order));
                if block.zone == Zone::Normal && kind == MemoryKind::Movable && order <= 9 {
                    assert!(!self.has_free(order, only, Zone::Movable, kind), "MOVABLE comes first");
                }
                for number in first..first + (1 << order) {
                    let place = self.places.get_mut(&number).expect("RAM");
                    assert_eq!(place.model, Model::Free);
                    assert!(!place.is_isolated && place.zone == block.zone);
                    assert_eq!(place.controller, block.controller);
                    assert!(only.is_none_or(|only| only == place.controller));
                    assert!(
                        kind == MemoryKind::Movable || place.zone == Zone::Normal && place.pool.is_none()
                    );
                    place.model = Model::Used(owner, first, order);
                }
            }
            Err(_) if order <= 9 => {
                assert!(!self.has_free(order, only, Zone::Normal, kind), "order {order} {kind} {only:?}");
                assert!(kind == MemoryKind::Unmovable || !self.has_free(order, only, Zone::Movable, kind));
            }
            Err(_) => {}
        }
    }

    /// Frees frames in use; doomed ones retire.
    fn freed(&mut self, numbers: core::ops::Range<u64>) {
        self.set(numbers, |_, place| {
            place.model = if place.is_doomed { Model::Retired } else { Model::Free };
            place.is_doomed = false;
        });
    }

    fn range(&self, at: &prop::sample::Index, frames: u64) -> FrameRange {
        let first = self.numbers[at.index(self.numbers.len())];
        FrameRange::from_numbers(first, first + frames).unwrap()
    }

    fn unite(&mut self, index: &prop::sample::Index) {
        let Some((number, order, owner)) = self.pick(index) else { return };
        let (size, up) = (1u64 << (order + 9), order + 9);
        if up > MAX_ORDER {
            return;
        }
        let first = number & !(size - 1);
        let frame = Frame::try_new(first).unwrap();
        let kind = self.memory.occupants(FrameRange::try_new(frame, 1).unwrap()).next().map(|o| o.kind);
        let can = (first..first + size).all(|number| {
            let head = number & !((1 << order) - 1);
            self.places.get(&number).is_some_and(|place| place.model == Model::Used(owner, head, order))
        });
        match self.memory.unite(frame, up, owner, None) {
            Ok(()) => {
                assert!(can);
                self.set(first..first + size, |_, place| place.model = Model::Used(owner, first, up));
            }
            Err(error) => {
                let may_differ = error.reason == BlockReason::Unlike && kind.is_some();
                assert!(!can || may_differ, "{error}");
            }
        }
    }

    fn isolate(&mut self, range: FrameRange, by: Option<u8>) {
        if self.isolated.is_some() {
            return;
        }
        let requester = by.map_or(Requester::Anyone, |number| Requester::Pool(pool(number)));
        let whole = range.aligned_around(PAGEBLOCK_FRAMES);
        let touched = self.places.range(whole.start()..whole.end());
        let may = touched.clone().all(|(_, place)| match by {
            None => place.pool.is_none() && !place.is_block,
            Some(number) => place.pool == Some(pool(number)),
        });
        let parts: Vec<Option<&FrameModel>> =
            (range.start()..range.end()).map(|number| self.places.get(&number)).collect();
        let zone = parts[0].map(|place| (place.zone, place.controller));
        let is_movable = |place: &&FrameModel| match place.model {
            Model::Free => true,
            Model::Used(..) => !place.is_doomed,
            Model::Reserved | Model::Retired => false,
        };
        let fits = parts.iter().all(|place| {
            place.is_some_and(|place| Some((place.zone, place.controller)) == zone && is_movable(&place))
        });
        match self.memory.isolate(range, requester) {
            Ok(isolated) => {
                assert!(may && fits, "{range}");
                self.set(whole.start()..whole.end(), |_, place| place.is_isolated = true);
                self.isolated = Some((isolated, by));
            }
            Err(error) => {
                let is_pinned = matches!(error.reason, crate::phys::alloc::IsolateReason::Pinned(_));
                assert!(!may || !fits || is_pinned, "{error}");
            }
        }
    }

    fn take(&mut self, at: &prop::sample::Index, frames: u64) {
        let Some((isolated, by)) = &self.isolated else { return };
        let range = isolated.range();
        let first = range.start() + at.index(range.frames() as usize) as u64;
        let part = FrameRange::from_numbers(first, range.end().min(first + frames)).unwrap();
        let owner = by.map_or(Owner::Hypervisor, |number| Owner::Pool(pool(number)));
        let can = self.places.range(part.start()..part.end()).all(|(_, place)| place.model == Model::Free);
        let taken = self.memory.take_isolated(isolated, part, owner);
        assert_eq!(taken.is_ok(), can);
        if can {
            let mut number = part.start();
            while number < part.end() {
                let left = part.end() - number;
                let order = number.trailing_zeros().min(left.ilog2()).min(9) as u8;
                self.set(number..number + (1 << order), |_, place| {
                    place.model = Model::Used(owner, number, order);
                });
                number += 1 << order;
            }
        }
    }

    fn release(&mut self, index: &prop::sample::Index, frames: u64) {
        let Some((number, order, owner)) = self.pick(index) else { return };
        let range =
            FrameRange::from_numbers(number + (1 << order) / 2, number + frames).filter(|r| !r.is_empty());
        let Some(range) = range else { return };
        let is_own = |number: u64| {
            self.places
                .get(&number)
                .is_some_and(|place| matches!(place.model, Model::Used(o, ..) if o == owner))
        };
        let can = (range.start()..range.end()).all(is_own);
        let done = self.memory.release_range(range, owner, Contents::Dirty);
        assert_eq!(done.is_ok(), can, "{range} {done:?}");
        if can {
            self.freed(range.start()..range.end());
            // The blocks at the edges may have any new shape with the same owner.
            let around: Vec<u64> = self
                .places
                .keys()
                .copied()
                .filter(|&number| {
                    matches!(self.places[&number].model, Model::Used(_, head, order)
                    if head < range.end() && head + (1 << order) > range.start())
                })
                .collect();
            for number in around {
                let info = self.memory.frame_info(Frame::try_new(number).unwrap()).unwrap();
                assert_eq!((info.state, info.owner), (State::Used, Some(owner)));
                let end = info.head.number() + (1 << info.order);
                assert!(end <= range.start() || info.head.number() >= range.end());
                self.places.get_mut(&number).unwrap().model =
                    Model::Used(owner, info.head.number(), info.order);
            }
        }
    }

    fn free_wrongly(&mut self, index: &prop::sample::Index, how: u8) {
        let free = |number: u64, order, owner| {
            self.memory.free(Frame::try_new(number).unwrap(), order, owner, Contents::Dirty)
        };
        let done = match (how, self.pick(index)) {
            (0, Some((number, order, owner))) => free(number, if order == 0 { 1 } else { order - 1 }, owner),
            (1, Some((number, order, _))) => free(number, order, Owner::Tables(GuestId::try_new(0).unwrap())),
            (2, Some((number, order, owner))) if order > 0 => free(number + 1, 0, owner),
            _ => {
                let number = self.numbers[index.index(self.numbers.len())];
                if matches!(self.places[&number].model, Model::Used(..)) {
                    return;
                }
                free(number, 0, guest(0))
            }
        };
        assert!(done.is_err());
    }

    fn do_step(&mut self, step: &Step) {
        match step {
            Step::Allocate { order, kind, owner, on } => self.allocate(*order, *kind, *owner, *on),
            Step::Free(index) => {
                let Some((number, order, owner)) = self.pick(index) else { return };
                self.memory.free(Frame::try_new(number).unwrap(), order, owner, Contents::Dirty).unwrap();
                self.freed(number..number + (1 << order));
            }
            Step::Singles { kind, owner, count, keep } => {
                let before = self.used();
                (0..*count).for_each(|_| self.allocate(0, *kind, *owner, None));
                let new = self.used().into_iter().filter(|used| !before.contains(used));
                for (at, (number, order, owner)) in new.collect::<Vec<_>>().into_iter().enumerate() {
                    if at % keep != 0 {
                        let frame = Frame::try_new(number).unwrap();
                        self.memory.free(frame, order, owner, Contents::Dirty).unwrap();
                        self.freed(number..number + (1 << order));
                    }
                }
            }
            Step::Wrong(index, how) => self.free_wrongly(index, *how),
            Step::Divide(index) => {
                let Some((number, order, owner)) = self.pick(index) else { return };
                let done = self.memory.divide(Frame::try_new(number).unwrap(), order, owner);
                assert_eq!(done.is_ok(), order >= 9);
                if done.is_ok() {
                    self.set(number..number + (1 << order), |number, place| {
                        place.model = Model::Used(owner, number & !((1 << (order - 9)) - 1), order - 9);
                    });
                }
            }
            Step::Unite(index) => self.unite(index),
            Step::Retire(at, frames) => {
                let range = self.range(at, *frames);
                let before: Vec<_> = (range.start()..range.end())
                    .map(|number| self.places.get(&number).map(|p| p.model))
                    .collect();
                let done = self.memory.retire(range);
                let count =
                    |wanted: fn(&Option<Model>) -> bool| before.iter().filter(|m| wanted(m)).count() as u64;
                assert_eq!(done.now, count(|model| *model == Some(Model::Free)));
                assert_eq!(done.doomed, count(|model| matches!(model, Some(Model::Used(..)))));
                assert_eq!(done.before, count(|model| *model == Some(Model::Retired)));
                assert_eq!(done.untouched, count(|model| matches!(model, None | Some(Model::Reserved))));
                self.set(range.start()..range.end(), |_, place| match place.model {
                    Model::Free => place.model = Model::Retired,
                    Model::Used(..) => place.is_doomed = true,
                    Model::Reserved | Model::Retired => {}
                });
            }
            Step::Isolate(at, frames, by) => {
                let base = if by.is_some() { BLOCK >> 12 } else { self.numbers[0] };
                let range = self.range(at, *frames);
                let shift = if by.is_some() { base + range.start() % 4096 } else { range.start() };
                self.isolate(FrameRange::from_numbers(shift, shift + frames).unwrap(), *by);
            }
            Step::Take(at, frames) => self.take(at, *frames),
            Step::Release(index, frames) => self.release(index, *frames),
            Step::EndIsolation => {
                if let Some((isolated, _)) = self.isolated.take() {
                    self.memory.end_isolation(isolated);
                    let all = self.numbers[0]..self.numbers[self.numbers.len() - 1] + 1;
                    self.set(all, |_, place| place.is_isolated = false);
                }
            }
        }
    }

    fn compare(&self) {
        for (&number, place) in &self.places {
            let info = self.memory.frame_info(Frame::try_new(number).unwrap()).unwrap();
            let model = match info.state {
                State::Free => Model::Free,
                State::Reserved => Model::Reserved,
                State::Retired => Model::Retired,
                State::Used => Model::Used(info.owner.unwrap(), info.head.number(), info.order),
            };
            assert_eq!(model, place.model, "frame {number:#x}");
            assert_eq!((info.zone, info.pool, info.is_isolated), (place.zone, place.pool, place.is_isolated));
            assert_eq!(info.is_doomed, place.is_doomed, "frame {number:#x}");
        }
    }
}

/// Returns the map of [`pools`] with unaligned reservations.
fn machine() -> BootMap {
    let mut map = pools();
    map.reserve(BASE, 0x8_3000, ReservationKind::Image, "image").unwrap();
    map.reserve(BASE + 9 * MIB + 0x5000, 0x1000, ReservationKind::Firmware, "firmware").unwrap();
    map.add_ram(controller(1), BLOCK + 66 * MIB + 0x3000, 5 * MIB).unwrap();
    map
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases::cases(48, 1), failure_persistence: None, ..Default::default() })]

    /// Memory does with any sequence of requests what a plain array of frames does, and keeps every rule of `check`.
    #[test]
    fn memory_equals_a_plain_array(steps in proptest::collection::vec(steps(), 1..if cfg!(miri) { 12 } else { 160 })) {
        let map = machine();
        let words = words(&map);
        let memory = Memory::new();
        memory.boot(&map, &words, 0).unwrap();
        let mut world = World::new(&memory, &map);
        assert_in_order(&memory, &map);
        for step in &steps {
            world.do_step(step);
        }
        assert_in_order(&memory, &map);
        world.compare();
        world.do_step(&Step::EndIsolation);
        for (number, order, owner) in world.used() {
            memory.free(Frame::try_new(number).unwrap(), order, owner, Contents::Dirty).unwrap();
            world.freed(number..number + (1 << order));
        }
        assert_in_order(&memory, &map);
        world.compare();
    }
}
