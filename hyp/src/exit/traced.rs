//! Handlers that the vectors call while events are traced. They record the event and call the usual handlers.

use super::{
    EC_DATA_ABORT, EC_INSTRUCTION_ABORT, EC_SYSTEM_REGISTER, abort, interrupt, reason, stage2_fault,
    system_register,
};
use crate::arch::frame::Frame;
use crate::arch::gic::{Lists, cpu_interface};
use crate::arch::trace;
use crate::device::vgic::list_register::ListRegisters;
use crate::guest::cpu;
use crate::observe::counters::Exit;
use crate::observe::trace::Kind;
use aarch64_cpu::registers::{ELR_EL2, Readable};

/// Records and handles a synchronous exception from a guest.
pub(crate) extern "C" fn traced_sync(frame: &mut Frame, esr: u64) {
    let place = ELR_EL2.get();
    match esr >> 26 {
        EC_DATA_ABORT => {
            let ipa = stage2_fault::faulting_ipa();
            trace::record_here(Kind::Exit(abort::reason(cpu::current().vcpu(), ipa)), ipa, place);
            abort::data_abort(frame, esr);
        }
        EC_INSTRUCTION_ABORT => {
            trace::record_here(Kind::Exit(Exit::Abort), stage2_fault::faulting_ipa(), place);
            crate::exit::sync(frame, esr);
        }
        EC_SYSTEM_REGISTER => {
            trace::record_here(Kind::Exit(reason(esr)), esr, place);
            system_register::traced(frame, esr);
        }
        class => {
            let detail = if matches!(class, crate::exit::EC_HVC64 | crate::exit::EC_SMC64) {
                frame.get(0)
            } else {
                esr
            };
            trace::record_here(Kind::Exit(reason(esr)), detail, place);
            crate::exit::sync(frame, esr);
        }
    }
}

/// Records and handles an interrupt while a guest ran.
pub(crate) extern "C" fn traced_irq() {
    let (place, intid, cpu) = (ELR_EL2.get(), cpu_interface::acknowledge(), cpu::current());
    trace::record_here(Kind::Exit(Exit::Interrupt), u64::from(intid), place);
    if intid < 32
        && let Some(value) = cpu.local.inject(intid, &Lists)
    {
        cpu.counters.count_exit(Exit::Interrupt);
        interrupt::hand_over(intid, value);
        Lists.given(value.virtual_intid());
        return;
    }
    if let Some(value) = interrupt::inject_line(cpu, intid) {
        cpu.counters.count_exit(Exit::Interrupt);
        interrupt::hand_over(intid, value);
        Lists.given(value.virtual_intid());
        return;
    }
    interrupt::from_guest(cpu, intid);
}
