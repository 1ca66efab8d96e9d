//! A guest that is merely there: its RAM is, for others to move.
//!
//! Prints `tenant ready` and sleeps for ever. Boot arguments: `write=1` (writes to every page of its RAM, over and over).

#![no_std]
#![no_main]

use bare::platform::Platform;
use bare::say;

bare::entry!(main);

const PAGE: usize = 4096;

fn main(platform: &'static Platform) {
    say!("tenant ready");
    let mut round = 0;
    while platform.number("write") == Some(1) {
        round += 1;
        for range in platform.free_ranges() {
            for address in (range.start..range.end).step_by(PAGE) {
                // SAFETY: free RAM, which nobody else uses.
                unsafe { (address as *mut u64).write_volatile(round) };
            }
        }
    }
    loop {
        bare::instruction!("wfi");
    }
}
