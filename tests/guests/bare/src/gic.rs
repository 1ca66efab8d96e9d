//! GICv3: distributor, redistributors, and the CPU interface in system registers.

use crate::mmio::{read32, read64, write8, write32, write64};
use crate::platform::{Platform, Range};
use crate::smp;
use crate::{mrs, msr};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Registers of the distributor, and of a redistributor's second frame, by offset.
pub mod register {
    /// Control.
    pub const CTLR: usize = 0x000;
    /// Type: the implemented features.
    pub const TYPER: usize = 0x004;
    /// Implementer.
    pub const IIDR: usize = 0x008;
    /// Group, a bit for each interrupt.
    pub const IGROUPR: usize = 0x080;
    /// Enable.
    pub const ISENABLER: usize = 0x100;
    /// Disable.
    pub const ICENABLER: usize = 0x180;
    /// Make pending.
    pub const ISPENDR: usize = 0x200;
    /// Make not pending.
    pub const ICPENDR: usize = 0x280;
    /// Make active.
    pub const ISACTIVER: usize = 0x300;
    /// Make inactive.
    pub const ICACTIVER: usize = 0x380;
    /// Priority, a byte for each interrupt.
    pub const IPRIORITYR: usize = 0x400;
    /// Legacy targets, a byte for each interrupt.
    pub const ITARGETSR: usize = 0x800;
    /// Edge or level, two bits for each interrupt.
    pub const ICFGR: usize = 0xc00;
    /// Group modifier.
    pub const IGRPMODR: usize = 0xd00;
    /// Route, 64 bits for each SPI, by INTID: the first is at 0x6100.
    pub const IROUTER: usize = 0x6000;
    /// Peripheral identification 2.
    pub const PIDR2: usize = 0xffe8;
    /// Redistributor: type and affinity, 64 bits.
    pub const GICR_TYPER: usize = 0x008;
    /// Redistributor: sleep.
    pub const GICR_WAKER: usize = 0x014;
    /// Redistributor: its frame of SGIs and PPIs.
    pub const GICR_SGI: usize = 0x1_0000;
}

/// The INTID that means that no interrupt is pending.
pub const SPURIOUS: u32 = 1023;
/// Default priority of all interrupts.
pub const PRIORITY: u32 = 0xa0;

static DISTRIBUTOR: AtomicUsize = AtomicUsize::new(0);

/// Returns the base of the distributor.
#[must_use]
pub fn distributor() -> usize {
    DISTRIBUTOR.load(Ordering::Relaxed)
}

/// Returns the base of the redistributor of CPU `index`; 0 before that CPU has run.
#[must_use]
pub fn redistributor(index: usize) -> usize {
    smp::record_of(index).map_or(0, |record| record.redistributor.load(Ordering::Relaxed))
}

/// Returns the number of INTIDs below 1020, including SGIs and PPIs.
#[must_use]
pub fn intid_count() -> u32 {
    (32 * ((read32(distributor() + register::TYPER) & 0x1f) + 1)).min(1020)
}

/// Initialises the distributor, and this CPU's redistributor and CPU interface, for a guest.
pub fn restart(platform: &Platform) {
    start_distributor(platform);
    start_cpu(platform);
    msr!("icc_igrpen0_el1", 0);
}

pub(crate) fn start_distributor(platform: &Platform) {
    DISTRIBUTOR.store(platform.distributor, Ordering::Relaxed);
    let base = platform.distributor;
    // ARE first, then both groups.
    write32(base + register::CTLR, 1 << 4);
    wait_distributor();
    for intid in (32..intid_count()).step_by(32) {
        for bank in [register::ICENABLER, register::ICPENDR, register::ICACTIVER, register::IGROUPR] {
            write32(base + bank + intid as usize / 8, u32::MAX);
        }
    }
    for intid in (32..intid_count()).step_by(4) {
        write32(base + register::IPRIORITYR + intid as usize, PRIORITY * 0x0101_0101);
    }
    wait_distributor();
    write32(base + register::CTLR, 1 << 4 | 3);
    wait_distributor();
}

/// Waits until the distributor's last write has taken effect.
pub fn wait_distributor() {
    while read32(distributor() + register::CTLR) & 1 << 31 != 0 {}
}

/// Finds and wakes this CPU's redistributor, and enables group 1 in its CPU interface.
pub(crate) fn start_cpu(platform: &Platform) {
    let Some(base) = find_redistributor(&platform.redistributors) else {
        crate::say!("fatal CPU {:#x} has no redistributor", crate::register::affinity());
        crate::psci::system_off();
    };
    smp::record().redistributor.store(base, Ordering::Relaxed);
    write32(base + register::GICR_WAKER, read32(base + register::GICR_WAKER) & !2);
    while read32(base + register::GICR_WAKER) & 4 != 0 {}
    let frame = base + register::GICR_SGI;
    for bank in [register::ICENABLER, register::ICPENDR, register::ICACTIVER, register::IGROUPR] {
        write32(frame + bank, u32::MAX);
    }
    for intid in (0..32).step_by(4) {
        write32(frame + register::IPRIORITYR + intid, PRIORITY * 0x0101_0101);
    }
    msr!("icc_sre_el1", mrs!("icc_sre_el1") | 7);
    msr!("icc_pmr_el1", 0xff);
    msr!("icc_bpr1_el1", 0);
    msr!("icc_ctlr_el1", 0);
    msr!("icc_igrpen1_el1", 1);
}

fn find_redistributor(regions: &[Range]) -> Option<usize> {
    let affinity = crate::register::affinity();
    let packed = affinity & 0xff_ffff | affinity >> 8 & 0xff00_0000;
    for region in regions.iter().filter(|region| region.size() > 0) {
        let mut base = region.start;
        while base < region.end {
            let kind = read64(base + register::GICR_TYPER);
            if kind >> 32 == packed {
                return Some(base);
            }
            if kind & 1 << 4 != 0 {
                break;
            }
            base += if kind & 1 << 1 != 0 { 0x4_0000 } else { 0x2_0000 };
        }
    }
    None
}

/// Returns the base of the registers for `intid`: this CPU's redistributor, or the distributor.
#[must_use]
pub fn base_of(intid: u32) -> usize {
    if intid < 32 { redistributor(smp::index()) + register::GICR_SGI } else { distributor() }
}

/// Writes the bit of `intid` to the register bank at `bank` (`ISENABLER` and the like, where 0 bits have no effect).
pub fn set_bit(bank: usize, intid: u32) {
    write32(base_of(intid) + bank + intid as usize / 32 * 4, 1 << (intid % 32));
}

/// Returns the bit of `intid` in the register bank at `bank`.
#[must_use]
pub fn bit(bank: usize, intid: u32) -> bool {
    read32(base_of(intid) + bank + intid as usize / 32 * 4) >> (intid % 32) & 1 != 0
}

/// Enables `intid`.
pub fn enable(intid: u32) {
    set_bit(register::ISENABLER, intid);
}

/// Disables `intid`, and waits until that has taken effect.
pub fn disable(intid: u32) {
    set_bit(register::ICENABLER, intid);
    if intid >= 32 {
        wait_distributor();
    } else {
        while read32(redistributor(smp::index())) & 1 << 3 != 0 {}
    }
}

/// Sets the priority of `intid`; lower is more urgent.
pub fn set_priority(intid: u32, priority: u32) {
    write8(base_of(intid) + register::IPRIORITYR + intid as usize, priority);
}

/// Puts `intid` into group 0 or 1.
pub fn set_group(intid: u32, group: u32) {
    let address = base_of(intid) + register::IGROUPR + intid as usize / 32 * 4;
    let others = read32(address) & !(1 << (intid % 32));
    write32(address, others | (group & 1) << (intid % 32));
}

/// Makes `intid` edge-triggered or level-sensitive.
pub fn set_edge(intid: u32, edge: u32) {
    let address = base_of(intid) + register::ICFGR + intid as usize / 16 * 4;
    let shift = intid % 16 * 2;
    write32(address, read32(address) & !(3 << shift) | (edge & 1) << (shift + 1));
}

/// Routes the SPI `intid` to the CPU with `affinity`.
pub fn route(intid: u32, affinity: u64) {
    write64(distributor() + register::IROUTER + intid as usize * 8, affinity);
}

/// Sends SGI `intid` of group 1 to the CPU with `affinity`.
pub fn send_sgi(intid: u32, affinity: u64) {
    crate::instruction!("dsb ishst");
    msr!("icc_sgi1r_el1", sgi_target(intid, affinity));
}

/// Returns the value for `ICC_SGI1R_EL1` that sends SGI `intid` to the CPU with `affinity`.
#[must_use]
pub fn sgi_target(intid: u32, affinity: u64) -> u64 {
    let (aff0, aff1, aff2, aff3) =
        (affinity & 0xff, affinity >> 8 & 0xff, affinity >> 16 & 0xff, affinity >> 32 & 0xff);
    1 << (aff0 & 0xf)
        | aff1 << 16
        | u64::from(intid & 0xf) << 24
        | aff2 << 32
        | (aff0 >> 4) << 44
        | aff3 << 48
}

/// Acknowledges the most urgent interrupt of group 1.
#[must_use]
pub fn acknowledge() -> u32 {
    let intid = mrs!("icc_iar1_el1") as u32;
    crate::instruction!("dsb sy");
    intid
}

/// Ends `intid` of group 1.
pub fn end(intid: u32) {
    msr!("icc_eoir1_el1", u64::from(intid));
}
