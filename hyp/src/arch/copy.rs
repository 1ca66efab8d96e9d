//! Copying frames for migration, by way of this CPU's windows.
//!
//! The loop moves a cache line of 64 bytes by four 16-byte registers and cleans it at once: four instructions. The
//! registers are a guest's, so they are kept aside meanwhile.

use super::sysreg::{instruction, read};
use super::{cache, cpu, features};
use core::mem::MaybeUninit;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES};

/// Bytes of the largest vector register (Arm ARM B1.2.1).
const VECTOR_BYTES: usize = 256;
/// Vector registers that the loop uses.
const REGISTERS: usize = 8;
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

/// Copies `count` frames of one pageblock to as many of another, and cleans and invalidates the target to the point of
/// coherency, since a fetch need not look further and a vCPU with its caches off does not (Arm ARM B2.7, D7.2): no line
/// of it stays that could hide what the guest writes past the caches later (B2.8). It ends with DSB ISH: the completion
/// of cache maintenance is for the CPU that does it to wait for (D7.5.9), and another may map the target.
///
/// With [`Caching::MaybeOff`] no stale line of the source may be read, and the windows through which one might be
/// fetched speculatively are closed.
pub(crate) fn frames(source: Frame, target: Frame, count: u64, caching: Caching) {
    run(source, target, count as usize, count as usize, caching, |_| true, |_| ());
}

/// The same frame by frame: number `index` if `claim(index)`, and then calls `done(index)`.
pub(crate) fn each_frame(
    source: Frame,
    target: Frame,
    count: usize,
    caching: Caching,
    claim: impl FnMut(usize) -> bool,
    done: impl FnMut(usize),
) {
    run(source, target, count, 1, caching, claim, done);
}

/// Copies `count` frames, `step` at a time.
#[inline(always)]
fn run(
    source: Frame,
    target: Frame,
    count: usize,
    step: usize,
    caching: Caching,
    mut claim: impl FnMut(usize) -> bool,
    mut done: impl FnMut(usize),
) {
    let Some([from_window, to_window]) = cpu::current().windows() else { return };
    let inside =
        |frame: Frame| (frame.number() % PAGEBLOCK_FRAMES) as usize + count <= PAGEBLOCK_FRAMES as usize;
    debug_assert!(inside(source) && inside(target));
    let mut from = from_window.show(source.pa()).addr().get();
    let mut to = to_window.show(target.pa()).addr().get();
    let bytes = step * FRAME_SIZE as usize;
    let has_small_lines = cache::line_size() < 64;
    let kept = Kept::new();
    let mut index = 0;
    while index < count {
        if claim(index) {
            if caching == Caching::MaybeOff {
                cache::clean_invalidate(from, bytes);
                instruction!("dsb ish");
            }
            // SAFETY: the windows show the frames, whole pages of this guest's memory that no reference leads to; nobody
            // writes to the source meanwhile, nor knows the target. `kept` has the vector registers.
            unsafe { copy_and_clean(from, to, bytes) };
            if has_small_lines {
                cache::clean_invalidate(to, bytes);
            }
            instruction!("dsb ish");
            done(index);
        }
        from += bytes;
        to += bytes;
        index += step;
    }
    drop(kept);
    if caching == Caching::MaybeOff {
        from_window.close();
        to_window.close();
    }
}

/// Fills `count` frames of one pageblock with zeroes.
pub(crate) fn zero(frame: Frame, count: u64) {
    let Some([window, _]) = cpu::current().windows() else { return };
    debug_assert!(frame.number() % PAGEBLOCK_FRAMES + count <= PAGEBLOCK_FRAMES);
    let address = window.show(frame.pa()).addr().get();
    let kept = Kept::new();
    // SAFETY: the window shows the frames, which are no one's memory any more; `kept` has the vector registers. A store of
    // four of them fills a cache line, as DC ZVA does, but moves on by itself.
    unsafe {
        core::arch::asm!(
            ".arch_extension simd",
            "movi v0.2d, #0",
            "movi v1.2d, #0",
            "movi v2.2d, #0",
            "movi v3.2d, #0",
            "2:",
            ".rept 32",
            "st1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{to}], #64",
            ".endr",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            to = inout(reg) address => _,
            count = inout(reg) (count * FRAME_SIZE) as usize / ITERATION => _,
            options(nostack)
        );
    }
    drop(kept);
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

/// The vector registers that serve here, as they were: a guest's.
struct Kept {
    place: MaybeUninit<[u8; REGISTERS * VECTOR_BYTES]>,
}

impl Kept {
    /// Keeps what is in the registers. All of their bits: a write to the lower 128 clears the rest (Arm ARM B1.2.1).
    #[inline(always)]
    fn new() -> Self {
        let mut kept = Self { place: MaybeUninit::uninit() };
        let place = kept.place.as_mut_ptr();
        // SAFETY: CPTR_EL2 lets EL2 use the registers; `place` has room for eight of the largest.
        unsafe {
            if features::has_sve() {
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
                    in(reg) place,
                    options(nostack, preserves_flags)
                );
            } else {
                core::arch::asm!(
                    ".arch_extension simd",
                    "st1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{0}], #64",
                    "st1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{0}]",
                    inout(reg) place => _,
                    options(nostack, preserves_flags)
                );
            }
        }
        kept
    }
}

impl Drop for Kept {
    #[inline(always)]
    fn drop(&mut self) {
        let place = self.place.as_ptr();
        // SAFETY: `new` has written it, on a CPU with the same registers.
        unsafe {
            if features::has_sve() {
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
                    in(reg) place,
                    options(nostack, preserves_flags)
                );
            } else {
                core::arch::asm!(
                    ".arch_extension simd",
                    "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{0}], #64",
                    "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{0}]",
                    inout(reg) place => _,
                    options(nostack, preserves_flags)
                );
            }
        }
    }
}

/// Copies `bytes`, a multiple of 2 KiB, and cleans and invalidates what it wrote, by lines of 64 bytes.
///
/// # Safety
///
/// Both ranges are mapped, Normal memory, aligned to 64 bytes, and apart from each other; no reference leads into them.
/// The vector registers 0 to 7 are kept.
#[inline(always)]
unsafe fn copy_and_clean(from: usize, to: usize, bytes: usize) {
    // SAFETY: as the caller says; EL2 is compiled without vector registers.
    unsafe {
        core::arch::asm!(
            ".arch_extension simd",
            "2:",
            ".rept 16",
            "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{from}], #64",
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{from}], #64",
            "st1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{to}]",
            "dc civac, {to}",
            "add {to}, {to}, #64",
            "st1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{to}]",
            "dc civac, {to}",
            "add {to}, {to}, #64",
            ".endr",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            count = inout(reg) bytes / ITERATION => _,
            options(nostack)
        );
    }
}
