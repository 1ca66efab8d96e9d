//! The distributor: shared interrupts (IHI 0069H, GICD_*).

use super::Priority;
use super::mmio::Registers;
use core::ptr::NonNull;

const CTLR: usize = 0x0000;
const TYPER: usize = 0x0004;
const IGROUPR: usize = 0x0080;
const ISENABLER: usize = 0x0100;
const ICENABLER: usize = 0x0180;
const ICPENDR: usize = 0x0280;
const ICACTIVER: usize = 0x0380;
const IPRIORITYR: usize = 0x0400;
const ICFGR: usize = 0x0c00;
const IROUTER: usize = 0x6000;
const ICENABLER_E: usize = 0x1400;
const ICPENDR_E: usize = 0x1800;
const ICACTIVER_E: usize = 0x1c00;
const PIDR2: usize = 0xffe8;

/// GICD_TYPER.ESPI: there are 32 × (GICD_TYPER.ESPI_range + 1) extended SPIs.
const TYPER_ESPI: u32 = 1 << 8;

/// GICD_CTLR: EnableGrp1(A)NS, EnableGrp1 or ARE_NS, ARE, RWP. Their positions depend on the security state. Both group 1
/// bits and ARE suit the non-secure view and the view with a single security state.
const CTLR_GROUP1: u32 = 1 << 1 | 1 << 0;
const CTLR_ARE_NS: u32 = 1 << 4;
const CTLR_RWP: u32 = 1 << 31;

/// Bytes of the distributor's frame that Ballast uses.
pub(crate) const DISTRIBUTOR_SIZE: u64 = 0x1_0000;

/// The host's distributor.
pub(crate) struct Distributor {
    registers: Registers,
}

impl Distributor {
    /// Takes over the distributor: every shared interrupt disabled, inactive, not pending, group 1.
    ///
    /// # Safety
    ///
    /// [`DISTRIBUTOR_SIZE`] bytes at `base` are a GIC's distributor, mapped forever, and nobody else uses it.
    pub(crate) unsafe fn new(base: NonNull<u8>) -> Result<Self, u32> {
        // SAFETY: as the caller says.
        let registers = unsafe { Registers::new(base, DISTRIBUTOR_SIZE as usize) };
        let architecture = registers.read32(PIDR2) >> 4 & 0xf;
        if !(3..=4).contains(&architecture) {
            return Err(architecture);
        }
        let distributor = Self { registers };
        registers.write32(CTLR, 0);
        distributor.wait();
        let words = (registers.read32(TYPER) as usize & 0x1f) + 1;
        for word in 1..words {
            registers.write32(ICENABLER + 4 * word, u32::MAX);
            registers.write32(ICPENDR + 4 * word, u32::MAX);
            registers.write32(ICACTIVER + 4 * word, u32::MAX);
            registers.write32(IGROUPR + 4 * word, u32::MAX);
        }
        // Ballast uses no extended SPIs, but a loader may have.
        let typer = registers.read32(TYPER);
        let extended_words = if typer & TYPER_ESPI != 0 { (typer >> 27) as usize + 1 } else { 0 };
        for word in 0..extended_words {
            registers.write32(ICENABLER_E + 4 * word, u32::MAX);
            registers.write32(ICPENDR_E + 4 * word, u32::MAX);
            registers.write32(ICACTIVER_E + 4 * word, u32::MAX);
        }
        distributor.wait();
        registers.write32(CTLR, CTLR_ARE_NS | CTLR_GROUP1);
        distributor.wait();
        Ok(distributor)
    }

    /// Waits until writes have taken effect (GICD_CTLR.RWP).
    fn wait(&self) {
        while self.registers.read32(CTLR) & CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
    }

    /// Enables level-sensitive shared interrupt `intid` for the CPU with MPIDR `mpidr`.
    pub(crate) fn enable(&self, intid: u32, mpidr: u64) {
        let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
        let configuration = ICFGR + 4 * (intid as usize / 16);
        let shift = 2 * (intid % 16);
        self.registers.write32(configuration, self.registers.read32(configuration) & !(3 << shift));
        self.registers.write8(IPRIORITYR + intid as usize, Priority::Host as u8);
        self.registers.write64(IROUTER + 8 * intid as usize, mpidr & 0xff_00ff_ffff);
        self.registers.write32(ISENABLER + 4 * word, bit);
    }
}
