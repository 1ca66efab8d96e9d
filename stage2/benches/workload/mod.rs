//! The workloads, for Ballast's allocator and for the crate buddy_system_allocator.

use std::sync::atomic::AtomicU32;

use stage2::addr::Frame;
use stage2::controller::ControllerId;
use stage2::owner::Owner;
use stage2::phys::alloc::{Memory, MemoryKind, Request};
use stage2::phys::frame::{Contents, Footprint};
use stage2::phys::map::BootMap;
use stage2::phys::placement::Placement;

/// The first address of RAM.
pub(crate) const BASE: u64 = 0x4000_0000;

/// An allocator of frames.
pub(crate) trait Frames {
    /// The allocator's handle of a block.
    type Block: Copy;

    /// Creates an allocator over `gib` GiB of free RAM.
    fn new(gib: u64) -> Self;
    /// Allocates a block of `order`.
    fn allocate(&mut self, order: u8) -> Self::Block;
    /// Frees a block.
    fn free(&mut self, block: Self::Block, order: u8);
}

/// An allocator that does nothing, to measure the cost of the calls. Used by the benchmark of instructions only.
#[allow(dead_code)]
pub(crate) struct Nothing;

impl Frames for Nothing {
    type Block = u64;

    fn new(_: u64) -> Self {
        Self
    }

    #[inline(never)]
    fn allocate(&mut self, _: u8) -> u64 {
        std::hint::black_box(());
        0
    }

    #[inline(never)]
    fn free(&mut self, _: u64, _: u8) {
        std::hint::black_box(());
    }
}

/// Ballast's allocator with one controller and all memory NORMAL, including its lock.
pub(crate) struct Ballast {
    memory: Box<Memory<'static>>,
    request: Request,
}

/// Returns zeroed words of a frame table. They are not touched yet, so unused ones cost nothing.
pub(crate) fn words(map: &BootMap) -> &'static [AtomicU32] {
    let words: &'static mut [u32] = vec![0u32; Footprint::of(map).words() as usize].leak();
    // SAFETY: `AtomicU32` has the layout of `u32`, the memory is never freed, and the only other reference to it ends
    // here.
    unsafe { &*(std::ptr::from_mut(words) as *const [AtomicU32]) }
}

impl Frames for Ballast {
    type Block = Frame;

    fn new(gib: u64) -> Self {
        let mut map = BootMap::new();
        map.add_ram(ControllerId::try_new(0).expect("a controller"), BASE, gib << 30).expect("RAM");
        let memory = Box::new(Memory::new());
        memory.boot(&map, words(&map), 0).expect("boot");
        let request = Request {
            order: 0,
            kind: MemoryKind::Unmovable,
            owner: Owner::Hypervisor,
            placement: Placement::Any,
            mapping: None,
        };
        Self { memory, request }
    }

    #[inline(always)]
    fn allocate(&mut self, order: u8) -> Frame {
        self.request.order = order;
        self.memory.allocate(&self.request).expect("a block").frame
    }

    #[inline(always)]
    fn free(&mut self, frame: Frame, order: u8) {
        self.memory.free(frame, order, Owner::Hypervisor, Contents::Dirty).expect("a block in use");
    }
}

/// The allocator of buddy_system_allocator, without a lock.
pub(crate) struct BuddySystem(buddy_system_allocator::FrameAllocator<33>);

impl Frames for BuddySystem {
    type Block = u64;

    fn new(gib: u64) -> Self {
        let mut frames = buddy_system_allocator::FrameAllocator::new();
        let first = (BASE >> 12) as usize;
        frames.add_frame(first, first + ((gib as usize) << 18));
        Self(frames)
    }

    #[inline(always)]
    fn allocate(&mut self, order: u8) -> u64 {
        self.0.alloc(1 << order).expect("a block") as u64
    }

    #[inline(always)]
    fn free(&mut self, frame: u64, order: u8) {
        self.0.dealloc(frame as usize, 1 << order);
    }
}

/// A fixed sequence of pseudorandom numbers.
pub(crate) struct Sequence(u64);

impl Sequence {
    /// Creates the sequence.
    pub(crate) fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    /// Returns the next number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Shuffles `items`.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index + 1));
        }
    }
}

/// A workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// Allocate a block of an order and free it again, with all other memory free.
    Pair(u8),
    /// Allocate blocks of an order one after the other.
    Fill(u8),
    /// Free such blocks in the order of their allocation.
    Drain(u8),
    /// Free such blocks in random order.
    DrainShuffled(u8),
    /// Free one frame and allocate one frame, with every second frame free at random.
    Churn,
}

/// The state for a measurement.
pub(crate) struct Prepared<F: Frames> {
    frames: F,
    held: Vec<F::Block>,
    sequence: Sequence,
    count: usize,
}

impl Work {
    /// Prepares an allocator over `gib` GiB for the measurement of `count` operations.
    pub(crate) fn prepare<F: Frames>(self, gib: u64, count: usize) -> Prepared<F> {
        let mut frames = F::new(gib);
        let mut sequence = Sequence::new();
        let mut held = Vec::with_capacity(count.max(1 << 20));
        match self {
            Self::Pair(_) | Self::Fill(_) => {}
            Self::Drain(order) => held.extend((0..count).map(|_| frames.allocate(order))),
            Self::DrainShuffled(order) => {
                held.extend((0..count).map(|_| frames.allocate(order)));
                sequence.shuffle(&mut held);
            }
            Self::Churn => {
                // 1 Mi frames in use, half of them freed again: 512 Ki free frames, with free neighbours only by
                // chance.
                held.extend((0..1 << 20).map(|_| frames.allocate(0)));
                sequence.shuffle(&mut held);
                held.drain(1 << 19..).for_each(|frame| frames.free(frame, 0));
            }
        }
        Prepared { frames, held, sequence, count }
    }

    /// Runs the workload. A pair and a turn of the churn count as one operation.
    #[inline(never)]
    pub(crate) fn run<F: Frames>(self, prepared: &mut Prepared<F>) {
        let Prepared { frames, held, sequence, count } = prepared;
        match self {
            Self::Pair(order) => {
                for _ in 0..*count {
                    let frame = std::hint::black_box(frames.allocate(order));
                    frames.free(frame, order);
                }
            }
            Self::Fill(order) => held.extend((0..*count).map(|_| frames.allocate(order))),
            Self::Drain(order) | Self::DrainShuffled(order) => {
                held.iter().for_each(|&block| frames.free(block, order));
                held.clear();
            }
            Self::Churn => {
                for _ in 0..*count {
                    let index = sequence.below(held.len());
                    frames.free(held[index], 0);
                    held[index] = frames.allocate(0);
                }
            }
        }
    }

    /// Returns the maximum number of operations in `gib` GiB.
    pub(crate) fn limit(self, gib: u64) -> usize {
        match self {
            Self::Pair(_) | Self::Churn => usize::MAX,
            Self::Fill(order) | Self::Drain(order) | Self::DrainShuffled(order) => {
                (gib as usize) << 18 >> order
            }
        }
    }
}
