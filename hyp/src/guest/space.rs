//! A guest's memory: the frames of its RAM, and the stage 2 tables that map them.

use super::migration::{ENGINE, Host};
use super::tables::Tables;
use super::{Guest, Phase, units};
use crate::arch::tlb::Tlb;
use crate::arch::{cpu, features};
use crate::hyp_mem::{copy, pages};
use crate::observe::log;
use crate::translation;
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use stage2::addr::{FRAME_SIZE, Frame, Ipa, MAX_ORDER, PAGEBLOCK_ORDER, PAGEBLOCK_SIZE, Pa};
use stage2::migrate;
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::check::Translation;
use stage2::phys::alloc::{MemoryKind, Request};
use stage2::phys::frame::{Contents, Mapping};
use stage2::phys::placement::Placement;
use stage2::table::{Attributes, Leaf, Mark, Stage2};

/// Orders of the blocks of RAM, largest first: one for each size of leaf.
const ORDERS: [u8; 3] = [MAX_ORDER, PAGEBLOCK_ORDER, 0];

/// A piece of a guest's RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// IPA of its first byte.
    pub(crate) ipa: Ipa,
    /// Bytes, a multiple of 4 KiB.
    pub(crate) size: u64,
    /// The largest order of its blocks.
    pub(crate) order: u8,
    /// Kind of its frames: movable or not.
    pub(crate) kind: MemoryKind,
    /// Controllers to allocate from.
    pub(crate) placement: Placement,
    /// Physical address that was reserved for it at boot, if it has a fixed one.
    pub(crate) backing: Option<Pa>,
    /// True if it is the guest's DMA window.
    pub(crate) is_dma_window: bool,
    /// True if the configuration asks for blocks of exactly that order, which pools that keep such units provide.
    pub(crate) wants_units: bool,
}

impl Piece {
    /// Returns the fixed physical address of `ipa` in the piece, if it has one.
    fn fixed(&self, ipa: Ipa) -> Option<Pa> {
        self.backing?.checked_add(ipa.get().checked_sub(self.ipa.get())?)
    }
}

/// A guest's memory. It exists as long as the guest is defined, and is empty while the guest is off.
pub(crate) struct Space {
    id: GuestId,
    inner: migrate::Space<Tables, Tlb>,
    stage2: translation::Stage2,
    size: AtomicU64,
    /// Number of times that RAM was allocated.
    life: AtomicU32,
    /// True if RAM is allocated and loaded: migration may work in it.
    is_open: AtomicBool,
}

/// Returns a guest's VMID: its number plus 1, since no guest has VMID 0.
fn vmid(id: GuestId) -> u8 {
    id.index() as u8 + 1
}

impl Space {
    /// Makes an empty space.
    pub(crate) fn new(id: GuestId) -> Result<Self, String> {
        let geometry = features::guest_geometry().map_err(|error| error.to_string())?;
        let vmid = vmid(id);
        let stage2 =
            Stage2::new(geometry, Tables { id }, Tlb::new(vmid)).map_err(|error| error.to_string())?;
        stage2.maintenance().set_root(stage2.root());
        Ok(Self {
            id,
            stage2: translation::Stage2 {
                vtcr: geometry.vtcr() | features::hardware_access_flag_control(),
                vttbr: u64::from(vmid) << 48 | stage2.root().get(),
            },
            inner: migrate::Space::new(id, stage2),
            size: AtomicU64::new(0),
            life: AtomicU32::new(0),
            is_open: AtomicBool::new(false),
        })
    }

    /// Allocates and maps all of the guest's RAM, and maps the registers of its devices. On failure [`Self::release`] frees what
    /// was mapped.
    pub(crate) fn build(&self, guest: &'static Guest) -> Result<(), String> {
        self.life.fetch_add(1, Ordering::Relaxed);
        for (index, piece) in guest.plan().pieces().iter().enumerate() {
            let placement = guest.placement(index).unwrap_or(piece.placement);
            self.back(guest, &Piece { placement, ..*piece })?;
        }
        guest.devices().map_registers(&mut |(ipa, pa, size)| {
            let mapped = self.inner.with(|stage2| stage2.map(ipa, pa, size, Attributes::DEVICE));
            mapped.map_err(|error| format!("registers at {ipa}: {error}"))
        })
    }

    /// Allocates and maps a piece of RAM in the largest blocks that fit.
    fn back(&self, guest: &Guest, piece: &Piece) -> Result<(), String> {
        let (mut ipa, mut left) = (piece.ipa, piece.size);
        while left > 0 {
            cpu::serve_interrupts();
            if guest.phase() != Phase::Starting {
                return Err(String::from("stopped while starting"));
            }
            let mut result = Err(String::new());
            for order in ORDERS.into_iter().filter(|&order| order <= piece.order) {
                let size = FRAME_SIZE << order;
                // A leaf maps as many bytes as both of its addresses are aligned to.
                let is_aligned = piece.fixed(ipa).is_none_or(|pa| pa.is_aligned(size));
                if !ipa.is_aligned(size) || !is_aligned || size > left {
                    continue;
                }
                result = self.back_one(piece, ipa, order);
                if result.is_err() && piece.wants_units && order == piece.order {
                    result = self.back_with_unit(guest, piece, ipa, order);
                }
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

    fn back_one(&self, piece: &Piece, ipa: Ipa, order: u8) -> Result<(), String> {
        let size = FRAME_SIZE << order;
        if let Some(pa) = piece.fixed(ipa) {
            return self.map(ipa, pa, size);
        }
        let owner = Owner::Guest(self.id);
        let mapping = Some(Mapping { guest: self.id, ipa });
        let request = Request { order, kind: piece.kind, owner, placement: piece.placement, mapping };
        let allocation = pages::MEMORY.allocate(&request).map_err(|error| error.to_string())?;
        self.map(ipa, allocation.frame.pa(), size)
            .inspect_err(|_| pages::free(allocation.frame, order, owner, allocation.contents))
    }

    /// Maps one unit out of a pool that keeps such units, after its tenants have moved away.
    fn back_with_unit(&self, guest: &Guest, piece: &Piece, ipa: Ipa, order: u8) -> Result<(), String> {
        let frame = units::claim(guest, order, &piece.placement, ipa).inspect_err(|why| {
            if let Some(why) = why {
                log::warn!("guest {}: no huge unit for {}: {}", self.id.index(), ipa, why.as_str());
            }
        });
        let frame = frame.map_err(Option::unwrap_or_default)?;
        self.map(ipa, frame.pa(), FRAME_SIZE << order)
            .inspect_err(|_| pages::free(frame, order, Owner::Guest(self.id), Contents::Zeroed))
    }

    fn map(&self, ipa: Ipa, pa: Pa, size: u64) -> Result<(), String> {
        self.inner
            .with(|stage2| stage2.map(ipa, pa, size, Attributes::RAM))
            .map_err(|error| error.to_string())?;
        self.size.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the number of times that RAM was allocated, which tells a guest's lives apart.
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Ordering::Relaxed)
    }

    /// Opens the space to migration.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }

    /// Closes the space to migration, and completes units in motion. No vCPU runs.
    pub(crate) fn close(&self) {
        self.is_open.store(false, Ordering::SeqCst);
        ENGINE.abandon(&Host, &self.inner);
    }

    /// Returns the space for migration, or `None` while it is closed.
    pub(crate) fn if_open(&self) -> Option<&migrate::Space<Tables, Tlb>> {
        self.is_open.load(Ordering::SeqCst).then_some(&self.inner)
    }

    /// Returns the space, open or not.
    pub(crate) fn any(&self) -> &migrate::Space<Tables, Tlb> {
        &self.inner
    }

    /// Returns the end of a guest's address space.
    pub(crate) fn ipa_limit(&self) -> u64 {
        self.inner.with(|stage2| stage2.geometry().ipa_limit())
    }

    /// Returns the stage 2 that the guest runs with.
    pub(crate) fn stage2(&self) -> translation::Stage2 {
        self.stage2
    }

    /// Returns the number of frames in use as tables.
    pub(crate) fn table_count(&self) -> usize {
        self.inner.with(|stage2| stage2.table_count() as usize)
    }

    /// Returns the physical address and the size in bytes of the unit at `ipa`.
    pub(crate) fn unit(&self, ipa: Ipa) -> Option<(Pa, u64)> {
        self.inner.with(|stage2| stage2.leaf(ipa)).map(|leaf| (leaf.pa(), leaf.size()))
    }

    /// Translates `ipa`, for the check of the reverse map.
    pub(crate) fn translate(&self, ipa: Ipa) -> Translation {
        match self.inner.with(|stage2| stage2.leaf(ipa)) {
            None => Translation::Nowhere,
            Some(leaf) if leaf.mark() != Mark::NONE => Translation::Unknown,
            Some(leaf) => {
                Translation::To(Pa::new_truncate(leaf.pa().get() + (ipa.get() & (leaf.size() - 1))))
            }
        }
    }

    /// Returns the bytes of RAM.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Zeroes all of the guest's RAM, to the point of coherency, so that earlier contents cannot be read with caches on or off.
    pub(crate) fn scrub(&self, pieces: &[Piece]) {
        for piece in pieces {
            let mut at = piece.ipa.get();
            let end = at + piece.size;
            while at < end {
                let next = ((at | (PAGEBLOCK_SIZE - 1)) + 1).min(end);
                cpu::serve_interrupts();
                // SAFETY: the frames are the guest's, which does not run.
                self.each_run(at, next - at, |pa, size| unsafe { copy::clear(pa, size) });
                at = next;
            }
        }
    }

    /// Copies `bytes` to `ipa`, to the point of coherency. Returns false if not all of it is RAM.
    pub(crate) fn write(&self, ipa: Ipa, bytes: &[u8]) -> bool {
        let mut done = 0;
        while done < bytes.len() {
            cpu::serve_interrupts();
            let at = ipa.get() + done as u64;
            let size = (((at | (PAGEBLOCK_SIZE - 1)) + 1 - at) as usize).min(bytes.len() - done);
            let mut copied = 0;
            self.each_run(at, size as u64, |pa, size| {
                let source = &bytes[done + copied..done + copied + size];
                // SAFETY: the frames are the guest's, which does not run; `bytes` lies in EL2's own memory.
                unsafe { copy::write(pa, source) };
                copied += size;
            });
            if copied < size {
                return false;
            }
            done += size;
        }
        true
    }

    /// Calls `f` with the address and size of each run of memory that is contiguous in one leaf, from `ipa` on, at most
    /// `size` bytes within one pageblock of IPA; stops at the first address without RAM.
    fn each_run(&self, ipa: u64, size: u64, mut f: impl FnMut(Pa, usize)) {
        let (mut at, end) = (ipa, ipa + size);
        while at < end {
            let Some(leaf) = self.inner.with(|stage2| stage2.leaf(Ipa::new_truncate(at))) else {
                return;
            };
            let offset = at & (leaf.size() - 1);
            let pa = leaf.pa().get() + offset;
            let run = (leaf.size() - offset).min(end - at).min(PAGEBLOCK_SIZE - pa % PAGEBLOCK_SIZE);
            f(Pa::new_truncate(pa), run as usize);
            at += run;
        }
    }

    /// Frees every frame, and every table but the root. No vCPU runs, and the space is closed.
    pub(crate) fn release(&self) {
        let owner = Owner::Guest(self.id);
        let mut next = Some(Ipa::default());
        while let Some(from) = next {
            cpu::serve_interrupts();
            next = self.inner.with(|stage2| {
                let rest = stage2.geometry().ipa_limit() - from.get();
                let leaf = stage2.leaves(from, rest).next()?;
                let size = leaf.size().max(PAGEBLOCK_SIZE);
                let base = Ipa::new_truncate(leaf.ipa().get() & !(size - 1));
                let free = |leaf: Leaf| {
                    let frame = Frame::containing(leaf.pa());
                    // Memory that was reserved at boot was not allocated, and claimed memory belongs to the pool.
                    if pages::MEMORY.frame_info(frame).is_some_and(|info| info.owner == Some(owner)) {
                        pages::free(frame, leaf.level().order(), owner, Contents::Dirty);
                    }
                };
                if let Err(error) = stage2.unmap(base, size, free) {
                    // The frames are lost.
                    log::error!("guest {}: memory at {}: {}", self.id.index(), base, error);
                }
                base.checked_add(size).filter(|next| next.get() < stage2.geometry().ipa_limit())
            });
        }
        self.size.store(0, Ordering::Relaxed);
    }
}
