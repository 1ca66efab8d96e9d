//! Redistributors: the private interrupts of each CPU (IHI 0069H, GICR_*).

use super::cpu_interface::KICK_SGI;
use crate::arch::mmio::Registers;
use core::ptr::NonNull;

/// Priorities of physical interrupts, most urgent first ("Interrupt prioritization"). EL2 runs with interrupts masked,
/// so priorities only decide which pending interrupt ICC_IAR1_EL1 returns: interrupts that a guest can flood do not
/// delay more urgent ones. Steps of 0x20 stay distinct in a non-secure view with 16 levels.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Priority {
    /// The host's devices and EL2's own timer, whose rate no guest controls.
    Host = 0x60,
    /// The kick and the maintenance interrupt, which a guest can raise at will.
    Service = 0x80,
    /// Interrupts that are passed to a guest: its SGIs, its timers, its devices' SPIs.
    Guest = 0xa0,
}

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
const ISACTIVER0: usize = SGI_FRAME + 0x0300;
const IPRIORITYR: usize = SGI_FRAME + 0x0400;
const ICFGR1: usize = SGI_FRAME + 0x0c04;

const CTLR_ENABLE_LPIS: u32 = 1 << 0;
const CTLR_RWP: u32 = 1 << 3;
const TYPER_LAST: u64 = 1 << 4;
const TYPER_PLPIS: u64 = 1 << 0;
const TYPER_VLPIS: u64 = 1 << 1;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

/// Bytes of a redistributor: two frames, or four with virtual LPIs.
const FRAMES_SIZE: usize = 0x2_0000;

/// A range of redistributors, one after the other.
pub(crate) struct Region {
    registers: Registers,
    stride: Option<usize>,
}

impl Region {
    /// Makes a region of `size` bytes at `base`.
    ///
    /// # Safety
    ///
    /// `size` bytes at `base` are redistributors, mapped forever, and nobody else uses them.
    pub(crate) unsafe fn new(base: NonNull<u8>, size: usize, stride: Option<usize>) -> Self {
        // SAFETY: as the caller says.
        Self { registers: unsafe { Registers::new(base, size) }, stride }
    }

    /// Returns the redistributor of the CPU with MPIDR `mpidr`, if it is in this region.
    pub(crate) fn find(&self, mpidr: u64) -> Option<Redistributor> {
        let affinity = affinity(mpidr);
        self.find_map(|registers, typer| (typer >> 32 == affinity).then_some(Redistributor { registers }))
    }

    /// Disables LPIs at every redistributor, those of CPUs that never start too. Returns the number that had them enabled.
    ///
    /// # Errors
    /// The affinity (GICR_TYPER) of a redistributor whose LPIs cannot be disabled: it is IMPLEMENTATION DEFINED whether
    /// they can be (GICR_CTLR.EnableLPIs).
    pub(crate) fn disable_lpis(&self) -> Result<usize, u64> {
        let mut count = 0;
        let stuck = self.find_map(|registers, typer| {
            let control = registers.read32(CTLR);
            if typer & TYPER_PLPIS == 0 || control & CTLR_ENABLE_LPIS == 0 {
                return None;
            }
            count += 1;
            registers.write32(CTLR, control & !CTLR_ENABLE_LPIS);
            // Until then it may write to its pending table.
            let is_at_rest = super::wait_for(|| registers.read32(CTLR) & CTLR_RWP == 0);
            (!is_at_rest || registers.read32(CTLR) & CTLR_ENABLE_LPIS != 0).then_some(typer >> 32)
        });
        stuck.map_or(Ok(count), Err)
    }

    /// Calls `f` with the registers and GICR_TYPER of each redistributor, until it returns a value.
    fn find_map<T>(&self, mut f: impl FnMut(Registers, u64) -> Option<T>) -> Option<T> {
        let mut offset = 0;
        loop {
            let registers = self.registers.part(offset, FRAMES_SIZE)?;
            let typer = registers.read64(TYPER);
            if let Some(found) = f(registers, typer) {
                return Some(found);
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

/// Returns the affinity of `mpidr` as GICR_TYPER has it.
fn affinity(mpidr: u64) -> u64 {
    (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff
}

/// The redistributor of one CPU.
pub(crate) struct Redistributor {
    registers: Registers,
}

impl Redistributor {
    /// Wakes the redistributor and takes over its private interrupts: disabled, inactive, not pending, group 1; PPIs are
    /// level-sensitive, as timers and the maintenance interrupt are. Only the kick is enabled.
    pub(crate) fn init(&self) {
        let registers = self.registers;
        registers.write32(WAKER, registers.read32(WAKER) & !WAKER_PROCESSOR_SLEEP);
        while registers.read32(WAKER) & WAKER_CHILDREN_ASLEEP != 0 {
            core::hint::spin_loop();
        }
        // GICR_TYPER.PPInum: words of extended PPIs (0 without them). Ballast uses none, but a loader may have.
        let extended_words = (registers.read64(TYPER) >> 27 & 0x1f).min(2) as usize;
        for word in 0..=extended_words {
            registers.write32(ICENABLER0 + 4 * word, u32::MAX);
        }
        self.wait();
        for word in 0..=extended_words {
            registers.write32(ICPENDR0 + 4 * word, u32::MAX);
            registers.write32(ICACTIVER0 + 4 * word, u32::MAX);
            registers.write32(IGROUPR0 + 4 * word, u32::MAX);
        }
        registers.write32(ICFGR1, 0);
        for word in 0..8 {
            registers.write32(IPRIORITYR + 4 * word, u32::from_le_bytes([Priority::Guest as u8; 4]));
        }
        self.enable_own(KICK_SGI, Priority::Service);
    }

    fn wait(&self) {
        while self.registers.read32(CTLR) & CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
    }

    /// Enables private interrupt `intid` of EL2's own.
    pub(crate) fn enable_own(&self, intid: u32, priority: Priority) {
        self.registers.write8(IPRIORITYR + intid as usize, priority as u8);
        self.enable(1 << intid);
    }

    /// Enables the private interrupts of `mask`.
    pub(crate) fn enable(&self, mask: u32) {
        self.registers.write32(ISENABLER0, mask);
    }

    /// Disables the private interrupts of `mask`, with effect when this returns. They can still become pending.
    pub(crate) fn disable(&self, mask: u32) {
        self.registers.write32(ICENABLER0, mask);
        self.wait();
    }

    /// Returns the pending private interrupts, lines that are high among them, a bit each.
    pub(crate) fn pending(&self) -> u32 {
        self.registers.read32(ISPENDR0)
    }

    /// Makes the private interrupts of `mask` pending.
    pub(crate) fn set_pending(&self, mask: u32) {
        self.registers.write32(ISPENDR0, mask);
    }

    /// Clears the pending state of the private interrupts of `mask`, except for lines that are high.
    pub(crate) fn clear_pending(&self, mask: u32) {
        self.registers.write32(ICPENDR0, mask);
    }

    /// Makes the private interrupts of `mask` active.
    pub(crate) fn set_active(&self, mask: u32) {
        self.registers.write32(ISACTIVER0, mask);
    }

    /// Makes the private interrupts of `mask` inactive.
    pub(crate) fn clear_active(&self, mask: u32) {
        self.registers.write32(ICACTIVER0, mask);
    }
}
