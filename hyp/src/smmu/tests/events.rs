//! Events of streams: their names, their rate, and streams that flood.

use super::*;

#[test]
fn a_stream_that_floods_is_cut_off_and_others_are_not() {
    let (fake, mut driver) = driver(IDR0);
    let window = driver.make_window(WINDOW).unwrap();
    driver.attach(1, true, window).unwrap();
    driver.attach(2, true, window).unwrap();
    // 20 events in each period are no flood.
    for _ in 0..20 {
        (0..20).for_each(|_| assert_eq!(fake.access(2, 0, false), Outcome::Aborted));
        assert_eq!(events(&mut driver).len(), 20);
        fake.machine().now_ns += Limiter::PERIOD_NS;
    }
    // More than the queue holds.
    (0..400).for_each(|_| assert_eq!(fake.access(1, 0, false), Outcome::Aborted));
    let told = events(&mut driver);
    assert_eq!(told.len(), 65);
    assert!(told[64].ends_with("too many events, stream cut off"), "{}", told[64]);
    assert_eq!(driver.streams()[0].state, StreamState::CutOff);
    let counters = driver.counters();
    assert_eq!((counters.overflows, counters.cut_offs, counters.suppressed_events), (1, 1, 256 - 65));
    assert_eq!(fake.access(1, WINDOW.ipa, false), Outcome::Aborted);
    assert_eq!(fake.access(2, WINDOW.ipa, false), Outcome::Memory(WINDOW.pa));
    // The queue was not seen empty, so no interrupt may come.
    assert!(driver.is_polled());
    assert!(events(&mut driver).is_empty());
    assert!(!driver.is_polled());
    assert_eq!(driver.check(), Ok(()));
    // A second overflow toggles the flags back.
    (0..257).for_each(|_| assert_eq!(fake.access(2, 0, false), Outcome::Aborted));
    events(&mut driver);
    assert_eq!(driver.counters().overflows, 2);
    driver.detach(1).unwrap();
    driver.attach(1, true, window).unwrap();
    assert_eq!(fake.access(1, WINDOW.ipa, false), Outcome::Memory(WINDOW.pa));
}

#[test]
fn streams_that_are_not_attached_are_silenced_or_polled() {
    let (fake, mut driver) = driver(IDR0);
    (0..100).for_each(|_| assert_eq!(fake.access(0x205, 0, true), Outcome::Aborted));
    let told = events(&mut driver);
    assert_eq!(told.len(), 64);
    assert_eq!(told[0], "C_BAD_STREAMID, stream 0x205; stream is not assigned");
    // It has an entry now, which aborts without events.
    assert_eq!(fake.access(0x205, 0, true), Outcome::Aborted);
    assert_eq!(driver.counters().unassigned_events, 100);
    assert_eq!(driver.check(), Ok(()));
    // Beyond the table there is no entry: the interrupt is off until the flood ends.
    fake.machine().now_ns += Limiter::PERIOD_NS;
    events(&mut driver);
    (0..100).for_each(|_| assert_eq!(fake.access(0x4000, 0, true), Outcome::Aborted));
    events(&mut driver);
    assert!(driver.is_polled());
    assert_eq!(fake.machine().registers[&IRQ_CTRL], IRQ_GERROR);
    fake.machine().now_ns += Limiter::PERIOD_NS;
    events(&mut driver);
    assert!(!driver.is_polled());
    assert_eq!(fake.machine().registers[&IRQ_CTRL], 0b101);
}

#[test]
fn an_event_that_comes_just_before_its_interrupt_is_on_is_not_left() {
    let (fake, mut driver) = driver(IDR0);
    (0..100).for_each(|_| assert_eq!(fake.access(0x4000, 0, true), Outcome::Aborted));
    events(&mut driver);
    assert!(driver.is_polled());
    fake.machine().now_ns += Limiter::PERIOD_NS;
    fake.machine().faults.late_access = Some(0x4001);
    assert!(events(&mut driver).is_empty());
    // The queue is not empty, so no event interrupts.
    assert!(driver.is_polled());
    assert_eq!(events(&mut driver), ["C_BAD_STREAMID, stream 0x4001; stream is not assigned"]);
    assert!(!driver.is_polled());
}

#[test]
fn events_have_the_names_that_linux_users_know() {
    for (kind, text) in [
        (0x13_u64, "F_PERMISSION, stream 0x18, read at 0x1234; stream is not assigned"),
        (0x04, "C_BAD_STE, stream 0x18; stream is not assigned"),
        (0x77, "unknown event 0x77, stream 0x18; stream is not assigned"),
    ] {
        assert_eq!(Event::decode([kind | 0x18 << 32, 1 << 35, 0x1234, 0], 0).to_string(), text);
    }
}
