//! EL2's heap, for allocations at boot, at a guest's start, and by the monitor; never on a trap's path.
//!
//! Limits that the configuration is checked against bound its size (guests, vCPUs, the size of a guest's device tree). The
//! part in the image suffices for two guests. For more it grows by frames, which it never gives back.

use super::pages;
use buddy_system_allocator::{Heap, LockedHeapWithRescue};
use core::alloc::Layout;
use core::cell::UnsafeCell;
use stage2::addr::FRAME_SIZE;
use stage2::owner::Owner;

/// Bytes of the heap in the image: 42 KiB for allocations before there is other memory (the multiplexer), the rest for two
/// guests.
const SIZE: usize = 60 * 1024;
/// Order of the blocks by which it grows: 16 KiB, a console's ring.
const MORE_ORDER: u8 = 2;

#[repr(C, align(4096))]
struct Storage(UnsafeCell<[u8; SIZE]>);

// SAFETY: handed to the allocator once, in `init`.
unsafe impl Sync for Storage {}

#[unsafe(link_section = ".bss.zheap")]
static STORAGE: Storage = Storage(UnsafeCell::new([0; SIZE]));

#[global_allocator]
static HEAP: LockedHeapWithRescue<20> = LockedHeapWithRescue::new(grow);

/// Adds frames to the heap, once there is memory. The heap's lock comes before those of memory and of EL2's tables, under
/// which nobody allocates from the heap.
fn grow(heap: &mut Heap<20>, layout: &Layout) {
    let frames = layout.size().max(layout.align()).div_ceil(FRAME_SIZE as usize).next_power_of_two();
    let order = MORE_ORDER.max(frames.trailing_zeros() as u8);
    if let Ok(frame) = pages::allocate(order, Owner::Hypervisor) {
        let start = pages::address(frame).addr().get();
        // SAFETY: just allocated, mapped, and never freed.
        unsafe { heap.add_to_heap(start, start + (FRAME_SIZE << order) as usize) };
    }
}

/// Gives the allocator its memory. Once.
pub(crate) fn init() {
    let start = (&raw const STORAGE).addr();
    // SAFETY: the storage is used by nobody else, and this runs once.
    unsafe { HEAP.lock().init(start, SIZE) };
}
