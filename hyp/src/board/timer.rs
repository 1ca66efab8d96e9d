//! The architected timer's interrupts (binding `arm,armv8-timer`).

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::guest_tree::timer_node;
use guest_dts::tree::Tree;

use super::interrupt::{self, Interrupt};

/// The private interrupts of each CPU's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Secure physical timer; it is in guests' trees because the order of the interrupts is fixed.
    pub secure_physical: Option<Interrupt>,
    /// EL1 physical timer.
    pub physical: Interrupt,
    /// EL1 virtual timer.
    pub virtual_timer: Interrupt,
    /// EL2 physical timer.
    pub hypervisor: Interrupt,
    /// EL2 virtual timer (FEAT_VHE).
    pub hypervisor_virtual: Option<Interrupt>,
    /// `clock-frequency` in Hz, for firmware that sets CNTFRQ_EL0 wrong.
    frequency_hz: Option<u32>,
}

/// Names in `interrupt-names`, in the order of the interrupts if there are no names.
const NAMES: [&str; 5] = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];

impl Timer {
    /// Reads the timer's node.
    #[inline(never)]
    pub(super) fn read<'t>(tree: &Tree<'t>) -> Result<Self, Finding<'t>> {
        let node = timer_node(tree).ok_or_else(|| {
            let what = "node compatible with \"arm,armv8-timer\"";
            Finding::no_node(what, Rule::Required("the timers' interrupts"))
        })?;
        let interrupts = interrupt::read(node)?;
        let names = node.property("interrupt-names");
        let at = |index: usize| -> Option<Interrupt> {
            let name = NAMES.get(index)?;
            let index = match names {
                Some(names) => names.strings().position(|string| string == *name)?,
                None => index,
            };
            interrupts.get(index).copied()
        };
        let needed = |index: usize, rule| match at(index) {
            Some(interrupt) if (16..32).contains(&interrupt.intid) => Ok(interrupt),
            found => {
                let value = found.map_or(Value::Missing, |found| Value::Number(found.intid.into()));
                Err(Finding::new(node, Some("interrupts"), value, rule))
            }
        };
        Ok(Self {
            secure_physical: at(0),
            physical: needed(1, Rule::Must("name a PPI of the EL1 physical timer, second"))?,
            virtual_timer: needed(2, Rule::Must("name a PPI of the virtual timer, third"))?,
            hypervisor: needed(3, Rule::Must("name a PPI of the EL2 physical timer, fourth"))?,
            hypervisor_virtual: at(4),
            frequency_hz: node.property("clock-frequency").and_then(|frequency| frequency.u32()),
        })
    }

    /// Returns the counter's frequency in Hz: `clock-frequency`, else `register`, the value of CNTFRQ_EL0; `None` if both are
    /// unknown. The binding has the property for firmware that does not set the register correctly on all CPUs.
    pub fn frequency(&self, register: u64) -> Option<u64> {
        let frequency = self.frequency_hz.filter(|&frequency| frequency != 0).map(u64::from);
        frequency.or(Some(register).filter(|&frequency| frequency != 0))
    }
}
