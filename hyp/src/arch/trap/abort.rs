//! Stage 2 aborts: accesses to the guest's devices, and to nothing.

use super::{inject, interrupt, skip_instruction};
use crate::arch::cpu;
use crate::arch::vectors::Frame;
use crate::device::vgic::{REDISTRIBUTOR_SIZE, Vgic};
use crate::guest::{self, Vcpu};
use aarch64_cpu::registers::{FAR_EL2, HPFAR_EL2, Readable};
use guest_dts::build::platform;

/// A data abort's syndrome (Arm ARM D24.2.40, "ISS encoding for an exception from a Data Abort").
#[derive(Clone, Copy)]
struct Syndrome(u64);

impl Syndrome {
    /// The fields below hold (ISV), and it is a plain access, neither cache maintenance nor a table walk.
    #[inline(always)]
    const fn is_plain_access(self) -> bool {
        self.0 & (1 << 24 | 1 << 8 | 1 << 7) == 1 << 24
    }

    /// Translation fault of stage 2, any level.
    #[inline(always)]
    const fn is_translation_fault(self) -> bool {
        self.0 & 0x3c == 0x04
    }

    #[inline(always)]
    const fn is_write(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// Bytes accessed: 1, 2, 4 or 8.
    #[inline(always)]
    const fn size(self) -> u64 {
        1 << (self.0 >> 22 & 3)
    }

    #[inline(always)]
    const fn register(self) -> usize {
        (self.0 >> 16 & 0x1f) as usize
    }

    /// What a load of `value` puts into its register.
    #[inline(always)]
    const fn extend(self, value: u64) -> u64 {
        let bits = 8 * self.size() as u32;
        let is_signed = self.0 & 1 << 21 != 0;
        let is_64_bit = self.0 & 1 << 15 != 0;
        let shift = 64 - bits;
        let value = if is_signed { ((value << shift) as i64 >> shift) as u64 } else { value << shift >> shift };
        if is_64_bit { value } else { value & 0xffff_ffff }
    }
}

/// A data abort from a guest.
#[inline(always)]
pub(super) fn data(frame: &mut Frame, esr: u64) {
    let far = FAR_EL2.get();
    // HPFAR_EL2.FIPA: bits 51:12 of the address from bit 4 on.
    let ipa = (HPFAR_EL2.get() & 0xfff_ffff_fff0) << 8 | far & 0xfff;
    let syndrome = Syndrome(esr);
    if syndrome.is_plain_access()
        && syndrome.is_translation_fault()
        && let Some(vcpu) = cpu::current().vcpu()
        && device(frame, syndrome, vcpu, ipa)
    {
        skip_instruction();
        return;
    }
    inject::data_abort(esr, far);
}

/// An instruction abort from a guest: there is nothing to execute outside RAM.
#[cold]
pub(super) fn instruction(esr: u64) {
    inject::instruction_abort(esr, FAR_EL2.get());
}

/// Performs an access to a device. False: there is none at `ipa`.
#[inline(always)]
fn device(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, ipa: u64) -> bool {
    let distributor = ipa.wrapping_sub(platform::GICD_BASE);
    if distributor < platform::GICD_SIZE {
        if syndrome.is_write() {
            let value = frame.get(syndrome.register());
            if !Vgic::is_no_write(distributor, value) {
                write_distributor(vcpu, distributor, syndrome.size(), value);
            }
        } else {
            let vgic = vcpu.guest().vgic();
            let value = if distributor == 4 && syndrome.size() == 4 {
                u64::from(vgic.typer())
            } else {
                read_distributor(vcpu, distributor, syndrome.size())
            };
            frame.set(syndrome.register(), syndrome.extend(value));
        }
        return true;
    }
    let uart = ipa.wrapping_sub(platform::UART_BASE);
    if uart < platform::UART_SIZE {
        if syndrome.is_write() {
            guest::write_uart(vcpu, uart as u16, frame.get(syndrome.register()) as u32);
        } else {
            let value = guest::read_uart(vcpu, uart as u16);
            frame.set(syndrome.register(), syndrome.extend(u64::from(value)));
        }
        return true;
    }
    redistributor(frame, syndrome, vcpu, ipa)
}

#[inline(never)]
fn redistributor(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, ipa: u64) -> bool {
    let offset = ipa.wrapping_sub(platform::GICR_BASE);
    let index = (offset / REDISTRIBUTOR_SIZE) as usize;
    let guest = vcpu.guest();
    if index >= guest.vcpu_count() {
        return false;
    }
    let (cpu, vgic, offset) = (cpu::current(), guest.vgic(), offset % REDISTRIBUTOR_SIZE);
    if syndrome.is_write() {
        let value = frame.get(syndrome.register());
        let kick = vgic.write_redistributor(index, offset, syndrome.size(), value);
        interrupt::kick(cpu, vcpu, kick);
    } else {
        let readers = vgic.redistributor_readers(index, offset);
        interrupt::kick(cpu, vcpu, readers);
        interrupt::wait_clean(cpu, vcpu, readers.0);
        let value = vgic.read_redistributor(index, offset, syndrome.size());
        frame.set(syndrome.register(), syndrome.extend(value));
    }
    true
}

#[inline(never)]
fn write_distributor(vcpu: &'static Vcpu, offset: u64, size: u64, value: u64) {
    let kick = vcpu.guest().vgic().write_distributor(vcpu.index(), offset, size, value);
    interrupt::kick(cpu::current(), vcpu, kick);
}

#[inline(never)]
fn read_distributor(vcpu: &'static Vcpu, offset: u64, size: u64) -> u64 {
    let (cpu, vgic) = (cpu::current(), vcpu.guest().vgic());
    let readers = vgic.distributor_readers(offset);
    interrupt::kick(cpu, vcpu, readers);
    interrupt::wait_clean(cpu, vcpu, readers.0);
    vgic.read_distributor(vcpu.index(), offset, size)
}
