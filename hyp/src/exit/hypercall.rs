//! HVC and SMC from guests, both conduits for PSCI and SMCCC.

use super::{skip_instruction, vectors, wfi};
use crate::arch::frame::Frame;
use crate::device::pool_call;
use crate::device::psci::{self, Action};
use crate::device::smccc::{self, Call, NOT_SUPPORTED};
use crate::guest::{self, StopReason, cpu};
use aarch64_cpu::registers::{ELR_EL2, Readable};

/// Handles HVC, which returns to the next instruction.
pub(crate) fn hvc(frame: &mut Frame, esr: u64) {
    call(frame, esr);
}

/// Handles SMC, which EL2 traps (HCR_EL2.TSC): the exception would return to the SMC itself.
pub(crate) fn smc(frame: &mut Frame, esr: u64) {
    skip_instruction(esr);
    call(frame, esr);
}

fn call(frame: &mut Frame, esr: u64) {
    let cpu = cpu::current();
    let Some(vcpu) = cpu.vcpu() else { return };
    // DEN 0028, "SMC and HVC immediate value": only the immediate 0 is a call under the convention.
    if esr & 0xffff != 0 {
        frame.x[0] = smccc::status(NOT_SUPPORTED);
        return;
    }
    match smccc::decode([frame.x[0], frame.x[1], frame.x[2], frame.x[3]]) {
        Call::Answer(values) => frame.x[..4].copy_from_slice(&values),
        Call::ArchFeatures(id) => {
            frame.x[0] =
                smccc::status(smccc::arch_features(id, |workaround| cpu.hardening.feature(workaround)))
        }
        Call::Workaround(workaround) => {
            frame.x[0] = smccc::status(cpu.hardening.apply(workaround));
            // The vCPU may need other vectors from now on.
            vectors::install();
        }
        Call::Psci(call) => psci(frame, vcpu, call),
        Call::Vendor(id) => {
            let arguments = [frame.x[1], frame.x[2], frame.x[3]].map(|argument| id.argument(argument));
            let values = match pool_call::decode(id, arguments) {
                Some(call) => guest::claims::call(vcpu.guest(), call),
                None => pool_call::UNKNOWN,
            };
            frame.x[..4].copy_from_slice(&values);
        }
        Call::Unknown => {
            guest::note(vcpu, [("not supported: call", frame.x[0]), ("at", ELR_EL2.get())]);
            frame.x[0] = smccc::status(NOT_SUPPORTED);
        }
    }
}

fn psci(frame: &mut Frame, vcpu: &'static guest::Vcpu, call: psci::Call) {
    let guest = vcpu.guest();
    match psci::answer(call, vcpu.index(), guest.power(), &guest) {
        Action::Return(status) => frame.x[0] = smccc::status(status),
        Action::TurnOn { vcpu: target } => {
            guest.wake(target);
            frame.x[0] = smccc::status(psci::SUCCESS);
        }
        Action::Suspend => {
            wfi::standby();
            frame.x[0] = smccc::status(psci::SUCCESS);
        }
        Action::TurnOff { is_last: false } => guest::turn_off(vcpu),
        Action::TurnOff { is_last: true } => guest::stop_current(vcpu, StopReason::AllOff),
        Action::PowerOff => guest::stop_current(vcpu, StopReason::PowerOff),
        Action::Reset => guest::reset_current(vcpu),
    }
}
