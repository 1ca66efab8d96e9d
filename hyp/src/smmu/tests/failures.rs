//! SMMUs that fail, and errors that they recover from.

use super::*;

#[test]
fn a_start_that_fails_frees_what_the_smmu_does_not_reach() {
    for allocations in 0..3 {
        let fake = Fake::new(IDR0, IDR1, IDR5);
        fake.machine().faults.allocations = Some(allocations);
        assert!(matches!(driver_of(&fake), Err(Error::Memory { .. })));
        assert!(fake.machine().allocated.is_empty());
        assert_eq!(fake.access(0, 0, true), Outcome::Aborted);
    }
    let fake = Fake::new(IDR0, IDR1, IDR5);
    fake.machine().faults.hangs_sync = true;
    assert_eq!(driver_of(&fake).unwrap_err(), Error::Failed(Failure::SyncTimeout));
    assert!(fake.machine().allocated.is_empty());
    for (register, name) in [(GBPA, "GBPA"), (CR0, "CR0"), (IRQ_CTRL, "IRQ_CTRL")] {
        let fake = Fake::new(IDR0, IDR1, IDR5);
        fake.machine().registers.insert(CR0ACK, CR0_CMDQEN);
        fake.machine().faults.unacknowledged = Some(register);
        fake.machine().registers.insert(super::registers::IRQ_CTRLACK, 1);
        assert_eq!(driver_of(&fake).unwrap_err(), Error::Failed(Failure::Unacknowledged(name)));
    }
}

#[test]
fn errors_of_the_command_queue_are_recovered_from() {
    // CERROR_ILL once: the batch runs again. CERROR_ABT: the same command again.
    for errors in [&[1_u8][..], &[2], &[0, 1], &[0, 2, 2], &[3], &[2, 2, 2, 2]] {
        let (fake, mut driver) = driver(IDR0);
        let window = driver.make_window(WINDOW).unwrap();
        fake.machine().faults.errors.extend(errors);
        driver.attach(1, true, window).unwrap();
        assert_eq!(fake.access(1, WINDOW.ipa, true), Outcome::Memory(WINDOW.pa));
        assert_eq!(driver.check(), Ok(()));
    }
    for (errors, failure) in [
        // Rejected, skipped, synchronized; rejected again.
        (&[1_u8, 0, 0, 1][..], Failure::Illegal(0x03)),
        (&[2; 9][..], Failure::Queue(2)),
        (&[9][..], Failure::Queue(9)),
    ] {
        let (fake, mut driver) = driver(IDR0);
        let window = driver.make_window(WINDOW).unwrap();
        fake.machine().faults.errors.extend(errors);
        assert_eq!(driver.attach(1, true, window), Err(Error::Failed(failure)));
        assert!(driver.is_closed());
        assert_eq!(fake.access(1, WINDOW.ipa, true), Outcome::Aborted);
    }
}

#[test]
fn an_smmu_that_hangs_is_closed_and_stays_so() {
    type Hang = fn(&mut fake::Faults);
    let hangs: [Hang; 2] = [|faults| faults.hangs_sync = true, |faults| faults.hangs_queue = true];
    for hang in hangs {
        let (fake, mut driver) = driver(IDR0);
        let window = driver.make_window(WINDOW).unwrap();
        driver.attach(1, true, window).unwrap();
        assert_eq!(fake.access(1, WINDOW.ipa, true), Outcome::Memory(WINDOW.pa));
        hang(&mut fake.machine().faults);
        let failure = Failure::SyncTimeout;
        let error = Error::Failed(failure);
        assert_eq!(driver.detach(1), Err(error));
        assert!(driver.is_closed());
        assert_eq!(fake.access(1, WINDOW.ipa, true), Outcome::Aborted);
        assert_eq!(driver.streams()[0].state, StreamState::Closed);
        assert_eq!(driver.attach(2, true, window), Err(error));
        assert_eq!(driver.drop_window(window), Err(error));
        assert_eq!(driver.make_window(WINDOW), Err(error));
        assert_eq!(driver.check(), Err(Mismatch::Failed(failure)));
        // Nobody limits its events any more.
        assert!(!driver.is_polled());
        assert_eq!(fake.machine().registers[&IRQ_CTRL], 0);
    }
}

#[test]
fn an_smmu_that_would_be_bypassed_is_not_turned_off() {
    let (fake, mut driver) = driver(STAGE_1);
    let window = driver.make_window(WINDOW).unwrap();
    driver.attach(1, true, window).unwrap();
    // QEMU 7.2 has no GBPA.
    driver.aborts_when_off = false;
    fake.machine().registers.insert(GBPA, 0);
    fake.machine().faults.hangs_sync = true;
    assert_eq!(driver.cut_off(1), Err(Error::Failed(Failure::SyncTimeout)));
    assert!(!driver.is_closed());
    assert_eq!(driver.streams()[0].state, StreamState::Unknown);
    assert_ne!(fake.access(1, 0, true), Outcome::Bypassed);
}

#[test]
fn a_queue_of_one_command_is_enough() {
    let fake = Fake::new(IDR0, 16, IDR5);
    let mut driver = driver_of(&fake).unwrap();
    let window = driver.make_window(WINDOW).unwrap();
    driver.attach(1, true, window).unwrap();
    assert_eq!(fake.access(1, WINDOW.ipa, true), Outcome::Memory(WINDOW.pa));
    fake.machine().faults.hangs_queue = true;
    assert_eq!(driver.detach(1), Err(Error::Failed(Failure::QueueFull)));
}

#[test]
fn global_errors_are_named_and_acknowledged() {
    let (fake, mut driver) = driver(IDR0);
    assert!(driver.take_errors().is_empty());
    fake.machine().registers.insert(GERROR, 1 << 2 | 1 << 5);
    assert_eq!(driver.take_errors().to_string(), "EVENTQ_ABT_ERR, MSI_EVENTQ_ABT_ERR");
    assert!(driver.take_errors().is_empty());
    // An error of the command queue while no batch runs.
    *fake.machine().registers.get_mut(&GERROR).unwrap() ^= 1;
    let consumer = fake.machine().registers[&CMDQ_CONS];
    fake.machine().registers.insert(CMDQ_CONS, consumer | 2 << 24);
    assert_eq!(driver.take_errors().to_string(), "CMDQ_ERR");
    assert!(driver.take_errors().is_empty());
    let window = driver.make_window(WINDOW).unwrap();
    driver.attach(1, true, window).unwrap();
    *fake.machine().registers.get_mut(&GERROR).unwrap() ^= 1 << 8;
    assert_eq!(driver.take_errors().to_string(), "SFM_ERR");
    assert_eq!(driver.failure(), Some(Failure::Service));
    assert!(driver.is_closed());
    assert_ne!(fake.machine().registers[&GBPA] & GBPA_ABORT, 0);
}
