//! Lines: physical SPIs of the guest's devices, which reach the guest as SPIs of the bank [`LINE_WORD`].
//!
//! A line's state is in the *physical distributor*, its pending state too, unless EL2 has acknowledged the interrupt. Then the
//! physical interrupt is active, and exactly one of these holds:
//! - a list register has it, pending or active, with the HW bit: the guest's deactivation deactivates the physical one;
//! - the bank has it, pending or active, with its bit in `Bank::taken`.
//!
//! EL2 never keeps a physical interrupt active that the guest cannot take now: it *gives it back*. It makes the physical one
//! pending again if it is an edge or was set by software, and deactivates it. A level becomes pending by itself while its line
//! is high. So nothing is lost, and a line that stays high costs EL2 one interrupt at most.
//!
//! The physical interrupt is enabled only while the guest would take it: enabled there, in an enabled group, routed to a vCPU
//! that is online, and the lines are open. It is routed to the CPU of that vCPU. The CPU whose vCPU refills applies changes
//! ([`Vgic::update_lines`]): GICD_CTLR.RWP of the guest waits for it.
//!
//! A line is *armed* at a vCPU while the fast path there may put it into a list register without the lock. Its `holder` is that
//! vCPU meanwhile. A change kicks the holder, and only its own CPU disarms it. So the line is in no other vCPU's list registers.

use super::bank::NOBODY;
use super::distributor::BitRegister;
use super::fill::Candidate;
use super::list_register::ListRegisters;
use super::local::{LINE_ENTRIES, Local};
use super::{Kick, LINE_LIMIT, MAX_VCPUS, State, Vgic, bits};

/// Bank of the lines. Line `i` is INTID `32 * LINE_WORD + i`.
pub(super) const LINE_WORD: usize = 2;
const FIRST_INTID: u32 = 32 * LINE_WORD as u32;

/// A physical SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// INTID, 32 to 1019.
    pub(crate) physical_intid: u32,
    /// True for edge-triggered, false for level-sensitive.
    pub(crate) is_edge: bool,
}

/// The lines of a guest.
#[derive(Default)]
pub(super) struct Lines {
    lines: heapless::Vec<Line, LINE_LIMIT>,
    /// Lines that have an entry of the fast path's tables to themselves, a bit each.
    direct: u32,
    /// By vCPU: MPIDR_EL1 of its CPU.
    mpidrs: heapless::Vec<u64, MAX_VCPUS>,
}

impl Lines {
    fn new(lines: &[Line], mpidrs: impl IntoIterator<Item = u64>) -> Self {
        let mpidrs = mpidrs.into_iter().take(MAX_VCPUS).collect();
        let mut all = Self { mpidrs, ..Self::default() };
        let mut entries = 0_u32;
        for &line in lines.iter().take(LINE_LIMIT) {
            let entry = 1 << (line.physical_intid as usize % LINE_ENTRIES);
            if entries & entry == 0 {
                all.direct |= 1 << all.lines.len();
            }
            entries |= entry;
            // At most LINE_LIMIT.
            let _ = all.lines.push(line);
        }
        all
    }
}

/// Returns the line's bit and its number, if `intid` is in the lines' bank.
const fn line_of(intid: u32) -> Option<usize> {
    if intid / 32 == LINE_WORD as u32 { Some(intid as usize % 32) } else { None }
}

impl Vgic {
    /// Makes `lines` the guest's lines, once, before it runs. The first [`LINE_LIMIT`] count. They stay masked until
    /// [`Self::open_lines`]. `mpidrs` has the MPIDR_EL1 of the vCPUs' CPUs.
    pub(crate) fn set_lines(&self, lines: &[Line], mpidrs: impl IntoIterator<Item = u64>) {
        self.lines.call_once(|| {
            let mut state = self.state.lock();
            let bank = &mut state.shared[LINE_WORD - 1];
            for (index, line) in lines.iter().take(LINE_LIMIT).enumerate() {
                bank.hardware |= 1 << index;
                bank.edge |= u32::from(line.is_edge) << index;
            }
            Lines::new(lines, mpidrs)
        });
    }

    /// Returns the guest's lines.
    pub(crate) fn lines(&self) -> &[Line] {
        self.lines.get().map_or(&[], |lines| &lines.lines)
    }

    /// Returns the number of the line with this physical INTID.
    pub(crate) fn line(&self, physical_intid: u32) -> Option<usize> {
        self.lines().iter().position(|line| line.physical_intid == physical_intid)
    }

    /// Returns the physical INTID of the guest's `intid`, if it is a line.
    pub(super) fn line_physical(&self, intid: u32) -> Option<u32> {
        Some(self.lines().get(line_of(intid)?)?.physical_intid)
    }

    /// Returns the entry of `intid` in the fast path's tables, if it is a line with one of its own.
    pub(super) fn line_entry(&self, intid: u32) -> Option<usize> {
        let line = line_of(intid)?;
        let is_direct = self.lines.get()?.direct >> line & 1 != 0;
        Some(self.line_physical(intid)? as usize % LINE_ENTRIES).filter(|_| is_direct)
    }

    /// Returns true if `intid` is a line whose physical interrupt is pending.
    pub(super) fn is_line_high(&self, intid: u32, lrs: &impl ListRegisters) -> bool {
        self.line_physical(intid).is_some_and(|physical| lrs.is_line_high(physical))
    }

    /// Lets the guest enable its lines. Returns the vCPUs to kick.
    pub(crate) fn open_lines(&self, lrs: &impl ListRegisters) -> Kick {
        self.set_open(true, lrs)
    }

    /// Disables all lines, with effect when this returns. An interrupt that a vCPU has in a list register stays there. Returns
    /// the vCPUs to kick.
    pub(super) fn mask_lines(&self, lrs: &impl ListRegisters) -> Kick {
        self.set_open(false, lrs)
    }

    fn set_open(&self, is_open: bool, lrs: &impl ListRegisters) -> Kick {
        let mut state = self.state.lock();
        state.has_open_lines = is_open;
        let moved = self.update_lines(&mut state, lrs);
        self.mark(&state, moved)
    }

    /// Disables all lines, and forgets their interrupts. No vCPU is online. An interrupt that another CPU has just acknowledged
    /// is given back there ([`Self::arrive_astray`]).
    pub(crate) fn quiet_lines(&self, lrs: &impl ListRegisters) {
        let _ = self.mask_lines(lrs);
        let mut state = self.state.lock();
        if state.online != 0 {
            return;
        }
        for line in self.lines() {
            // In this order: an active interrupt may be pending again.
            lrs.clear_pending(line.physical_intid);
            lrs.deactivate(line.physical_intid);
        }
        let bank = &mut state.shared[LINE_WORD - 1];
        let others = !bank.hardware;
        for word in [&mut bank.pending, &mut bank.active, &mut bank.latched, &mut bank.taken] {
            *word &= others;
        }
        for bit in bits(bank.hardware) {
            bank.holder[bit as usize] = NOBODY;
        }
    }

    /// Handles an interrupt of `line` that arrived on the CPU of `vcpu`, and that the fast path could not pass on.
    pub(crate) fn arrive_line(
        &self,
        vcpu: usize,
        line: usize,
        local: &Local,
        lrs: &impl ListRegisters,
    ) -> Kick {
        local.count_line(line);
        let others = {
            let mut state = self.state.lock();
            let affected = state.take_line(line) & !(1 << vcpu);
            self.mark(&state, affected)
        };
        Kick(others.0 | self.refill(vcpu, local, lrs).0)
    }

    /// Handles an interrupt of `line` that arrived on a CPU on which no vCPU of the guest runs: the vCPU has just left it, or
    /// the line has just moved. It goes to the vCPU to which it is routed now, or is given back and masked.
    pub(crate) fn arrive_astray(&self, line: usize, lrs: &impl ListRegisters) -> Kick {
        // One critical section: a reset of the guest must not forget the interrupt between the two steps.
        let mut state = self.state.lock();
        let affected = state.take_line(line) | self.update_lines(&mut state, lrs);
        if let Some(physical) = self.lines().get(line).map(|line| line.physical_intid)
            && state.line_at[line] == NOBODY
        {
            // It should be already. A line that is not would storm.
            lrs.disable_line(physical);
        }
        self.mark(&state, affected)
    }

    /// Routes, enables and disables the physical interrupts as the guest's state asks for, and gives back those that no vCPU
    /// can take. Returns the vCPUs that must refill.
    #[inline]
    pub(super) fn update_lines(&self, state: &mut State, lrs: &impl ListRegisters) -> u32 {
        let mut moved = 0;
        for bit in bits(state.shared[LINE_WORD - 1].hardware) {
            moved |= self.update_line(state, bit, lrs);
        }
        moved
    }

    fn update_line(&self, state: &mut State, bit: u32, lrs: &impl ListRegisters) -> u32 {
        let (line, mask) = (bit as usize, 1 << bit);
        let Some(physical) = self.line_physical(FIRST_INTID + bit) else { return 0 };
        let target = state.line_target(bit);
        let at = target.map_or(NOBODY, |vcpu| vcpu as u8);
        let mut moved = 0;
        if state.line_at[line] != at {
            // A route changes only while the interrupt is disabled.
            if state.line_at[line] != NOBODY {
                lrs.disable_line(physical);
            }
            if let Some(&mpidr) = target.and_then(|vcpu| self.lines.get()?.mpidrs.get(vcpu)) {
                lrs.enable_line(physical, mpidr);
            }
            state.line_at[line] = at;
            moved = state.affected(0, LINE_WORD, mask);
        }
        let bank = &mut state.shared[LINE_WORD - 1];
        let (is_pending, is_active) = (bank.pending & mask != 0, bank.active & mask != 0);
        let is_taken = bank.taken & mask != 0;
        // Pending regardless of the line.
        let stays = (bank.edge | bank.latched) & mask != 0;
        if is_pending && (is_active || !is_taken) {
            // A list register holds one of the two states; the physical distributor keeps the other.
            if stays {
                lrs.set_pending(physical);
            }
            bank.pending &= !mask;
        } else if is_taken && !is_active {
            let can_wait = is_pending && target.is_some() && (stays || lrs.is_line_high(physical));
            if !can_wait {
                if is_pending && stays {
                    lrs.set_pending(physical);
                }
                lrs.deactivate(physical);
                bank.pending &= !mask;
                bank.taken &= !mask;
            }
        }
        moved
    }

    /// Selects the slow path on this CPU for all lines. The list registers of `vcpu` have been read.
    pub(super) fn disarm_lines(state: &mut State, vcpu: usize, local: &Local) {
        let bank = &mut state.shared[LINE_WORD - 1];
        if bank.hardware == 0 {
            return;
        }
        local.clear_line_direct();
        for bit in bits(bank.hardware & !bank.active) {
            if bank.holder[bit as usize] == vcpu as u8 {
                bank.holder[bit as usize] = NOBODY;
                // No list register has it.
                bank.cancel_pending &= !(1 << bit);
                bank.cancel_active &= !(1 << bit);
            }
        }
    }

    /// Lets the fast path on this CPU inject the lines that `vcpu` would take.
    pub(super) fn arm_lines(&self, state: &mut State, vcpu: usize, local: &Local, is_overflowing: bool) {
        let hardware = state.shared[LINE_WORD - 1].hardware;
        // If interrupts wait outside the list registers, only the slow path keeps the order of priorities.
        if hardware == 0 || is_overflowing {
            return;
        }
        for bit in bits(hardware) {
            let (line, mask, intid) = (bit as usize, 1 << bit, FIRST_INTID + bit);
            let bank = &state.shared[LINE_WORD - 1];
            let is_free = bank.holder[line] == NOBODY || bank.holder[line] == vcpu as u8;
            let is_outside = (bank.pending | bank.active) & mask != 0;
            if state.line_at[line] != vcpu as u8 || !is_free || is_outside {
                continue;
            }
            let Some(entry) = self.line_entry(intid) else { continue };
            let candidate = Candidate { intid, priority: bank.priority[line], pending: true, active: false };
            local.set_line_direct(entry, Some(self.list_register(state, vcpu, candidate)));
            state.shared[LINE_WORD - 1].holder[line] = vcpu as u8;
        }
    }

    /// Passes a write of GICD_ISPENDR or GICD_ICPENDR on to the physical interrupts of the lines, after
    /// [`Self::write_distributor`].
    pub(crate) fn forward_pending(&self, offset: u64, size: u64, value: u64, lrs: &impl ListRegisters) {
        let Some((register, LINE_WORD)) = BitRegister::at(offset) else { return };
        for (_, line) in self.lines().iter().enumerate().filter(|(index, _)| value >> index & 1 != 0) {
            match register {
                BitRegister::SetPending if size == 4 => lrs.set_pending(line.physical_intid),
                BitRegister::ClearPending if size == 4 => lrs.clear_pending(line.physical_intid),
                _ => {}
            }
        }
    }

    /// Returns the lines that are pending in the physical distributor, for a read of `size` bytes at `offset`: 0 unless it
    /// reads GICD_ISPENDR or GICD_ICPENDR.
    pub(crate) fn pending_lines(&self, offset: u64, size: u64, lrs: &impl ListRegisters) -> u64 {
        match BitRegister::at(offset) {
            Some((BitRegister::SetPending | BitRegister::ClearPending, LINE_WORD)) if size == 4 => {
                let lines = self.lines().iter().enumerate();
                lines.fold(0, |mask, (i, line)| mask | u64::from(lrs.is_line_high(line.physical_intid)) << i)
            }
            _ => 0,
        }
    }
}

impl State {
    /// Returns the vCPU that would take line `bit` now.
    fn line_target(&self, bit: u32) -> Option<usize> {
        let is_forwarded = self.shared[LINE_WORD - 1].forwarded(self.groups) >> bit & 1 != 0;
        if is_forwarded && self.has_open_lines { self.target(FIRST_INTID + bit) } else { None }
    }

    /// Notes that the physical interrupt of `line` has been acknowledged. Returns the affected vCPUs.
    fn take_line(&mut self, line: usize) -> u32 {
        let mask = 1_u32.wrapping_shl(line as u32);
        let bank = &mut self.shared[LINE_WORD - 1];
        bank.pending |= mask;
        bank.taken |= mask;
        self.affected(0, LINE_WORD, mask)
    }

    /// Returns `vcpu`, as a mask, if a write of its has left a physical interrupt active that nobody has now.
    pub(super) fn releaser(&self, vcpu: usize, word: usize) -> u32 {
        let bank = &self.shared[word - 1];
        u32::from(bank.taken & !(bank.pending | bank.active) != 0) << vcpu
    }
}
