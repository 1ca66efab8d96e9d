//! Accesses with the MMU and the caches off, which go directly to memory.

use crate::memory::{self, PAGE, WORDS};
use crate::{Round, error};
use bare::{cache, mmu};

/// Number of pages of each CPU in a round.
const PAGES: usize = 8;

core::arch::global_asm!(
    r#"
/* x0 page, x1 words, x2 SCTLR_EL1 with the MMU off: sums the words and inverts each, in registers alone; returns the sum. */
.balign 64
.global stress_uncached
stress_uncached:
    mrs     x9, sctlr_el1
    mrs     x10, daif
    msr     daifset, #0xf
    dsb     sy
    msr     sctlr_el1, x2
    isb
    mov     x3, xzr
1:  ldr     x4, [x0]
    add     x3, x3, x4
    mvn     x4, x4
    str     x4, [x0], #8
    subs    x1, x1, #1
    b.ne    1b
    dsb     sy
    msr     sctlr_el1, x9
    isb
    msr     daif, x10
    mov     x0, x3
    ret
"#
);

unsafe extern "C" {
    fn stress_uncached(page: usize, words: usize, sctlr: u64) -> u64;
}

pub(crate) fn run(round: &mut Round) {
    for _ in 0..PAGES {
        let page = round.any_of_share(1);
        let address = round.memory.address(page);
        let key = memory::key(address, round.number);
        let want = (0..WORDS).fold(0u64, |sum, index| sum.wrapping_add(memory::word(key, index)));
        // Clean and invalidate the cache lines (Arm ARM, "A64 Cache maintenance instructions").
        cache::clean_invalidate(address, PAGE);
        // SAFETY: a page of this CPU's share, translated one to one, and code that uses registers alone.
        let got = unsafe { stress_uncached(address, WORDS, mmu::SCTLR_OFF) };
        cache::clean_invalidate(address, PAGE);
        if got != want {
            error(format_args!("read without MMU: ipa {address:#x} sums up to {got:#x}, want {want:#x}"));
        }
        check_inverted(address, key);
        memory::fill(address, round.number);
    }
    round.barrier();
}

fn check_inverted(address: usize, key: u64) {
    let page = memory::words(address);
    for index in 0..WORDS {
        let want = !memory::word(key, index);
        // SAFETY: a page of this CPU's share, which no reference exists to.
        let got = unsafe { page.wrapping_add(index).read_volatile() };
        if got != want {
            error(format_args!(
                "written without MMU: ipa {:#x} is {got:#x}, want {want:#x}",
                address + index * 8
            ));
            return;
        }
    }
}
