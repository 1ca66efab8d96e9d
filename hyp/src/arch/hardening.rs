//! One CPU's mitigations of speculative execution, as its vectors and its vCPU need them.

use super::firmware::Host;
use crate::device::smccc::Workaround;
use crate::mitigation::{Answers, Branches, Choice, StoreBypass};
use crate::observe::trace;
use core::cell::Cell;
use core::mem::offset_of;
use spin::Once;

/// Mitigations of one CPU: the data of its hardened vectors, and its vCPU's choice. Only that CPU touches the fields, but
/// for `choice`.
pub(crate) struct Hardening {
    /// Iterations of the loop that overwrites the branch history; 0: no loop.
    loop_count: Cell<u8>,
    /// Not 0: after the mitigation, the vectors go through `exit::hardened`.
    is_slow: Cell<u8>,
    /// Not 0: firmware is called by HVC.
    is_hvc: Cell<u8>,
    /// Number of the firmware's function that invalidates the branch predictor; 0: none.
    call: Cell<u32>,
    choice: Once<Choice>,
    store_bypass: StoreBypass,
}

impl Hardening {
    pub(crate) const LOOP_COUNT: usize = offset_of!(Self, loop_count);
    pub(crate) const IS_SLOW: usize = offset_of!(Self, is_slow);
    pub(crate) const IS_HVC: usize = offset_of!(Self, is_hvc);
    pub(crate) const CALL: usize = offset_of!(Self, call);

    pub(crate) const fn new() -> Self {
        Self {
            loop_count: Cell::new(0),
            is_slow: Cell::new(0),
            is_hvc: Cell::new(0),
            call: Cell::new(0),
            choice: Once::new(),
            store_bypass: StoreBypass::new(),
        }
    }

    /// Returns the choice for this CPU, once it has come up.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        self.choice.get()
    }

    /// Returns true if the vCPU runs with store bypassing allowed and EL2 does not.
    fn toggles_store_bypass(&self) -> bool {
        self.store_bypass.is_wanted() && self.choice().is_some_and(|choice| !choice.allows_store_bypass())
    }

    /// Updates the data of the hardened vectors, and returns true if exceptions from guests have to use these vectors.
    pub(crate) fn prepare(&self) -> bool {
        let is_toggled = self.toggles_store_bypass();
        self.is_slow.set(u8::from(is_toggled || trace::is_recording()));
        let is_chosen = self.choice().is_some_and(|choice| {
            matches!(choice.branches, Branches::Loop(_) | Branches::ClearInstruction | Branches::Firmware(_))
        });
        is_chosen || is_toggled
    }

    /// Turns store bypassing off, at an exception from a vCPU that runs with it allowed.
    pub(crate) fn enter(&self) {
        if self.toggles_store_bypass() {
            self.store_bypass.enter(&Host);
        }
    }

    /// Applies the vCPU's choice about store bypassing, before it runs again.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.store_bypass.leave(&Host);
    }

    /// Forgets the choice of the last vCPU, before a vCPU starts. The caller chooses the CPU's vectors anew.
    pub(crate) fn reset(&self) {
        self.store_bypass.reset(&Host);
    }

    /// Returns the answer to a guest's SMCCC_ARCH_FEATURES for `workaround`.
    pub(crate) fn feature(&self, workaround: Workaround) -> i32 {
        self.choice().map_or(Answers::NONE.of(workaround), |choice| choice.feature(workaround))
    }

    /// Applies `workaround` for a guest and returns the status for X0. The caller chooses the CPU's vectors anew.
    pub(crate) fn apply(&self, workaround: Workaround) -> i32 {
        let choice = self.choice();
        choice.map_or(crate::device::smccc::NOT_SUPPORTED, |choice| {
            choice.apply(workaround, &self.store_bypass, &Host)
        })
    }

    /// Sets the choice for this CPU, which calls its firmware by HVC if `is_hvc`.
    pub(crate) fn set(&self, choice: Choice, is_hvc: bool) {
        self.is_hvc.set(u8::from(is_hvc));
        self.loop_count.set(choice.branches.loop_count().unwrap_or(0));
        if let Branches::Firmware(workaround) = choice.branches {
            self.call.set(workaround.id().get());
        }
        self.choice.call_once(|| choice);
    }
}
