//! Copying and zeroing frames of guests, through this CPU's windows.
//!
//! For each cache line of 64 bytes, the loop cleans and invalidates the source, moves the line through four 16-byte registers,
//! and cleans the target: five instructions. The registers hold a guest's values, which are saved meanwhile.
//!
//! # Why both sides are cleaned and invalidated
//! HCR_EL2.FWB stays 0, even with FEAT_S2FWB: stage 2 says Write-Back, and stage 1 may say less (Arm ARM, HCR_EL2). So
//! a guest may map its RAM Non-cacheable while its caches are on, as Linux does for DMA. Its writes then go to memory,
//! while a cache may still hold a clean, stale line of the same memory, fetched speculatively through a window or through
//! a cacheable alias of the guest's own. A cacheable copy would read that line. Therefore:
//! - DC CIVAC on each line of the source before it is read: the guest's cached writes reach memory, and stale lines go.
//!   Maintenance by address is in program order with loads of the same line (Arm ARM, "A64 Cache maintenance
//!   instructions").
//! - DC CIVAC on each line of the target after it is written: uncached reads see the data, and no line stays that could hide
//!   later uncached writes (Arm ARM, "Mismatched memory attributes").

use super::window::{self, close_pair, show_pair};
use crate::arch::sysreg::{instruction, read};
use crate::arch::{cache, errata, features};
use core::mem::MaybeUninit;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_FRAMES, Pa};
use stage2::migrate::SOME;

/// Bytes of the largest vector register (Arm ARM, "Registers in AArch64 state").
const VECTOR_BYTES: usize = 256;
/// Vector registers that the loop uses.
const REGISTERS: usize = 8;
/// Bytes of a frame, which an iteration of [`zero`] fills.
const ITERATION: usize = FRAME_SIZE as usize;
/// Most frames that an iteration copies.
const FRAMES: usize = 4;

/// State of the caches of a guest's vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caching {
    /// All vCPUs run with their caches on. They may map memory Non-cacheable.
    On,
    /// Some vCPUs may have their caches off, and access all memory uncached.
    MaybeOff,
}

/// Copies `count` frames of one pageblock to another pageblock, [`SOME`] at a time while `goes_on` returns true. Returns the
/// number of frames copied.
///
/// Cleans and invalidates both sides to the point of coherency (see the module's documentation), which instruction fetches
/// and vCPUs with their caches off access (Arm ARM, "Enabling and disabling the caching of memory accesses"). Ends with
/// DSB ISH: the CPU that maintains caches has to wait for completion (Arm ARM, "A64 Cache maintenance instructions")
/// before another CPU maps the target.
///
/// With [`Caching::MaybeOff`] a vCPU may read memory while a cache holds a line that was fetched speculatively after the
/// cleaning. So both sides are cleaned and invalidated again when no cacheable window shows them (`window`). A guest with its
/// caches on has cacheable aliases of all its memory, so it has to cope with such lines at any time.
///
/// # Safety
///
/// The frames are guests' memory, which no reference leads to. Nobody writes to the source meanwhile, and nobody knows the
/// target yet.
pub(crate) unsafe fn frames(
    source: Frame,
    target: Frame,
    count: u64,
    caching: Caching,
    mut goes_on: impl FnMut() -> bool,
) -> u64 {
    // SAFETY: as the caller says.
    unsafe { run(source, target, (count as usize, SOME as usize), caching, |_| true, |_| goes_on()) as u64 }
}

/// Copies frame by frame, like [`frames`]: number `index` if `claim(index)`, and then calls `done(index)`.
///
/// # Safety
///
/// As for [`frames`], for each frame from its claim on.
pub(crate) unsafe fn each_frame(
    source: Frame,
    target: Frame,
    count: usize,
    caching: Caching,
    claim: impl FnMut(usize) -> bool,
    mut done: impl FnMut(usize),
) {
    let done = |index| {
        done(index);
        true
    };
    // SAFETY: as the caller says.
    unsafe { run(source, target, (count, 1), caching, claim, done) };
}

/// Copies `count` frames, `step` at a time, for as long as `done` returns true. Returns how many it looked at.
///
/// # Safety
///
/// As for [`each_frame`].
#[inline(always)]
unsafe fn run(
    source: Frame,
    target: Frame,
    (count, step): (usize, usize),
    caching: Caching,
    mut claim: impl FnMut(usize) -> bool,
    mut done: impl FnMut(usize) -> bool,
) -> usize {
    let [from_window, to_window] = window::own();
    let inside =
        |frame: Frame| (frame.number() % PAGEBLOCK_FRAMES) as usize + count <= PAGEBLOCK_FRAMES as usize;
    debug_assert!(inside(source) && inside(target));
    let [from, to] =
        show_pair([from_window, to_window], [source.pa(), target.pa()]).map(|address| address.addr().get());
    let has_small_lines = cache::line_size() < 64;
    let mut room = Room::uninit();
    let kept = Kept::keep(&mut room);
    let mut next = 0;
    while next < count {
        let (index, some) = (next, step.min(count - next));
        next += some;
        if claim(index) {
            let offset = index * FRAME_SIZE as usize;
            let (from, to) = (from + offset, to + offset);
            // SAFETY: the windows show the frames, which the caller vouches for. `kept` has the vector registers.
            unsafe {
                if has_small_lines {
                    copy_small_lines(from, to, some);
                } else {
                    copy_frames(from, to, some);
                }
            }
            if !done(index) {
                break;
            }
        }
    }
    drop(kept);
    close_pair([from_window, to_window]);
    if caching == Caching::MaybeOff {
        let bytes = next * FRAME_SIZE as usize;
        // SAFETY: the windows show the frames.
        unsafe {
            cache::clean_invalidate(from_window.show_uncached(source.pa()).addr().get(), bytes);
            cache::clean_invalidate(to_window.show_uncached(target.pa()).addr().get(), bytes);
        }
        close_pair([from_window, to_window]);
    }
    next
}

/// Fills `count` frames of one pageblock with zeroes.
///
/// # Safety
///
/// The frames are nobody's memory any more, and no reference leads to them.
pub(crate) unsafe fn zero(frame: Frame, count: u64) {
    let [window, _] = window::own();
    debug_assert!(frame.number() % PAGEBLOCK_FRAMES + count <= PAGEBLOCK_FRAMES);
    let address = window.show(frame.pa()).addr().get();
    let mut room = Room::uninit();
    let kept = Kept::keep(&mut room);
    // SAFETY: the window shows the frames, which the caller vouches for; `kept` has the vector registers. A store of four
    // of them fills a cache line, as DC ZVA does, but moves on by itself.
    unsafe {
        core::arch::asm!(
            ".arch_extension simd",
            "movi v0.2d, #0",
            "movi v1.2d, #0",
            "movi v2.2d, #0",
            "movi v3.2d, #0",
            "2:",
            ".rept 64",
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
    window.close();
}

/// Cleans and invalidates `count` frames of one pageblock, which no cacheable mapping leads to, to the point of coherency
/// (Arm ARM, "A64 Cache maintenance instructions").
pub(crate) fn clean(frame: Frame, count: u64) {
    let [window, _] = window::own();
    // SAFETY: the window shows the frames.
    unsafe {
        cache::clean_invalidate(window.show_uncached(frame.pa()).addr().get(), (count * FRAME_SIZE) as usize);
    }
    window.close();
}

/// Fills `size` bytes at `pa`, within one pageblock and multiples of 4 KiB, with zeroes, to the point of coherency.
///
/// # Safety
///
/// They are the memory of a guest whose vCPUs are off, and no reference leads to them.
pub(crate) unsafe fn clear(pa: Pa, size: usize) {
    // SAFETY: the window shows the bytes, which the caller vouches for.
    write_by(pa, size, |address| unsafe { cache::zero(address, size) });
}

/// Copies `bytes` to `pa` on, within one pageblock, to the point of coherency.
///
/// # Safety
///
/// As for [`clear`].
pub(crate) unsafe fn write(pa: Pa, bytes: &[u8]) {
    // SAFETY: the window shows as many bytes, which the caller vouches for, apart from `bytes`.
    let copy = |address| unsafe {
        core::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            core::ptr::with_exposed_provenance_mut(address),
            bytes.len(),
        );
    };
    write_by(pa, bytes.len(), copy);
}

/// Calls `f` with the address at which this CPU sees `pa`, and takes `size` bytes there to the point of coherency.
fn write_by(pa: Pa, size: usize, f: impl FnOnce(usize)) {
    let [window, _] = window::own();
    f(window.show(pa).addr().get());
    // The guest's caches are off: no line may be left, and none may come by a cacheable window (`window`).
    // SAFETY: the window shows the bytes.
    unsafe { cache::clean_invalidate(window.show_uncached(pa).addr().get(), size) };
    window.close();
}

/// Makes all CPUs fetch copied instructions: DSB ISH; IC IALLUIS, unless instruction caches are coherent (CTR_EL0.DIC); DSB
/// ISH; ISB (Arm ARM, "A64 Cache maintenance instructions"). With DIC, Neoverse N1 may fetch stale instructions
/// (erratum 1542419) unless a TLBI of any address and a DSB follow, which other errata of it need too.
pub(crate) fn synchronise_fetches() {
    if read!("ctr_el0") >> 29 & 1 != 0 {
        errata::complete_invalidations();
        instruction!("isb");
    } else {
        cache::complete();
    }
}

/// Room for the vector registers that the copy uses. It is not moved, which would take longer than filling it.
type Room = MaybeUninit<[u8; REGISTERS * VECTOR_BYTES]>;

/// Saved values of the vector registers that the copy uses, a guest's. Restored when dropped.
struct Kept<'a> {
    room: &'a mut Room,
}

impl<'a> Kept<'a> {
    /// Saves the registers, all of their bits: a write to the lower 128 clears the others (Arm ARM, "Registers in
    /// AArch64 state").
    #[inline(always)]
    fn keep(room: &'a mut Room) -> Self {
        let place = room.as_mut_ptr();
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
        Self { room }
    }
}

impl Drop for Kept<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let place = self.room.as_ptr();
        // SAFETY: `keep` has written it, on a CPU with the same registers.
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

/// Copies `count` frames, not 0, by lines of 64 bytes. Cleans and invalidates each line before it is read and after it is
/// written, and completes that by DSB ISH. An iteration copies [`FRAMES`] frames; the first one starts in the middle of the
/// code, with the remainder.
///
/// # Safety
///
/// Both ranges are mapped, Normal memory, aligned to 64 bytes, and apart from each other; no reference leads into them.
/// The vector registers 0 to 7 are kept.
#[inline(never)]
unsafe fn copy_frames(from: usize, to: usize, count: usize) {
    // SAFETY: as the caller says; EL2 is compiled without vector registers. The branch target lies 1 to FRAMES times the code of a
    // frame before the end of the loop's body. (GP is 0 in EL2's descriptors: the target needs no BTI.)
    unsafe {
        core::arch::asm!(
            ".arch_extension simd",
            "adr {at}, 3f",
            "sub {at}, {at}, {first}",
            "br {at}",
            "2:",
            ".rept {twice}",
            "dc civac, {from}",
            "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{from}], #64",
            "dc civac, {from}",
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{from}], #64",
            "st1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{to}]",
            "dc civac, {to}",
            "add {to}, {to}, #64",
            "st1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{to}]",
            "dc civac, {to}",
            "add {to}, {to}, #64",
            ".endr",
            "3:",
            "subs {rounds}, {rounds}, #1",
            "b.ne 2b",
            "dsb ish",
            at = out(reg) _,
            first = in(reg) ((count - 1) % FRAMES + 1) * (ITERATION / 128 * 10 * 4),
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            rounds = inout(reg) count.div_ceil(FRAMES) => _,
            twice = const FRAMES * ITERATION / 128,
            options(nostack)
        );
    }
}

/// Copies frames like [`copy_frames`], on CPUs whose cache lines are smaller than 64 bytes: cleans and invalidates all lines.
///
/// # Safety
///
/// As for [`copy_frames`].
#[cold]
unsafe fn copy_small_lines(from: usize, to: usize, count: usize) {
    let bytes = count * FRAME_SIZE as usize;
    // SAFETY: mapped, as the caller says.
    unsafe { cache::clean_invalidate(from, bytes) };
    instruction!("dsb ish");
    // SAFETY: as the caller says.
    unsafe { copy_frames(from, to, count) };
    // SAFETY: mapped, as the caller says.
    unsafe { cache::clean_invalidate(to, bytes) };
    instruction!("dsb ish");
}
