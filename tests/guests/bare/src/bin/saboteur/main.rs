//! A guest that attacks by means of its disk: DMA to memory that is not its own, its device's configuration space, interrupts.
//!
//! The boot argument `sabotage=NAME` selects an attack. `targets=A,B,…` lists guest addresses for DMA. The lowest RAM is taken
//! for the DMA window. Each attack prints `sabotage start NAME`, what the device did, and `sabotage survived NAME` if it ends.

#![no_std]
#![no_main]

mod attacks;
mod pci;
mod virtio;

use bare::platform::Platform;
use bare::say;

bare::entry!(main);

type Attack = (&'static str, fn(&'static Platform));

const ALL: [Attack; 9] = [
    ("dma", attacks::dma),
    ("config", attacks::config),
    ("bars", attacks::bars),
    ("flood", attacks::flood),
    ("storm", attacks::storm),
    ("reset", attacks::reset),
    ("busy", attacks::busy),
    ("interrupts", attacks::interrupts),
    ("crash", attacks::crash),
];

fn main(platform: &'static Platform) {
    let name = platform.argument("sabotage").unwrap_or_default();
    let Some((_, attack)) = ALL.iter().find(|(known, _)| *known == name) else {
        say!("sabotage unknown {}", name);
        return;
    };
    say!("sabotage start {}", name);
    attack(platform);
    say!("sabotage survived {}", name);
}
