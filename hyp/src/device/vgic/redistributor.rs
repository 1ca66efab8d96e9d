//! The redistributors' registers: a pair of 64 KiB frames for each vCPU (IHI 0069H, GICR_*).

use super::distributor::{BitRegister, IIDR, PIDR2};
use super::{Kick, Vgic};

/// Size of one vCPU's frames.
pub(crate) const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Offset of the SGI frame.
const SGI_FRAME: u64 = 0x1_0000;

/// GICR_CTLR.RWP: a write has not taken effect yet.
const CTLR_RWP: u32 = 1 << 3;
/// GICR_WAKER.ProcessorSleep and ChildrenAsleep.
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

impl Vgic {
    /// Returns GICR_TYPER of `vcpu`: affinity, processor number, and Last.
    fn redistributor_typer(&self, vcpu: usize) -> u64 {
        let last = u64::from(vcpu + 1 == self.vcpu_count) << 4;
        (vcpu as u64) << 32 | (vcpu as u64) << 8 | last
    }

    /// Returns the vCPU whose list registers hold interrupts that a read at `offset` of `vcpu`'s frames shows.
    pub(crate) fn redistributor_readers(&self, vcpu: usize, offset: u64) -> Kick {
        match BitRegister::at(offset.wrapping_sub(SGI_FRAME)) {
            Some((
                BitRegister::SetPending
                | BitRegister::ClearPending
                | BitRegister::SetActive
                | BitRegister::ClearActive,
                0,
            )) => self.mark(&self.state.lock(), 1 << vcpu),
            _ => Kick(0),
        }
    }

    /// Returns true if the word at `offset` shows pending interrupts (GICR_ISPENDR0, GICR_ICPENDR0). Those of hardware lines
    /// come from the physical redistributor.
    pub(crate) fn is_pending_word(offset: u64) -> bool {
        matches!(offset.wrapping_sub(SGI_FRAME), 0x200 | 0x280)
    }

    /// Returns true if a write of `size` bytes at `offset` clears pending private interrupts (GICR_ICPENDR0).
    pub(crate) fn clears_pending(offset: u64, size: u64) -> bool {
        (offset, size) == (SGI_FRAME + 0x280, 4)
    }

    /// Reads `size` bytes at `offset` of the frames of `vcpu`. Registers that do not exist read as zero.
    pub(crate) fn read_redistributor(&self, vcpu: usize, offset: u64, size: u64) -> u64 {
        if offset & !7 == 0x0008 && (size == 8 || size == 4) && offset & (size - 1) == 0 {
            let typer = self.redistributor_typer(vcpu);
            return if size == 8 { typer } else { typer >> (8 * (offset & 4)) & 0xffff_ffff };
        }
        if size == 1 && (SGI_FRAME + 0x400..SGI_FRAME + 0x420).contains(&offset) {
            let word = self.read_redistributor(vcpu, offset & !3, 4);
            return word >> (8 * (offset & 3)) & 0xff;
        }
        if size != 4 || offset & 3 != 0 {
            return 0;
        }
        let mut state = self.state.lock();
        let value = match offset {
            0x0000 if self.dirty() & state.online & 1 << vcpu != 0 => CTLR_RWP,
            0x0004 => IIDR,
            0x0014 if state.asleep >> vcpu & 1 != 0 => WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP,
            0xffe8 => PIDR2,
            SGI_FRAME.. => {
                let offset = offset - SGI_FRAME;
                match offset {
                    0x0080..0x0400 => match BitRegister::at(offset) {
                        Some((register, 0)) => state.read_bits(vcpu, register, 0),
                        _ => 0,
                    },
                    0x0400..0x0420 => state.private[vcpu].priorities(offset as usize - 0x400),
                    0x0c00 => state.private[vcpu].configuration(0),
                    0x0c04 => state.private[vcpu].configuration(16),
                    _ => 0,
                }
            }
            _ => 0,
        };
        u64::from(value)
    }

    /// Writes `size` bytes at `offset` of the frames of `vcpu`. Registers that do not exist ignore writes. Returns the vCPUs to
    /// kick.
    pub(crate) fn write_redistributor(&self, vcpu: usize, offset: u64, size: u64, value: u64) -> Kick {
        let mut state = self.state.lock();
        let word = value as u32;
        if size == 4 && offset == 0x0014 {
            if word & WAKER_PROCESSOR_SLEEP != 0 {
                state.asleep |= 1 << vcpu;
            } else {
                state.asleep &= !(1 << vcpu);
            }
            return Kick(0);
        }
        let Some(offset) = offset.checked_sub(SGI_FRAME) else { return Kick(0) };
        let affected = match (size, offset) {
            (4, 0x0080..0x0400) if offset & 3 == 0 => match BitRegister::at(offset) {
                // Only the vCPU's own CPU knows which of them list registers hold; it drops the other cancellations.
                Some((register, 0)) => state.write_bits_affecting(vcpu, register, 0, word, u32::MAX),
                _ => 0,
            },
            (1 | 4, 0x0400..0x0420) if offset & (size - 1) == 0 => {
                let bytes = word.to_le_bytes();
                state.write_priorities(vcpu, 0, offset as usize - 0x400, &bytes[..size as usize])
            }
            (4, 0x0c04) => {
                let writable = !0xffff & !state.private[vcpu].hardware;
                state.private[vcpu].set_configuration(16, word, writable);
                1 << vcpu
            }
            _ => 0,
        };
        self.mark(&state, affected)
    }
}
