//! The distributor's registers (IHI 0069H, GICD_*).

use super::bank::NOBODY;
use super::{INTID_LIMIT, Kick, ROUTE_ANY, SHARED_BANKS, State, Vgic, bits};

/// GICD_CTLR: EnableGrp0, EnableGrp1, ARE, DS.
const CTLR_GROUPS: u32 = 3;
const CTLR_ARE: u32 = 1 << 4;
const CTLR_DS: u32 = 1 << 6;
const CTLR_RWP: u32 = 1 << 31;

/// GICD_TYPER: ITLinesNumber; 10 bits of INTID; affinity 3 may be non-zero; no LPIs, no message-based SPIs.
const TYPER: u32 = (INTID_LIMIT / 32 - 1) | 9 << 19 | 1 << 24;
/// GICD_IIDR and GICR_IIDR: a product number, without an implementer's code.
pub(super) const IIDR: u32 = 0xba << 24;
/// GICD_PIDR2 and GICR_PIDR2: GICv3.
pub(super) const PIDR2: u32 = 0x3b;

/// The five bits of priority that every CPU interface implements ("Interrupt prioritization").
const PRIORITY_MASK: u8 = 0xf8;

/// A register with one bit for each interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BitRegister {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

impl BitRegister {
    /// Returns the register at `offset` (0x80 to 0x3ff) of the distributor or an SGI frame, and the number of its word.
    pub(super) const fn at(offset: u64) -> Option<(Self, usize)> {
        let register = match offset >> 7 {
            1 => Self::Group,
            2 => Self::SetEnable,
            3 => Self::ClearEnable,
            4 => Self::SetPending,
            5 => Self::ClearPending,
            6 => Self::SetActive,
            7 => Self::ClearActive,
            _ => return None,
        };
        Some((register, (offset as usize & 0x7f) / 4))
    }
}

impl State {
    pub(super) fn read_bits(&mut self, vcpu: usize, register: BitRegister, word: usize) -> u32 {
        let bank = self.bank(vcpu, word);
        match register {
            BitRegister::Group => bank.group,
            BitRegister::SetEnable | BitRegister::ClearEnable => bank.enabled,
            BitRegister::SetPending | BitRegister::ClearPending => bank.pending_now() | bank.listed_pending,
            BitRegister::SetActive | BitRegister::ClearActive => bank.active | bank.listed_active,
        }
    }

    /// Writes a word of a bit register. Returns the interrupts that changed.
    fn write_bits(&mut self, vcpu: usize, register: BitRegister, word: usize, value: u32) -> u32 {
        let bank = self.bank(vcpu, word);
        match register {
            BitRegister::Group => {
                let changed = bank.group ^ value;
                bank.group = value;
                return changed;
            }
            BitRegister::SetEnable => bank.enabled |= value,
            BitRegister::ClearEnable => bank.enabled &= !value,
            BitRegister::SetPending => {
                // The physical distributor has the pending state of lines (`lines`).
                bank.pending |= if word == 0 { value } else { value & !bank.hardware };
                bank.latched |= value & bank.hardware;
                bank.cancel_pending &= !value;
            }
            BitRegister::ClearPending => {
                bank.pending &= !value;
                bank.latched &= !value;
                bank.cancel_pending |= value;
            }
            BitRegister::SetActive => {
                bank.active |= value;
                bank.cancel_active &= !value;
                if word != 0 {
                    // Active without having been taken: it belongs to the vCPU that it would have gone to.
                    for bit in bits(value) {
                        let target = self.target(32 * word as u32 + bit).unwrap_or(vcpu);
                        let holder = &mut self.shared[word - 1].holder[bit as usize];
                        if *holder == NOBODY {
                            *holder = target as u8;
                        }
                    }
                }
            }
            BitRegister::ClearActive => {
                bank.active &= !value;
                bank.cancel_active |= value;
            }
        }
        value
    }

    /// Writes a word of a bit register. Returns the affected vCPUs. Only interrupts in list registers (`held`) keep a
    /// cancellation.
    pub(super) fn write_bits_affecting(
        &mut self,
        vcpu: usize,
        register: BitRegister,
        word: usize,
        value: u32,
        held: u32,
    ) -> u32 {
        let changed = self.write_bits(vcpu, register, word, value);
        let affected = self.affected(vcpu, word, changed);
        let bank = self.bank(vcpu, word);
        bank.cancel_pending &= held;
        bank.cancel_active &= held;
        if word != 0 && register == BitRegister::ClearActive {
            for bit in bits(value & !held) {
                self.shared[word - 1].holder[bit as usize] = NOBODY;
            }
        }
        affected
    }

    pub(super) fn write_priorities(&mut self, vcpu: usize, word: usize, first: usize, bytes: &[u8]) -> u32 {
        let bank = self.bank(vcpu, word);
        for (priority, &byte) in bank.priority[first..].iter_mut().zip(bytes) {
            *priority = byte & PRIORITY_MASK;
        }
        let mask = ((1u64 << bytes.len()) - 1) << first;
        self.affected(vcpu, word, mask as u32)
    }
}

impl Vgic {
    /// Returns GICD_TYPER, a constant.
    #[inline(always)]
    pub(crate) const fn typer() -> u32 {
        TYPER
    }

    /// Returns true if a write to the distributor has no effect in any state: zero, to a register that sets or clears bits
    /// which are 1.
    #[inline(always)]
    pub(crate) const fn is_no_write(offset: u64, value: u64) -> bool {
        value == 0 && matches!(offset, 0x100..0x400)
    }

    /// Returns the shared interrupts of `word` that list registers of any vCPU hold.
    fn held_mask(state: &State, word: usize) -> u32 {
        let bank = &state.shared[word - 1];
        (0..32)
            .filter(|&bit| bank.holder[bit] != NOBODY && bank.active >> bit & 1 == 0)
            .fold(0, |m, bit| m | 1 << bit)
    }

    /// Returns the vCPUs whose list registers hold interrupts that a read at `offset` shows. They must refill first.
    pub(crate) fn distributor_readers(&self, offset: u64) -> Kick {
        let Some((
            BitRegister::SetPending
            | BitRegister::ClearPending
            | BitRegister::SetActive
            | BitRegister::ClearActive,
            word,
        )) = BitRegister::at(offset)
        else {
            return Kick(0);
        };
        if word == 0 || word > SHARED_BANKS {
            return Kick(0);
        }
        let state = self.state.lock();
        let holders = state.shared[word - 1].holder.iter().filter(|&&holder| holder != NOBODY);
        let mask = holders.fold(0, |mask, &holder| mask | 1 << holder);
        self.mark(&state, mask)
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` of the distributor. Registers that do not exist read as zero.
    ///
    /// For interrupts in list registers, pending and active bits are those of the last refill: the vCPUs of
    /// [`Self::distributor_readers`] must refill first.
    pub(crate) fn read_distributor(&self, vcpu: usize, offset: u64, size: u64) -> u64 {
        if size == 8 {
            return if offset & 7 == 0 { self.read_route(offset) } else { 0 };
        }
        if size == 1 && (0x400..0x400 + u64::from(INTID_LIMIT)).contains(&offset) {
            let word = self.read_distributor(vcpu, offset & !3, 4);
            return word >> (8 * (offset & 3)) & 0xff;
        }
        if size != 4 || offset & 3 != 0 {
            return 0;
        }
        let mut state = self.state.lock();
        let value = match offset {
            0x0000 => {
                let waiting = if self.dirty() & state.online != 0 { CTLR_RWP } else { 0 };
                state.groups | CTLR_ARE | CTLR_DS | waiting
            }
            0x0004 => TYPER,
            0x0008 => IIDR,
            0x0080..0x0400 => match BitRegister::at(offset) {
                // Word 0 belongs to the redistributors.
                Some((register, word @ 1..=SHARED_BANKS)) => state.read_bits(vcpu, register, word),
                _ => 0,
            },
            0x0420..0x0800 if offset < 0x400 + u64::from(INTID_LIMIT) => {
                let intid = (offset - 0x400) as usize;
                state.bank(vcpu, intid / 32).priorities(intid % 32)
            }
            0x0c08..0x0d00 if offset < 0xc00 + u64::from(INTID_LIMIT) / 4 => {
                let intid = (offset - 0xc00) as u32 * 4;
                state.bank(vcpu, intid as usize / 32).configuration(intid % 32)
            }
            0x6000..0x8000 => {
                drop(state);
                return self.read_route(offset & !7) >> (8 * (offset & 4)) & 0xffff_ffff;
            }
            0xffe8 => PIDR2,
            _ => 0,
        };
        u64::from(value)
    }

    /// Writes `size` bytes at `offset` of the distributor. Registers that do not exist ignore writes. Returns the vCPUs to
    /// kick, which may include the writer.
    pub(crate) fn write_distributor(&self, vcpu: usize, offset: u64, size: u64, value: u64) -> Kick {
        let mut state = self.state.lock();
        let word = value as u32;
        let affected = match (size, offset) {
            (4, 0x0000) => {
                let changed = state.groups != word & CTLR_GROUPS;
                state.groups = word & CTLR_GROUPS;
                if changed { u32::MAX } else { 0 }
            }
            (4, 0x0080..0x0400) if offset & 3 == 0 => match BitRegister::at(offset) {
                Some((register, index @ 1..=SHARED_BANKS)) => {
                    let held = Self::held_mask(&state, index);
                    let affected = state.write_bits_affecting(vcpu, register, index, word, held);
                    affected | state.releaser(vcpu, index)
                }
                _ => 0,
            },
            (1 | 4, 0x0420..0x0800)
                if offset < 0x400 + u64::from(INTID_LIMIT) && offset & (size - 1) == 0 =>
            {
                let intid = (offset - 0x400) as usize;
                let bytes = word.to_le_bytes();
                state.write_priorities(vcpu, intid / 32, intid % 32, &bytes[..size as usize])
            }
            (4, 0x0c08..0x0d00) if offset < 0xc00 + u64::from(INTID_LIMIT) / 4 && offset & 3 == 0 => {
                let intid = (offset - 0xc00) as u32 * 4;
                let bank = state.bank(vcpu, intid as usize / 32);
                bank.set_configuration(intid % 32, word, !bank.hardware);
                state.affected(vcpu, intid as usize / 32, 0xffff << (intid % 32))
            }
            (4 | 8, 0x6000..0x8000) if offset & (size - 1) == 0 => {
                Self::write_route(&mut state, vcpu, offset, size, value)
            }
            _ => 0,
        };
        self.mark(&state, affected)
    }

    fn read_route(&self, offset: u64) -> u64 {
        let intid = offset.wrapping_sub(0x6000) / 8;
        if (32..u64::from(INTID_LIMIT)).contains(&intid) {
            self.state.lock().route[intid as usize - 32]
        } else {
            0
        }
    }

    fn write_route(state: &mut State, vcpu: usize, offset: u64, size: u64, value: u64) -> u32 {
        let intid = (offset - 0x6000) / 8;
        if !(32..u64::from(INTID_LIMIT)).contains(&intid) {
            return 0;
        }
        let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
        let before = state.affected(vcpu, word, bit);
        let route = &mut state.route[intid as usize - 32];
        let whole = match (size, offset & 4) {
            (8, _) => value,
            (_, 0) => *route & !0xffff_ffff | value & 0xffff_ffff,
            _ => *route & 0xffff_ffff | value << 32,
        };
        // Aff3, mode, Aff2, Aff1, Aff0.
        *route = whole & (0xff << 32 | ROUTE_ANY | 0xff_ffff);
        before | state.affected(vcpu, word, bit)
    }
}
