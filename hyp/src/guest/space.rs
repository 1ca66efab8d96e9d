//! A guest's memory: the frames behind its RAM and the stage 2 tables that say where they appear.

use super::Guest;
use crate::arch::{cache, cpu, own, tlb::Tlb, trap};
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::AtomicU64;
use stage2::addr::{FRAME_SIZE, Frame, Ipa, MAX_ORDER, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE, Pa};
use stage2::frame::{Contents, Mapping, State};
use stage2::memory::{Kind, Request};
use stage2::owner::{GuestId, Owner};
use stage2::placement::Placement;
use stage2::table::{Attributes, Geometry, Level, Stage2, TableMemory};

/// Orders of the blocks that back RAM, largest first: one for each size of leaf.
const ORDERS: [u8; 3] = [MAX_ORDER, PAGEBLOCK_ORDER, 0];

/// Where a guest's tables come from.
#[derive(Debug)]
pub(super) struct Tables {
    id: GuestId,
}

impl TableMemory for Tables {
    fn allocate(&mut self, order: u8) -> Option<Frame> {
        own::allocate(order, Owner::Tables(self.id)).ok()
    }

    fn free(&mut self, frame: Frame, order: u8) {
        own::free(frame, order, Owner::Tables(self.id), Contents::Zeroed);
    }

    #[inline]
    fn table(&self, frame: Frame) -> &[AtomicU64; 512] {
        // SAFETY: `frame` came from `allocate`: mapped at its linear address, 4 KiB, used as a table only.
        unsafe { own::address(frame).cast().as_ref() }
    }
}

/// A piece of RAM to be backed.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where the guest sees it.
    pub ipa: Ipa,
    /// Bytes, a multiple of 4 KiB.
    pub size: u64,
    /// The largest order to back it with.
    pub order: u8,
    /// Whether it may be moved later.
    pub kind: Kind,
    /// Behind which controllers.
    pub placement: Placement,
    /// Whether it lies at the same physical address, which was kept for it at boot.
    pub is_in_place: bool,
}

/// A guest's memory.
#[derive(Debug)]
pub(super) struct Space {
    id: GuestId,
    stage2: Stage2<Tables, Tlb>,
    vtcr: u64,
    size: u64,
}

/// VMIDs: 0 is nobody's, so that a guest's is its number and one.
fn vmid(id: GuestId) -> u8 {
    id.index() as u8 + 1
}

impl Space {
    /// Gets frames for all of the guest's RAM and maps them. On failure nothing stays allocated.
    pub(super) fn build(guest: &'static Guest) -> Result<Self, String> {
        let id = guest.id();
        let pa_bits = crate::arch::features::pa_bits();
        let geometry = Geometry::new(pa_bits.min(40), pa_bits).map_err(|error| error.to_string())?;
        let vmid = vmid(id);
        let stage2 =
            Stage2::new(geometry, Tables { id }, Tlb::new(vmid)).map_err(|error| error.to_string())?;
        let mut space = Self { id, stage2, vtcr: geometry.vtcr(), size: 0 };
        for piece in guest.plan().pieces() {
            if let Err(error) = space.back(piece) {
                space.release();
                return Err(error);
            }
        }
        Ok(space)
    }

    /// Backs a piece of RAM with the largest blocks that fit.
    fn back(&mut self, piece: &Piece) -> Result<(), String> {
        let (mut ipa, mut left) = (piece.ipa, piece.size);
        while left > 0 {
            trap::poll(cpu::current());
            let mut result = Err(String::new());
            for order in ORDERS.into_iter().filter(|&order| order <= piece.order) {
                let size = FRAME_SIZE << order;
                if !ipa.is_aligned(size) || size > left {
                    continue;
                }
                result = self.back_one(piece, ipa, order);
                if result.is_ok() {
                    left -= size;
                    ipa = ipa.checked_add(size).unwrap_or_default();
                    break;
                }
            }
            result.map_err(|why| {
                format!("RAM at {ipa}, {} MiB of {} MiB: {why}", left >> 20, piece.size >> 20)
            })?;
        }
        Ok(())
    }

    fn back_one(&mut self, piece: &Piece, ipa: Ipa, order: u8) -> Result<(), String> {
        if piece.is_in_place {
            let pa = Pa::new_truncate(ipa.get());
            self.stage2
                .map(ipa, pa, FRAME_SIZE << order, Attributes::RAM)
                .map_err(|error| error.to_string())?;
            self.size += FRAME_SIZE << order;
            return Ok(());
        }
        let owner = Owner::Guest(self.id);
        let mapping = Some(Mapping { guest: self.id, ipa });
        let request = Request { order, kind: piece.kind, owner, placement: piece.placement, mapping };
        let allocation = own::MEMORY.allocate(&request).map_err(|error| error.to_string())?;
        let size = FRAME_SIZE << order;
        if let Err(error) = self.stage2.map(ipa, allocation.frame.pa(), size, Attributes::RAM) {
            own::free(allocation.frame, order, owner, allocation.contents);
            return Err(error.to_string());
        }
        self.size += size;
        Ok(())
    }

    /// What VTTBR_EL2 holds while the guest runs.
    pub(super) fn vttbr(&self) -> u64 {
        u64::from(vmid(self.id)) << 48 | self.stage2.root().get()
    }

    /// What VTCR_EL2 holds while the guest runs.
    pub(super) fn vtcr(&self) -> u64 {
        self.vtcr
    }

    /// Frames in use as tables.
    pub(super) fn table_count(&self) -> usize {
        self.stage2.table_count() as usize
    }

    /// The unit behind `ipa`: its physical address and its size in bytes.
    pub(super) fn unit(&self, ipa: Ipa) -> Option<(Pa, u64)> {
        self.stage2.leaf(ipa).map(|leaf| (leaf.pa(), leaf.size()))
    }

    /// Bytes of RAM.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Makes all of the guest's RAM zero, to the point of coherency: nothing of what was there before can be
    /// read, with caches on or off.
    pub(super) fn scrub(&self, pieces: &[Piece]) {
        for piece in pieces {
            let mut at = piece.ipa.get();
            let end = at + piece.size;
            while at < end {
                let next = ((at | (PAGEBLOCK_SIZE - 1)) + 1).min(end);
                trap::poll(cpu::current());
                self.each_run(at, next - at, |address, size| {
                    // SAFETY: the frames are the guest's, which does not run; shown by this CPU's own window.
                    unsafe { cache::zero(address, size) };
                    cache::clean_invalidate(address, size);
                });
                at = next;
            }
        }
    }

    /// Copies `bytes` to `ipa` on, to the point of coherency. False: not all of it is RAM.
    pub(super) fn write(&self, ipa: Ipa, bytes: &[u8]) -> bool {
        let mut done = 0;
        while done < bytes.len() {
            trap::poll(cpu::current());
            let at = ipa.get() + done as u64;
            let size = (((at | (PAGEBLOCK_SIZE - 1)) + 1 - at) as usize).min(bytes.len() - done);
            let mut copied = 0;
            self.each_run(at, size as u64, |address, size| {
                let source = &bytes[done + copied..done + copied + size];
                // SAFETY: the frames are the guest's, which does not run; shown by this CPU's own window, apart
                // from whatever `bytes` lies in.
                unsafe { core::ptr::copy_nonoverlapping(source.as_ptr(), address as *mut u8, size) };
                cache::clean_invalidate(address, size);
                copied += size;
            });
            if copied < size {
                return false;
            }
            done += size;
        }
        true
    }

    /// Calls `f` with this CPU's view of each run of memory that is contiguous in one leaf, from `ipa` on, at most
    /// `size` bytes within one pageblock of IPA; stops at the first address without RAM.
    fn each_run(&self, ipa: u64, size: u64, mut f: impl FnMut(usize, usize)) {
        let (mut at, end) = (ipa, ipa + size);
        let Some([window, _]) = cpu::current().windows() else { return };
        while at < end {
            let Some(leaf) = self.stage2.leaf(Ipa::new_truncate(at)) else { return };
            let offset = at & (leaf.size() - 1);
            let pa = leaf.pa().get() + offset;
            let run = (leaf.size() - offset).min(end - at).min(PAGEBLOCK_SIZE - pa % PAGEBLOCK_SIZE);
            let address = window.show(stage2::addr::Pa::new_truncate(pa));
            f(address.addr().get(), run as usize);
            at += run;
        }
        window.close();
    }

    /// Frees every frame and table. No vCPU runs.
    pub(super) fn release(self) {
        let owner = Owner::Guest(self.id);
        let _ = self.stage2.tear_down(|leaf| {
            let order = match leaf.level() {
                Level::L1 => MAX_ORDER,
                Level::L2 => PAGEBLOCK_ORDER,
                _ => 0,
            };
            let frame = Frame::containing(leaf.pa());
            // What lies in place was not allocated.
            if own::MEMORY.frame_info(frame).is_some_and(|info| info.state == State::Used) {
                own::free(frame, order, owner, Contents::Dirty);
            }
        });
    }
}
