//! Stage 2 aborts: accesses to the guest's devices, and to nothing.

use super::stage2_fault::Access;
use super::{
    counted, inject, is_big_endian, is_plain, skip_instruction, skip_plain_instruction, stage2_fault,
};
use crate::arch::frame::{Frame, KEEP, Reload};
use crate::arch::{errata, vcpu};
use crate::device::data_abort::Syndrome;
use crate::device::instruction;
use crate::device::vgic::{MAX_VCPUS, REDISTRIBUTOR_SIZE, Vgic};
use crate::guest::{Vcpu, cpu, interrupts, uart as guest_uart};
use crate::observe::counters::Exit;
use aarch64_cpu::registers::{FAR_EL2, HPFAR_EL2, Readable, SCTLR_EL1};
use guest_dts::guest_tree::platform;
use stage2::addr::Ipa;

/// A data abort from a guest; called by the vectors. What is frequent and needs no lock ends here, the rest in
/// functions that are called last, so that nothing has to be saved for them.
pub(crate) extern "C" fn data_abort(frame: &mut Frame, esr: u64) -> Reload {
    let syndrome = Syndrome::new(esr);
    // In two steps, which take fewer instructions here than one.
    if syndrome.is_untranslated() {
        let (page, offset) = (HPFAR_EL2.get(), FAR_EL2.get() & 0xfff);
        if !syndrome.is_described() {
            return other(frame, esr);
        }
        if page == platform::GICD_BASE >> 8 && is_plain() {
            if syndrome.is_write() {
                // Zero is zero in either byte order.
                if Vgic::is_no_write(offset, frame.get(syndrome.register())) {
                    cpu::current().counters.count_exit(Exit::Distributor);
                    skip_plain_instruction();
                    return KEEP;
                }
            } else if offset == 4
                && syndrome.is_plain_word()
                && instruction::is_always_little_endian(SCTLR_EL1.get())
            {
                cpu::current().counters.count_exit(Exit::Distributor);
                skip_plain_instruction();
                return frame.set(syndrome.register(), u64::from(Vgic::typer()));
            }
        } else if page == platform::UART_BASE >> 8 {
            return uart(frame, esr, offset);
        }
    }
    other(frame, esr)
}

/// An access to the PL011.
#[inline(never)]
fn uart(frame: &mut Frame, esr: u64, offset: u64) -> Reload {
    let (cpu, syndrome) = (cpu::current(), Syndrome::new(esr));
    let Some(vcpu) = cpu.vcpu() else { return KEEP };
    counted(cpu, Exit::Uart, || {
        let is_big_endian = is_big_endian();
        if is_stage1_fault(esr) {
            return KEEP;
        }
        skip_instruction(esr);
        if syndrome.is_write() {
            let value = syndrome.stored(frame.get(syndrome.register()), is_big_endian);
            guest_uart::write(vcpu, offset as u16, value as u32);
            return KEEP;
        }
        let value = guest_uart::read(vcpu, offset as u16);
        frame.set(syndrome.register(), syndrome.loaded(u64::from(value), is_big_endian))
    })
}

/// Any other data abort.
#[inline(never)]
fn other(frame: &mut Frame, esr: u64) -> Reload {
    let (far, ipa, syndrome) = (FAR_EL2.get(), stage2_fault::faulting_ipa(), Syndrome::new(esr));
    let cpu = cpu::current();
    counted(cpu, reason(cpu.vcpu(), ipa), || {
        if is_stage1_fault(esr) {
            return KEEP;
        }
        if syndrome.is_access()
            && let Some(vcpu) = cpu.vcpu()
            && let Some(reload) = device(frame, syndrome, vcpu, ipa)
        {
            skip_instruction(esr);
            return reload;
        }
        if !stage2_fault::is_answered(esr, far, Access::Data) {
            if syndrome.is_maintenance() {
                skip_instruction(esr);
            } else {
                inject::data_abort(esr, far);
            }
        }
        KEEP
    })
}

/// Returns true if the abort is one of stage 1 in truth (erratum 834220 of Cortex-A57): the guest makes the access again,
/// and takes that one. Such loads begin in the page before, so none of those that end in [`data_abort`] is one.
fn is_stage1_fault(esr: u64) -> bool {
    errata::machine().doubt_abort(esr) && !stage2_fault::is_readable(FAR_EL2.get())
}

/// What an access of `vcpu` to `ipa` counts as.
pub(crate) fn reason(vcpu: Option<&Vcpu>, ipa: u64) -> Exit {
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
pub(crate) fn instruction(esr: u64) {
    let far = FAR_EL2.get();
    if !stage2_fault::is_answered(esr, far, Access::Fetch) {
        inject::instruction_abort(esr, far);
    }
}

/// Performs an access to the interrupt controller. `None`: that is not at `ipa`.
fn device(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, ipa: u64) -> Option<Reload> {
    let distributor = ipa.wrapping_sub(platform::GICD_BASE);
    if distributor < platform::GICD_SIZE {
        if syndrome.is_write() {
            let value = syndrome.stored(frame.get(syndrome.register()), is_big_endian());
            write_distributor(vcpu, distributor, syndrome.size(), value);
            return Some(KEEP);
        }
        let value = read_distributor(vcpu, distributor, syndrome.size());
        return Some(frame.set(syndrome.register(), syndrome.loaded(value, is_big_endian())));
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
        let value = syndrome.stored(frame.get(syndrome.register()), is_big_endian());
        let kick = vgic.write_redistributor(index, offset, syndrome.size(), value);
        if Vgic::clears_pending(offset, syndrome.size()) {
            vcpu::clear_pending_sgis(guest.vcpus()[index].cpu(), value as u32);
        }
        interrupts::kick(cpu, vcpu, kick);
        return Some(KEEP);
    }
    let readers = vgic.redistributor_readers(index, offset);
    interrupts::kick(cpu, vcpu, readers);
    interrupts::wait_clean(cpu, vcpu, readers.0);
    let mut value = vgic.read_redistributor(index, offset, syndrome.size());
    if Vgic::is_pending_word(offset) && syndrome.size() == 4 {
        value |= u64::from(vgic.from_physical(vcpu::pending_interrupts(guest.vcpus()[index].cpu())));
    }
    Some(frame.set(syndrome.register(), syndrome.loaded(value, is_big_endian())))
}

fn write_distributor(vcpu: &'static Vcpu, offset: u64, size: u64, value: u64) {
    let kick = vcpu.guest().vgic().write_distributor(vcpu.index(), offset, size, value);
    interrupts::kick(cpu::current(), vcpu, kick);
}

fn read_distributor(vcpu: &'static Vcpu, offset: u64, size: u64) -> u64 {
    let (cpu, vgic) = (cpu::current(), vcpu.guest().vgic());
    let readers = vgic.distributor_readers(offset);
    interrupts::kick(cpu, vcpu, readers);
    interrupts::wait_clean(cpu, vcpu, readers.0);
    vgic.read_distributor(vcpu.index(), offset, size)
}
