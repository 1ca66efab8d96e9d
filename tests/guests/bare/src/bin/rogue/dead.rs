//! States from which a guest does not recover by itself.

use crate::Task;
use bare::mmio::read32;
use bare::{exception, gic, instruction, mmu, msr, psci, say, smp, timer};
use core::arch::asm;

fn nowhere(task: &Task) -> usize {
    task.platform.ram().iter().map(|range| range.end).max().unwrap_or(0) + 0x1_0000
}

/// Jumps to a hole, with its vectors in a hole too: every fetch aborts.
pub(crate) fn jump(task: &Task) {
    let nowhere = nowhere(task);
    msr!("vbar_el1", nowhere as u64 & !0x7ff);
    // SAFETY: nothing runs after this.
    unsafe { asm!("br {}", in(reg) nowhere, options(noreturn)) }
}

/// Takes an exception with an invalid stack pointer: the vectors' stores abort without end.
pub(crate) fn stack(_task: &Task) {
    // Each exception uses a lower address, far from RAM.
    let nowhere = 0x7f_0000_0000u64;
    // SAFETY: nothing that needs a stack runs after this.
    unsafe { asm!("mov sp, {}", "brk #1", in(reg) nowhere, options(noreturn)) }
}

/// Takes exceptions with undefined instructions as vectors.
pub(crate) fn undefined(_task: &Task) {
    let page = bare::execute::data();
    msr!("vbar_el1", page as u64 & !0x7ff);
    // SAFETY: the page holds zeros, which are no instructions; nothing runs after this.
    unsafe { asm!("br {}", in(reg) page, options(noreturn)) }
}

/// Causes aborts without end, and handles them.
pub(crate) fn aborts(task: &Task) {
    let nowhere = nowhere(task);
    loop {
        let _ = exception::catch(|| read32(nowhere));
    }
}

/// Sleeps with all interrupts masked and disabled.
pub(crate) fn sleep(_task: &Task) {
    timer::stop_virtual();
    psci::stay();
}

/// Spins with all interrupts masked, on all CPUs.
pub(crate) fn spin(_task: &Task) {
    smp::start_all(|_| {
        loop {
            bare::sync::relax();
        }
    });
    loop {
        instruction!("nop");
    }
}

/// Keeps a timer due, and never clears its interrupt, on all CPUs.
pub(crate) fn timer_storm(_task: &Task) {
    fn storm(_index: usize) {
        exception::on_irq(|| {
            let intid = gic::acknowledge();
            gic::end(intid);
        });
        gic::enable(timer::VIRTUAL_INTID);
        timer::arm_virtual(0);
        bare::register::unmask_interrupts();
        loop {
            instruction!("nop");
        }
    }
    smp::start_all(storm);
    storm(0);
}

/// Sends all SGIs from all CPUs to all CPUs as fast as possible, and takes them.
pub(crate) fn sgi_storm(_task: &Task) {
    fn storm(_index: usize) {
        exception::on_irq(|| {
            let intid = gic::acknowledge();
            if intid < 1020 {
                gic::end(intid);
            }
        });
        for sgi in 0..16 {
            gic::enable(sgi);
        }
        bare::register::unmask_interrupts();
        loop {
            for sgi in 0..16u64 {
                msr!("icc_sgi1r_el1", 1 << 40 | sgi << 24);
                gic::send_sgi(sgi as u32, bare::register::affinity());
            }
        }
    }
    smp::start_all(storm);
    storm(0);
}

/// Prints without end.
pub(crate) fn print(_task: &Task) {
    let mut line = 0u64;
    loop {
        line += 1;
        say!("rogue print {} the quick brown fox jumps over the lazy dog", line);
    }
}

/// Sets the root of the translation tables to a hole, so that neither instructions nor vectors can be fetched.
pub(crate) fn root_in_hole(task: &Task) {
    mmu::use_table(nowhere(task));
    loop {
        instruction!("nop");
    }
}

/// Turns all CPUs off.
pub(crate) fn all_cpus_off(_task: &Task) {
    smp::start_all(|_| {});
    let result = psci::cpu_off();
    say!("rogue all-cpus-off: CPU_OFF says {}", result);
    psci::stay();
}

/// Resets the machine, which then does the same again.
pub(crate) fn reset(_task: &Task) {
    let result = psci::call(psci::SYSTEM_RESET, 0, 0, 0);
    say!("rogue reset: SYSTEM_RESET says {}", result);
    psci::stay();
}

/// Calls CPU_SUSPEND without any interrupt that could wake the CPU.
pub(crate) fn suspend(_task: &Task) {
    timer::stop_virtual();
    loop {
        psci::call(psci::CPU_SUSPEND, 0, 0, 0);
    }
}
