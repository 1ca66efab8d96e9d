//! Stage 2 aborts: accesses to the guest's devices, and to nothing.

use super::memory::{self, Access};
use super::{counted, inject, interrupt, skip_instruction};
use crate::arch::cpu;
use crate::arch::vectors::{Frame, KEEP, Reload};
use crate::device::vgic::{MAX_VCPUS, REDISTRIBUTOR_SIZE, Vgic};
use crate::guest::{self, Vcpu};
use crate::monitor::statistics::Exit;
use aarch64_cpu::registers::{FAR_EL2, HPFAR_EL2, Readable};
use guest_dts::guest_tree::platform;
use stage2::addr::Ipa;

/// A data abort's syndrome (Arm ARM D24.2.40, "ISS encoding for an exception from a Data Abort").
#[derive(Clone, Copy)]
struct Syndrome(u64);

impl Syndrome {
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

    /// An unsigned load of a word (SAS, SSE).
    #[inline(always)]
    const fn is_plain_word(self) -> bool {
        self.0 & (3 << 22 | 1 << 21) == 2 << 22
    }

    /// What a load of `value` puts into its register.
    #[inline(always)]
    const fn extend(self, value: u64) -> u64 {
        let bits = 8 * self.size() as u32;
        let is_signed = self.0 & 1 << 21 != 0;
        let is_64_bit = self.0 & 1 << 15 != 0;
        let shift = 64 - bits;
        let value =
            if is_signed { ((value << shift) as i64 >> shift) as u64 } else { value << shift >> shift };
        if is_64_bit { value } else { value & 0xffff_ffff }
    }
}

/// The syndrome bits of a plain access that faulted in stage 2's translation: ISV, CM, S1PTW, and DFSC but its level.
const ACCESS_MASK: u64 = 1 << 24 | 1 << 8 | 1 << 7 | 0x3c;
/// Their values.
const ACCESS: u64 = 1 << 24 | 0x04;

/// A data abort from a guest; called by the vectors. What is frequent and needs no lock ends here, the rest in
/// functions that are called last, so that nothing has to be saved for them.
pub(in crate::arch) extern "C" fn data_abort(frame: &mut Frame, esr: u64) -> Reload {
    let syndrome = Syndrome(esr);
    if esr & ACCESS_MASK == ACCESS {
        let (page, offset) = (HPFAR_EL2.get(), FAR_EL2.get() & 0xfff);
        if page == platform::GICD_BASE >> 8 {
            if syndrome.is_write() {
                if Vgic::is_no_write(offset, frame.get(syndrome.register())) {
                    cpu::current().counters.count_exit(Exit::Distributor);
                    skip_instruction();
                    return KEEP;
                }
            } else if offset == 4 && syndrome.is_plain_word() {
                cpu::current().counters.count_exit(Exit::Distributor);
                skip_instruction();
                return frame.set(syndrome.register(), u64::from(Vgic::typer()));
            }
        } else if page == platform::UART_BASE >> 8 {
            return uart(frame, syndrome, offset);
        }
    }
    other(frame, esr)
}

/// An access to the PL011.
#[inline(never)]
fn uart(frame: &mut Frame, syndrome: Syndrome, offset: u64) -> Reload {
    let cpu = cpu::current();
    let Some(vcpu) = cpu.vcpu() else { return KEEP };
    counted(cpu, Exit::Uart, || {
        skip_instruction();
        if syndrome.is_write() {
            guest::write_uart(vcpu, offset as u16, frame.get(syndrome.register()) as u32);
            return KEEP;
        }
        let value = guest::read_uart(vcpu, offset as u16);
        frame.set(syndrome.register(), syndrome.extend(u64::from(value)))
    })
}

/// Any other data abort.
#[inline(never)]
fn other(frame: &mut Frame, esr: u64) -> Reload {
    let (far, ipa) = (FAR_EL2.get(), faulting_ipa());
    let cpu = cpu::current();
    counted(cpu, reason(cpu.vcpu(), ipa), || {
        if esr & ACCESS_MASK == ACCESS
            && let Some(vcpu) = cpu.vcpu()
            && let Some(reload) = device(frame, Syndrome(esr), vcpu, ipa)
        {
            skip_instruction();
            return reload;
        }
        if !memory::is_answered(esr, far, Access::Data) {
            inject::data_abort(esr, far);
        }
        KEEP
    })
}

/// The address that stage 2 did not translate.
pub(super) fn faulting_ipa() -> u64 {
    memory::faulting_page() | FAR_EL2.get() & 0xfff
}

/// What an access of `vcpu` to `ipa` counts as.
pub(super) fn reason(vcpu: Option<&Vcpu>, ipa: u64) -> Exit {
    if ipa.wrapping_sub(platform::GICD_BASE) < platform::GICD_SIZE {
        Exit::Distributor
    } else if ipa.wrapping_sub(platform::GICR_BASE) < REDISTRIBUTOR_SIZE * MAX_VCPUS as u64 {
        Exit::Redistributor
    } else if ipa.wrapping_sub(platform::UART_BASE) < platform::UART_SIZE {
        Exit::Uart
    } else if vcpu.is_some_and(|vcpu| vcpu.guest().plan().is_ram(Ipa::new_truncate(ipa))) {
        Exit::Fault
    } else {
        Exit::Abort
    }
}

/// An instruction abort from a guest: there is nothing to execute outside RAM.
#[cold]
pub(super) fn instruction(esr: u64) {
    let far = FAR_EL2.get();
    if !memory::is_answered(esr, far, Access::Fetch) {
        inject::instruction_abort(esr, far);
    }
}

/// Performs an access to the interrupt controller. `None`: that is not at `ipa`.
fn device(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, ipa: u64) -> Option<Reload> {
    let distributor = ipa.wrapping_sub(platform::GICD_BASE);
    if distributor < platform::GICD_SIZE {
        if syndrome.is_write() {
            let value = frame.get(syndrome.register());
            write_distributor(vcpu, distributor, syndrome.size(), value);
            return Some(KEEP);
        }
        let value = read_distributor(vcpu, distributor, syndrome.size());
        return Some(frame.set(syndrome.register(), syndrome.extend(value)));
    }
    redistributor(frame, syndrome, vcpu, ipa)
}

fn redistributor(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, ipa: u64) -> Option<Reload> {
    let offset = ipa.wrapping_sub(platform::GICR_BASE);
    let index = usize::try_from(offset / REDISTRIBUTOR_SIZE).ok()?;
    let guest = vcpu.guest();
    if index >= guest.vcpu_count() {
        return None;
    }
    let (cpu, vgic, offset) = (cpu::current(), guest.vgic(), offset % REDISTRIBUTOR_SIZE);
    if syndrome.is_write() {
        let value = frame.get(syndrome.register());
        let kick = vgic.write_redistributor(index, offset, syndrome.size(), value);
        interrupt::kick(cpu, vcpu, kick);
        return Some(KEEP);
    }
    let readers = vgic.redistributor_readers(index, offset);
    interrupt::kick(cpu, vcpu, readers);
    interrupt::wait_clean(cpu, vcpu, readers.0);
    let mut value = vgic.read_redistributor(index, offset, syndrome.size());
    if Vgic::is_pending_word(offset)
        && let Some(redistributor) = guest.vcpus()[index].cpu().redistributor()
    {
        let lines = redistributor.pending();
        for link in vgic.links() {
            value |= u64::from(lines >> (link.physical_intid & 31) & 1) << link.virtual_intid;
        }
    }
    Some(frame.set(syndrome.register(), syndrome.extend(value)))
}

fn write_distributor(vcpu: &'static Vcpu, offset: u64, size: u64, value: u64) {
    let kick = vcpu.guest().vgic().write_distributor(vcpu.index(), offset, size, value);
    interrupt::kick(cpu::current(), vcpu, kick);
}

fn read_distributor(vcpu: &'static Vcpu, offset: u64, size: u64) -> u64 {
    let (cpu, vgic) = (cpu::current(), vcpu.guest().vgic());
    let readers = vgic.distributor_readers(offset);
    interrupt::kick(cpu, vcpu, readers);
    interrupt::wait_clean(cpu, vcpu, readers.0);
    vgic.read_distributor(vcpu.index(), offset, size)
}
