//! Tests of lines, with a fake of the physical distributor that all CPUs share.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Levels, but for 40 and 41. INTIDs 35 and 67 share an entry of the fast path's tables; 700 needs bit 9.
const LINES: [u32; 7] = [35, 36, 40, 41, 67, 70, 700];
const EDGES: [u32; 2] = [40, 41];
/// Offset of the lines' word in bit registers.
const WORD: u64 = 8;
const ISACTIVER_LINES: u64 = ISACTIVER + WORD;
const ICACTIVER_LINES: u64 = 0x380 + WORD;

/// The physical distributor's state of the lines.
#[derive(Default)]
struct Physical {
    high: BTreeSet<u32>,
    latched: BTreeSet<u32>,
    active: BTreeSet<u32>,
    enabled: BTreeMap<u32, u64>,
}

impl Physical {
    fn is_pending(&self, intid: u32) -> bool {
        self.latched.contains(&intid) || self.high.contains(&intid)
    }
}

/// A CPU's list registers.
struct Cpu {
    physical: Rc<RefCell<Physical>>,
    lrs: RefCell<[ListRegister; 4]>,
    eoi_count: Cell<u32>,
}

impl ListRegisters for Cpu {
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
    fn request_maintenance(&self, _underflow: bool, _not_present: bool) {}
    fn is_line_high(&self, physical_intid: u32) -> bool {
        self.physical.borrow().is_pending(physical_intid)
    }
    fn activate(&self, physical_intid: u32) {
        self.physical.borrow_mut().active.insert(physical_intid);
    }
    fn deactivate(&self, physical_intid: u32) {
        self.physical.borrow_mut().active.remove(&physical_intid);
    }
    fn set_physical_enable(&self, _physical_intid: u32, _is_enabled: bool) {}
    fn set_pending(&self, physical_intid: u32) {
        self.physical.borrow_mut().latched.insert(physical_intid);
    }
    fn clear_pending(&self, physical_intid: u32) {
        self.physical.borrow_mut().latched.remove(&physical_intid);
    }
    fn enable_line(&self, physical_intid: u32, mpidr: u64) {
        let before = self.physical.borrow_mut().enabled.insert(physical_intid, mpidr);
        assert_eq!(before, None, "a route changes while the interrupt is disabled");
    }
    fn disable_line(&self, physical_intid: u32) {
        self.physical.borrow_mut().enabled.remove(&physical_intid);
    }
}

/// A guest with two vCPUs and [`LINES`], all in group 1.
struct Rig {
    vgic: Vgic,
    physical: Rc<RefCell<Physical>>,
    cpus: Vec<(Local, Cpu)>,
    /// Kicks that have not arrived yet.
    kicks: Cell<u32>,
    fast_count: Cell<u64>,
}

impl Rig {
    fn new() -> Self {
        let rig = Self::closed();
        rig.kick(rig.vgic.open_lines(rig.lrs(0)));
        for vcpu in 0..2 {
            rig.turn_on(vcpu);
        }
        rig.set_up();
        rig
    }

    fn closed() -> Self {
        let physical = Rc::new(RefCell::new(Physical::default()));
        let cpu = || Cpu { physical: physical.clone(), lrs: RefCell::default(), eoi_count: Cell::new(0) };
        let cpus = (0..2).map(|_| (Local::new(), cpu())).collect();
        let vgic = Vgic::new(2, LINKS);
        let line = |&physical_intid: &u32| Line { physical_intid, is_edge: EDGES.contains(&physical_intid) };
        vgic.set_lines(&LINES.iter().map(line).collect::<Vec<_>>(), 0..2);
        Self { vgic, physical, cpus, kicks: Cell::new(0), fast_count: Cell::new(0) }
    }

    /// Puts all lines in group 1 and enables the group.
    fn set_up(&self) {
        self.write(0x80 + WORD, u64::from(u32::MAX));
        self.write(CTLR, 2);
        self.settle();
    }

    fn lrs(&self, vcpu: usize) -> &Cpu {
        &self.cpus[vcpu].1
    }

    fn kick(&self, kick: Kick) {
        self.kicks.set(self.kicks.get() | kick.0);
    }

    fn is_online(&self, vcpu: usize) -> bool {
        self.vgic.state.lock().online >> vcpu & 1 != 0
    }

    fn turn_on(&self, vcpu: usize) {
        let (local, lrs) = &self.cpus[vcpu];
        self.kick(self.vgic.bring_online(vcpu, local, lrs));
    }

    fn turn_off(&self, vcpu: usize) {
        let (local, lrs) = &self.cpus[vcpu];
        self.kick(self.vgic.take_offline(vcpu, local, lrs));
        *lrs.lrs.borrow_mut() = Default::default();
    }

    /// Refills as kicked CPUs do.
    fn settle(&self) {
        while self.kicks.get() != 0 {
            let vcpu = self.kicks.get().trailing_zeros() as usize;
            self.kicks.set(self.kicks.get() & !(1 << vcpu));
            if self.is_online(vcpu) {
                let (local, lrs) = &self.cpus[vcpu];
                self.kick(self.vgic.refill(vcpu, local, lrs));
            }
        }
        assert_eq!(self.vgic.dirty(), 0);
    }

    /// Writes a register of the distributor. Kicks may arrive later.
    fn write(&self, offset: u64, value: u64) {
        let size = if offset >= IROUTER { 8 } else { 4 };
        self.kick(self.vgic.write_distributor(0, offset, size, value));
        self.vgic.forward_pending(offset, size, value, self.lrs(0));
    }

    fn read(&self, offset: u64) -> u64 {
        self.kick(self.vgic.distributor_readers(offset));
        self.settle();
        self.vgic.read_distributor(0, offset, 4) | self.vgic.pending_lines(offset, 4, self.lrs(0))
    }

    fn enable(&self, line: u32) {
        self.write(ISENABLER + WORD, 1 << line);
        self.settle();
    }

    fn disable(&self, line: u32) {
        self.write(ICENABLER + WORD, 1 << line);
        self.settle();
    }

    fn route(&self, line: u32, route: u64) {
        self.write(IROUTER + 8 * (64 + u64::from(line)), route);
    }

    fn raise(&self, line: usize) {
        let mut physical = self.physical.borrow_mut();
        if EDGES.contains(&LINES[line]) {
            physical.latched.insert(LINES[line]);
        } else {
            physical.high.insert(LINES[line]);
        }
    }

    fn lower(&self, line: usize) {
        self.physical.borrow_mut().high.remove(&LINES[line]);
    }

    /// Acknowledges a physical interrupt on its CPU.
    fn take_physical(&self) -> Option<(u32, usize)> {
        let mut physical = self.physical.borrow_mut();
        let fires = |intid: &u32| physical.is_pending(*intid) && !physical.active.contains(intid);
        let (&intid, &cpu) = physical.enabled.iter().find(|(intid, _)| fires(intid))?;
        physical.active.insert(intid);
        physical.latched.remove(&intid);
        Some((intid, cpu as usize))
    }

    /// Handles `intid` on `cpu` as `exit::interrupt` does.
    fn handle(&self, intid: u32, cpu: usize) {
        let (local, lrs) = &self.cpus[cpu];
        let line = self.vgic.line(intid).unwrap();
        if !self.is_online(cpu) {
            return self.kick(self.vgic.arrive_astray(line, lrs));
        }
        match local.inject_line(intid, lrs) {
            Some(value) => {
                assert_eq!((value.physical(), value.virtual_intid()), (intid, 64 + line as u32));
                self.fast_count.set(self.fast_count.get() + 1);
            }
            None => self.kick(self.vgic.arrive_line(cpu, line, local, lrs)),
        }
    }

    /// Lets physical interrupts arrive until none is left. Returns their number.
    fn arrive(&self) -> usize {
        let mut count = 0;
        while let Some((intid, cpu)) = self.take_physical() {
            count += 1;
            assert!(count < 50, "a storm of {intid}");
            self.handle(intid, cpu);
        }
        count
    }

    /// Acknowledges the first pending interrupt of `vcpu`.
    fn acknowledge(&self, vcpu: usize) -> Option<u32> {
        let mut lrs = self.lrs(vcpu).lrs.borrow_mut();
        let lr = lrs.iter_mut().find(|lr| lr.pending() && !lr.active())?;
        *lr = lr.with_pending(false).with_active(true);
        Some(lr.virtual_intid())
    }

    /// Ends interrupt `intid` of `vcpu`, which deactivates the physical one.
    fn end(&self, vcpu: usize, intid: u32) {
        let mut lrs = self.lrs(vcpu).lrs.borrow_mut();
        match lrs.iter_mut().find(|lr| lr.active() && lr.virtual_intid() == intid) {
            Some(lr) => {
                *lr = lr.with_active(false);
                self.physical.borrow_mut().active.remove(&lr.physical());
            }
            None => self.lrs(vcpu).eoi_count.set(self.lrs(vcpu).eoi_count.get() + 1),
        }
    }

    /// Returns true if line `line` is pending for the guest, outside the physical distributor.
    fn is_delivered(&self, line: usize) -> bool {
        let in_list = |vcpu: usize| {
            self.lrs(vcpu)
                .lrs
                .borrow()
                .iter()
                .any(|lr| lr.pending() && lr.virtual_intid() == 64 + line as u32)
        };
        in_list(0) || in_list(1) || self.vgic.state.lock().shared[1].pending >> line & 1 != 0
    }

    /// Checks that exactly the active physical interrupts have one place in the vGIC, and that the enabled ones are those that
    /// the guest would take.
    fn check(&self) {
        let physical = self.physical.borrow();
        for (line, intid) in LINES.iter().enumerate() {
            let state = self.vgic.state.lock();
            let bank = &state.shared[1];
            let mut places = usize::from(bank.taken >> line & 1 != 0);
            for (vcpu, (_, cpu)) in self.cpus.iter().enumerate() {
                for lr in cpu.lrs.borrow().iter().filter(|lr| !lr.is_empty() && lr.hardware()) {
                    if lr.physical() == *intid {
                        assert_eq!(bank.holder[line], vcpu as u8, "held elsewhere");
                        assert!(!(lr.pending() && lr.active()));
                        places += 1;
                    }
                }
            }
            assert_eq!(places, usize::from(physical.active.contains(intid)), "places of line {line}");
            assert!(bank.pending & !bank.taken & 0x7f == 0, "pending state belongs to the distributor");
            let forwarded = bank.forwarded(state.groups) >> line & 1 != 0 && state.has_open_lines;
            let target = state.target(64 + line as u32).filter(|_| forwarded);
            assert_eq!(physical.enabled.get(intid).copied(), target.map(|vcpu| vcpu as u64), "line {line}");
        }
    }
}

#[test]
fn a_level_comes_by_the_fast_path_and_again_while_it_is_high() {
    let rig = Rig::new();
    rig.enable(0);
    rig.raise(0);
    for round in 0..5 {
        assert_eq!(rig.arrive(), 1);
        assert_eq!(rig.fast_count.get(), round, "the first one finds the list register");
        assert_eq!(rig.acknowledge(0), Some(64));
        assert_eq!(rig.arrive(), 0, "active: a line that stays high costs nothing more");
        rig.end(0, 64);
    }
    rig.lower(0);
    assert_eq!((rig.arrive(), rig.acknowledge(0)), (0, None));
    assert_eq!((rig.cpus[0].0.line_count(0), rig.cpus[0].0.line_count(1)), (5, 0));
    rig.check();
}

#[test]
fn lines_that_share_an_entry_and_large_intids_come_too() {
    let rig = Rig::new();
    rig.write(ISENABLER + WORD, 1 | 1 << 4 | 1 << 6);
    rig.settle();
    for _ in 0..3 {
        for line in [0, 4, 6] {
            rig.raise(line);
            assert_eq!(rig.arrive(), 1);
            rig.lower(line);
            assert_eq!(rig.acknowledge(0), Some(64 + line as u32));
            rig.end(0, 64 + line as u32);
            rig.check();
        }
    }
    assert_eq!(rig.cpus[0].0.line_count(4), 3);
}

#[test]
fn a_line_that_is_disabled_while_pending_is_given_back_and_not_lost() {
    for line in [0, 2] {
        let rig = Rig::new();
        rig.enable(line);
        rig.raise(line as usize);
        rig.arrive();
        rig.disable(line);
        assert_eq!(rig.acknowledge(0), None);
        assert_eq!(rig.arrive(), 0);
        rig.check();
        assert_eq!(rig.read(ISPENDR + WORD), 1 << line);
        rig.enable(line);
        assert_eq!(rig.arrive(), 1);
        assert_eq!(rig.acknowledge(0), Some(64 + line));
        rig.end(0, 64 + line);
        rig.check();
    }
}

#[test]
fn a_level_that_falls_before_it_is_taken_is_gone() {
    let rig = Rig::new();
    rig.enable(1);
    rig.raise(1);
    rig.arrive();
    rig.lower(1);
    assert_eq!(rig.read(ISPENDR + WORD), 0);
    assert_eq!(rig.acknowledge(0), None);
    rig.check();
}

#[test]
fn software_sets_and_clears_pending_and_active() {
    let rig = Rig::new();
    rig.enable(0);
    rig.write(ISPENDR + WORD, 1);
    assert_eq!(rig.arrive(), 1);
    assert_eq!(rig.read(ISPENDR + WORD), 1, "regardless of the line");
    assert_eq!(rig.acknowledge(0), Some(64));
    rig.write(ISPENDR + WORD, 1);
    assert_eq!((rig.read(ISPENDR + WORD), rig.read(ISACTIVER_LINES)), (1, 1));
    rig.end(0, 64);
    assert_eq!(rig.arrive(), 1, "once more");
    rig.write(ICPENDR + WORD, 1);
    assert_eq!((rig.read(ISPENDR + WORD), rig.acknowledge(0)), (0, None));
    rig.check();
    // Active by software: the line waits.
    rig.write(ISACTIVER_LINES, 1);
    rig.settle();
    rig.check();
    rig.raise(0);
    assert_eq!(rig.arrive(), 0);
    rig.write(ICACTIVER_LINES, 1);
    rig.settle();
    rig.check();
    assert_eq!(rig.arrive(), 1);
    // The trigger is the host's.
    rig.write(0xc00 + 16, u64::from(u32::MAX));
    assert_eq!(rig.read(0xc00 + 16), 0xaaaa_8000 | 0b1010_0000);
}

#[test]
fn the_priority_drop_and_the_deactivation_may_be_separate() {
    let rig = Rig::new();
    rig.enable(0);
    rig.raise(0);
    rig.arrive();
    assert_eq!(rig.acknowledge(0), Some(64));
    // Between the two the line is active. A trapped ICC_DIR_EL1 finds it in the list register.
    let (local, lrs) = &rig.cpus[0];
    rig.kick(rig.vgic.refill(0, local, lrs));
    rig.check();
    assert_eq!(rig.arrive(), 0);
    rig.kick(rig.vgic.deactivate(0, 64, local, lrs));
    rig.settle();
    rig.check();
    assert_eq!(rig.arrive(), 1);
}

#[test]
fn a_route_is_followed_and_an_absent_target_masks() {
    let rig = Rig::new();
    rig.enable(2);
    rig.route(2, 1);
    rig.settle();
    rig.raise(2);
    rig.arrive();
    assert_eq!((rig.acknowledge(0), rig.physical.borrow().enabled[&40]), (None, 1));
    // The pending edge follows the route.
    rig.route(2, 0);
    rig.settle();
    rig.arrive();
    rig.check();
    assert_eq!((rig.acknowledge(1), rig.acknowledge(0)), (None, Some(66)));
    rig.end(0, 66);
    // Nobody is there.
    rig.raise(2);
    rig.arrive();
    rig.route(2, 7);
    rig.settle();
    rig.check();
    assert!(rig.physical.borrow().enabled.is_empty());
    rig.route(2, 1 << 31);
    rig.turn_off(0);
    rig.settle();
    rig.arrive();
    rig.check();
    assert_eq!(rig.acknowledge(1), Some(66));
    rig.end(1, 66);
    rig.turn_on(0);
    rig.settle();
    rig.check();
    assert_eq!(rig.physical.borrow().enabled[&40], 0, "the first vCPU that is online");
    for round in 0..2 {
        let fast_count = rig.fast_count.get();
        rig.raise(2);
        assert_eq!((rig.arrive(), rig.acknowledge(0)), (1, Some(66)));
        assert_eq!(rig.fast_count.get(), fast_count + round, "the first one finds the list register");
        rig.end(0, 66);
        rig.settle();
    }
}

#[test]
fn an_active_line_of_a_vcpu_that_is_off_can_be_cleared() {
    let rig = Rig::new();
    rig.enable(0);
    rig.route(0, 1);
    rig.settle();
    rig.raise(0);
    rig.arrive();
    assert_eq!(rig.acknowledge(1), Some(64));
    rig.turn_off(1);
    rig.settle();
    rig.check();
    assert!(rig.physical.borrow().active.contains(&35), "active, as in a GIC");
    rig.write(ICACTIVER_LINES, 1);
    rig.settle();
    rig.check();
    assert!(rig.physical.borrow().active.is_empty());
    rig.route(0, 0);
    rig.settle();
    assert_eq!((rig.arrive(), rig.acknowledge(0)), (1, Some(64)));
}

#[test]
fn an_interrupt_that_arrives_where_the_vcpu_has_left_goes_on() {
    let rig = Rig::new();
    rig.write(ISENABLER + WORD, 0b101);
    rig.route(0, 1 << 31);
    rig.route(2, 1 << 31);
    rig.settle();
    for line in [0, 2] {
        rig.raise(line);
        let (intid, cpu) = rig.take_physical().unwrap();
        assert_eq!(cpu, 0);
        rig.turn_off(0);
        rig.handle(intid, cpu);
        rig.settle();
        rig.arrive();
        rig.check();
        assert_eq!(rig.acknowledge(1), Some(64 + line as u32));
        rig.lower(line);
        rig.end(1, 64 + line as u32);
        rig.turn_on(0);
        rig.settle();
    }
    // No vCPU is left: it is masked, and inactive.
    rig.raise(2);
    let (intid, cpu) = rig.take_physical().unwrap();
    rig.turn_off(0);
    rig.turn_off(1);
    rig.handle(intid, cpu);
    rig.kicks.set(0);
    rig.check();
    assert_eq!(rig.arrive(), 0);
}

#[test]
fn a_reset_while_a_line_is_active_and_high_starts_afresh() {
    let rig = Rig::new();
    rig.write(ISENABLER + WORD, 0b101);
    rig.settle();
    rig.raise(0);
    rig.raise(2);
    rig.arrive();
    assert_eq!(rig.acknowledge(0), Some(64));
    // Masked while the guest runs: the pending one is given back, the active one stays.
    rig.kick(rig.vgic.mask_lines(rig.lrs(1)));
    rig.settle();
    rig.check();
    assert!(rig.physical.borrow().enabled.is_empty() && rig.physical.borrow().active.contains(&35));
    for vcpu in 0..2 {
        rig.turn_off(vcpu);
    }
    rig.vgic.quiet_lines(rig.lrs(1));
    rig.kicks.set(0);
    rig.check();
    assert!(rig.physical.borrow().active.is_empty() && rig.physical.borrow().latched.is_empty());
    rig.vgic.reset();
    rig.kick(rig.vgic.open_lines(rig.lrs(1)));
    rig.turn_on(0);
    rig.set_up();
    assert_eq!(rig.arrive(), 0, "disabled after a reset");
    rig.enable(0);
    assert_eq!((rig.arrive(), rig.acknowledge(0)), (1, Some(64)));
    rig.check();
}

#[test]
fn lines_stay_masked_until_they_are_open() {
    let rig = Rig::closed();
    rig.turn_on(0);
    rig.set_up();
    rig.enable(0);
    rig.raise(0);
    assert_eq!(rig.arrive(), 0);
    rig.kick(rig.vgic.open_lines(rig.lrs(0)));
    rig.settle();
    assert_eq!((rig.arrive(), rig.acknowledge(0)), (1, Some(64)));
    rig.check();
}

/// A step of a guest, a device or a CPU.
#[derive(Clone, Copy, Debug)]
enum Step {
    Raise(usize),
    Lower(usize),
    Enable(u32),
    Disable(u32),
    Route(u32, u64),
    SetPending(u32),
    ClearPending(u32),
    ClearActive(u32),
    Groups(u64),
    Power(usize),
    Open(bool),
    Take(usize),
    End(usize),
    Arrive,
    Settle,
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    let line = 0..LINES.len();
    let number = 0..LINES.len() as u32;
    prop_oneof![
        3 => line.clone().prop_map(Step::Raise),
        2 => line.prop_map(Step::Lower),
        3 => number.clone().prop_map(Step::Enable),
        1 => number.clone().prop_map(Step::Disable),
        2 => (number.clone(), prop_oneof![Just(0), Just(1), Just(1 << 31), Just(5)])
            .prop_map(|(line, route)| Step::Route(line, route)),
        1 => number.clone().prop_map(Step::SetPending),
        1 => number.clone().prop_map(Step::ClearPending),
        1 => number.prop_map(Step::ClearActive),
        1 => prop_oneof![Just(2), Just(2), Just(0)].prop_map(Step::Groups),
        1 => (0..2_usize).prop_map(Step::Power),
        1 => prop_oneof![Just(true), Just(true), Just(false)].prop_map(Step::Open),
        4 => (0..2_usize).prop_map(Step::Take),
        4 => (0..2_usize).prop_map(Step::End),
        4 => Just(Step::Arrive),
        3 => Just(Step::Settle),
    ]
}

proptest::proptest! {
    /// Whatever guest, devices and CPUs do, an active physical interrupt has one place, and no edge is lost.
    #[test]
    fn nothing_is_lost_or_held_twice(steps in proptest::collection::vec(step(), 1..120)) {
        let rig = Rig::new();
        let mut handling = [None; 2];
        // Edges that the guest has not acknowledged.
        let mut owed = 0_u32;
        for step in steps {
            match step {
                Step::Raise(line) => {
                    rig.raise(line);
                    owed |= u32::from(EDGES.contains(&LINES[line])) << line;
                }
                Step::Lower(line) => rig.lower(line),
                Step::Enable(line) => rig.write(ISENABLER + WORD, 1 << line),
                Step::Disable(line) => rig.write(ICENABLER + WORD, 1 << line),
                Step::Route(line, route) => rig.route(line, route),
                Step::SetPending(line) => rig.write(ISPENDR + WORD, 1 << line),
                Step::ClearPending(line) => {
                    rig.write(ICPENDR + WORD, 1 << line);
                    rig.settle();
                    owed &= !(1 << line);
                }
                Step::ClearActive(line) => rig.write(ICACTIVER_LINES, 1 << line),
                Step::Groups(groups) => rig.write(CTLR, groups),
                Step::Power(vcpu) if rig.is_online(vcpu) => {
                    if handling[vcpu].is_none() {
                        rig.turn_off(vcpu);
                    }
                }
                Step::Power(vcpu) => rig.turn_on(vcpu),
                Step::Open(true) => rig.kick(rig.vgic.open_lines(rig.lrs(1))),
                Step::Open(false) => rig.kick(rig.vgic.mask_lines(rig.lrs(1))),
                Step::Take(vcpu) if handling[vcpu].is_none() => {
                    handling[vcpu] = rig.acknowledge(vcpu);
                    if let Some(intid) = handling[vcpu] {
                        owed &= !(1 << (intid - 64));
                    }
                }
                Step::Take(_) => {}
                Step::End(vcpu) => {
                    if let Some(intid) = handling[vcpu].take() {
                        rig.end(vcpu, intid);
                    }
                }
                Step::Arrive => {
                    if let Some((intid, cpu)) = rig.take_physical() {
                        rig.handle(intid, cpu);
                    }
                }
                Step::Settle => {
                    rig.settle();
                    rig.check();
                }
            }
            for line in bits(owed) {
                let line = line as usize;
                let is_latched = rig.physical.borrow().latched.contains(&LINES[line]);
                proptest::prop_assert!(is_latched || rig.is_delivered(line), "line {line} is lost");
            }
        }
        // The guest takes what is left.
        for (vcpu, handled) in handling.iter_mut().enumerate() {
            if let Some(intid) = handled.take() {
                rig.end(vcpu, intid);
            }
            if !rig.is_online(vcpu) {
                rig.turn_on(vcpu);
            }
            let (local, lrs) = &rig.cpus[vcpu];
            rig.kick(rig.vgic.refill(vcpu, local, lrs));
        }
        rig.kick(rig.vgic.open_lines(rig.lrs(0)));
        rig.set_up();
        for line in 0..LINES.len() as u32 {
            rig.route(line, 0);
            rig.enable(line);
        }
        let mut due = owed | (0..LINES.len()).filter(|&line| rig.is_line_high(line)).fold(0, |m, l| m | 1 << l);
        for _ in 0..40 {
            rig.settle();
            rig.arrive();
            rig.settle();
            rig.check();
            for vcpu in 0..2 {
                if let Some(intid) = rig.acknowledge(vcpu) {
                    due &= !(1 << (intid - 64));
                    rig.lower(intid as usize - 64);
                    rig.end(vcpu, intid);
                    let (local, lrs) = &rig.cpus[vcpu];
                    rig.kick(rig.vgic.refill(vcpu, local, lrs));
                }
            }
        }
        proptest::prop_assert_eq!(due, 0);
        proptest::prop_assert!(rig.physical.borrow().active.is_empty());
    }
}

impl Rig {
    fn is_line_high(&self, line: usize) -> bool {
        self.physical.borrow().high.contains(&LINES[line])
    }
}
