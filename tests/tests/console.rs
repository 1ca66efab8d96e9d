//! The serial line: keys that switch consoles, and fast input and output.

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
    // Ctrl-] twice sends one. All other bytes pass unchanged, including QEMU's Ctrl-A.
    system.send("\x1d\x1d\x01\x03");
    system.expect("00000000  1d 01 03");
}

#[test]
fn output_of_background_consoles_is_kept_and_labelled() {
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

/// Measures the virtual time, in nanoseconds, that the monitor takes for some commands while three CPUs flood `target` with
/// interrupts of this `kind`. Time counts instructions, so it is the same on every PC.
fn response(kind: &str, target: usize) -> u64 {
    const COMMANDS: usize = 10;
    let arguments = format!("flood={kind} target={target}");
    let guest = Guest::payload("flood", "flood")
        .bootargs(&arguments)
        .vcpus(4)
        .ram_mib(32)
        .with("host-cpus = <0 1 2 3>;");
    let mut system = Setup::new().counting_instructions().set(&[guest], "").boot();
    system.to_guest("flood");
    system.expect("flood ready");
    system.bring_to_front(Console::Monitor);
    system.session().skip_to_now();
    // More than fits the UART's FIFO, so that its interrupt is needed repeatedly.
    system.send(&"guests --json\r".repeat(COMMANDS));
    let stamps: Vec<u64> = (0..COMMANDS)
        .map(|_| {
            let said = system.expect(r#""uptime_ns":\d+,"#);
            said.trim_end_matches(',').rsplit(':').next().unwrap().parse().unwrap()
        })
        .collect();
    stamps[COMMANDS - 1] - stamps[0]
}

/// Checks that a flood of this `kind` on the CPU that runs the monitor at most doubles its response time.
fn answers_in_time(kind: &str) {
    let (quiet, flooded) = (response(kind, 1), response(kind, 0));
    eprintln!("{kind}: {quiet} ns while another CPU is flooded, {flooded} ns while this one is");
    assert!(flooded <= 2 * quiet, "{kind}: {flooded} ns, {quiet} ns without");
}

#[test]
fn the_console_answers_while_a_guest_floods_its_cpu_with_sgis() {
    answers_in_time("sgi");
}

#[test]
fn the_console_answers_while_a_guest_makes_ballast_kick_its_cpu() {
    answers_in_time("kick");
}
