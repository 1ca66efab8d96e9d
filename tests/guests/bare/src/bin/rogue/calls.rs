//! Invalid, wrong and too frequent calls of the hypervisor.

use crate::Task;
use bare::exception::catch;
use bare::psci::{self, Registers};
use bare::random::Random;
use bare::{gic, say, smp, timer};
use core::sync::atomic::{AtomicU64, Ordering};

/// Makes calls with random registers, except those that turn the machine or this CPU off.
pub(crate) fn random(task: &Task) {
    let mut random = Random::new(task.seed);
    let count = task.count(100_000);
    wake_always();
    let (mut answered, mut refused) = (0u64, 0u64);
    for _ in 0..count {
        let mut registers: Registers = core::array::from_fn(|_| random.draw());
        registers[0] = function(&mut random);
        if is_final(registers[0]) {
            continue;
        }
        let result = if random.below(2) == 0 {
            catch(|| psci::hvc(&registers))
        } else {
            catch(|| psci::smc(&registers))
        };
        match result {
            Ok(answer) if answer[0] as i32 != -1 => answered += 1,
            _ => refused += 1,
        }
    }
    timer::stop_virtual();
    say!("rogue hypercalls: {} answered, {} refused", answered, refused);
}

/// Makes a timer due, so that CPU_SUSPEND does not sleep.
fn wake_always() {
    gic::enable(timer::VIRTUAL_INTID);
    timer::arm_virtual(0);
}

fn function(random: &mut Random) -> u64 {
    let upper = if random.below(4) == 0 { random.draw() << 32 } else { 0 };
    upper
        | match random.below(5) {
            0 => random.draw() & 0xffff_ffff,
            1 => 0x8400_0000 | random.below(2) << 30 | random.below(0x20),
            2 => 0x8000_0000 | random.below(64) << 24 | random.below(0x1_0000),
            3 => 0x8000_0000 | random.below(2) << 30 | random.below(0x40) | random.below(2) << 15,
            _ => 0x8600_ff00 | random.below(0x100),
        }
}

/// Returns true for calls that do not return: CPU_OFF, SYSTEM_OFF, SYSTEM_RESET, SYSTEM_SUSPEND, SYSTEM_RESET2.
fn is_final(function: u64) -> bool {
    let function = function & 0xffff_ffff;
    function & 0xbf00_0000 == 0x8400_0000 && matches!(function & 0xffff, 0x02 | 0x08 | 0x09 | 0x0e | 0x12)
}

/// Makes PSCI calls with almost valid arguments.
pub(crate) fn psci_arguments(task: &Task) {
    let mut random = Random::new(task.seed);
    let count = task.count(50_000);
    wake_always();
    let mut results = [0u64; 11];
    for _ in 0..count {
        let affinity = match random.below(4) {
            0 => task.platform.cpus()[0],
            1 => random.below(16),
            2 => 1 << random.below(64),
            _ => random.draw(),
        };
        let entry = match random.below(5) {
            // No entry point that would run.
            0 => 0,
            1 => task.platform.distributor as u64,
            // 32-bit calls only use the lower half.
            2 => (random.draw() & !0xc000_0000) | 1 << 47,
            3 => u64::MAX - random.below(16),
            _ => task.platform.ram()[task.platform.ram_count - 1].end as u64 + random.below(4096),
        };
        let function = [
            psci::CPU_ON,
            0x8400_0003,
            psci::AFFINITY_INFO,
            0x8400_0004,
            psci::CPU_SUSPEND,
            0x8400_0001,
            psci::FEATURES,
            psci::MIGRATE,
            psci::MIGRATE_INFO_TYPE,
            psci::SMCCC_ARCH_FEATURES,
        ][random.below(10) as usize];
        let (second, third) = (if random.below(2) == 0 { entry } else { random.draw() }, random.draw());
        // A random entry point could be in RAM.
        let second = if function & 0xf == 3 { entry } else { second };
        if let Ok(result) = catch(|| psci::call(function, affinity, second, third)) {
            let slot = usize::try_from(-(result as i32)).unwrap_or(10).min(10);
            results[slot] += 1;
        }
    }
    timer::stop_virtual();
    say!("rogue psci: results 0, -1, -2 and so on: {:?}", results);
}

/// Turns the other CPUs on and off as fast as possible, and queries their states.
pub(crate) fn cpu_storm(task: &Task) {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let cpus = task.platform.cpus();
    let mut random = Random::new(task.seed);
    let (mut on, mut refused) = (0u64, 0u64);
    for _ in 0..task.count(2_000) {
        for (index, &affinity) in cpus.iter().enumerate().skip(1) {
            if psci::affinity_info(affinity) == 1 {
                // It stays off, so its record may be written.
                let context = smp::context(index, |_| {
                    STARTED.fetch_add(1, Ordering::Relaxed);
                });
                let result = psci::cpu_on(affinity, smp::entry(), context);
                on += u64::from(result == 0);
                refused += u64::from(result != 0);
            }
            refused += u64::from(psci::cpu_on(affinity, smp::entry() + 1, 0) != 0);
        }
        timer::delay(random.below(20));
    }
    let all_off =
        timer::wait_for(2_000_000, || cpus.iter().skip(1).all(|&cpu| psci::affinity_info(cpu) == 1));
    say!(
        "rogue cpu-storm: {} started, {} ran, {} refused, all off at last: {}",
        on,
        STARTED.load(Ordering::Relaxed),
        refused,
        all_off
    );
}
