//! Redistributors: a CPU's private interrupts (IHI 0069H, 12.11).

use super::mmio::Registers;
use super::{KICK_SGI, PRIORITY};
use core::ptr::NonNull;

const CTLR: usize = 0x0000;
const TYPER: usize = 0x0008;
const WAKER: usize = 0x0014;
const SGI_FRAME: usize = 0x1_0000;
const IGROUPR0: usize = SGI_FRAME + 0x0080;
const ISENABLER0: usize = SGI_FRAME + 0x0100;
const ICENABLER0: usize = SGI_FRAME + 0x0180;
const ISPENDR0: usize = SGI_FRAME + 0x0200;
const ICPENDR0: usize = SGI_FRAME + 0x0280;
const ICACTIVER0: usize = SGI_FRAME + 0x0380;
const IPRIORITYR: usize = SGI_FRAME + 0x0400;

const CTLR_RWP: u32 = 1 << 3;
const TYPER_LAST: u64 = 1 << 4;
const TYPER_VLPIS: u64 = 1 << 1;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

/// Two frames, or four with virtual LPIs.
const FRAMES_SIZE: usize = 0x2_0000;

/// A range of redistributors, one after the other.
pub(crate) struct Region {
    registers: Registers,
    stride: Option<usize>,
}

impl Region {
    /// # Safety
    ///
    /// `size` bytes at `base` are redistributors, mapped for ever, and nobody else uses them.
    pub(crate) unsafe fn new(base: NonNull<u8>, size: usize, stride: Option<usize>) -> Self {
        // SAFETY: as the caller says.
        Self { registers: unsafe { Registers::new(base, size) }, stride }
    }

    /// The redistributor of the CPU with MPIDR `mpidr`, if it is here.
    pub(crate) fn find(&self, mpidr: u64) -> Option<Redistributor> {
        let affinity = (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff;
        let mut offset = 0;
        loop {
            let registers = self.registers.part(offset, FRAMES_SIZE)?;
            let typer = registers.read64(TYPER);
            if typer >> 32 == affinity {
                return Some(Redistributor { registers });
            }
            if typer & TYPER_LAST != 0 {
                return None;
            }
            let frames = if typer & TYPER_VLPIS != 0 { 2 * FRAMES_SIZE } else { FRAMES_SIZE };
            // A stride smaller than a redistributor would not advance.
            offset += self.stride.filter(|&stride| stride >= FRAMES_SIZE).unwrap_or(frames);
            if offset >= self.registers.size() {
                return None;
            }
        }
    }
}

/// The redistributor of one CPU.
pub(crate) struct Redistributor {
    registers: Registers,
}

impl Redistributor {
    /// Wakes the redistributor; only the kick is enabled, the guests' SGIs too.
    pub(crate) fn init(&self) {
        let registers = self.registers;
        registers.write32(WAKER, registers.read32(WAKER) & !WAKER_PROCESSOR_SLEEP);
        while registers.read32(WAKER) & WAKER_CHILDREN_ASLEEP != 0 {
            core::hint::spin_loop();
        }
        registers.write32(ICENABLER0, u32::MAX);
        self.wait();
        registers.write32(ICPENDR0, u32::MAX);
        registers.write32(ICACTIVER0, u32::MAX);
        registers.write32(IGROUPR0, u32::MAX);
        for word in 0..8 {
            registers.write32(IPRIORITYR + 4 * word, u32::from_le_bytes([PRIORITY; 4]));
        }
        registers.write32(ISENABLER0, (1 << (KICK_SGI + 1)) - 1);
    }

    fn wait(&self) {
        while self.registers.read32(CTLR) & CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
    }

    /// Enables private interrupt `intid`.
    pub(crate) fn enable(&self, intid: u32) {
        self.registers.write32(ISENABLER0, 1 << intid);
    }

    /// Disables private interrupt `intid`, with effect when this returns.
    pub(crate) fn disable(&self, intid: u32) {
        self.registers.write32(ICENABLER0, 1 << intid);
        self.wait();
    }

    /// Which private interrupts are pending, lines that are high among them.
    pub(crate) fn pending(&self) -> u32 {
        self.registers.read32(ISPENDR0)
    }

    /// Makes the private interrupts of `mask` neither pending nor active.
    pub(crate) fn clear(&self, mask: u32) {
        self.registers.write32(ICPENDR0, mask);
        self.registers.write32(ICACTIVER0, mask);
    }
}
