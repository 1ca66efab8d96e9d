//! Loom models of the state that CPUs share on the interrupt paths: `tools/proof.sh loom`.
//!
//! A kick is a word that is swapped with relaxed ordering, since an SGI orders nothing. DSBs on both sides, here fences, order
//! other accesses against it (`arch::gic::cpu_interface`, `send_sgi` and `synchronize`).

use std::cell::RefCell;

use crate::device::shared_uart::SharedUart;
use crate::device::vgic::list_register::{ListRegister, ListRegisters};
use crate::device::vgic::{HardwareLink, Kick, Local, Vgic};
use crate::device::vpl011::Line;
use crate::doorbell::{Doorbell, Poller};
use crate::requests::{Request, Requests};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::thread;

/// The DSB between the acknowledgement of a kick and the reads that follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Barrier {
    Executed,
    Forgotten,
}

/// The kick of one CPU.
///
/// Every change is a read-modify-write, since loom may order a plain store before a swap that did not read it.
struct Sgi(AtomicBool);

impl Sgi {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn send(&self) {
        fence(Ordering::SeqCst);
        self.0.swap(true, Ordering::Relaxed);
    }

    /// Acknowledges the kick. Returns false if it is not pending.
    fn acknowledge(&self, barrier: Barrier) -> bool {
        let taken = self.0.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed);
        let is_pending = taken.is_ok();
        if is_pending && barrier == Barrier::Executed {
            fence(Ordering::SeqCst);
        }
        is_pending
    }
}

/// Four list registers.
#[derive(Default)]
struct Lists(RefCell<[ListRegister; 4]>);

impl ListRegisters for Lists {
    fn count(&self) -> usize {
        4
    }
    fn read(&self, index: usize) -> ListRegister {
        self.0.borrow()[index]
    }
    fn write(&self, index: usize, value: ListRegister) {
        self.0.borrow_mut()[index] = value;
    }
    fn read_empty(&self) -> u64 {
        let registers = self.0.borrow();
        registers.iter().enumerate().fold(0, |mask, (index, lr)| mask | u64::from(lr.is_empty()) << index)
    }
    fn take_eoi_count(&self) -> u32 {
        0
    }
    fn request_maintenance(&self, _underflow: bool, _not_present: bool) {}
    fn is_line_high(&self, _physical_intid: u32) -> bool {
        false
    }
    fn activate(&self, _physical_intid: u32) {}
    fn deactivate(&self, _physical_intid: u32) {}
    fn set_physical_enable(&self, _physical_intid: u32, _is_enabled: bool) {}
}

impl Lists {
    /// Returns the number of list registers in which `intid` is pending.
    fn pending(&self, intid: u32) -> usize {
        self.0.borrow().iter().filter(|lr| lr.pending() && lr.virtual_intid() == intid).count()
    }
}

const LINKS: [HardwareLink; 2] = [
    HardwareLink { virtual_intid: 27, physical_intid: 27 },
    HardwareLink { virtual_intid: 30, physical_intid: 30 },
];
/// GICD_CTLR, and of a redistributor GICR_IGROUPR0, GICR_ISENABLER0 and GICR_ISPENDR0.
const CTLR: u64 = 0;
const IGROUPR0: u64 = 0x1_0080;
const ISENABLER0: u64 = 0x1_0100;
const ISPENDR0: u64 = 0x1_0200;

/// Returns a vGIC with group 1 enabled, and vCPU 1 on this CPU with all SGIs enabled.
fn vgic_with(local: &Local, lists: &Lists) -> Arc<Vgic> {
    let vgic = Vgic::new(2, LINKS);
    let _ = vgic.bring_online(1, local, lists);
    let _ = vgic.write_distributor(1, CTLR, 4, 2);
    let _ = vgic.write_redistributor(1, IGROUPR0, 4, u64::from(u32::MAX));
    let _ = vgic.write_redistributor(1, ISENABLER0, 4, 0xffff);
    assert_eq!(vgic.refill(1, local, lists), Kick(0));
    Arc::new(vgic)
}

/// Handles a kick as `exit::interrupt` does.
fn take_kick(sgi: &Sgi, barrier: Barrier, vgic: &Vgic, local: &Local, lists: &Lists) {
    if sgi.acknowledge(barrier) && vgic.is_dirty(1) {
        let _ = vgic.refill(1, local, lists);
    }
}

/// Models another CPU that makes two SGIs pending for the vCPU on this one.
fn sgis_arrive(barrier: Barrier) {
    loom::model(move || {
        let (local, lists) = (Local::new(), Lists::default());
        let vgic = vgic_with(&local, &lists);
        let sgi = Arc::new(Sgi::new());
        let other = thread::spawn({
            let (vgic, sgi) = (vgic.clone(), sgi.clone());
            move || {
                for intid in [9, 10] {
                    if vgic.send_sgi(1, intid, true).0 != 0 {
                        sgi.send();
                    }
                }
            }
        });
        take_kick(&sgi, barrier, &vgic, &local, &lists);
        other.join().unwrap();
        // The kick that is still pending, if any.
        take_kick(&sgi, barrier, &vgic, &local, &lists);
        assert_eq!((lists.pending(9), lists.pending(10)), (1, 1), "lost");
        assert_eq!(vgic.dirty(), 0);
    });
}

#[test]
fn a_kicked_cpu_sees_what_the_kick_announces() {
    sgis_arrive(Barrier::Executed);
}

#[test]
#[should_panic(expected = "lost")]
fn without_the_barrier_a_kick_may_find_nothing() {
    sgis_arrive(Barrier::Forgotten);
}

#[test]
fn a_vcpu_that_turns_off_and_on_keeps_its_pending_sgis() {
    loom::model(|| {
        let (local, lists) = (Local::new(), Lists::default());
        let vgic = vgic_with(&local, &lists);
        let sgi = Arc::new(Sgi::new());
        let other = thread::spawn({
            let (vgic, sgi) = (vgic.clone(), sgi.clone());
            move || {
                if vgic.send_sgi(1, 9, true).0 != 0 {
                    sgi.send();
                }
            }
        });
        let _ = vgic.take_offline(1, &local, &lists);
        let _ = vgic.bring_online(1, &local, &lists);
        other.join().unwrap();
        take_kick(&sgi, Barrier::Executed, &vgic, &local, &lists);
        assert_eq!((lists.pending(9), vgic.dirty()), (1, 0));
    });
}

#[test]
fn an_sgi_that_arrives_in_both_ways_is_in_one_list_register() {
    loom::model(|| {
        let (local, lists) = (Local::new(), Lists::default());
        let vgic = vgic_with(&local, &lists);
        let sgi = Arc::new(Sgi::new());
        let other = thread::spawn({
            let (vgic, sgi) = (vgic.clone(), sgi.clone());
            move || {
                if vgic.write_redistributor(1, ISPENDR0, 4, 1 << 3).0 != 0 {
                    sgi.send();
                }
            }
        });
        // The physical SGI, by the fast path if possible.
        if local.inject(3, &lists).is_none() {
            let _ = vgic.arrive(1, 3, &local, &lists);
        }
        assert_eq!(lists.pending(3), 1);
        other.join().unwrap();
        take_kick(&sgi, Barrier::Executed, &vgic, &local, &lists);
        assert_eq!((lists.pending(3), vgic.dirty()), (1, 0));
    });
}

#[test]
fn a_request_shows_earlier_writes_regardless_of_the_sender_of_the_kick() {
    loom::model(|| {
        // Two CPUs wake the monitor. If the second finds the request of the first pending, it sends no kick.
        let (requests, sgi) = (Arc::new(Requests::new()), Arc::new(Sgi::new()));
        let written = Arc::new(AtomicU32::new(0));
        let others = [1, 2].map(|bit| {
            let (requests, sgi, written) = (requests.clone(), sgi.clone(), written.clone());
            thread::spawn(move || {
                written.fetch_or(bit, Ordering::Release);
                if requests.add(Request::Monitor) {
                    sgi.send();
                }
            })
        });
        let mut seen = 0;
        let mut look = || {
            // Take the request before reading, as `operator::scheduler::resume` does.
            if sgi.acknowledge(Barrier::Executed) {
                requests.take(Request::Monitor);
                seen |= written.swap(0, Ordering::AcqRel);
            }
        };
        look();
        for other in others {
            other.join().unwrap();
        }
        look();
        assert_eq!(seen, 3);
    });
}

#[test]
fn no_ring_of_the_doorbell_is_lost() {
    loom::model(|| {
        let shared = Arc::new((Doorbell::new(), Poller::new()));
        // The CPU polls, and the work that made it poll is done.
        let (doorbell, poller) = (&shared.0, &shared.1);
        doorbell.ring();
        assert!(poller.poll(doorbell));
        doorbell.acknowledge(doorbell.mark());
        let other = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.0.ring();
                // It kicks the CPU if this is true.
                !shared.1.is_polling()
            }
        });
        let is_polling = poller.poll(doorbell);
        let is_kicked = other.join().unwrap();
        assert!(is_polling || is_kicked, "nobody looks at the work");
        assert!(doorbell.is_pending());
    });
}

/// A line that gives one byte.
struct OneByte(Option<u8>);

impl Line for OneByte {
    fn transmit(&mut self, _: u8) -> bool {
        true
    }
    fn receive(&mut self) -> Option<u8> {
        self.0.take()
    }
}

#[test]
fn the_uarts_line_is_as_high_as_the_uart_says() {
    /// UARTIMSC, UARTICR and UARTMIS, and the receive timeout in them.
    const IMSC: u16 = 0x38;
    const ICR: u16 = 0x44;
    const MIS: u16 = 0x40;
    const RT: u32 = 1 << 6;
    /// The UART's interrupt, and its word of GICD_ISPENDR.
    const INTID: u32 = 33;
    const ISPENDR1: u64 = 0x204;
    loom::model(|| {
        let shared = Arc::new((SharedUart::new(), Vgic::new(1, LINKS)));
        let set_line = |shared: &(SharedUart, Vgic), level| {
            let _ = shared.1.set_level(INTID, level);
        };
        let mut line = OneByte(Some(b'a'));
        let _ = shared.0.with(|uart| uart.write(IMSC, RT, &mut line), |_| ());
        let _ = shared.0.with(|uart| uart.receive(&mut line), |level| set_line(&shared, level));
        // The guest clears the interrupt while the operator types.
        let other = thread::spawn({
            let shared = shared.clone();
            move || {
                let mut line = OneByte(Some(b'b'));
                let _ = shared.0.with(|uart| uart.receive(&mut line), |level| set_line(&shared, level));
            }
        });
        let _ = shared.0.with(|uart| uart.write(ICR, RT, &mut line), |level| set_line(&shared, level));
        other.join().unwrap();
        let status = shared.0.read(MIS, |uart| uart.read(MIS, &mut line), |_| ()).0;
        let is_high = shared.1.read_distributor(0, ISPENDR1, 4) >> (INTID - 32) & 1 != 0;
        assert_eq!(is_high, status & RT != 0);
    });
}
