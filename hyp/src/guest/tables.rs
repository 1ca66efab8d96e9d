//! The allocator of a guest's stage 2 tables.

use crate::hyp_mem::pages;
use crate::observe::log;
use core::sync::atomic::AtomicU64;
use stage2::addr::Frame;
use stage2::owner::{GuestId, Owner};
use stage2::phys::frame::Contents;
use stage2::table::TableMemory;

/// Allocator of a guest's tables.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(super) id: GuestId,
}

impl TableMemory for Tables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        let allocated = pages::allocate(order, Owner::Tables(self.id));
        // The caller learns only that there is none.
        allocated.inspect_err(|error| log::warn!("tables of {}: {}", self.id, error)).ok()
    }

    fn free(&mut self, frame: Frame, order: u8) {
        pages::free(frame, order, Owner::Tables(self.id), Contents::Zeroed);
    }

    #[inline]
    fn table(&self, frame: Frame) -> &[AtomicU64; 512] {
        // SAFETY: `frame` came from `allocate`: mapped at its linear address, 4 KiB, used as a table only.
        unsafe { pages::address(frame).cast().as_ref() }
    }
}
