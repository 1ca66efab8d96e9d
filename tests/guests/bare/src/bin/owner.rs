//! The owner of a pool: claims and releases memory at random by hypercall, and checks every page that it gets.
//!
//! First it makes requests that must be refused. Then, in each round, it claims a random size, or releases all or a part of a
//! range. Claimed memory must be zero; it is filled with a pattern, which must still be there before the release.
//!
//! Prints `owner pool BYTES window IPA`, `owner hostile ok`, and at the end
//! `owner done rounds N granted N released N refused N bytes N`, and powers the machine off. Boot arguments:
//! - `rounds=N` (default 100), or `claims=N`: number of rounds, or of granted claims;
//! - `most=MIB` (default 16): maximum size of a claim;
//! - `forever=1`: prints a line every hundred rounds, without end;
//! - `keep=MIB`: claims this much, prints `owner has MIB`, and keeps it;
//! - `bench=MIB`: claims this much once, prints the time that it took, and releases it;
//! - `lenient=1`: claims may be cancelled, or fail because memory is missing or cannot be migrated, for machines whose operator
//!   evacuates and retires meanwhile; makes no requests that must be refused;
//! - `pause=MS`: sleeps between rounds.

#![no_std]
#![no_main]

use bare::platform::Platform;
use bare::pools::{CANCEL, CLAIM, CLAIM_AT, FEATURES, POOL_INFO, RELEASE, STATUS, UID, call};
use bare::random::Random;
use bare::{gic, mmu, psci, say, timer};

bare::entry!(main);

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// First of the gibibytes of virtual addresses that map the window.
const ALIAS: usize = 400;
/// Maximum number of claimed ranges.
const RANGES: usize = 12;

/// A claimed range: offset in the window, and size in bytes.
#[derive(Clone, Copy)]
struct Held {
    ipa: u64,
    bytes: u64,
}

struct Owner {
    /// True if a claim may fail for reasons outside the pool.
    is_lenient: bool,
    pool: u64,
    window: u64,
    held: [Option<Held>; RANGES],
    granted: u64,
    released: u64,
    refused: u64,
    bytes: u64,
}

/// Sleeps until an operation ends. Returns its status. Interrupts are masked: a pending one ends the sleep.
fn wait(ticket: i64) -> [i64; 4] {
    loop {
        let status = call(STATUS, ticket as u64, 0, 0);
        if status[0] != 1 {
            return status;
        }
        bare::instruction!("wfi");
        let intid = gic::acknowledge();
        if intid != gic::SPURIOUS {
            gic::end(intid);
        }
    }
}

fn fail(what: &str, found: [i64; 4]) -> ! {
    say!("owner failed {} {:?}", what, found);
    psci::system_off()
}

/// The expected contents of a range.
fn pattern(ipa: u64) -> u64 {
    ipa.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Words of each page that are checked: the first, one in the middle, the last.
const WORDS: [u64; 3] = [0, 2048, 4088];

impl Owner {
    /// Returns the virtual address of `ipa` in the window.
    fn address(&self, ipa: u64) -> *mut u64 {
        let offset = ipa - (self.window & !((1 << 30) - 1));
        ((ALIAS << 30) as u64 + offset) as *mut u64
    }

    fn read(&self, ipa: u64) -> u64 {
        // SAFETY: in a claimed range, which nothing but this function and `write` reaches.
        unsafe { self.address(ipa).read_volatile() }
    }

    fn write(&self, ipa: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.address(ipa).write_volatile(value) }
    }

    /// Checks that every page is zero, and fills it.
    fn take(&self, held: Held) {
        for page in (held.ipa..held.ipa + held.bytes).step_by(PAGE as usize) {
            for word in WORDS {
                if self.read(page + word) != 0 {
                    fail("not scrubbed", [page as i64, word as i64, self.read(page + word) as i64, 0]);
                }
                self.write(page + word, pattern(page));
            }
        }
    }

    /// Checks that every page holds its pattern.
    fn check(&self, held: Held) {
        for page in (held.ipa..held.ipa + held.bytes).step_by(PAGE as usize) {
            for word in WORDS {
                if self.read(page + word) != pattern(page) {
                    fail("lost", [page as i64, word as i64, self.read(page + word) as i64, 0]);
                }
            }
        }
    }

    fn claim(&mut self, bytes: u64, align: u64) -> Option<Held> {
        let answer = call(CLAIM, 0, bytes, align);
        if answer[0] != 0 {
            fail("claim", answer);
        }
        let status = wait(answer[1]);
        match status[0] {
            0 => {}
            // No range of that size is left: the owner has claimed most of the pool.
            -32 => {
                self.refused += 1;
                return None;
            }
            // Too little free memory elsewhere, unmovable memory, or cancelled.
            -33 | -34 | -36 if self.is_lenient => {
                self.refused += 1;
                return None;
            }
            _ => fail("claim status", status),
        }
        let held = Held { ipa: status[1] as u64, bytes: status[3] as u64 };
        let is_inside = held.ipa >= self.window && held.ipa + held.bytes <= self.window + self.pool;
        if held.bytes != bytes || !is_inside || align != 0 && !held.ipa.is_multiple_of(align.min(1 << 30)) {
            fail("claim result", status);
        }
        self.granted += 1;
        self.bytes += bytes;
        self.take(held);
        Some(held)
    }

    fn release(&mut self, held: Held) {
        self.check(held);
        let answer = call(RELEASE, held.ipa, held.bytes, 0);
        if answer[0] != 0 {
            fail("release", answer);
        }
        let status = wait(answer[1]);
        if status[0] != 0 {
            fail("release status", status);
        }
        self.released += 1;
    }

    fn round(&mut self, random: &mut Random, most: u64) {
        let slot = random.below(RANGES as u64) as usize;
        match self.held[slot].take() {
            None => {
                // From a page to the maximum, with equal probability of all orders of magnitude.
                let bytes = (most >> random.below(13)).max(PAGE) - random.below(2) * PAGE;
                let bytes = bytes.max(PAGE) & !(PAGE - 1);
                let align = if random.below(3) == 0 { 64 << 10 } else { 0 };
                self.held[slot] = self.claim(bytes, align);
            }
            Some(held) if held.bytes > PAGE && random.below(2) == 0 => {
                let kept = (1 + random.below(held.bytes / PAGE - 1)) * PAGE;
                self.release(Held { ipa: held.ipa + kept, bytes: held.bytes - kept });
                self.held[slot] = Some(Held { bytes: kept, ..held });
            }
            Some(held) => self.release(held),
        }
    }
}

/// Makes requests that must be refused, and checks the statuses.
fn hostile(pool: u64, window: u64) {
    let all = u64::MAX;
    let cases = [
        ([0xc600_0000, 0, 0, 0], -1),
        ([0xc600_0016, 0, 0, 0], -1),
        ([POOL_INFO, 1, 0, 0], -16),
        ([POOL_INFO, all, 0, 0], -16),
        ([CLAIM, 1, PAGE, 0], -16),
        ([CLAIM, 0, 0, 0], -3),
        ([CLAIM, 0, 4095, 0], -3),
        ([CLAIM, 0, all, 0], -3),
        ([CLAIM, 0, all - 4095, 0], -17),
        ([CLAIM, 0, pool + PAGE, 0], -17),
        ([CLAIM, 0, PAGE, 3 * PAGE], -3),
        ([CLAIM_AT, 0, pool, PAGE], -3),
        ([CLAIM_AT, 0, 1, PAGE], -3),
        ([CLAIM_AT, 0, all - 4095, 2 * PAGE], -3),
        ([RELEASE, 0, PAGE, 0], -3),
        ([RELEASE, window + pool, PAGE, 0], -3),
        ([RELEASE, window, pool + PAGE, 0], -3),
        ([RELEASE, window + 1, PAGE, 0], -3),
        ([STATUS, 0, 0, 0], -19),
        ([STATUS, all, 0, 0], -19),
        ([CANCEL, 12345, 0, 0], -19),
    ];
    for ([function, first, second, third], expected) in cases {
        let found = call(function, first, second, third);
        if found[0] != expected {
            say!("owner case {:#x} {:#x} {:#x} {:#x}", function, first, second, third);
            fail("hostile", found);
        }
    }
    // Memory that was not claimed cannot be released.
    let ticket = call(RELEASE, window, pool, 0);
    let status = wait(ticket[1]);
    if ticket[0] != 0 || status[0] != -35 {
        fail("release of nothing", status);
    }
    // A claim that is cancelled immediately is either cancelled or granted.
    let ticket = call(CLAIM, 0, pool, 0);
    let cancelled = call(CANCEL, ticket[1] as u64, 0, 0);
    let status = wait(ticket[1]);
    match (cancelled[0], status[0]) {
        (0, -36) => {}
        (0 | -20, 0) => {
            let ticket = call(RELEASE, status[1] as u64, pool, 0);
            wait(ticket[1]);
        }
        _ => fail("cancel", status),
    }
    say!("owner hostile ok");
}

fn main(platform: &'static Platform) {
    let uid = call(UID, 0, 0, 0);
    let features = call(FEATURES, 0, 0, 0);
    if uid[0] as u32 != 0x3a9d_bc63 || features[0] & 1 == 0 || features[1] & 0x3f != 0x3f {
        fail("discovery", features);
    }
    let intid = features[2] as u32;
    gic::set_edge(intid, 1);
    gic::route(intid, platform.cpus()[0]);
    gic::enable(intid);
    let info = call(POOL_INFO, 0, 0, 0);
    if info[0] != 0 {
        fail("info", info);
    }
    let (pool, window) = (info[1] as u64, info[2] as u64);
    say!("owner pool {} window {:#x}", pool, window);
    let start = window >> 30;
    for gibibyte in start..=(window + pool - 1) >> 30 {
        mmu::alias(ALIAS + (gibibyte - start) as usize, gibibyte << 30);
    }
    let mut owner = Owner {
        is_lenient: platform.number("lenient") == Some(1),
        pool,
        window,
        held: [None; RANGES],
        granted: 0,
        released: 0,
        refused: 0,
        bytes: 0,
    };
    if let Some(mib) = platform.number("bench") {
        return bench(&mut owner, mib * MIB);
    }
    if !owner.is_lenient {
        hostile(pool, window);
    }
    if let Some(mib) = platform.number("keep") {
        let held = owner.claim(mib * MIB, 0);
        say!("owner has {} at {:#x}", mib, held.map_or(0, |held| held.ipa));
        loop {
            timer::delay(1_000_000);
        }
    }
    let (rounds, most) =
        (platform.number("rounds").unwrap_or(100), platform.number("most").unwrap_or(16) * MIB);
    let pause = platform.number("pause").unwrap_or(0);
    let is_endless = platform.number("forever") == Some(1);
    let claims = platform.number("claims");
    let mut random = Random::new(0x0b0e);
    let mut round = 0;
    let is_done = |owner: &Owner, round| match claims {
        Some(claims) => owner.granted >= claims,
        None => round >= rounds,
    };
    while is_endless || !is_done(&owner, round) {
        owner.round(&mut random, most);
        round += 1;
        if pause > 0 {
            timer::sleep(pause * 1000);
        }
        if round % 100 == 0 {
            say!("owner round {} granted {} released {}", round, owner.granted, owner.released);
        }
    }
    let left = owner.held;
    left.into_iter().flatten().for_each(|held| owner.release(held));
    say!(
        "owner done rounds {} granted {} released {} refused {} bytes {}",
        round,
        owner.granted,
        owner.released,
        owner.refused,
        owner.bytes
    );
}

/// Claims `bytes` once, and prints the ticks that it took.
fn bench(owner: &mut Owner, bytes: u64) {
    let started = timer::now();
    let answer = call(CLAIM, 0, bytes, 0);
    let status = wait(answer[1]);
    let ticks = timer::now() - started;
    if status[0] != 0 {
        fail("bench", status);
    }
    owner.take(Held { ipa: status[1] as u64, bytes });
    say!("owner claimed {} ticks {}", bytes, ticks);
}
