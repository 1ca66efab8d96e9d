//! The distributor: shared interrupts (IHI 0069H, GICD_*).
//!
//! Any CPU uses it. The registers that set or clear bits need no lock: a write changes only the bits that are 1 in it.
//! GICD_ICFGR is shared by 16 interrupts and is changed under a lock. GICD_IROUTER and the byte of GICD_IPRIORITYR belong to
//! one interrupt, whose owner orders its own writes: boot, or the lock of the vGIC whose line it is.
//!
//! Writes to these registers reach the distributor in program order, since the mapping is Device memory without reordering.
//! Against an acknowledgement or a deactivation by a system register, a DSB orders them ("Observability of the effects of
//! accesses to the GIC registers").

use super::Priority;
use crate::arch::mmio::Registers;
use crate::arch::sysreg::instruction;
use core::ptr::NonNull;
use spin::{Mutex, Once};

const CTLR: usize = 0x0000;
const TYPER: usize = 0x0004;
const IGROUPR: usize = 0x0080;
const ISENABLER: usize = 0x0100;
const ICENABLER: usize = 0x0180;
const ISPENDR: usize = 0x0200;
const ICPENDR: usize = 0x0280;
const ISACTIVER: usize = 0x0300;
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
    /// Around changes of GICD_ICFGR.
    configuration: Mutex<()>,
}

static DISTRIBUTOR: Once<Distributor> = Once::new();

/// Returns the host's distributor, once boot has taken it over.
pub(crate) fn distributor() -> Option<&'static Distributor> {
    DISTRIBUTOR.get()
}

impl Distributor {
    /// Takes over the distributor: every shared interrupt disabled, inactive, not pending, group 1.
    ///
    /// # Safety
    ///
    /// [`DISTRIBUTOR_SIZE`] bytes at `base` are a GIC's distributor, mapped forever, and nobody else uses it.
    pub(crate) unsafe fn new(base: NonNull<u8>) -> Result<&'static Self, u32> {
        // SAFETY: as the caller says.
        let registers = unsafe { Registers::new(base, DISTRIBUTOR_SIZE as usize) };
        let architecture = registers.read32(PIDR2) >> 4 & 0xf;
        if !(3..=4).contains(&architecture) {
            return Err(architecture);
        }
        let distributor = Self { registers, configuration: Mutex::new(()) };
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
        Ok(DISTRIBUTOR.call_once(|| distributor))
    }

    /// Waits until writes have taken effect (GICD_CTLR.RWP).
    fn wait(&self) {
        while self.registers.read32(CTLR) & CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
    }

    /// Enables level-sensitive shared interrupt `intid` of EL2's own for the CPU with MPIDR `mpidr`.
    pub(crate) fn enable(&self, intid: u32, mpidr: u64) {
        self.configure(intid, false, Priority::Host);
        self.enable_at(intid, mpidr);
    }

    /// Configures the trigger and the priority of shared interrupt `intid`, which is disabled first and
    /// stays so: a change of an enabled interrupt's trigger is UNPREDICTABLE (GICD_ICFGR).
    pub(crate) fn configure(&self, intid: u32, is_edge: bool, priority: Priority) {
        self.disable(intid);
        let (offset, shift) = (ICFGR + 4 * (intid as usize / 16), 2 * (intid % 16));
        {
            let _guard = self.configuration.lock();
            let others = self.registers.read32(offset) & !(3 << shift);
            self.registers.write32(offset, others | u32::from(is_edge) << (shift + 1));
        }
        self.registers.write8(IPRIORITYR + intid as usize, priority as u8);
    }

    /// Routes shared interrupt `intid`, which is disabled, to the CPU with MPIDR `mpidr`, and enables it.
    pub(crate) fn enable_at(&self, intid: u32, mpidr: u64) {
        self.registers.write64(IROUTER + 8 * intid as usize, mpidr & 0xff_00ff_ffff);
        self.write_bit(ISENABLER, intid);
    }

    /// Disables shared interrupt `intid`. When this returns, the distributor does not forward it any more (GICD_CTLR.RWP). A
    /// CPU may have acknowledged it just before.
    pub(crate) fn disable(&self, intid: u32) {
        self.write_bit(ICENABLER, intid);
        // Bounded: other CPUs' guests may write at the same time.
        let _ = super::wait_for(|| self.registers.read32(CTLR) & CTLR_RWP == 0);
    }

    /// Returns true if shared interrupt `intid` is pending: of a level-sensitive one, the line is high.
    pub(crate) fn is_pending(&self, intid: u32) -> bool {
        self.registers.read32(ISPENDR + 4 * (intid as usize / 32)) >> (intid % 32) & 1 != 0
    }

    /// Makes shared interrupt `intid` pending.
    pub(crate) fn set_pending(&self, intid: u32) {
        self.write_bit(ISPENDR, intid);
    }

    /// Clears the pending state of shared interrupt `intid`, except for a line that is high.
    pub(crate) fn clear_pending(&self, intid: u32) {
        self.write_bit(ICPENDR, intid);
    }

    /// Makes shared interrupt `intid` active.
    pub(crate) fn set_active(&self, intid: u32) {
        self.write_bit(ISACTIVER, intid);
    }

    /// Makes shared interrupt `intid` inactive. Unlike a write to ICC_DIR_EL1, this has no effect if it is inactive.
    pub(crate) fn clear_active(&self, intid: u32) {
        self.write_bit(ICACTIVER, intid);
    }

    /// Sets the bit of shared interrupt `intid` in a register that sets or clears bits. The DSB completes what this CPU, EL2 or
    /// its guest, has acknowledged or deactivated by system registers.
    fn write_bit(&self, register: usize, intid: u32) {
        instruction!("dsb sy");
        self.registers.write32(register + 4 * (intid as usize / 32), 1 << (intid % 32));
    }
}
