//! Functions against fakes: probe, placement, the guest's view, and reset.

mod properties;

use std::format;
use std::rc::Rc;
use std::string::ToString;
use std::vec::Vec;

use super::config::{COMMAND, RegisterSpace, Rid, Width};
use super::error::{Error, Fault};
use super::fake::*;
use super::*;

/// QEMU's 32-bit window, and its 64-bit one.
const WINDOWS: [Window; 2] = [
    Window { bus: 0x1000_0000, cpu: 0x1000_0000, size: 0x2eff_0000, is_prefetchable: false },
    Window { bus: 0x80_0000_0000, cpu: 0x80_0000_0000, size: 0x80_0000_0000, is_prefetchable: false },
];
const GUEST: (u64, u64) = (0x1000_0000, 0x2000_0000);
const NO_COMMON: Option<&FakeCommon> = None;

/// Probes and places `rid`, with guest addresses.
fn placed(bus: &FakeBus, rid: u16) -> Result<Function, Error> {
    let mut survey = Survey::scan(bus, 0, 255, &mut |_| {});
    let mut function = Function::probe(bus, Rid::new(rid))?;
    survey.place(bus, &mut function, &WINDOWS)?;
    give_guest_addresses(core::slice::from_mut(&mut function), GUEST.0, GUEST.1)?;
    Ok(function)
}

/// Makes a bus with `fake` at 00:01.0, placed, and its guest's view.
fn assigned(fake: Fake) -> (Rc<Fake>, Function, VirtualConfig) {
    let bus = FakeBus::of([(8, fake)]);
    let function = placed(&bus, 8).unwrap();
    let space = bus.0[&8].clone();
    let view = VirtualConfig::new(&function, &space);
    view.attach(&space);
    space.writes.borrow_mut().clear();
    (space, function, view)
}

#[test]
fn qemus_disk_is_probed_and_placed_where_no_firmware_was() {
    let bus = FakeBus::of([(8, virtio_disk())]);
    let function = placed(&bus, 8).unwrap();
    assert_eq!((function.id(), function.class()), ((0x1af4, 0x1042), 0x1_0000));
    let bars: Vec<_> =
        function.bars().iter().map(|bar| (bar.index, bar.size, bar.address, bar.guest)).collect();
    assert_eq!(bars, [(1, 0x1000, 0x1000_4000, 0x1000_4000), (4, 0x4000, 0x1000_0000, 0x1000_0000)]);
    let fake = &bus.0[&8];
    assert_eq!([0x14, 0x20, 0x24].map(|at| fake.peek(at)), [0x1000_4000, 0x1000_000c, 0]);
    assert_eq!(fake.peek(COMMAND) & 0x407, 0x402, "memory on, interrupts and bus master off");
    let common = function.common_config().unwrap();
    assert_eq!((common.frame.get(), common.offset, common.mapped_size), (0x1000_0000, 0, 0x1000));
}

#[test]
fn addresses_of_firmware_stay_unless_a_frame_is_shared_or_they_lie_outside() {
    let disk = || virtio_disk().bar(1, 0x1000, 0, 0x1200_0000).bar(4, 0x4000, 0xc, 0x80_0000_8000);
    let bus = FakeBus::of([(8, disk()), (16, endpoint().bar(0, 0x2_0000, 0, 0x1202_0000))]);
    let addresses = |bus: &FakeBus| {
        let function = placed(bus, 8).unwrap();
        function.bars().iter().map(|bar| bar.address).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&bus), [0x1200_0000, 0x80_0000_8000]);
    // A neighbour's small BAR in the frame of BAR 1; it is not moved itself.
    let neighbour = Fake::new(0x1234, 1, 0x02_0000).bar(0, 0x100, 0, 0x1200_0f00);
    let bus = FakeBus::of([(8, disk()), (16, neighbour)]);
    assert_eq!(addresses(&bus), [0x1000_0000, 0x80_0000_8000]);
    assert_eq!(bus.0[&16].peek(0x10), 0x1200_0f00);
    let bus = FakeBus::of([(8, virtio_disk().bar(1, 0x1000, 0, 0x7000_0000))]);
    assert_eq!(addresses(&bus), [0x1000_4000, 0x1000_0000]);
}

#[test]
fn small_bars_of_a_function_get_frames_of_their_own() {
    let bus = FakeBus::of([(
        8,
        Fake::new(0x1234, 2, 3).bar(0, 0x100, 0, 0x1200_0000).bar(1, 0x100, 0, 0x1200_0100),
    )]);
    let function = placed(&bus, 8).unwrap();
    let bars: Vec<_> =
        function.bars().iter().map(|bar| (bar.address, bar.guest, bar.mapped_size())).collect();
    assert_eq!(bars, [(0x1200_0000, 0x1000_0000, 0x1000), (0x1000_0000, 0x1000_1000, 0x1000)]);
}

#[test]
fn functions_behind_root_ports_lie_in_their_windows_and_switches_are_refused() {
    let functions = |kind: u8| {
        FakeBus::of([
            (8, virtio_disk()),
            (16, root_port(kind, 1, 0x1000_0000, 0x1020_0000)),
            (0x100, endpoint()),
        ])
    };
    let bus = functions(4);
    let function = placed(&bus, 0x100).unwrap();
    assert!(function.bars().iter().all(|bar| (0x1000_0000..0x1020_0000).contains(&bar.address)));
    assert_eq!(bus.0[&16].peek(COMMAND) & 6, 6, "the port is open");
    let function = placed(&bus, 8).unwrap();
    assert!(function.bars().iter().all(|bar| bar.address >= 0x1020_0000), "the port's window is taken");
    let error = placed(&functions(6), 0x100).unwrap_err();
    let bridge = Rid::new(16);
    assert_eq!(error.fault, Fault::NotBehindRootPort { bridge, kind: Some(6) });
    let error = placed(&FakeBus::of([(0x100, endpoint())]), 0x100).unwrap_err();
    assert_eq!(error.fault, Fault::Unreachable(1));
    let small = FakeBus::of([
        (16, root_port(4, 1, 0x1000_0000, 0x1010_0000)),
        (0x100, endpoint().bar(1, 1 << 20, 0, 0)),
    ]);
    let error = placed(&small, 0x100).unwrap_err();
    assert!(
        error.to_string().starts_with("PCI function 01:00.0: BAR at 0x10, 0x20000 bytes: no free space"),
        "{error}"
    );
    assert_eq!(small.0[&0x100].peek(COMMAND) & 7, 0, "what is refused decodes nothing");
}

#[test]
fn functions_that_cannot_be_assigned_are_refused_in_words() {
    let looped = endpoint();
    looped.set(0xe1, 1, 0xc8, 0);
    let outside = endpoint();
    outside.set(0xc9, 1, 0x20, 0);
    let no_size = endpoint();
    no_size.set(0x10, 4, 0, 0x00ff_0000);
    let cases = [
        (root_port(4, 1, 0x10_0000, 0x20_0000), "header type 0x1: only type 0 can be assigned, not a bridge"),
        (Fake::new(0x1234, 2, 3).bar(5, 0x1000, 4, 0), "BAR at 0x24 reads 0x4: its type is reserved"),
        (Fake::new(0x1234, 2, 3).bar(0, 0x1000, 2, 0), "BAR at 0x10 reads 0x2: its type is reserved"),
        (no_size, "BAR at 0x10 has writable bits 0xffffffff00ff0000"),
        (looped, "the list of capabilities does not end: 0xc8 comes again"),
        (outside, "capability pointer 0x20"),
        (Fake::new(0x1234, 2, 3).capabilities(&[(0x40, 0x14, &[])]), "has Enhanced Allocation"),
        (
            Fake::new(0x1234, 2, 3).bar(0, 1 << 30, 0xc, 0),
            "BAR at 0x10, 0x40000000 bytes: a guest's BARs must fit",
        ),
        (virtio_disk().bar(4, 0x10, 0xc, 0), "virtio common configuration (capability at 0x40) names BAR 4"),
        (Fake::new(0xffff, 0xffff, 0), "does not exist"),
    ];
    for (fake, expected) in cases {
        let error = placed(&FakeBus::of([(8, fake)]), 8).unwrap_err();
        assert!(error.to_string().starts_with(&format!("PCI function 00:01.0: {expected}")), "{error}");
    }
}

#[test]
fn virtio_is_isolated_only_if_it_offers_access_platform() {
    let (_, disk, _) = assigned(virtio_disk());
    let offers = |features| FakeCommon { features, ..FakeCommon::default() };
    assert!(disk.is_isolated_by_smmu(Some(&offers(1 << 33 | 1 << 32))));
    assert!(!disk.is_isolated_by_smmu(Some(&offers(1 << 32))));
    assert!(!disk.is_isolated_by_smmu(NO_COMMON));
    let (_, other, _) = assigned(endpoint());
    assert!(other.is_isolated_by_smmu(NO_COMMON));
}

/// Sizes the BAR register at `offset` as Linux does, and returns the mask.
fn size(view: &VirtualConfig, space: &Rc<Fake>, offset: u16) -> u32 {
    let before = view.read(space, offset, 4);
    view.write(space, offset, 4, 0xffff_ffff);
    let mask = view.read(space, offset, 4);
    view.write(space, offset, 4, before);
    assert_eq!(view.read(space, offset, 4), before);
    mask as u32
}

#[test]
fn a_guest_sizes_bars_as_linux_does_and_the_function_does_not_see_it() {
    let (space, _, view) = assigned(virtio_disk());
    let masks = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|offset| size(&view, &space, offset));
    assert_eq!(masks, [0, 0xffff_f000, 0, 0, 0xffff_c00c, 0xffff_ffff, 0]);
    // Moving does not work.
    view.write(&space, 0x20, 4, 0x3000_0000);
    assert_eq!(view.read(&space, 0x20, 4), 0x1000_000c);
    assert!(space.writes.borrow().is_empty());
}

#[test]
fn a_guest_sees_the_header_with_its_own_command_line_and_bars() {
    let fake = virtio_disk();
    fake.set(0x0e, 1, 0x80, 0);
    fake.set(0x06, 2, 0x18, 0);
    let (space, _, view) = assigned(fake);
    assert_eq!(view.read(&space, 0, 4), 0x1042_1af4);
    assert_eq!(view.read(&space, 0x0e, 1), 0, "one function");
    assert_eq!(view.read(&space, 0x06, 2), 0x18, "the interrupt's status and the list of capabilities");
    assert_eq!(view.read(&space, 0x3c, 2), 0x100);
    view.write(&space, 0x3c, 4, 0xaa55);
    assert_eq!(view.read(&space, 0x3c, 2), 0x155);
    assert!(space.writes.borrow().is_empty());
    assert_eq!(view.read(&space, COMMAND, 2), 0);
    view.write(&space, COMMAND, 4, 0xffff_ffff);
    assert_eq!(view.read(&space, COMMAND, 2), 0x406);
    assert_eq!(*space.writes.borrow(), [(COMMAND, Width::Half, 0x406)]);
    view.write(&space, COMMAND, 1, 0);
    view.write(&space, COMMAND + 1, 1, 0);
    assert_eq!(view.read(&space, COMMAND, 2), 0);
    assert_eq!(space.peek(COMMAND) & 0xffff, 2, "the function decodes memory all the time");
    view.write(&space, COMMAND, 2, 0x406);
    view.attach(&space);
    assert_eq!((view.read(&space, COMMAND, 2), view.read(&space, 0x3c, 1)), (0, 0));
}

/// Walks the lists of capabilities as a guest does.
fn capabilities(view: &VirtualConfig, space: &Rc<Fake>) -> [Vec<(u64, u64)>; 2] {
    let (mut list, mut extended) = (Vec::new(), Vec::new());
    let mut at = view.read(space, 0x34, 1);
    while at != 0 {
        let header = view.read(space, at as u16, 2);
        list.push((at, header & 0xff));
        at = header >> 8;
    }
    at = 0x100;
    while at != 0 {
        let header = view.read(space, at as u16, 4);
        extended.push((at, header & 0xffff));
        at = header >> 20;
    }
    [list, extended]
}

#[test]
fn capabilities_that_a_guest_must_not_use_are_unlinked_and_read_as_zeros() {
    let (space, _, view) = assigned(virtio_disk());
    let vendor = |at| (at, 9);
    assert_eq!(capabilities(&view, &space)[0], [0x70, 0x60, 0x50, 0x40].map(vendor));
    for offset in (0x84..0xa4).step_by(4) {
        assert_eq!(view.read(&space, offset, 4), 0, "{offset:#x}");
    }
    let (space, _, view) = assigned(endpoint());
    let [list, extended] = capabilities(&view, &space);
    assert_eq!(
        (list, extended),
        (Vec::from([(0xe0, 0x10)]), Vec::from([(0x100, 0), (0x140, 3), (0x1a0, 0xb)]))
    );
    assert_eq!(view.read(&space, 0xe4, 4), 0x0000_8cc1, "no function level reset");
    assert_eq!(view.read(&space, 0x144, 4), 0xabcd_0003);
    assert_eq!([0x154, 0x164].map(|at| view.read(&space, at, 4)), [0, 0]);
    let (space, _, view) = assigned(Fake::new(0x1234, 2, 3).capabilities(&[(0x40, 0x05, &[])]));
    assert_eq!((view.read(&space, 0x34, 1), view.read(&space, 6, 2)), (0, 0), "no list at all");
}

#[test]
fn narrow_reads_are_parts_of_wide_ones_and_others_read_as_absent() {
    let (space, _, view) = assigned(endpoint());
    for offset in 0..0x1000 {
        let word = view.read(&space, offset & !3, 4);
        assert_eq!(view.read(&space, offset, 1), word >> (8 * (offset & 3)) & 0xff);
        if offset.is_multiple_of(2) {
            assert_eq!(view.read(&space, offset, 2), word >> (8 * (offset & 2)) & 0xffff);
        }
    }
    let absent = [(0, 8), (0, 0), (0, 3), (1, 2), (2, 4), (0x1000, 4), (0xffff, 1)];
    assert!(absent.iter().all(|&(offset, size)| view.read(&space, offset, size) == u64::MAX));
}

#[test]
fn the_guests_ecam_has_its_functions_from_device_1_on() {
    assert_eq!(slot(0x8000), Some((0, 0)));
    assert_eq!(slot(0x1_0004), Some((1, 4)));
    assert_eq!(slot(0xf_8fff), Some((30, 0xfff)));
    assert_eq!([slot(0), slot(0x9000), slot(0x10_8000), slot(u64::MAX)], [None; 4]);
}

#[test]
fn words_without_a_lock_are_those_of_the_space() {
    let (space, _, view) = assigned(endpoint());
    for offset in 0..0x1_8000_u64 {
        let expected = slot(offset).filter(|(_, register)| *register < 256 && register % 4 == 0);
        // Device 0 has no index that a guest's function has.
        let found = word_slot(offset).filter(|(index, _)| *index < 32);
        assert_eq!(found.map(|(index, number)| (index, 4 * u16::from(number))), expected, "{offset:#x}");
    }
    for number in 0..64 {
        let word = u64::from(view.word(&space, number));
        assert_eq!(word, view.read(&space, 4 * u16::from(number), 4), "{number}");
    }
}

#[test]
fn an_endpoint_is_quiet_after_a_function_level_reset_with_its_state_restored() {
    let (space, function, view) = assigned(endpoint());
    space.write16(0xd2, 1);
    view.write(&space, COMMAND, 2, 0x6);
    space.writes.borrow_mut().clear();
    let mut clock = FakeClock::default();
    assert_eq!(quiesce(&function, &space, NO_COMMON, &mut clock), Ok(Quiescence::FunctionReset));
    assert!(clock.0 >= 100_000);
    assert_eq!(space.resets.get(), 1);
    assert_eq!(space.writes.borrow()[0], (COMMAND, Width::Half, 0x402), "bus master goes first");
    assert_eq!(u64::from(space.peek(0x10)), function.bars()[0].address);
    assert_eq!((space.peek(COMMAND) & 0x407, space.peek(0xd0) >> 16 & 1), (0x402, 0));
}

#[test]
fn each_way_to_a_reset_is_taken_and_named() {
    let quiet = |fake: Fake, common: Option<&FakeCommon>| {
        let (space, function, _) = assigned(fake);
        let way = quiesce(&function, &space, common, &mut FakeClock::default());
        (way.unwrap(), space.resets.get())
    };
    let advanced: (u16, u8, &[u8]) = (0x50, 0x13, &[6, 3]);
    let power: (u16, u8, &[u8]) = (0x40, 0x01, &[2, 0]);
    let plain = || Fake::new(0x1234, 2, 3);
    assert_eq!(quiet(plain().capabilities(&[power, advanced]), None), (Quiescence::AdvancedReset, 1));
    assert_eq!(quiet(plain().capabilities(&[power]), None), (Quiescence::PowerCycle, 1));
    assert_eq!(quiet(plain(), None), (Quiescence::BusMasterOff, 0));
    let common = FakeCommon { status: 0xf.into(), delay: Some(5).into(), ..FakeCommon::default() };
    assert_eq!(quiet(virtio_disk(), Some(&common)), (Quiescence::VirtioReset, 0));
}

#[test]
fn functions_that_do_not_become_quiet_are_reported_and_nothing_waits_for_ever() {
    let faults = Faults::default();
    let fails = |fake: Fake, faults: Faults, common: Option<&FakeCommon>| {
        let (space, function, _) = assigned(fake);
        space.faults.set(faults);
        let mut clock = FakeClock::default();
        let error = quiesce(&function, &space, common, &mut clock).unwrap_err();
        assert!(clock.0 < 3_000_000);
        error.fault
    };
    let is_always_pending = Faults { is_always_pending: true, ..faults };
    assert_eq!(fails(endpoint(), is_always_pending, None), Fault::Pending { register: 0xea, value: 0x20 });
    let is_always_master = Faults { is_always_master: true, ..faults };
    assert_eq!(fails(endpoint(), is_always_master, None), Fault::Command { written: 0x402, read: 0x406 });
    let dies = Faults { dies_of_reset: true, ..faults };
    assert!(matches!(fails(endpoint(), dies, None), Fault::NotReady { milliseconds: 1000, .. }));
    let common = FakeCommon { status: 0xf.into(), ..FakeCommon::default() };
    assert_eq!(
        fails(virtio_disk(), faults, Some(&common)),
        Fault::VirtioStatus { value: 0xf, milliseconds: 1000 }
    );
}
