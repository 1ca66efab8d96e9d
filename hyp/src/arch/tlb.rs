//! Stage 2 TLB maintenance for one guest, on all CPUs (Arm ARM, "TLB maintenance").
//!
//! TLBI by IPA and by VMID act on the VMID in VTTBR_EL2. The CPU may hold another guest's VMID there, or none, so
//! VTTBR_EL2 is exchanged around the instruction (`translation`); EL2's own accesses do not use it.

use super::errata;
use super::sysreg::{instruction, read};
use crate::translation;
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::addr::{Ipa, Pa};
use stage2::table::{Cached, Level, Maintenance};

/// Number of invalidations by IPA above which invalidating the whole VMID is cheaper.
const SINGLE_LIMIT: u64 = 512;

/// TLB maintenance for one guest.
#[derive(Debug)]
pub(crate) struct Tlb {
    /// The guest's VTTBR_EL2: its VMID, and its root table once that exists.
    vttbr: AtomicU64,
}

impl Tlb {
    /// Makes the maintenance for the guest with this VMID.
    pub(crate) const fn new(vmid: u8) -> Self {
        Self { vttbr: AtomicU64::new((vmid as u64) << 48) }
    }

    /// Sets the root table. A CPU that invalidates for a guest that it does not run has it in VTTBR_EL2 meanwhile, so that
    /// speculative walks use that guest's own tables.
    pub(crate) fn set_root(&self, root: Pa) {
        self.vttbr.fetch_or(root.get(), Ordering::Relaxed);
    }

    fn with_vmid(&self, f: impl FnOnce()) {
        translation::with_vmid(&errata::This, errata::machine(), self.vttbr.load(Ordering::Relaxed), f);
    }
}

fn has_range_invalidation() -> bool {
    // ID_AA64ISAR0_EL1.TLB: 2 with FEAT_TLBIRANGE.
    read!("id_aa64isar0_el1") >> 56 & 15 >= 2
}

/// Invalidates a range of (number + 1) * 2^(5 * scale + 1) pages, by the fields of the instruction.
fn invalidate_range(ipa: u64, pages: u64, cached: Cached) -> u64 {
    let mut scale = 3;
    while scale > 0 && pages < 1 << (5 * scale + 1) {
        scale -= 1;
    }
    let unit = 1 << (5 * scale + 1);
    let number = (pages / unit).clamp(1, 32) - 1;
    // TG 1: 4 KiB; SCALE, NUM, TTL 0: any level; base in pages.
    let operand = 1 << 46 | scale << 44 | number << 39 | ipa >> 12;
    // SAFETY: drops cached translations of the guest.
    unsafe {
        match cached {
            // TLBI RIPAS2LE1IS
            Cached::Leaves => {
                core::arch::asm!("sys #4, c8, c0, #6, {}", in(reg) operand, options(nostack, preserves_flags));
            }
            // TLBI RIPAS2E1IS
            Cached::LeavesAndTables => {
                core::arch::asm!("sys #4, c8, c0, #2, {}", in(reg) operand, options(nostack, preserves_flags));
            }
        }
    }
    (number + 1) * unit
}

fn invalidate_one(ipa: u64, cached: Cached) {
    let operand = ipa >> 12;
    // SAFETY: drops cached translations of the guest.
    unsafe {
        match cached {
            Cached::Leaves => {
                core::arch::asm!("tlbi ipas2le1is, {}", in(reg) operand, options(nostack, preserves_flags))
            }
            Cached::LeavesAndTables => {
                core::arch::asm!("tlbi ipas2e1is, {}", in(reg) operand, options(nostack, preserves_flags));
            }
        }
    }
}

impl Maintenance for Tlb {
    fn publish(&self) {
        instruction!("dsb ishst");
    }

    fn invalidate(&self, ipa: Ipa, size: u64, leaf: Level, cached: Cached) {
        let steps = size.div_ceil(leaf.size());
        self.with_vmid(|| {
            if steps > 1 && has_range_invalidation() {
                let (mut at, mut pages) = (ipa.get(), size.div_ceil(4096));
                // An odd number of pages rounds up: invalidating one page more is allowed.
                while pages > 0 {
                    let done = invalidate_range(at, pages.next_multiple_of(2), cached);
                    at += done << 12;
                    pages = pages.saturating_sub(done);
                }
            } else if steps > SINGLE_LIMIT {
                instruction!("tlbi vmalls12e1is");
            } else {
                for step in 0..steps {
                    invalidate_one(ipa.get() + step * leaf.size(), cached);
                }
            }
        });
    }

    fn synchronise(&self) {
        translation::synchronise(
            &errata::This,
            errata::machine(),
            self.vttbr.load(Ordering::Relaxed),
            || {
                instruction!("tlbi vmalle1is");
            },
        );
    }
}
