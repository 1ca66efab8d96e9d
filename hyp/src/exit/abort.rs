//! Stage 2 aborts: accesses to a guest's devices, to its RAM, and to addresses without either.

use super::stage2_fault::Access;
use super::{
    counted, inject, is_big_endian, is_plain, skip_instruction, skip_plain_instruction, stage2_fault,
};
use crate::arch::frame::{Frame, KEEP, Reload};
use crate::arch::gic::Lists;
use crate::arch::{errata, vcpu};
use crate::device::data_abort::{Steps, Syndrome};
use crate::device::instruction;
use crate::device::vgic::{MAX_VCPUS, REDISTRIBUTOR_SIZE, Vgic};
use crate::guest::{Vcpu, cpu, interrupts, uart as guest_uart};
use crate::observe::counters::Exit;
use aarch64_cpu::registers::{FAR_EL2, HPFAR_EL2, Readable, SCTLR_EL1};
use guest_dts::guest_tree::platform;
use stage2::addr::Ipa;

/// Handles a data abort from a guest; called by the vectors. Frequent accesses that need no lock are answered here. The
/// others are tail calls, so that this function saves no registers for them.
pub(crate) extern "C" fn data_abort(frame: &mut Frame, esr: u64) -> Reload {
    let syndrome = Syndrome::new(esr);
    // Two checks take fewer instructions here than one.
    if syndrome.is_untranslated() {
        let (page, offset) = (HPFAR_EL2.get(), FAR_EL2.get() & 0xfff);
        if !syndrome.is_described() {
            return other(frame, esr);
        }
        if page == platform::GICD_BASE >> 8 && is_plain() {
            if syndrome.is_write() {
                // The byte order does not matter for a zero.
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
        } else if page.wrapping_sub(platform::PCI_ECAM_BASE >> 8) < platform::PCI_ECAM_SIZE >> 8
            && !syndrome.is_write()
        {
            return read_config(frame, esr, (page << 8 | offset) - platform::PCI_ECAM_BASE);
        }
    }
    other(frame, esr)
}

/// Answers a load from the PCI configuration space. A word in the first 256 bytes needs no lock and no clock.
#[inline(never)]
fn read_config(frame: &mut Frame, esr: u64, offset: u64) -> Reload {
    let (syndrome, cpu) = (Syndrome::new(esr), cpu::current());
    if syndrome.is_plain_word()
        && is_plain()
        && instruction::is_always_little_endian(SCTLR_EL1.get())
        && !errata::machine().doubt_abort(esr)
        && let Some(vcpu) = cpu.vcpu()
        && let Some(word) = vcpu.guest().devices().config_word(offset)
    {
        cpu.counters.count_exit(Exit::Pci);
        skip_plain_instruction();
        return frame.set(syndrome.register(), u64::from(word));
    }
    other(frame, esr)
}

/// Answers any other data abort.
#[inline(never)]
fn other(frame: &mut Frame, esr: u64) -> Reload {
    let (cpu, ipa) = (cpu::current(), stage2_fault::faulting_ipa());
    counted(cpu, reason(cpu.vcpu(), ipa), || {
        let mut abort = Abort { frame, esr, vcpu: cpu.vcpu(), ipa };
        Syndrome::new(esr).answer(&mut abort).unwrap_or(KEEP)
    })
}

/// A data abort from a guest.
struct Abort<'a> {
    frame: &'a mut Frame,
    esr: u64,
    vcpu: Option<&'static Vcpu>,
    ipa: u64,
}

impl Steps<Reload> for Abort<'_> {
    /// Checks aborts on CPUs with erratum 834220 (Cortex-A57). Its loads begin in the page before the one that is
    /// reported, so none of those that [`data_abort`] completes is affected.
    #[inline(always)]
    fn is_stage1_fault(&self) -> bool {
        errata::machine().doubt_abort(self.esr) && !stage2_fault::is_readable(FAR_EL2.get())
    }

    #[inline(always)]
    fn access_device(&mut self) -> Option<Reload> {
        device(self.frame, Syndrome::new(self.esr), self.vcpu?, self.ipa)
    }

    #[inline(always)]
    fn resolve(&mut self) -> bool {
        stage2_fault::is_answered(self.esr, FAR_EL2.get(), Access::Data)
    }

    #[inline(always)]
    fn complete(&mut self) {
        skip_instruction(self.esr);
    }

    #[inline(always)]
    fn inject(&mut self) {
        inject::data_abort(self.esr, FAR_EL2.get());
    }
}

/// Returns the reason that an access of `vcpu` to `ipa` is counted under.
pub(crate) fn reason(vcpu: Option<&Vcpu>, ipa: u64) -> Exit {
    if ipa.wrapping_sub(platform::UART_BASE) < platform::UART_SIZE {
        Exit::Uart
    } else if ipa.wrapping_sub(platform::GICD_BASE) < platform::GICD_SIZE {
        Exit::Distributor
    } else if ipa.wrapping_sub(platform::GICR_BASE) < REDISTRIBUTOR_SIZE * MAX_VCPUS as u64 {
        Exit::Redistributor
    } else if ipa.wrapping_sub(platform::PCI_ECAM_BASE) < platform::PCI_ECAM_SIZE {
        Exit::Pci
    } else if vcpu.is_some_and(|vcpu| vcpu.guest().plan().is_ram(Ipa::new_truncate(ipa))) {
        Exit::Fault
    } else {
        Exit::Abort
    }
}

/// Handles an instruction abort from a guest. Only RAM can be executed.
#[cold]
pub(crate) fn instruction(esr: u64) {
    let far = FAR_EL2.get();
    if !stage2_fault::is_answered(esr, far, Access::Fetch) {
        inject::instruction_abort(esr, far);
    }
}

/// Performs an access to a device of the guest. Returns `None` if there is none at `ipa`.
fn device(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, ipa: u64) -> Option<Reload> {
    // A booting kernel mostly prints.
    let offset = ipa.wrapping_sub(platform::UART_BASE);
    if offset < platform::UART_SIZE {
        return Some(uart(frame, syndrome, vcpu, offset as u16));
    }
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
    let config = ipa.wrapping_sub(platform::PCI_ECAM_BASE);
    if config < platform::PCI_ECAM_SIZE && vcpu.guest().devices().has_functions() {
        return Some(pci_config(frame, syndrome, vcpu, config));
    }
    redistributor(frame, syndrome, vcpu, ipa)
}

/// Performs an access to the PCI configuration space.
fn pci_config(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, offset: u64) -> Reload {
    let devices = vcpu.guest().devices();
    if syndrome.is_write() {
        let value = syndrome.stored(frame.get(syndrome.register()), is_big_endian());
        devices.write_config(offset, syndrome.size(), value);
        return KEEP;
    }
    let value = devices.read_config(offset, syndrome.size());
    frame.set(syndrome.register(), syndrome.loaded(value, is_big_endian()))
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
        value |= u64::from(vgic.to_guest(vcpu::pending_interrupts(guest.vcpus()[index].cpu())));
    }
    Some(frame.set(syndrome.register(), syndrome.loaded(value, is_big_endian())))
}

/// Performs an access to the PL011.
fn uart(frame: &mut Frame, syndrome: Syndrome, vcpu: &'static Vcpu, offset: u16) -> Reload {
    if syndrome.is_write() {
        let value = syndrome.stored(frame.get(syndrome.register()), is_big_endian());
        guest_uart::write(vcpu, offset, value as u32);
        return KEEP;
    }
    let value = guest_uart::read(vcpu, offset);
    frame.set(syndrome.register(), syndrome.loaded(u64::from(value), is_big_endian()))
}

fn write_distributor(vcpu: &'static Vcpu, offset: u64, size: u64, value: u64) {
    let vgic = vcpu.guest().vgic();
    let kick = vgic.write_distributor(vcpu.index(), offset, size, value);
    vgic.forward_pending(offset, size, value, &Lists);
    interrupts::kick(cpu::current(), vcpu, kick);
}

fn read_distributor(vcpu: &'static Vcpu, offset: u64, size: u64) -> u64 {
    let (cpu, vgic) = (cpu::current(), vcpu.guest().vgic());
    let readers = vgic.distributor_readers(offset);
    interrupts::kick(cpu, vcpu, readers);
    interrupts::wait_clean(cpu, vcpu, readers.0);
    vgic.read_distributor(vcpu.index(), offset, size) | vgic.pending_lines(offset, size, &Lists)
}
