//! EL2's heap: for what is made at boot, when a guest starts, or by the monitor; never on a trap's path.
//!
//! What is put there is bounded by limits that the configuration is checked against (guests, vCPUs, the size of a
//! guest's device tree), so its size is a constant.

use buddy_system_allocator::LockedHeap;
use core::cell::UnsafeCell;

/// Bytes of the heap.
const SIZE: usize = 256 * 1024;

#[repr(C, align(4096))]
struct Storage(UnsafeCell<[u8; SIZE]>);

// SAFETY: handed to the allocator once, in `init`.
unsafe impl Sync for Storage {}

#[unsafe(link_section = ".bss.zheap")]
static STORAGE: Storage = Storage(UnsafeCell::new([0; SIZE]));

#[global_allocator]
static HEAP: LockedHeap<20> = LockedHeap::empty();

/// Gives the allocator its memory. Once.
pub(super) fn init() {
    // Its end lies beyond what the code model reaches, so it is not to be folded into one address.
    let start = core::hint::black_box(STORAGE.0.get().addr());
    // SAFETY: the storage is used by nobody else, and this runs once.
    unsafe { HEAP.lock().init(start, SIZE) };
}

/// Bytes in use and in all.
pub(super) fn usage() -> (usize, usize) {
    let heap = HEAP.lock();
    (heap.stats_alloc_actual(), heap.stats_total_bytes())
}
