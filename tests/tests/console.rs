//! The one serial line: keys that switch it, and what is typed or printed fast.

use system_tests::{Console, Guest, Setup};

#[test]
fn a_paste_of_ten_kib_loses_nothing() {
    let mut system = Setup::new().set(&[Guest::linux("g").vcpus(2)], "").boot();
    system.wait_for_shell("g");
    // Lines short enough for the terminal's own buffer of 4 KiB.
    let mut text = String::new();
    for number in 0..160 {
        text.push_str(&format!(
            "line {number:03} of what is pasted into the guest, as fast as QEMU takes it\n"
        ));
    }
    assert!(text.len() > 10 << 10);
    system.run("g", "stty -echo");
    system.send("cat > /tmp/pasted\r");
    system.expect(r"\n");
    system.send(&text.replace('\n', "\r"));
    system.send("\x04");
    system.run("g", "stty echo");
    let sum = system.run("g", "wc -c < /tmp/pasted; sort -u /tmp/pasted | wc -l");
    assert_eq!(sum.split_whitespace().collect::<Vec<_>>(), [text.len().to_string(), "160".into()]);
}

#[test]
fn ten_kib_typed_at_the_monitor_do_no_harm() {
    let mut system =
        Setup::new().set(&[Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32)], "").boot();
    system.wait_for_monitor();
    for _ in 0..10 {
        system.send(&"x".repeat(1024));
        system.send("\r");
    }
    assert!(system.monitor("guests").contains("running"));
}

#[test]
fn the_switching_key_can_be_sent_itself() {
    let mut system = Setup::new().set(&[Guest::linux("g")], "").boot();
    system.wait_for_shell("g");
    system.send("stty raw -echo; dd bs=1 count=3 2>/dev/null | hexdump -C; stty sane\r");
    std::thread::sleep(std::time::Duration::from_secs(2));
    // Ctrl-] twice is one; any other byte goes through as it is, QEMU's Ctrl-A among them.
    system.send("\x1d\x1d\x01\x03");
    system.expect("00000000  1d 01 03");
}

#[test]
fn what_is_printed_behind_is_kept_and_told_apart() {
    let mut system = Setup::new().set(&[Guest::linux("alpha"), Guest::linux("beta")], "").boot();
    system.wait_for_shell("alpha");
    system.wait_for_shell("beta");
    system.to_guest("alpha");
    system.send("(sleep 3; echo from \"\"alpha) &\r");
    system.bring_to_front(Console::Monitor);
    system.monitor("guests");
    std::thread::sleep(std::time::Duration::from_secs(5));
    system.session().skip_to_now();
    system.to_guest("alpha");
    system.expect("from alpha");
}
