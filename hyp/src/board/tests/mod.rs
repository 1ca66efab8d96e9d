//! Boards read from trees that QEMU wrote, and from broken ones.

use guest_dts::testing::compile;
use guest_dts::tree::Tree;

use super::*;

/// QEMU's `virt` with virtualization, GICv3, 4 CPUs and two controllers of 1 GiB.
const QEMU_VIRT: &str = include_str!("qemu_virt.dts");

#[test]
fn qemu_virt_is_read() {
    let blob = compile(QEMU_VIRT);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let board = Board::read(&tree).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(board.ram.controllers.len(), 2);
    assert_eq!(board.ram.ranges[1].range, PaRange::from_numbers(0x8000_0000, 1 << 30).unwrap());
    assert_eq!(board.ram.ranges[1].controller, 1);
    assert_eq!(board.cpus.iter().map(|cpu| cpu.mpidr).collect::<std::vec::Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(board.psci, Psci { conduit: Conduit::Smc, version: PsciVersion::V1_0 });
    assert_eq!(board.gic.distributor, PaRange::from_numbers(0x800_0000, 0x1_0000).unwrap());
    assert_eq!(board.gic.redistributors[..], [PaRange::from_numbers(0x80a_0000, 0xf6_0000).unwrap()]);
    assert_eq!(board.gic.maintenance.intid, 25);
    let timer = board.timer;
    assert_eq!([timer.physical, timer.virtual_timer, timer.hypervisor].map(|ppi| ppi.intid), [30, 27, 26]);
    assert_eq!(board.console.registers.base().get(), 0x900_0000);
    assert_eq!(board.console.interrupt, Interrupt { intid: 33, trigger: Trigger::Level });
    assert_eq!(board.console.clock_hz, Some(24_000_000));
    assert_eq!(board.chosen.bootargs, "hello");
    assert_eq!(board.chosen.initrd, PaRange::between(0x4800_0000, 0x4800_1000));
    assert_eq!(board.warnings.iter().count(), 0);
}
