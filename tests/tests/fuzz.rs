//! Random bytes and random command lines at the console of a busy system.

use std::time::{Duration, Instant};

use system_tests::{Guest, Random, Setup, System};

/// Duration of each storm. The number of lines matters, not their speed.
const STORM: Duration = Duration::from_secs(30);

/// Guests that interrupt, print and sleep.
fn busy() -> System {
    let load = Guest::payload("load", "irqload").bootargs("forever=1 rounds=200").ram_mib(32).vcpus(2);
    let echo = Guest::payload("echo", "probe").bootargs("probe=echo").ram_mib(32);
    let mut system = Setup::new().set(&[load, echo], "").boot();
    system.wait_for_monitor();
    system
}

/// Returns every word of the commands, from the system itself.
fn words(system: &mut System) -> Vec<String> {
    let commands = system.json("help");
    let mut words = Vec::new();
    for command in commands["commands"].as_array().unwrap() {
        words.extend(command["usage"].as_str().unwrap().split(['[', ']', '|', ' ']).map(String::from));
        words.extend(command["example"].as_str().unwrap().split(' ').map(String::from));
    }
    let more = "load echo mc0 mc1 mc9 --json --exact --help -x 0 1 2 7 4K 2M 0x40000000 0xffffffffffffffff 1T info \
                debug ' \" \\ \u{fffd} ,";
    words.extend(more.split(' ').map(String::from));
    words.retain(|word| !word.is_empty());
    words
}

/// Checks the system after random input.
#[track_caller]
fn is_well(system: &mut System) {
    // Discard the line, and end a running command.
    system.session().send(b"\x1dm\x03\x03q\r\x1dm\x15\r").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    system.session().skip_to_now();
    system.monitor("console front");
    system.monitor("trace off");
    for name in ["load", "echo"] {
        let until = Instant::now() + system_tests::patience();
        loop {
            let report = system.json("guests");
            let guests = report["guests"].as_array().unwrap();
            let state = guests.iter().find(|guest| guest["name"] == name).unwrap()["state"].clone();
            match state.as_str().unwrap() {
                "running" => break,
                "off" => drop(system.monitor(&format!("start {name}"))),
                "starting" | "stopping" => std::thread::sleep(Duration::from_millis(100)),
                other => panic!("{name} is {other}"),
            }
            assert!(Instant::now() < until, "{name} does not run: {report}");
        }
    }
    // The guest still works: interrupts arrive, and none is lost.
    system.to_guest("load");
    system.session().skip_to_now();
    for _ in 0..2 {
        let said = system.expect(r"irqload done [^\n]* lost \d+");
        assert!(said.ends_with(" lost 0"), "{said}");
    }
    system.bring_to_front(system_tests::Console::Monitor);
}

#[test]
fn random_command_lines_at_a_busy_system_do_no_harm() {
    let mut system = busy();
    let words = words(&mut system);
    let mut random = Random::new(0x5eed_0001);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < STORM {
        let mut lines = String::new();
        for _ in 0..20 {
            let length = random.below(5);
            // The first word is usually a command. Commands that need a key to end get one.
            let line: Vec<&str> = (0..=length).map(|_| random.pick(&words).as_str()).collect();
            lines.push_str(&line.join(" "));
            lines.push_str("\rq\x15");
            count += 1;
        }
        lines.push_str(&format!("mark-{count}\r"));
        system.send(&lines);
        // Some bring a guest to the front: the monitor's output is kept until it is in front again.
        let until = Instant::now() + system_tests::patience();
        let mark = format!("unknown command 'mark-{count}'");
        while system.expect_within(&mark, Duration::from_secs(1)).is_none() {
            assert!(Instant::now() < until, "no answer after {count} lines");
            system.send("\x1dm");
        }
    }
    println!("{count} lines");
    is_well(&mut system);
}

#[test]
fn random_bytes_at_a_busy_system_do_no_harm() {
    let mut system = busy();
    let mut random = Random::new(0x5eed_0002);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < STORM {
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            bytes.push(match random.below(8) {
                0 => *random.pick(b"\r\t\x1b\x03\x7f\x15"),
                1 => 0x1d,
                2 => *random.pick(b"mna?12b"),
                3..=5 => b' ' + random.below(95) as u8,
                _ => random.draw() as u8,
            });
        }
        system.session().send(&bytes).unwrap();
        count += bytes.len();
        // Send no more than the line takes: the rest would be lost in QEMU's buffer, not in Ballast.
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("{count} bytes");
    is_well(&mut system);
}
