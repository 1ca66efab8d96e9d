//! Properties of every guest, function and bus.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

proptest! {
    /// Whatever a guest does, the function sees writes of COMMAND alone, with two bits at most besides memory, and BARs, sizes
    /// and everything that others see stay.
    #[test]
    fn no_access_of_a_guest_gets_past_the_filter(
        is_disk in any::<bool>(),
        accesses in prop::collection::vec(
            (any::<bool>(), prop_oneof![0_u16..0x110, any::<u16>()], prop_oneof![Just(4_u8), Just(2), Just(1), any::<u8>()], any::<u64>()),
            1..200,
        ),
    ) {
        let (space, _, view) = assigned(if is_disk { virtio_disk() } else { endpoint() });
        let others = || (0x08..0x1000).step_by(4).map(|offset| space.peek(offset)).collect::<Vec<_>>();
        let before = others();
        for (is_write, offset, size, value) in accesses {
            if is_write {
                view.write(&space, offset, size, value);
            } else if let (value, 1 | 2 | 4) = (view.read(&space, offset, size), size) {
                prop_assert!(value == u64::MAX || value < 1 << (8 * size));
            }
        }
        for &(offset, width, value) in space.writes.borrow().iter() {
            prop_assert_eq!((offset, width, value & !0x404), (COMMAND, Width::Half, 2));
        }
        prop_assert_eq!(others(), before);
    }

    /// A function of random registers is probed, scanned, placed, shown and reset without a panic or an endless loop.
    #[test]
    fn a_function_of_random_registers_is_refused_or_works(
        words in prop::collection::vec((prop_oneof![0_u16..0x40, 0x40_u16..0x120, 0x120_u16..0x400], any::<u32>(), any::<u32>()), 0..100),
        kind in prop_oneof![Just(0_u32), Just(1), any::<u8>().prop_map(u32::from)],
        is_virtio in any::<bool>(),
    ) {
        let fake = if is_virtio { virtio_disk() } else { endpoint() };
        for (word, value, writable) in words {
            fake.set(word % 0x400 * 4, 4, value, writable);
        }
        fake.set(0x0e, 1, kind, 0);
        let bus = FakeBus::of([(8, fake), (16, virtio_disk()), (0x100, endpoint())]);
        let space = bus.0[&8].clone();
        if let Ok(function) = placed(&bus, 8) {
            for bar in function.bars() {
                prop_assert!(bar.cpu().is_aligned(0x1000));
            }
            let view = VirtualConfig::new(&function, &space);
            view.attach(&space);
            for offset in 0..0x1000 {
                view.read(&space, offset, 1);
                view.write(&space, offset, 1, 0xff);
            }
            let _ = quiesce(&function, &space, NO_COMMON, &mut FakeClock::default());
        }
        let _ = placed(&bus, 0x100);
    }

    /// BARs of several functions never share a frame, nor do the guest's.
    #[test]
    fn placed_bars_have_frames_of_their_own(
        bars in prop::collection::vec((4_u32..22, any::<bool>(), 0_u64..0x40_0000), 1..12),
    ) {
        let functions = bars.chunks(3).zip(1_u16..).map(|(bars, device)| {
            let fake = bars.iter().zip([0, 2, 4]).fold(Fake::new(0x1234, 2, 3), |fake, (&(order, is_64, at), index)| {
                let size = 1 << order;
                fake.bar(index, size, if is_64 { 0xc } else { 0 }, (0x1000_0000 + at) & !(size - 1))
            });
            (device << 3, fake)
        });
        let bus = FakeBus::of(functions);
        let mut survey = Survey::scan(&bus, 0, 0, &mut |_| {});
        let mut functions: Vec<_> = bus.0.keys().map(|&rid| Function::probe(&bus, Rid::new(rid)).unwrap()).collect();
        for function in &mut functions {
            survey.place(&bus, function, &WINDOWS).unwrap();
        }
        give_guest_addresses(&mut functions, GUEST.0, GUEST.1).unwrap();
        let all = || functions.iter().flat_map(|function| function.bars());
        for (number, bar) in all().enumerate() {
            for other in all().skip(number + 1) {
                let apart = |one: u64, two: u64| one + bar.mapped_size() <= two || two + other.mapped_size() <= one;
                prop_assert!(apart(bar.cpu().get(), other.cpu().get()) && apart(bar.guest(), other.guest()));
            }
            prop_assert!(bar.guest().is_multiple_of(bar.size.max(0x1000)));
        }
    }
}
