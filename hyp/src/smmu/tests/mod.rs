//! Tests of the driver with a model of an SMMU and its memory.

mod events;
mod failures;
mod properties;

use super::check::Mismatch;
use super::fake::{Fake, Outcome};
use super::registers::{
    CMDQ_CONS, CR0, CR0_CMDQEN, CR0ACK, CR2, GBPA, GBPA_ABORT, GERROR, IRQ_CTRL, IRQ_GERROR, STRTAB_BASE_CFG,
};
use super::*;
use std::string::ToString;
use std::vec::Vec;

/// IDR0 of an SMMU: both stages, AArch64 tables, coherent, no stalls, streams at two levels.
const IDR0: u32 = 0b11 | 0b10 << 2 | 1 << 4 | 0b10 << 21 | 0b01 << 24 | 0b01 << 27;
/// IDR0 as QEMU 7.2 has it, as far as it matters: stage 1 only.
const STAGE_1: u32 = IDR0 & !1;
/// StreamIDs of 16 bits, queues of 2^19.
const IDR1: u32 = 16 | 19 << 16 | 19 << 21;
/// OAS of 44 bits, 4 KiB granule.
const IDR5: u32 = 4 | 1 << 4;

const MIB: u64 = 1 << 20;
const WINDOW: Window = Window { ipa: 0x4000_0000, pa: 0x8800_0000, size: 32 * MIB };
const OTHER: Window = Window { ipa: 0x3fe0_0000, pa: 0x9000_0000, size: 4 * MIB };

type Driver = Smmu<Fake, Fake>;

fn driver_of(fake: &Fake) -> Result<Driver, Error> {
    Smmu::new(fake.clone(), fake.clone(), Setup { is_coherent: true, largest_stream: 0x3ff })
}

fn driver(idr0: u32) -> (Fake, Driver) {
    let fake = Fake::new(idr0, IDR1, IDR5);
    let driver = driver_of(&fake).unwrap();
    (fake, driver)
}

/// SMMUs of all kinds: stage, coherence, levels of the stream table.
fn kinds() -> impl Iterator<Item = u32> {
    [IDR0, STAGE_1]
        .into_iter()
        .flat_map(|idr0| [idr0, idr0 & !(1 << 4), idr0 & !(1 << 27), idr0 | 1 << 9, idr0 | 1 << 10])
}

fn events(driver: &mut Driver) -> Vec<std::string::String> {
    let mut told = Vec::new();
    driver.take_events(&mut |event| told.push(event.to_string()));
    told
}

#[test]
fn a_new_smmu_aborts_every_stream() {
    for idr0 in kinds() {
        let (fake, mut driver) = driver(idr0);
        for stream in [0, 8, 0x100, 0x3ff, 0x400, u32::MAX] {
            assert_eq!(fake.access(stream, 0x4000_0000, true), Outcome::Aborted);
        }
        assert_eq!(driver.check(), Ok(()));
        assert_eq!(fake.machine().registers[&CR2], 0b110);
        // ATSCHK, if devices may use ATS.
        assert_eq!(fake.machine().registers[&CR0ACK], 0b1101 | idr0 >> 10 << 4 & 1 << 4);
        assert!(events(&mut driver).iter().all(|event| event.starts_with("C_BAD_STREAMID")));
        let bytes: u64 = fake.machine().allocated.values().map(|order| 4096 << order).sum();
        assert_eq!(driver.memory_bytes(), bytes);
        assert_eq!(fake.machine().registers[&STRTAB_BASE_CFG] & 0x3f, 10);
    }
}

#[test]
fn streams_reach_their_window_alone_and_only_while_attached() {
    for idr0 in kinds() {
        let (fake, mut driver) = driver(idr0);
        let bytes = driver.memory_bytes();
        let (window, other) = (driver.make_window(WINDOW).unwrap(), driver.make_window(OTHER).unwrap());
        driver.attach(1, true, window).unwrap();
        driver.attach(2, false, other).unwrap();
        driver.attach(0x10f, true, other).unwrap();
        assert_eq!(driver.attach(1, true, other), Err(Error::Attached(1)));
        assert_eq!(driver.attach(0x400, true, other), Err(Error::Stream { id: 0x400, bits: 10 }));
        assert_eq!(driver.reach(0x400), Err(Error::Stream { id: 0x400, bits: 10 }));
        assert_eq!(driver.reach(0x3ff), Ok(()));
        assert_eq!(fake.access(1, 0x4000_1234, true), Outcome::Memory(0x8800_1234));
        assert_eq!(fake.access(1, 0x41ff_fffc, false), Outcome::Memory(0x89ff_fffc));
        for stream in [2, 0x10f] {
            assert_eq!(fake.access(stream, 0x3fe0_0010, false), Outcome::Memory(0x9000_0010));
            assert_eq!(fake.access(stream, 0x4000_0010, false), Outcome::Memory(0x9020_0010));
        }
        for address in [0x3fff_ffff, 0x4200_0000, 0x8800_0000, 0, 1 << 39, u64::MAX] {
            assert_eq!(fake.access(1, address, true), Outcome::Aborted, "{address:#x}");
        }
        assert_eq!(fake.access(3, 0x4000_0000, true), Outcome::Aborted);
        let told = events(&mut driver);
        assert_eq!(told.len(), 6);
        assert_eq!(told[1], "F_TRANSLATION, stream 0x1, write at 0x42000000");
        assert_eq!(driver.streams()[0].event_count, 6);
        assert_eq!(driver.check(), Ok(()));

        assert_eq!(driver.drop_window(other), Err(Error::WindowInUse));
        for stream in [1, 2, 0x10f] {
            fake.machine().opcodes.clear();
            driver.detach(stream).unwrap();
            // CMD_CFGI_STE, then CMD_TLBI_S12_VMALL or two CMD_TLBI_NH_ASID.
            let commands: &[u8] =
                if idr0 & 1 != 0 { &[3, 0x46, 0x28, 0x46] } else { &[3, 0x46, 0x11, 0x11, 0x46] };
            assert_eq!(fake.machine().opcodes, commands);
            assert_eq!(fake.access(stream, 0x4000_0010, false), Outcome::Aborted);
            assert_eq!(driver.detach(stream), Err(Error::NotAttached(stream)));
        }
        assert!(events(&mut driver).is_empty());
        driver.drop_window(window).unwrap();
        driver.drop_window(other).unwrap();
        assert_eq!(driver.drop_window(other), Err(Error::NoWindow));
        // Leaves of the stream table stay.
        let leaves = if idr0 & 1 << 27 != 0 { 2 * 0x4000 } else { 0 };
        assert_eq!(driver.memory_bytes(), bytes + leaves);
        assert_eq!(driver.check(), Ok(()));

        // The tag of a dropped window is used again, with another window behind it.
        let window = driver.make_window(Window { pa: 0xa000_0000, ..WINDOW }).unwrap();
        driver.attach(1, true, window).unwrap();
        assert_eq!(fake.access(1, 0x4000_1234, true), Outcome::Memory(0xa000_1234));
    }
}

#[test]
fn memory_types_follow_the_device_and_walks_the_smmu() {
    let entry = |features: &Features, walks, device| {
        let target = entry::Target { root: 0x1000, vmid: 3, context: 0x2040 };
        entry::stream(features, target, walks, device)
    };
    let features = |idr0, idr1| Features::read(&Fake::new(idr0, idr1, IDR5)).unwrap();
    // Stage 2: incoming types are kept, or replaced if the SMMU can.
    let [word0, word1, word2, root] = entry(&features(IDR0, IDR1), true, true);
    assert_eq!((word0, word1 >> 32, root), (0b1101, 0b01 << 12, 0x1000));
    assert_eq!((word2 & 0xffff, word2 >> 32 & 0x3f, word2 >> 40 & 0x3f), (3, 25, 0b11_01_01));
    let overriding = features(IDR0, IDR1 | 1 << 27);
    assert_eq!(entry(&overriding, true, true)[1] >> 32, 0b11 << 12 | 1 << 4 | 0b1111);
    assert_eq!(entry(&overriding, false, false)[1] >> 32, 0b11 << 12 | 1 << 4 | 0b0101);
    assert_eq!(entry(&overriding, false, false)[2] >> 40 & 0x3f, 0);
    // Stage 1: S1STALLD only if the SMMU has both models.
    let [word0, word1, ..] = entry(&features(STAGE_1, IDR1), true, true);
    assert_eq!((word0, word1 & 0xffff_ffff), (0x2040 | 0b1011, 1 << 19 | 0b11_01_01 << 2));
    assert_eq!(entry(&features(STAGE_1 & !(3 << 24), IDR1), true, true)[1] & 1 << 27, 1 << 27);
    assert_eq!(entry::context(&overriding, 0x1000, 7, true, false)[3], 0x44);
    // 32-bit physical addresses narrow stage 2 to 32 bits.
    let narrow = Features::read(&Fake::new(IDR0, IDR1, 1 << 4)).unwrap();
    assert_eq!(entry(&narrow, true, true)[2] >> 32 & 0x3f, 32);
}

#[test]
fn missing_features_are_named() {
    for (idr0, idr1, idr5, error) in [
        (IDR0 & !3, IDR1, IDR5, Error::NoTranslation),
        (IDR0 & !(2 << 2), IDR1, IDR5, Error::NoAarch64Tables),
        (IDR0 | 3 << 21, IDR1, IDR5, Error::BigEndian),
        (IDR0, IDR1, 4, Error::No4kGranule),
        (IDR0 & !(3 << 24) | 2 << 24, IDR1, IDR5, Error::StallsForced),
        (IDR0, IDR1 | 1 << 30, IDR5, Error::Preset),
        (IDR0, IDR1 | 1 << 29, IDR5, Error::Preset),
        (0, 0, 0, Error::NoTranslation),
        (u32::MAX, u32::MAX, u32::MAX, Error::BigEndian),
    ] {
        let fake = Fake::new(idr0, idr1, idr5);
        assert_eq!(driver_of(&fake).unwrap_err(), error);
        assert!(fake.machine().allocated.is_empty());
        assert_eq!(fake.access(1, 0, true), Outcome::Aborted);
    }
    let fake = Fake::new(IDR0, 32, IDR5);
    let setup = Setup { is_coherent: true, largest_stream: u32::MAX };
    assert_eq!(Smmu::new(fake.clone(), fake, setup).unwrap_err(), Error::StreamTable(32));
}

#[test]
fn windows_that_tables_cannot_hold_are_refused() {
    let (fake, mut driver) = driver(IDR0);
    let count = fake.machine().allocated.len();
    for window in [
        Window { size: 0, ..WINDOW },
        Window { size: 4096, ..WINDOW },
        Window { size: (1 << 30) + 2 * MIB, ..WINDOW },
        Window { pa: 0x8810_0000, ..WINDOW },
        Window { ipa: (1 << 39) - 2 * MIB, ..WINDOW },
        Window { pa: (1 << 44) - 2 * MIB, ..WINDOW },
        Window { pa: !(2 * MIB - 1), ..WINDOW },
    ] {
        assert!(matches!(driver.make_window(window), Err(Error::Window { .. })), "{window:x?}");
    }
    fake.machine().faults.allocations = Some(2);
    assert_eq!(driver.make_window(OTHER), Err(Error::Memory { bytes: 4096 }));
    assert_eq!(fake.machine().allocated.len(), count);
    fake.machine().faults.allocations = None;
    let windows: Vec<_> = (0..WINDOW_LIMIT).map(|_| driver.make_window(WINDOW).unwrap()).collect();
    assert_eq!(driver.make_window(WINDOW), Err(Error::WindowLimit));
    windows.into_iter().for_each(|window| driver.drop_window(window).unwrap());
    assert_eq!(fake.machine().allocated.len(), count);
    // EL2's stacks have 16 KiB.
    assert!(size_of::<Driver>() <= 3072, "{}", size_of::<Driver>());

    let window = driver.make_window(WINDOW).unwrap();
    (0..STREAM_LIMIT as u32).for_each(|id| driver.attach(id, true, window).unwrap());
    assert_eq!(driver.attach(STREAM_LIMIT as u32, true, window), Err(Error::StreamLimit));
}

#[test]
fn check_finds_each_wrong_word() {
    for idr0 in kinds() {
        let (fake, mut driver) = driver(idr0);
        let window = driver.make_window(WINDOW).unwrap();
        driver.attach(1, true, window).unwrap();
        assert_eq!(driver.check(), Ok(()));
        // The model must not follow wrong words.
        fake.machine().registers.insert(CR0ACK, 0);
        let allocated = fake.machine().allocated.clone();
        for (at, _) in allocated.into_iter().filter(|(_, order)| *order != 1).take(4) {
            let is_queue =
                driver.port.registers.machine().registers[&super::registers::CMDQ_BASE] & !0xfff == at as u32;
            let word = driver.port.memory.read64(at);
            driver.port.write64(at, word ^ 0x8000);
            driver.port.memory.barrier();
            assert_eq!(driver.check().is_err(), !is_queue, "{at:#x}");
            driver.port.write64(at, word);
            driver.port.memory.barrier();
        }
        fake.machine().registers.insert(CR0, 0);
        assert!(matches!(driver.check(), Err(Mismatch::Register { name: "CR0", value: 0, .. })));
    }
}
