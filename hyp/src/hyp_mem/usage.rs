//! The memory that Ballast uses itself, for the operator.

use super::{mmu, pages};
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::addr::FRAME_SIZE;
use stage2::owner::Owner;

/// Bytes of the frame table.
static FRAME_TABLE: AtomicU64 = AtomicU64::new(0);
/// Bytes of the image that went back to the allocator after boot.
static RELEASED: AtomicU64 = AtomicU64::new(0);

/// Memory that Ballast uses itself, in bytes, without guests' stage 2 tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The image as it is loaded.
    pub(crate) image: u64,
    /// Zeroed data, heap and stacks.
    pub(crate) own: u64,
    /// The frame table.
    pub(crate) frame_table: u64,
}

/// Records the size of the frame table.
pub(crate) fn set_frame_table(bytes: u64) {
    FRAME_TABLE.store(bytes, Ordering::Relaxed);
}

/// Records how much of the image went back to the allocator after boot.
pub(crate) fn set_released(bytes: u64) {
    RELEASED.store(bytes, Ordering::Relaxed);
}

/// Returns the memory that Ballast uses now.
pub(crate) fn usage() -> Usage {
    let (image, whole) = (mmu::image_file_size(), mmu::image_size());
    let frames = pages::MEMORY.resident_everywhere(Owner::Hypervisor);
    Usage {
        image,
        own: whole - image - RELEASED.load(Ordering::Relaxed) + frames * FRAME_SIZE,
        frame_table: FRAME_TABLE.load(Ordering::Relaxed),
    }
}
