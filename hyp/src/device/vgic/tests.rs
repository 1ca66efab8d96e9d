//! Tests of the vGIC with fake list registers, and a guest that acknowledges and ends interrupts.

mod lines;

use super::list_register::{ListRegister, ListRegisters};
use super::*;
use std::cell::{Cell, RefCell};

const LINKS: [HardwareLink; 2] = [
    HardwareLink { virtual_intid: 27, physical_intid: 27 },
    HardwareLink { virtual_intid: 30, physical_intid: 30 },
];
/// Offsets of registers in the distributor.
const CTLR: u64 = 0x000;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const IPRIORITYR: u64 = 0x400;
const IROUTER: u64 = 0x6000;
/// Offset of a redistributor's SGI frame.
const SGI_FRAME: u64 = 0x1_0000;

/// Four list registers, the lines of a physical redistributor, and the requests to them.
#[derive(Default)]
struct Fake {
    lrs: RefCell<[ListRegister; 4]>,
    eoi_count: Cell<u32>,
    underflow: Cell<bool>,
    deactivated: RefCell<Vec<u32>>,
    /// Physical interrupts that were activated, and not deactivated since.
    active: Cell<u32>,
    lines: Cell<u32>,
    enabled: Cell<u32>,
}

impl ListRegisters for Fake {
    fn count(&self) -> usize {
        4
    }
    fn read(&self, index: usize) -> ListRegister {
        self.lrs.borrow()[index]
    }
    fn write(&self, index: usize, value: ListRegister) {
        self.lrs.borrow_mut()[index] = value;
    }
    fn read_empty(&self) -> u64 {
        self.lrs.borrow().iter().enumerate().fold(0, |mask, (i, lr)| mask | u64::from(lr.is_empty()) << i)
    }
    fn take_eoi_count(&self) -> u32 {
        self.eoi_count.take()
    }
    fn request_maintenance(&self, underflow: bool, _not_present: bool) {
        self.underflow.set(underflow);
    }
    fn is_line_high(&self, physical_intid: u32) -> bool {
        self.lines.get() >> physical_intid & 1 != 0
    }
    fn activate(&self, physical_intid: u32) {
        self.active.set(self.active.get() | 1 << physical_intid);
    }
    fn deactivate(&self, physical_intid: u32) {
        self.active.set(self.active.get() & !(1 << physical_intid));
        self.deactivated.borrow_mut().push(physical_intid);
    }
    fn set_physical_enable(&self, physical_intid: u32, is_enabled: bool) {
        let bit = 1 << physical_intid;
        self.enabled.set(if is_enabled { self.enabled.get() | bit } else { self.enabled.get() & !bit });
    }
}

impl Fake {
    /// Acknowledges the most urgent pending interrupt, which becomes active.
    fn acknowledge(&self) -> Option<u32> {
        let mut lrs = self.lrs.borrow_mut();
        let lr = lrs.iter_mut().filter(|lr| lr.pending() && !lr.active()).min_by_key(|lr| lr.priority())?;
        *lr = lr.with_pending(false).with_active(true);
        // No INTID is in two list registers.
        let intid = lr.virtual_intid();
        assert_eq!(lrs.iter().filter(|lr| !lr.is_empty() && lr.virtual_intid() == intid).count(), 1);
        Some(intid)
    }

    /// Ends interrupt `intid`, which may be in no list register.
    fn end(&self, intid: u32) {
        let mut lrs = self.lrs.borrow_mut();
        match lrs.iter_mut().find(|lr| lr.active() && lr.virtual_intid() == intid) {
            Some(lr) => {
                *lr = lr.with_active(false);
                if lr.hardware() {
                    self.active.set(self.active.get() & !(1 << lr.physical_intid()));
                }
            }
            None => self.eoi_count.set(self.eoi_count.get() + 1),
        }
    }
}

/// A guest with all vCPUs online, group 1 enabled, and all interrupts in group 1.
struct Guest {
    vgic: Vgic,
    cpus: Vec<(Local, Fake)>,
}

impl Guest {
    fn new(count: usize) -> Self {
        let vgic = Vgic::new(count, LINKS);
        let cpus: Vec<_> = (0..count).map(|_| (Local::new(), Fake::default())).collect();
        let guest = Self { vgic, cpus };
        for (index, (local, lrs)) in guest.cpus.iter().enumerate() {
            let _ = guest.vgic.bring_online(index, local, lrs);
            guest.redistributor(index, 0x80, u64::from(u32::MAX));
        }
        guest.write(CTLR, 2);
        for word in 1..4 {
            guest.write(0x80 + 4 * word, u64::from(u32::MAX));
        }
        guest
    }

    /// Refills as kicked CPUs do, until no vCPU is dirty.
    fn settle(&self, mut kick: Kick) {
        while kick.0 != 0 {
            let vcpu = kick.0.trailing_zeros() as usize;
            kick.0 &= kick.0 - 1;
            let (local, lrs) = &self.cpus[vcpu];
            kick.0 |= self.vgic.refill(vcpu, local, lrs).0;
        }
        assert_eq!(self.vgic.dirty(), 0);
    }

    fn write(&self, offset: u64, value: u64) {
        let size = if offset >= IROUTER { 8 } else { 4 };
        self.settle(self.vgic.write_distributor(0, offset, size, value));
    }

    fn read(&self, offset: u64) -> u64 {
        self.settle(self.vgic.distributor_readers(offset));
        self.vgic.read_distributor(0, offset, 4)
    }

    fn redistributor(&self, vcpu: usize, offset: u64, value: u64) {
        self.settle(self.vgic.write_redistributor(vcpu, SGI_FRAME + offset, 4, value));
    }

    fn read_redistributor(&self, vcpu: usize, offset: u64) -> u64 {
        self.settle(self.vgic.redistributor_readers(vcpu, SGI_FRAME + offset));
        self.vgic.read_redistributor(vcpu, SGI_FRAME + offset, 4)
    }

    fn maintain(&self, vcpu: usize) {
        let (local, lrs) = &self.cpus[vcpu];
        self.settle(self.vgic.refill(vcpu, local, lrs));
    }

    fn lrs(&self, vcpu: usize) -> &Fake {
        &self.cpus[vcpu].1
    }
}

#[test]
fn an_interrupt_goes_its_way() {
    let guest = Guest::new(1);
    guest.write(ISENABLER + 4, 1 << 8);
    guest.write(ISPENDR + 4, 1 << 8);
    assert_eq!(guest.read(ISPENDR + 4), 1 << 8);
    assert_eq!(guest.lrs(0).acknowledge(), Some(40));
    assert_eq!(guest.read(ISPENDR + 4), 0);
    assert_eq!(guest.read(ISACTIVER + 4), 1 << 8);
    guest.lrs(0).end(40);
    assert_eq!(guest.read(ISACTIVER + 4), 0);
    assert_eq!(guest.lrs(0).acknowledge(), None);
}

#[test]
fn nothing_comes_that_is_disabled_or_in_a_closed_group() {
    let guest = Guest::new(1);
    guest.write(ISPENDR + 4, 1);
    assert_eq!(guest.lrs(0).acknowledge(), None);
    guest.write(CTLR, 1);
    guest.write(ISENABLER + 4, 1);
    assert_eq!(guest.lrs(0).acknowledge(), None);
    guest.write(CTLR, 2);
    assert_eq!(guest.lrs(0).acknowledge(), Some(32));
}

#[test]
fn more_than_list_registers_hold_come_in_order_of_priority() {
    let guest = Guest::new(1);
    guest.write(ISENABLER + 4, u64::from(u32::MAX));
    for intid in 32..64 {
        // The last interrupt has the highest priority.
        let _ = guest.vgic.write_distributor(0, IPRIORITYR + intid, 1, (63 - intid) << 3);
    }
    guest.write(ISPENDR + 4, u64::from(u32::MAX));
    assert!(guest.lrs(0).underflow.get());
    for expected in (32..64).rev() {
        assert_eq!(guest.lrs(0).acknowledge(), Some(expected));
        guest.lrs(0).end(expected);
        guest.maintain(0);
    }
    assert_eq!(guest.lrs(0).acknowledge(), None);
    assert!(!guest.lrs(0).underflow.get());
}

#[test]
fn an_active_interrupt_that_had_to_leave_can_be_ended() {
    let guest = Guest::new(1);
    guest.write(ISENABLER + 4, u64::from(u32::MAX));
    let _ = guest.vgic.write_distributor(0, IPRIORITYR + 32, 1, 0xf8);
    guest.write(ISPENDR + 4, 1);
    assert_eq!(guest.lrs(0).acknowledge(), Some(32));
    // Four interrupts with higher priority take all list registers.
    guest.write(ISPENDR + 4, 0b11110);
    assert!(guest.lrs(0).lrs.borrow().iter().all(|lr| lr.pending()));
    assert_eq!(guest.read(ISACTIVER + 4), 1);
    for _ in 0..4 {
        let intid = guest.lrs(0).acknowledge().unwrap();
        guest.lrs(0).end(intid);
    }
    guest.lrs(0).end(32);
    assert_eq!(guest.read(ISACTIVER + 4), 0);
}

#[test]
fn a_level_comes_again_as_long_as_it_is_high_and_not_after() {
    let guest = Guest::new(1);
    guest.write(ISENABLER + 4, 2);
    guest.settle(guest.vgic.set_level(33, true));
    for _ in 0..3 {
        assert_eq!(guest.lrs(0).acknowledge(), Some(33));
        guest.lrs(0).end(33);
        guest.maintain(0);
    }
    guest.settle(guest.vgic.set_level(33, false));
    assert_eq!(guest.lrs(0).acknowledge(), None);
    assert_eq!(guest.read(ISPENDR + 4), 0);
}

#[test]
fn pending_can_be_taken_back_from_another_vcpu() {
    let guest = Guest::new(2);
    guest.write(ISENABLER + 4, 1);
    guest.write(IROUTER + 8 * 32, 1);
    guest.write(ISPENDR + 4, 1);
    assert!(guest.lrs(1).lrs.borrow().iter().any(|lr| lr.virtual_intid() == 32 && lr.pending()));
    guest.write(ICPENDR + 4, 1);
    assert_eq!(guest.lrs(1).acknowledge(), None);
    // The cancellation does not affect the next one.
    guest.write(ISPENDR + 4, 1);
    assert_eq!(guest.lrs(1).acknowledge(), Some(32));
}

#[test]
fn a_pending_interrupt_follows_its_route() {
    let guest = Guest::new(2);
    guest.write(ISENABLER + 4, 1);
    guest.write(ISPENDR + 4, 1);
    guest.write(IROUTER + 8 * 32, 1);
    assert_eq!(guest.lrs(0).acknowledge(), None);
    assert_eq!(guest.lrs(1).acknowledge(), Some(32));
}

#[test]
fn an_sgi_takes_the_short_way_once_it_has_a_list_register() {
    let guest = Guest::new(1);
    let (local, lrs) = &guest.cpus[0];
    guest.redistributor(0, 0x100, 1);
    assert!(local.inject(0, lrs).is_none(), "not in any list register yet");
    guest.settle(guest.vgic.arrive(0, 0, local, lrs));
    assert_eq!(lrs.acknowledge(), Some(0));
    assert!(local.inject(0, lrs).is_none(), "still active there");
    lrs.end(0);
    assert!(local.inject(0, lrs).is_some());
    assert_eq!(lrs.acknowledge(), Some(0));
    lrs.end(0);
    // It must not while it is disabled.
    guest.redistributor(0, 0x180, 1);
    assert!(local.inject(0, lrs).is_none());
}

#[test]
fn two_timers_at_once_do_not_drive_each_other_out() {
    let guest = Guest::new(1);
    let (local, lrs) = &guest.cpus[0];
    guest.redistributor(0, 0x100, 1 << 27 | 1 << 30);
    assert_eq!(lrs.enabled.get(), 1 << 27 | 1 << 30);
    lrs.lines.set(1 << 27 | 1 << 30);
    guest.settle(guest.vgic.arrive(0, 27, local, lrs));
    guest.settle(guest.vgic.arrive(0, 30, local, lrs));
    assert!(lrs.deactivated.borrow().is_empty());
    let pending = |intid| {
        lrs.lrs.borrow().iter().any(|lr| lr.pending() && lr.hardware() && lr.virtual_intid() == intid)
    };
    assert!(pending(27) && pending(30));
    // The line of one falls before it is taken: its physical interrupt is deactivated.
    lrs.lines.set(1 << 30);
    guest.maintain(0);
    assert_eq!(*lrs.deactivated.borrow(), [27]);
    assert!(!pending(27) && pending(30));
}

#[test]
fn a_timer_that_software_makes_pending_fires_once_regardless_of_its_line() {
    let guest = Guest::new(1);
    let lrs = guest.lrs(0);
    guest.redistributor(0, 0x100, 1 << 27);
    guest.redistributor(0, 0x200, 1 << 27);
    assert_eq!(lrs.active.get(), 1 << 27, "the guest's deactivation has to find it active");
    // It stays pending during refills.
    guest.maintain(0);
    assert_eq!(guest.read_redistributor(0, 0x200) & 1 << 27, 1 << 27);
    assert_eq!(lrs.acknowledge(), Some(27));
    assert_eq!(guest.read_redistributor(0, 0x300) & 1 << 27, 1 << 27);
    // Made pending again by its own handler: it is taken when it is inactive.
    guest.redistributor(0, 0x200, 1 << 27);
    assert_eq!(lrs.acknowledge(), None);
    assert!(lrs.underflow.get(), "nothing else would bring it");
    lrs.end(27);
    assert_eq!(lrs.active.get(), 0);
    guest.maintain(0);
    assert_eq!((lrs.acknowledge(), lrs.active.get()), (Some(27), 1 << 27));
    lrs.end(27);
    guest.maintain(0);
    assert_eq!((lrs.acknowledge(), lrs.active.get()), (None, 0));
    // While it is disabled it waits, without keeping the physical one active, and can be cleared.
    guest.redistributor(0, 0x200, 1 << 27);
    guest.redistributor(0, 0x180, 1 << 27);
    assert_eq!((lrs.acknowledge(), lrs.active.get()), (None, 0));
    assert_eq!(guest.read_redistributor(0, 0x200) & 1 << 27, 1 << 27);
    guest.redistributor(0, 0x100, 1 << 27);
    assert_eq!(lrs.active.get(), 1 << 27);
    guest.redistributor(0, 0x280, 1 << 27);
    assert_eq!((lrs.acknowledge(), lrs.active.get()), (None, 0));
    // The line determines the state again.
    let (local, lrs) = &guest.cpus[0];
    lrs.lines.set(1 << 27);
    if local.inject(27, lrs).is_none() {
        guest.settle(guest.vgic.arrive(0, 27, local, lrs));
    }
    lrs.lines.set(0);
    guest.maintain(0);
    assert_eq!(lrs.acknowledge(), None);
}

#[test]
fn a_timer_that_software_has_made_pending_is_so_after_its_vcpu_was_off() {
    let guest = Guest::new(2);
    let (local, lrs) = &guest.cpus[1];
    guest.redistributor(1, 0x100, 1 << 27 | 1 << 30);
    guest.redistributor(1, 0x200, 1 << 27);
    // The line of the other is high. Then the vCPU turns off, which stops its timers.
    lrs.lines.set(1 << 30);
    guest.settle(guest.vgic.arrive(1, 30, local, lrs));
    let _ = guest.vgic.take_offline(1, local, lrs);
    lrs.lines.set(0);
    lrs.active.set(0);
    let _ = guest.vgic.bring_online(1, local, lrs);
    assert_eq!((lrs.acknowledge(), lrs.active.get()), (Some(27), 1 << 27));
    lrs.end(27);
    assert_eq!(lrs.acknowledge(), None, "its line is low");
}

#[test]
fn pending_physical_interrupts_have_the_guests_numbers() {
    let links = [
        HardwareLink { virtual_intid: 27, physical_intid: 20 },
        HardwareLink { virtual_intid: 30, physical_intid: 30 },
    ];
    let vgic = Vgic::new(1, links);
    assert_eq!(vgic.to_guest(u32::MAX), 1 << 27 | 1 << 30 | 0x7f, "not EL2's kick");
    assert_eq!(vgic.to_guest(1 << 20 | 1 << 3), 1 << 27 | 1 << 3);
    assert_eq!(vgic.to_guest(1 << 27), 0);
}

#[test]
fn shared_interrupts_of_a_vcpu_that_leaves_go_to_others() {
    let guest = Guest::new(2);
    guest.write(ISENABLER + 4, 1);
    // Any vCPU: the first online one.
    guest.write(IROUTER + 8 * 32, 1 << 31);
    guest.write(ISPENDR + 4, 1);
    let (local, lrs) = &guest.cpus[0];
    let kick = guest.vgic.take_offline(0, local, lrs);
    assert!(lrs.lrs.borrow().iter().all(|lr| lr.is_empty()));
    assert_eq!(kick, Kick(2));
    guest.settle(kick);
    assert_eq!(guest.lrs(1).acknowledge(), Some(32));
}

#[test]
fn an_sgi_of_the_other_group_goes_nowhere() {
    let guest = Guest::new(2);
    guest.redistributor(1, 0x100, 1 << 9);
    assert_eq!(guest.vgic.send_sgi(1, 9, false), Kick(0));
    guest.settle(guest.vgic.send_sgi(1, 9, true));
    assert_eq!(guest.lrs(1).acknowledge(), Some(9));
    assert_eq!(guest.vgic.send_sgi(2, 9, true), Kick(0), "there is no vCPU 2");
    assert_eq!(guest.vgic.send_sgi(15, 9, true), Kick(0));
}

#[test]
fn fixed_registers_read_as_they_must() {
    let guest = Guest::new(2);
    assert_eq!(guest.read(0xffe8), 0x3b);
    assert_eq!(guest.read(0x004) & 0x1f, 3, "128 INTIDs");
    assert_eq!(guest.read(CTLR), 1 << 6 | 1 << 4 | 2);
    assert_eq!(guest.read_redistributor(0, 0xc00), 0xaaaa_aaaa, "SGIs are edges");
    assert_eq!(guest.vgic.read_redistributor(0, 8, 8), 0);
    assert_eq!(guest.vgic.read_redistributor(1, 8, 8), 1 << 32 | 1 << 8 | 1 << 4);
}

#[test]
fn readwaits_until_everybody_has_taken_notice() {
    let guest = Guest::new(2);
    guest.write(ISENABLER + 4, 1);
    guest.write(IROUTER + 8 * 32, 1);
    let kick = guest.vgic.write_distributor(0, ICENABLER + 4, 4, 1);
    assert_eq!(guest.vgic.read_distributor(0, CTLR, 4) >> 31, 1);
    guest.settle(kick);
    assert_eq!(guest.vgic.read_distributor(0, CTLR, 4) >> 31, 0);
    // Also the redistributor of another vCPU (GICR_CTLR.RWP), but only of that one.
    let kick = guest.vgic.write_redistributor(1, SGI_FRAME + 0x180, 4, 1);
    let waiting = |vcpu| guest.vgic.read_redistributor(vcpu, 0, 4);
    assert_eq!((waiting(0), waiting(1)), (0, 1 << 3));
    guest.settle(kick);
    assert_eq!((waiting(0), waiting(1)), (0, 0));
}

proptest::proptest! {
    /// No write of a guest, with any address, size and value, causes a panic, a lost interrupt, or an INTID in two list registers.
    #[test]
    fn hostile_accesses_do_no_harm(
        accesses in proptest::collection::vec(
            (0usize..2, 0u8..6, 0u64..0x1_0000, 0u32..4, proptest::num::u64::ANY), 1..200
        )
    ) {
        let guest = Guest::new(2);
        for (vcpu, kind, offset, size, value) in accesses {
            let size = 1u64 << size;
            let (local, lrs) = &guest.cpus[vcpu];
            match kind {
                0 => guest.settle(guest.vgic.write_distributor(vcpu, offset & !(size - 1), size, value)),
                1 => guest.settle(guest.vgic.write_redistributor(vcpu, (offset * 2) & !(size - 1), size, value)),
                2 => {
                    let _ = guest.vgic.read_distributor(vcpu, offset, size);
                    let _ = guest.vgic.read_redistributor(vcpu, offset * 2, size);
                }
                3 => {
                    if let Some(intid) = lrs.acknowledge()
                        && value & 1 != 0
                    {
                        lrs.end(intid);
                    }
                }
                4 => guest.settle(guest.vgic.set_level(32 + value as u32 % 96, value >> 32 & 1 != 0)),
                _ => guest.settle(guest.vgic.deactivate(vcpu, value as u32 % 200, local, lrs)),
            }
            let lrs = lrs.lrs.borrow();
            for (index, lr) in lrs.iter().enumerate().filter(|(_, lr)| !lr.is_empty()) {
                let twice = lrs[index + 1..].iter().any(|other| {
                    !other.is_empty() && other.virtual_intid() == lr.virtual_intid()
                });
                proptest::prop_assert!(!twice);
            }
        }
    }
}
