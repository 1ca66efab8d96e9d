//! Attacks that do not end.

use crate::attacks::{FIRST_INTID, INTIDS, TAKEN, attempt, disk, places};
use crate::virtio::Places;
use bare::platform::Platform;
use bare::{exception, gic, register, say, timer};
use core::sync::atomic::Ordering;

/// Causes DMA faults without end.
pub(crate) fn flood(platform: &'static Platform, target: Option<u64>) {
    let (disk, places) = (disk(), places(platform));
    let target = target.unwrap_or(0xdead_0000);
    for round in 0u64.. {
        disk.clear(&places);
        if disk.start(&Places { told_rings: target & !0xfff, ..places }) {
            disk.submit(&places);
        }
        if round.is_multiple_of(1000) {
            say!("sabotage flood {}", round);
        }
    }
}

/// Raises the disk's interrupt and never lowers its line.
pub(crate) fn storm(platform: &'static Platform, _: Option<u64>) {
    exception::on_irq(count_irq);
    (FIRST_INTID..FIRST_INTID + INTIDS).for_each(gic::enable);
    register::unmask_interrupts();
    let (disk, places) = (disk(), places(platform));
    say!("sabotage honest {:?}", attempt(&disk, &places));
    loop {
        timer::delay(500_000);
        say!("sabotage storm {}", TAKEN.load(Ordering::Relaxed));
    }
}

fn count_irq() {
    let intid = gic::acknowledge();
    if intid < 1020 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        gic::end(intid);
    }
}

/// Reads without end.
pub(crate) fn busy(platform: &'static Platform, _: Option<u64>) {
    let (disk, mut places) = (disk(), places(platform));
    places.sectors = 2048;
    for round in 0u64.. {
        let status = attempt(&disk, &places);
        if status != Some(0) {
            say!("sabotage busy bad {:?} in round {}", status, round);
        }
        if round.is_multiple_of(100) {
            say!("sabotage busy {}", round);
        }
    }
}
