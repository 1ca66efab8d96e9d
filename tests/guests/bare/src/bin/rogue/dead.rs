//! Ends without return: of these a guest does not recover by itself.

use crate::Task;
use bare::mmio::read32;
use bare::{exception, gic, instruction, mmu, msr, psci, say, smp, timer};
use core::arch::asm;

fn nowhere(task: &Task) -> usize {
    task.platform.ram().iter().map(|range| range.end).max().unwrap_or(0) + 0x1_0000
}

/// Jumps into nothing, with its vectors in nothing too: an abort on every fetch, for ever.
pub(crate) fn jump(task: &Task) {
    let nowhere = nowhere(task);
    msr!("vbar_el1", nowhere as u64 & !0x7ff);
    // SAFETY: nothing runs after this.
    unsafe { asm!("br {}", in(reg) nowhere, options(noreturn)) }
}

/// Takes an exception with a stack that is not there: the vectors' own stores abort, for ever.
pub(crate) fn stack(_task: &Task) {
    // Each exception goes a little further down: far from RAM.
    let nowhere = 0x7f_0000_0000u64;
    // SAFETY: nothing that needs a stack runs after this.
    unsafe { asm!("mov sp, {}", "brk #1", in(reg) nowhere, options(noreturn)) }
}

/// Vectors that are undefined instructions.
pub(crate) fn undefined(_task: &Task) {
    let page = bare::execute::data();
    msr!("vbar_el1", page as u64 & !0x7ff);
    // SAFETY: the page holds zeros, which are no instructions; nothing runs after this.
    unsafe { asm!("br {}", in(reg) page, options(noreturn)) }
}

/// Aborts without end, each handled as it should be.
pub(crate) fn aborts(task: &Task) {
    let nowhere = nowhere(task);
    loop {
        let _ = exception::catch(|| read32(nowhere));
    }
}

/// Sleeps with everything masked and nothing enabled.
pub(crate) fn sleep(_task: &Task) {
    timer::stop_virtual();
    psci::stay();
}

/// Spins with everything masked, on all CPUs.
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

/// A timer that is always due, whose interrupt is never cleared, on all CPUs.
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

/// Every CPU sends all SGIs to all CPUs, as fast as it can, and takes them.
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

/// Translation tables whose root is in nothing: no instruction can be fetched any more, nor a vector.
pub(crate) fn root_in_hole(task: &Task) {
    mmu::use_table(nowhere(task));
    loop {
        instruction!("nop");
    }
}

/// Every CPU switches itself off.
pub(crate) fn all_cpus_off(_task: &Task) {
    smp::start_all(|_| {});
    let result = psci::cpu_off();
    say!("rogue all-cpus-off: CPU_OFF says {}", result);
    psci::stay();
}

/// Starts afresh, which does the same again.
pub(crate) fn reset(_task: &Task) {
    let result = psci::call(psci::SYSTEM_RESET, 0, 0, 0);
    say!("rogue reset: SYSTEM_RESET says {}", result);
    psci::stay();
}

/// CPU_SUSPEND with nothing that could wake it.
pub(crate) fn suspend(_task: &Task) {
    timer::stop_virtual();
    loop {
        psci::call(psci::CPU_SUSPEND, 0, 0, 0);
    }
}
