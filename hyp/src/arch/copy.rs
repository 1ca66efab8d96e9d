//! Copying frames for migration, by way of this CPU's windows.
//!
//! The loop moves a cache line of 64 bytes by two pairs of 16-byte registers and cleans it at once: five instructions.
//! The registers are a guest's, so they are kept aside meanwhile.

use super::sysreg::{instruction, read};
use super::{cache, cpu, features};
use core::mem::MaybeUninit;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES};

/// Bytes of the largest vector register (Arm ARM B1.2.1).
const VECTOR_BYTES: usize = 256;
/// Bytes that an iteration of the loop copies.
const ITERATION: usize = 2048;

/// Whether the guest's vCPUs all run with their caches on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caching {
    /// They do: what they wrote is in the caches, and so is what they read.
    On,
    /// Some may read and write memory past the caches.
    MaybeOff,
}

/// Copies `count` frames of one pageblock to as many of another, and cleans the target to the point of coherency, since a
/// fetch need not look further and a vCPU with its caches off does not (Arm ARM B2.7, D7.2).
///
/// With [`Caching::MaybeOff`] no stale line of the source may be read, none of the target may stay, and the windows
/// through which one might be fetched speculatively are closed.
pub(crate) fn frames(source: Frame, target: Frame, count: u64, caching: Caching) {
    let Some([from, to]) = cpu::current().windows() else { return };
    let mut done = 0;
    while done < count {
        let (Some(source), Some(target)) = (source.checked_add(done), target.checked_add(done)) else {
            return;
        };
        let left = |frame: Frame| PAGEBLOCK_FRAMES - frame.number() % PAGEBLOCK_FRAMES;
        let run = (count - done).min(left(source)).min(left(target));
        let (from, to) = (from.show(source.pa()).addr().get(), to.show(target.pa()).addr().get());
        let bytes = (run * FRAME_SIZE) as usize;
        if caching == Caching::MaybeOff {
            cache::clean_invalidate(from, bytes);
            instruction!("dsb ish");
        }
        // SAFETY: the windows show the frames, whole pages of this guest's memory that no reference leads to; nobody
        // writes to the source meanwhile, nor knows the target.
        unsafe { copy_and_clean(from, to, bytes) };
        if caching == Caching::MaybeOff || cache::line_size() < 64 {
            cache::clean_invalidate(to, bytes);
        }
        done += run;
    }
    if caching == Caching::MaybeOff {
        instruction!("dsb ish");
        from.close();
        to.close();
    }
}

/// Fills `count` frames of one pageblock with zeroes.
pub(crate) fn zero(frame: Frame, count: u64) {
    let Some([window, _]) = cpu::current().windows() else { return };
    let mut done = 0;
    while done < count {
        let Some(frame) = frame.checked_add(done) else { return };
        let run = (count - done).min(PAGEBLOCK_FRAMES - frame.number() % PAGEBLOCK_FRAMES);
        let address = window.show(frame.pa()).addr().get();
        // SAFETY: the window shows the frames, which are no one's memory any more.
        unsafe { cache::zero(address, (run * FRAME_SIZE) as usize) };
        done += run;
    }
}

/// Cleans and invalidates `count` frames of one pageblock to the point of coherency (Arm ARM D7.5.6).
pub(crate) fn clean(frame: Frame, count: u64) {
    let Some([window, _]) = cpu::current().windows() else { return };
    cache::clean_invalidate(window.show(frame.pa()).addr().get(), (count * FRAME_SIZE) as usize);
    instruction!("dsb ish");
    window.close();
}

/// DSB ISH; IC IALLUIS, unless instruction caches look at data (CTR_EL0.DIC); DSB ISH; ISB (Arm ARM D7.5.9).
pub(crate) fn synchronise_fetches() {
    if read!("ctr_el0") >> 29 & 1 != 0 {
        instruction!("dsb ish");
        instruction!("isb");
    } else {
        cache::complete();
    }
}

/// Copies `bytes`, a multiple of 2 KiB, and cleans what it wrote, by lines of 64 bytes.
///
/// # Safety
///
/// Both ranges are mapped, Normal memory, aligned to 64 bytes, and apart from each other; no reference leads into them.
unsafe fn copy_and_clean(from: usize, to: usize, bytes: usize) {
    let mut kept = MaybeUninit::<[u8; 8 * VECTOR_BYTES]>::uninit();
    let kept = kept.as_mut_ptr();
    let has_sve = features::has_sve();
    // SAFETY: EL2 is compiled without vector registers and CPTR_EL2 lets it use them. What a guest has in the eight that
    // serve here is saved before and restored after: all of their bits, since a write to the lower 128 clears the rest
    // (Arm ARM B1.2.1). The rest is as the caller says.
    unsafe {
        if has_sve {
            core::arch::asm!(
                ".arch_extension sve",
                "str z0, [{0}]",
                "str z1, [{0}, #1, mul vl]",
                "str z2, [{0}, #2, mul vl]",
                "str z3, [{0}, #3, mul vl]",
                "str z4, [{0}, #4, mul vl]",
                "str z5, [{0}, #5, mul vl]",
                "str z6, [{0}, #6, mul vl]",
                "str z7, [{0}, #7, mul vl]",
                in(reg) kept,
                options(nostack)
            );
        } else {
            core::arch::asm!(
                ".arch_extension fp",
                "stp q0, q1, [{0}]",
                "stp q2, q3, [{0}, #32]",
                "stp q4, q5, [{0}, #64]",
                "stp q6, q7, [{0}, #96]",
                in(reg) kept,
                options(nostack)
            );
        }
        core::arch::asm!(
            ".arch_extension fp",
            "2:",
            ".rept 16",
            "ldp q2, q3, [{from}, #32]",
            "ldp q4, q5, [{from}, #64]",
            "ldp q6, q7, [{from}, #96]",
            "ldp q0, q1, [{from}], #128",
            "stp q0, q1, [{to}, #64]!",
            "stp q2, q3, [{to}, #32]",
            "dc cvac, {to}",
            "stp q4, q5, [{to}, #64]!",
            "stp q6, q7, [{to}, #32]",
            "dc cvac, {to}",
            ".endr",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            from = inout(reg) from => _,
            to = inout(reg) to - 64 => _,
            count = inout(reg) bytes / ITERATION => _,
            options(nostack)
        );
        if has_sve {
            core::arch::asm!(
                ".arch_extension sve",
                "ldr z0, [{0}]",
                "ldr z1, [{0}, #1, mul vl]",
                "ldr z2, [{0}, #2, mul vl]",
                "ldr z3, [{0}, #3, mul vl]",
                "ldr z4, [{0}, #4, mul vl]",
                "ldr z5, [{0}, #5, mul vl]",
                "ldr z6, [{0}, #6, mul vl]",
                "ldr z7, [{0}, #7, mul vl]",
                in(reg) kept,
                options(nostack)
            );
        } else {
            core::arch::asm!(
                ".arch_extension fp",
                "ldp q0, q1, [{0}]",
                "ldp q2, q3, [{0}, #32]",
                "ldp q4, q5, [{0}, #64]",
                "ldp q6, q7, [{0}, #96]",
                in(reg) kept,
                options(nostack)
            );
        }
    }
}
