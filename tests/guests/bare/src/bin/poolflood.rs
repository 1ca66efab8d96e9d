//! The owner of a pool that floods Ballast with pool calls, with invalid and valid arguments, as fast as possible.
//!
//! Every answer must be a documented one. Prints `poolflood done calls N accepted N refused N`, or
//! `poolflood failed …`, and powers the machine off with its claims. Boot argument: `calls=N` (default 20000).

#![no_std]
#![no_main]

use bare::platform::Platform;
use bare::pools::{CANCEL, CLAIM, CLAIM_AT, FEATURES, POOL_INFO, RELEASE, STATUS, call};
use bare::random::Random;
use bare::{psci, say};

bare::entry!(main);

const PAGE: u64 = 4096;
const FUNCTIONS: [u64; 12] = [
    CLAIM,
    CLAIM,
    CLAIM_AT,
    RELEASE,
    RELEASE,
    STATUS,
    CANCEL,
    CANCEL,
    POOL_INFO,
    FEATURES,
    CANCEL + 1,
    CLAIM & !0x4000_0000,
];

fn main(platform: &'static Platform) {
    let info = call(POOL_INFO, 0, 0, 0);
    let (pool, window) = (info[1] as u64, info[2] as u64);
    let calls = platform.number("calls").unwrap_or(20_000);
    let mut random = Random::new(0xf100d);
    let (mut ticket, mut accepted, mut refused) = (0, 0_u64, 0_u64);
    for _ in 0..calls {
        let function = FUNCTIONS[random.below(FUNCTIONS.len() as u64) as usize];
        let arguments = [(); 3].map(|()| argument(&mut random, pool, window, ticket));
        // There is one pool. Half of the calls use it.
        let about = match function {
            CLAIM | CLAIM_AT | POOL_INFO if random.below(2) == 0 => 0,
            STATUS | CANCEL if random.below(2) == 0 => ticket,
            _ => arguments[0],
        };
        let answer = call(function, about, arguments[1], arguments[2]);
        match answer[0] {
            0 => accepted += 1,
            // FEATURES, or pending.
            1 => {}
            -1 | -3 | -20..=-16 | -37..=-32 => refused += 1,
            _ => {
                say!("poolflood failed {:#x} {:?}: {:?}", function, arguments, answer);
                psci::system_off()
            }
        }
        if answer[0] == 0 && matches!(function, CLAIM | CLAIM_AT | RELEASE) {
            ticket = answer[1] as u64;
        }
    }
    say!("poolflood done calls {} accepted {} refused {}", calls, accepted, refused);
}

/// Returns a boundary value or a random number.
fn argument(random: &mut Random, pool: u64, window: u64, ticket: u64) -> u64 {
    let edges = [
        0,
        1,
        PAGE - 1,
        PAGE,
        3 * PAGE,
        2 << 20,
        (2 << 20) + PAGE,
        pool / 2,
        pool,
        pool + PAGE,
        window,
        window + PAGE,
        window + pool - PAGE,
        window + pool,
        window - PAGE,
        u64::MAX,
        u64::MAX - 4095,
        1 << 63,
        1 << 48,
        1 << 32,
        ticket,
        ticket + 1,
    ];
    match random.below(8) {
        0 => random.draw(),
        1 => random.below(pool) & !(PAGE - 1),
        2 => window + (random.below(pool) & !(PAGE - 1)),
        _ => edges[random.below(edges.len() as u64) as usize],
    }
}
