//! The order in which registers and TLBs change when EL2 changes a translation, as the architecture and CPU errata require it.
//! Pure, so that a PC can check the order; `arch` has the instructions ([`Processor`]).
//!
//! # Stage 1 is closed while stage 2 changes
//! EL2 writes VTTBR_EL2 and VTCR_EL2 while the registers of EL1's stage 1 hold a guest's values. On the CPUs of
//! [`Workarounds::CLOSE_STAGE_1`], a speculative AT at EL2 may use any mixture of old and new values, and cache the result in
//! the TLB under the VMID that VTTBR_EL2 has by then. So EL2 closes stage 1 around such writes: TCR_EL1.EPD0 and EPD1 disable
//! walks, and SCTLR_EL1.M makes walks necessary. The order is EPD, M, then stage 2, and the reverse to open it, with an ISB
//! after each.
//!
//! A CPU without a vCPU always has stage 1 closed, and an empty stage 2 ([`leave`]), even before its HCR_EL2.VM is first set:
//! both registers are UNKNOWN after a reset.

use crate::errata::Workarounds;

/// TCR_EL1.EPD0, EPD1.
const NO_WALKS: u64 = 1 << 7 | 1 << 23;
/// PAR_EL1.F, and the address of the page if that is clear.
const PAR_FAULT: u64 = 1;
const PAR_PAGE: u64 = 0xf_ffff_ffff_f000;
/// SCTLR_EL1.M.
const MMU_ON: u64 = 1;

/// The registers of a guest's stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage2 {
    /// VTCR_EL2.
    pub(crate) vtcr: u64,
    /// VTTBR_EL2.
    pub(crate) vttbr: u64,
}

/// The registers that turn EL1's stage 1 on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage1 {
    /// SCTLR_EL1.
    pub(crate) sctlr: u64,
    /// TCR_EL1.
    pub(crate) tcr: u64,
}

impl Stage1 {
    /// Stage 1 of a CPU that runs no vCPU: 48-bit addresses and 4 KiB granules in both halves, walks in neither.
    const CLOSED: Self = Self { sctlr: SCTLR_RES1 | MMU_ON, tcr: NO_WALKS | 16 | 16 << 16 | 0b10 << 30 };
}

/// SCTLR_EL1 with MMU and caches off: the RES1 bits of Armv8.0. They are also the reset values of the fields that replaced
/// them: LSMAOE, nTLSMD, SPAN, EIS, TSCXT, EOS (Arm ARM, SCTLR_EL1).
pub(crate) const SCTLR_RES1: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;

/// The registers and instructions of this CPU.
pub(crate) trait Processor {
    /// Reads SCTLR_EL1 and TCR_EL1.
    fn stage1(&self) -> Stage1;
    /// Writes SCTLR_EL1.
    fn set_sctlr(&self, value: u64);
    /// Writes TCR_EL1.
    fn set_tcr(&self, value: u64);
    /// Reads VTTBR_EL2.
    fn vttbr(&self) -> u64;
    /// Writes VTTBR_EL2.
    fn set_vttbr(&self, value: u64);
    /// Writes VTCR_EL2.
    fn set_vtcr(&self, value: u64);
    /// Reads PAR_EL1.
    fn par(&self) -> u64;
    /// Writes PAR_EL1.
    fn set_par(&self, value: u64);
    /// Executes an ISB.
    fn synchronise_context(&self);
    /// Executes a DSB ISH.
    fn wait(&self);
    /// Executes a TLBI VALE2IS of address 0, which EL2 does not map.
    fn invalidate_nothing(&self);
}

/// Waits for preceding broadcast TLB invalidations with a DSB ISH (Arm ARM, "TLB maintenance").
///
/// With [`Workarounds::REPEAT_TLBI`], another invalidation of any address and its DSB wait for accesses by the translations
/// that the first ones dropped.
#[inline(always)]
pub(crate) fn complete(cpu: &impl Processor, machine: Workarounds) {
    cpu.wait();
    if machine.has(Workarounds::REPEAT_TLBI) {
        cpu.invalidate_nothing();
        cpu.wait();
    }
}

/// Calls `invalidate`, which issues TLB invalidations by VMID, with the VMID of `vttbr` in VTTBR_EL2.
#[inline(always)]
pub(crate) fn with_vmid(cpu: &impl Processor, machine: Workarounds, vttbr: u64, invalidate: impl FnOnce()) {
    let before = cpu.vttbr();
    if before >> 48 == vttbr >> 48 {
        return invalidate();
    }
    // A CPU without a vCPU has VMID 0, and stage 1 closed.
    let is_open = before >> 48 != 0;
    let opened = (is_open && machine.has(Workarounds::CLOSE_STAGE_1)).then(|| close(cpu));
    cpu.set_vttbr(vttbr);
    cpu.synchronise_context();
    invalidate();
    // The invalidations complete under this VMID before the other one is restored.
    cpu.wait();
    cpu.set_vttbr(before);
    cpu.synchronise_context();
    if let Some(stage1) = opened {
        open(cpu, stage1);
    }
}

/// Waits on all CPUs for preceding invalidations of a guest's stage 2, then for those of combined entries, which `invalidate`
/// issues. `machine` is the set of workarounds of all CPUs.
#[inline(always)]
pub(crate) fn synchronise(cpu: &impl Processor, machine: Workarounds, vttbr: u64, invalidate: impl FnOnce()) {
    cpu.wait();
    with_vmid(cpu, machine, vttbr, invalidate);
    complete(cpu, machine);
    cpu.synchronise_context();
}

/// Switches from no vCPU to one whose guest has `stage2`. `invalidate` drops the VMID's entries from this CPU's TLB, and `reset`
/// sets the other registers of EL1. `stage1` has the vCPU's initial values.
#[inline(always)]
pub(crate) fn enter(
    cpu: &impl Processor,
    stage2: Stage2,
    stage1: Stage1,
    invalidate: impl FnOnce(),
    reset: impl FnOnce(),
) {
    // `leave` has closed stage 1.
    set_stage2(cpu, stage2);
    invalidate();
    reset();
    open(cpu, stage1);
}

/// Proof that a CPU has stage 1 closed and an empty stage 2. Only [`leave`] returns one.
pub(crate) struct Closed(());

/// Switches to no vCPU: closes stage 1, and sets the empty stage 2 `nothing`.
#[inline(always)]
pub(crate) fn leave(cpu: &impl Processor, nothing: Stage2) -> Closed {
    cpu.set_tcr(Stage1::CLOSED.tcr);
    cpu.synchronise_context();
    cpu.set_sctlr(Stage1::CLOSED.sctlr);
    cpu.synchronise_context();
    set_stage2(cpu, nothing);
    Closed(())
}

/// Returns the page that `translate`, an AT of stage 1, finds, or `None` if the guest's tables fault.
///
/// PAR_EL1 holds the result after an ISB (Arm ARM, PAR_EL1). The guest's value of PAR_EL1 is restored.
#[inline(always)]
pub(crate) fn look_up(cpu: &impl Processor, translate: impl FnOnce()) -> Option<u64> {
    let before = cpu.par();
    translate();
    cpu.synchronise_context();
    let result = cpu.par();
    cpu.set_par(before);
    (result & PAR_FAULT == 0).then_some(result & PAR_PAGE)
}

fn set_stage2(cpu: &impl Processor, stage2: Stage2) {
    cpu.set_vtcr(stage2.vtcr);
    cpu.set_vttbr(stage2.vttbr);
    cpu.synchronise_context();
}

/// Closes stage 1. Returns the previous values of its registers.
fn close(cpu: &impl Processor) -> Stage1 {
    let stage1 = cpu.stage1();
    cpu.set_tcr(stage1.tcr | NO_WALKS);
    cpu.synchronise_context();
    cpu.set_sctlr(stage1.sctlr | MMU_ON);
    cpu.synchronise_context();
    stage1
}

fn open(cpu: &impl Processor, stage1: Stage1) {
    cpu.set_sctlr(stage1.sctlr);
    cpu.synchronise_context();
    cpu.set_tcr(stage1.tcr);
    cpu.synchronise_context();
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};

    /// A step of a CPU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Step {
        Sctlr(u64),
        Tcr(u64),
        Vttbr(u64),
        Vtcr(u64),
        Isb,
        Dsb,
        Nothing,
        Invalidate,
        Reset,
    }

    use Step::{Dsb, Invalidate, Isb, Nothing, Reset, Sctlr, Tcr, Vtcr, Vttbr};

    /// A CPU whose speculative AT may use the old or the new value of each register that was written since the last ISB.
    struct Fake {
        steps: RefCell<Vec<Step>>,
        stage1: Cell<Stage1>,
        vttbr: Cell<u64>,
        /// PAR_EL1, and the result of an AT until the next ISB.
        par: Cell<u64>,
        translated: Cell<Option<u64>>,
        /// True if an AT could succeed with some mixture of the stage 1 registers, and if stage 2 was written since the last
        /// ISB.
        is_stage1_open: Cell<bool>,
        is_stage2_moving: Cell<bool>,
        /// Number of steps at which an AT could have mixed two translations.
        mixture_count: Cell<u32>,
    }

    const fn is_open(stage1: Stage1) -> bool {
        stage1.tcr & NO_WALKS != NO_WALKS || stage1.sctlr & MMU_ON == 0
    }

    impl Fake {
        fn new(stage1: Stage1, vttbr: u64) -> Self {
            Self {
                steps: RefCell::default(),
                stage1: Cell::new(stage1),
                vttbr: Cell::new(vttbr),
                par: Cell::new(GUESTS_PAR),
                translated: Cell::new(None),
                is_stage1_open: Cell::new(is_open(stage1)),
                is_stage2_moving: Cell::new(false),
                mixture_count: Cell::new(0),
            }
        }

        fn step(&self, step: Step) {
            self.steps.borrow_mut().push(step);
            if self.is_stage1_open.get() && self.is_stage2_moving.get() {
                self.mixture_count.set(self.mixture_count.get() + 1);
            }
        }

        fn set_stage1(&self, stage1: Stage1, step: Step) {
            self.stage1.set(stage1);
            // Closing takes effect at the next ISB, opening possibly at once.
            self.is_stage1_open.set(self.is_stage1_open.get() || is_open(stage1));
            self.step(step);
        }

        fn set_stage2(&self, step: Step) {
            self.is_stage2_moving.set(true);
            self.step(step);
        }

        fn steps(&self) -> Vec<Step> {
            self.steps.borrow().clone()
        }
    }

    impl Processor for Fake {
        fn stage1(&self) -> Stage1 {
            self.stage1.get()
        }
        fn set_sctlr(&self, sctlr: u64) {
            self.set_stage1(Stage1 { sctlr, ..self.stage1.get() }, Sctlr(sctlr));
        }
        fn set_tcr(&self, tcr: u64) {
            self.set_stage1(Stage1 { tcr, ..self.stage1.get() }, Tcr(tcr));
        }
        fn vttbr(&self) -> u64 {
            self.vttbr.get()
        }
        fn set_vttbr(&self, value: u64) {
            self.vttbr.set(value);
            self.set_stage2(Vttbr(value));
        }
        fn set_vtcr(&self, value: u64) {
            self.set_stage2(Vtcr(value));
        }
        fn par(&self) -> u64 {
            self.par.get()
        }
        fn set_par(&self, value: u64) {
            self.par.set(value);
        }
        fn synchronise_context(&self) {
            if let Some(result) = self.translated.take() {
                self.par.set(result);
            }
            self.steps.borrow_mut().push(Isb);
            self.is_stage1_open.set(is_open(self.stage1.get()));
            self.is_stage2_moving.set(false);
        }
        fn wait(&self) {
            self.step(Dsb);
        }
        fn invalidate_nothing(&self) {
            self.step(Nothing);
        }
    }

    /// A result that the guest has not read yet.
    const GUESTS_PAR: u64 = 0x1234_5b80;
    /// A guest's stage 1 with MMU and caches on and walks allowed, and before it has turned its MMU on.
    const IN_USE: Stage1 = Stage1 { sctlr: SCTLR_RES1 | 0x1005, tcr: 0x0032_b550_3510 };
    const OFF: Stage1 = Stage1 { sctlr: SCTLR_RES1, tcr: 0 };
    const OWN: u64 = 1 << 48 | 0x4000_0000;
    const OTHER: u64 = 2 << 48 | 0x8000_0000;
    const AFFECTED: Workarounds = Workarounds::CLOSE_STAGE_1;

    #[test]
    fn a_lookup_waits_for_its_result_and_restores_the_guests_par() {
        for (result, page) in [
            (0xff00_0000_8765_4f80, Some(0x8765_4000)),
            (0xff00_0000_8765_4f80 | 0xf << 48, Some(0xf_0000_8765_4000)),
            // A translation fault of stage 1, and one of stage 2 on the walk.
            (0x80d, None),
            (0xb0f, None),
        ] {
            let cpu = Fake::new(IN_USE, OWN);
            assert_eq!(look_up(&cpu, || cpu.translated.set(Some(result))), page, "{result:#x}");
            assert_eq!((cpu.par(), cpu.steps()), (GUESTS_PAR, vec![Isb]));
        }
    }

    #[test]
    fn an_affected_machine_repeats_invalidations() {
        let cpu = Fake::new(IN_USE, OWN);
        complete(&cpu, Workarounds::REPEAT_TLBI);
        assert_eq!(cpu.steps(), [Dsb, Nothing, Dsb]);
    }

    #[test]
    fn an_unaffected_machine_does_not_repeat_invalidations() {
        let cpu = Fake::new(IN_USE, OWN);
        complete(&cpu, Workarounds::CLOSE_STAGE_1);
        assert_eq!(cpu.steps(), [Dsb]);
    }

    #[test]
    fn entries_of_both_stages_are_invalidated_in_order() {
        let sequence = |workarounds, vttbr| {
            let cpu = Fake::new(IN_USE, OWN);
            synchronise(&cpu, workarounds, vttbr, || cpu.step(Invalidate));
            cpu.steps()
        };
        assert_eq!(sequence(Workarounds::NONE, OWN), [Dsb, Invalidate, Dsb, Isb]);
        let twice = [Dsb, Invalidate, Dsb, Nothing, Dsb, Isb];
        assert_eq!(sequence(Workarounds::REPEAT_TLBI, OWN), twice);
        let exchange = [Dsb, Vttbr(OTHER), Isb, Invalidate, Dsb, Vttbr(OWN), Isb, Dsb, Nothing, Dsb, Isb];
        assert_eq!(sequence(Workarounds::REPEAT_TLBI, OTHER), exchange);
    }

    #[test]
    fn the_current_vmid_is_not_exchanged() {
        for workarounds in [Workarounds::NONE, AFFECTED] {
            let cpu = Fake::new(IN_USE, OWN);
            with_vmid(&cpu, workarounds, OWN, || cpu.step(Invalidate));
            assert_eq!(cpu.steps(), [Invalidate]);
        }
    }

    #[test]
    fn an_unaffected_cpu_exchanges_only_the_vmid() {
        let cpu = Fake::new(IN_USE, OWN);
        with_vmid(&cpu, Workarounds::REPEAT_TLBI, OTHER, || cpu.step(Invalidate));
        assert_eq!(cpu.steps(), [Vttbr(OTHER), Isb, Invalidate, Dsb, Vttbr(OWN), Isb]);
        // The fake detects the mixture that the erratum needs.
        assert_ne!(cpu.mixture_count.get(), 0);
    }

    #[test]
    fn an_affected_cpu_closes_stage_1_around_the_exchange() {
        for stage1 in [IN_USE, OFF, Stage1 { sctlr: OFF.sctlr, tcr: IN_USE.tcr }] {
            let cpu = Fake::new(stage1, OWN);
            with_vmid(&cpu, AFFECTED, OTHER, || cpu.step(Invalidate));
            let steps = [
                Tcr(stage1.tcr | NO_WALKS),
                Isb,
                Sctlr(stage1.sctlr | MMU_ON),
                Isb,
                Vttbr(OTHER),
                Isb,
                Invalidate,
                Dsb,
                Vttbr(OWN),
                Isb,
                Sctlr(stage1.sctlr),
                Isb,
                Tcr(stage1.tcr),
                Isb,
            ];
            assert_eq!(cpu.steps(), steps);
            assert_eq!(cpu.mixture_count.get(), 0);
            assert_eq!(cpu.stage1(), stage1);
        }
    }

    #[test]
    fn stage_1_of_a_cpu_without_a_vcpu_is_closed_already() {
        let cpu = Fake::new(Stage1::CLOSED, 0);
        with_vmid(&cpu, AFFECTED, OTHER, || cpu.step(Invalidate));
        assert_eq!(cpu.steps(), [Vttbr(OTHER), Isb, Invalidate, Dsb, Vttbr(0), Isb]);
        assert_eq!(cpu.mixture_count.get(), 0);
    }

    #[test]
    fn a_vcpu_comes_and_goes_with_stage_1_closed() {
        let nothing = Stage2 { vtcr: 0x8000_3558, vttbr: 0x4010_0000 };
        let guest = Stage2 { vtcr: 0x8020_3558, vttbr: OTHER };
        // The registers are UNKNOWN after a reset.
        let cpu = Fake::new(Stage1 { sctlr: u64::MAX, tcr: 0xdead_beef }, u64::MAX);
        let _ = leave(&cpu, nothing);
        assert_eq!(cpu.stage1(), Stage1::CLOSED);
        assert_eq!(cpu.vttbr(), nothing.vttbr);
        cpu.steps.borrow_mut().clear();
        enter(&cpu, guest, OFF, || cpu.step(Invalidate), || cpu.step(Reset));
        let steps = [
            Vtcr(guest.vtcr),
            Vttbr(guest.vttbr),
            Isb,
            Invalidate,
            Reset,
            Sctlr(OFF.sctlr),
            Isb,
            Tcr(OFF.tcr),
            Isb,
        ];
        assert_eq!(cpu.steps(), steps);
        // The vCPU turns its MMU on, and leaves.
        cpu.stage1.set(IN_USE);
        cpu.synchronise_context();
        let _ = leave(&cpu, nothing);
        assert_eq!(cpu.mixture_count.get(), 0);
        assert!(!is_open(cpu.stage1()));
    }
}
