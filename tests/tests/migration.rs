//! Migration of memory while its guest runs.

use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::{Guest, Setup, System};

/// Waits for the end of job `number`. Returns its report.
#[track_caller]
fn wait_for_job(system: &mut System, number: u64) -> Value {
    let until = Instant::now() + system_tests::patience();
    loop {
        let job = system.json(&format!("job {number}"));
        if ["finished", "incomplete", "cancelled"].contains(&job["state"].as_str().unwrap_or_default()) {
            return job;
        }
        assert!(Instant::now() < until, "{job}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command that starts a job, and waits for its end.
#[track_caller]
fn job(system: &mut System, command: &str) -> Value {
    let number = system.json(command)["job"].as_u64().unwrap_or_else(|| panic!("no job of `{command}`"));
    wait_for_job(system, number)
}

/// Checks the accounts of the whole machine, including each guest's tables.
#[track_caller]
fn check_books(system: &mut System) {
    let check = system.json("check");
    assert_eq!((&check["problem_count"], &check["refused_count"]), (&0.into(), &0.into()), "{check}");
}

/// Moves Linux back and forth under a checksum load on tmpfs and a load that forks and writes.
fn linux_moves(kernel: &str) {
    let mut system = Setup::new().kernel(kernel).set(&[Guest::linux("alpha").vcpus(2)], "").boot();
    system.wait_for_shell("alpha");
    system.run("alpha", "head -c 24M /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum");
    let load = "while :; do cp /tmp/data /tmp/copy; cmp /tmp/data /tmp/copy || echo bad >> /tmp/bad; done";
    let forks = "want=$(head -c 300000 /tmp/data | md5sum); while :; do got=$(head -c 300000 /tmp/data | md5sum); \
                 [ \"$got\" = \"$want\" ] || echo bad >> /tmp/bad; echo >> /tmp/forks; done";
    system.run("alpha", &format!("({load}) > /dev/null 2>&1 & ({forks}) > /dev/null 2>&1 & true"));
    for _ in 0..5 {
        for controller in ["mc0", "mc1"] {
            let report = job(&mut system, &format!("migrate alpha {controller}"));
            assert_eq!(report["unmoved_bytes"], 0, "{report}");
        }
    }
    assert_eq!(system.run("alpha", "ls /tmp/bad 2> /dev/null | wc -l; sha256sum -c -s /tmp/sum"), "0");
    let forks: u32 = system.run("alpha", "wc -l < /tmp/forks").parse().unwrap();
    assert!(forks > 3, "{forks}");
    let troubles = system.run("alpha", "dmesg | grep -cE 'Oops|BUG|Bad page|segfault|unhandled' || true");
    assert_eq!(troubles, "0");
    let moved = system.json("stats migration")["guests"][0]["moved_bytes"].as_u64().unwrap();
    assert!(moved >= 9 * (256 << 20), "{moved}");
}

#[test]
fn linux_6_1_moves() {
    linux_moves("6.1");
}

#[test]
fn linux_6_12_moves() {
    linux_moves("6.12");
}

#[test]
fn linux_7_3_moves() {
    linux_moves("7.3");
}

/// Runs a guest that uses all of its memory in every way on several CPUs and checks every bit, while that memory moves back and
/// forth `times` times: `mib` MiB as units of 2 MiB, and 4 MiB as units of 4 KiB.
fn stress(setup: Setup, vcpus: u32, mib: u64, times: usize) {
    let memory = "memory@60000000 { reg = <0x0 0x60000000 0x400000>; unit-size = <0x1000>; };";
    let guest =
        Guest::payload("stress", "stress").bootargs("window=4").vcpus(vcpus).ram_mib(mib).with(memory);
    let mut system = setup.set(&[guest], "").boot();
    system.to_guest("stress");
    system.expect(r"stress filled");
    // Without an idle CPU, the default share of time would be slow.
    system.monitor("rate share 90");
    // Several jobs wait while one runs, until their states have been read.
    let mut waiting = std::collections::VecDeque::new();
    let mut count = 0;
    while count < 2 * times || !waiting.is_empty() {
        if count < 2 * times && waiting.len() < 4 {
            let controller = ["mc1", "mc0"][count % 2];
            let job = system.json(&format!("migrate stress {controller}"))["job"].as_u64().unwrap();
            waiting.push_back((count, job));
            count += 1;
            continue;
        }
        let (number, job) = waiting.pop_front().unwrap();
        let report = wait_for_job(&mut system, job);
        assert_eq!(report["unmoved_bytes"], 0, "{report}");
        // At first, some of it is already at the target.
        if number > 1 {
            assert_eq!(report["moved_bytes"], (mib + 4) << 20, "{report}");
        }
    }
    let said = system.transcript();
    assert!(
        !said.contains("ERROR"),
        "{}",
        said.lines().filter(|line| line.contains("ERROR")).collect::<String>()
    );
    check_books(&mut system);
    system.to_guest("stress");
    system.session().skip_to_now();
    let said = system.expect(r"stress round \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

#[test]
fn stress_while_an_idle_cpu_moves_its_memory_a_hundred_times() {
    stress(Setup::new(), 3, 32, 100);
}

#[test]
fn stress_while_its_own_cpus_move_its_memory_a_hundred_times() {
    stress(Setup::new().cpu("max"), 4, 8, 100);
}

#[test]
fn stress_on_cpus_whose_errata_concern_stage_2() {
    for cpu in ["cortex-a55", "cortex-a57"] {
        stress(Setup::new().cpu(cpu), 3, 8, 5);
    }
}

/// The mask with which the guest `pattern` combines addresses in its words.
const KEY: u64 = 0x5ca1_ab1e_0000_0000;

/// Bytes behind each controller in tests that read all memory.
const CONTROLLER: u64 = 256 << 20;

/// Finds the guest pages with words behind controller `index`. Returns them, and true if all of them are completely there.
fn pattern_behind(system: &System, index: usize) -> (std::collections::BTreeSet<u64>, bool) {
    let (mut pages, mut are_whole) = (std::collections::BTreeSet::new(), true);
    let (mut chunk, empty) = (vec![0; 4 << 20], [0; 4096]);
    for offset in (0..CONTROLLER).step_by(chunk.len()) {
        system.read_controller(index, offset, &mut chunk);
        for page in chunk.chunks(4096).filter(|page| *page != empty) {
            let words = page.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            let addresses = words.map(|word| word ^ KEY).enumerate();
            let is_it = |(at, address): &(usize, u64)| {
                (0x4000_0000..0x2_0000_0000).contains(address) && *address % 4096 == *at as u64 * 8
            };
            let found: Vec<u64> = addresses.filter(is_it).map(|(_, address)| address & !0xfff).collect();
            if let Some(first) = found.first() {
                are_whole &= found.len() == 512 && found.iter().all(|page| page == first);
                pages.insert(*first);
            }
        }
    }
    (pages, are_whole)
}

#[test]
fn every_byte_moves_and_none_stays() {
    let dmb = "dmb-1 { size = <0x2000000>; controllers = <0>; preferred; };";
    let small = "unit-size = <0x1000>; controllers = <0>; preferred;";
    let guest = Guest::payload("pattern", "pattern").ram_mib(16).memory(small).with(dmb);
    let mut system = Setup::new().controllers(4, &[CONTROLLER; 2]).set(&[guest], "").boot();
    system.to_guest("pattern");
    system.expect("pattern ready");
    let (before, are_whole) = pattern_behind(&system, 0);
    // All pages except those of the image and the tree.
    assert!(before.len() > (46 << 20) / 4096 && are_whole, "{} pages", before.len());
    assert_eq!(pattern_behind(&system, 1).0.len(), 0);

    let report = job(&mut system, "migrate pattern dmb0 mc1");
    assert_eq!((report["moved_bytes"].as_u64(), report["unmoved_bytes"].as_u64()), (Some(32 << 20), Some(0)));
    let (there, are_whole) = pattern_behind(&system, 1);
    assert!(are_whole && there.len() == (32 << 20) / 4096, "{} pages", there.len());
    let (left, _) = pattern_behind(&system, 0);
    assert!(left.is_disjoint(&there) && left.len() + there.len() == before.len(), "{} pages", left.len());

    job(&mut system, "migrate pattern mc1");
    assert_eq!(pattern_behind(&system, 0).0.len(), 0);
    let (there, are_whole) = pattern_behind(&system, 1);
    assert!(are_whole && there == before);
    system.to_guest("pattern");
    system.send("c");
    let said = system.expect(r"pattern checked \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

/// Returns the free and used bytes of each controller.
fn totals(system: &mut System) -> Value {
    system.json("controllers")
}

/// Waits until guest `name` is in `state`.
#[track_caller]
fn wait_for_state(system: &mut System, name: &str, state: &str) {
    let until = Instant::now() + system_tests::patience();
    loop {
        let report = system.json("guests");
        let guests = report["guests"].as_array().unwrap();
        if guests.iter().any(|guest| guest["name"] == name && guest["state"] == state) {
            return;
        }
        assert!(Instant::now() < until, "{report}");
    }
}

#[test]
fn stops_and_resets_in_the_middle_of_a_move_leak_nothing() {
    let small = "memory@60000000 { reg = <0x0 0x60000000 0x1000000>; unit-size = <0x1000>; };";
    let guest = Guest::payload("stress", "stress").bootargs("window=4").vcpus(2).ram_mib(64).with(small);
    let mut system = Setup::new().set(&[guest], "").boot();
    wait_for_state(&mut system, "stress", "running");
    system.monitor("stop stress");
    wait_for_state(&mut system, "stress", "off");
    let off = totals(&mut system);
    // So slow that the job is interrupted in the middle.
    system.monitor("rate limit 40M");
    for round in 0..12 {
        system.monitor("start stress");
        wait_for_state(&mut system, "stress", "running");
        for controller in ["mc1", "mc0"] {
            system.json(&format!("migrate stress {controller}"));
        }
        std::thread::sleep(Duration::from_millis(100 + 130 * round));
        if round % 2 == 0 {
            system.monitor("reset stress");
            wait_for_state(&mut system, "stress", "running");
            let jobs = system.json("jobs");
            let is_over = |job: &Value| {
                ["finished", "incomplete", "cancelled"].contains(&job["state"].as_str().unwrap())
            };
            assert!(jobs["jobs"].as_array().unwrap().iter().all(is_over), "{jobs}");
        }
        system.monitor("stop stress");
        wait_for_state(&mut system, "stress", "off");
        assert_eq!(totals(&mut system), off, "after {round} rounds");
        check_books(&mut system);
    }
}

#[test]
fn a_guest_that_ends_by_itself_in_the_middle_of_a_move_leaks_nothing() {
    let small = "memory@60000000 { reg = <0x0 0x60000000 0x1000000>; unit-size = <0x1000>; };";
    let guest = Guest::payload("rogue", "rogue").vcpus(2).ram_mib(64).with(small);
    let mut system = Setup::new().set(&[guest], "").boot();
    wait_for_state(&mut system, "rogue", "running");
    system.monitor("stop rogue");
    wait_for_state(&mut system, "rogue", "off");
    let off = totals(&mut system);
    system.monitor("rate limit 40M");
    for round in 0..5 {
        system.monitor("start rogue");
        wait_for_state(&mut system, "rogue", "running");
        system.to_guest("rogue");
        system.expect(r"rogue which\?");
        let controller = ["mc1", "mc0"][round % 2];
        let number = system.json(&format!("migrate rogue {controller}"))["job"].as_u64().unwrap();
        std::thread::sleep(Duration::from_millis(100 + 130 * round as u64));
        // All of its vCPUs turn off, so that none can start another.
        system.to_guest("rogue");
        system.send("z");
        wait_for_state(&mut system, "rogue", "off");
        let job = wait_for_job(&mut system, number);
        assert!(job["moved_bytes"].as_u64().unwrap() < 80 << 20, "{job}");
        assert_eq!(totals(&mut system), off, "after {round} rounds");
        check_books(&mut system);
    }
}

#[test]
fn a_controller_that_is_evacuated_while_a_job_targets_it_ends_empty() {
    let small = "memory@60000000 { reg = <0x0 0x60000000 0x1000000>; unit-size = <0x1000>; };";
    let guest = Guest::payload("a", "pattern").vcpus(1).ram_mib(64).memory("controllers = <0>; preferred;");
    let mut system = Setup::new().set(&[guest.with(small)], "").boot();
    system.to_guest("a");
    system.expect("pattern ready");
    for round in 0..3 {
        system.monitor("rate limit 40M");
        let towards = system.json("migrate a mc1")["job"].as_u64().unwrap();
        std::thread::sleep(Duration::from_millis(200 + 300 * round));
        let off = system.json("evacuate mc1")["job"].as_u64().unwrap();
        system.monitor("rate limit off");
        let report = wait_for_job(&mut system, towards);
        assert!(report["unmoved_bytes"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["unmoved"][0]["reason"], "no frame on the target", "{report}");
        let report = wait_for_job(&mut system, off);
        assert_eq!(report["unmoved_bytes"], 0, "{report}");
        assert_eq!(system.json("controllers")["controllers"][1]["guest_bytes"], 0);
        check_books(&mut system);
        system.monitor("restore mc1");
    }
    system.to_guest("a");
    system.send("c");
    let said = system.expect(r"pattern checked \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

#[test]
fn an_evacuation_reaches_guests_that_start_and_that_are_reset() {
    let memory = "controllers = <0>; preferred; unit-size = <0x200000>;";
    let guests = [
        Guest::payload("a", "pattern").vcpus(1).ram_mib(384).memory(memory).bootargs("limit=32"),
        Guest::payload("b", "pattern")
            .vcpus(1)
            .ram_mib(256)
            .memory(memory)
            .bootargs("limit=32")
            .with("start-manually;"),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    system.to_guest("a");
    system.expect("pattern ready");
    for begin in ["reset a", "start b"] {
        let before = system.json("controllers")["controllers"][0]["guest_bytes"].as_u64().unwrap();
        assert!(before >= 384 << 20 || begin == "start b", "{before}");
        system.monitor(begin);
        let report = job(&mut system, "evacuate mc0");
        assert_eq!((&report["state"], &report["unmoved_bytes"]), (&"finished".into(), &0.into()), "{report}");
        // Guests that started before the controller was closed have moved, and later ones are not placed there.
        let controllers = system.json("controllers");
        assert_eq!(controllers["controllers"][0]["guest_bytes"], 0, "{controllers}");
        check_books(&mut system);
        system.monitor("restore mc0");
    }
    for name in ["a", "b"] {
        system.to_guest(name);
        system.send("c");
        let said = system.expect(r"pattern checked \d+ errors \d+");
        assert!(said.ends_with("errors 0"), "{said}");
    }
}

/// Returns the address of a frame behind controller `index` that the guest with this number has, by its symbol on the map.
fn frame_of_guest(system: &mut System, controller: &str, symbol: char) -> u64 {
    let map = system.json(&format!("map {controller}"));
    let range = &map["ranges"][0];
    let base = u64::from_str_radix(&range["base"].as_str().unwrap()[2..], 16).unwrap();
    let cells = range["cells"].as_str().unwrap();
    let cell = cells.chars().position(|cell| cell == symbol).unwrap_or_else(|| panic!("{map}")) as u64;
    base + cell * range["unit_bytes"].as_u64().unwrap()
}

/// Returns the number of 4 KiB units in a guest's RAM.
fn small_units(system: &mut System, guest: &str) -> u64 {
    let map = system.json(&format!("guest {guest} map"));
    map["regions"].as_array().unwrap().iter().map(|region| region["small_count"].as_u64().unwrap()).sum()
}

#[test]
fn frames_of_a_guest_that_is_reset_or_starts_are_retired() {
    let memory = "controllers = <0>; preferred; unit-size = <0x200000>;";
    let guest = Guest::payload("a", "pattern").vcpus(1).ram_mib(384).memory(memory).bootargs("limit=32");
    let mut system = Setup::new().set(&[guest], "").boot();
    system.to_guest("a");
    system.expect("pattern ready");
    for _ in 0..3 {
        let frame = frame_of_guest(&mut system, "mc0", '1');
        system.monitor("reset a");
        let report = job(&mut system, &format!("retire {frame:#x}"));
        let bytes = ["moved_bytes", "unmoved_bytes"].map(|key| report[key].as_u64());
        assert_eq!((&report["state"], bytes), (&"finished".into(), [Some(4096), Some(0)]), "{report}");
        let shown = system.json(&format!("frame {frame:#x}"));
        assert_eq!(shown["state"], "retired", "{shown}");
        check_books(&mut system);
    }
    system.to_guest("a");
    system.send("c");
    let said = system.expect(r"pattern checked \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

/// A unit that was split because a frame was retired is merged to 2 MiB after a while.
fn split_units_are_coalesced(
    setup: Setup,
    guest: Guest,
    begin: impl Fn(&mut System),
    end: impl Fn(&mut System),
) {
    let mut system = setup.set(&[guest], "").boot();
    begin(&mut system);
    assert_eq!(small_units(&mut system, "a"), 0);
    for round in 1..=3 {
        let frame = frame_of_guest(&mut system, "mc0", '1');
        let report = job(&mut system, &format!("retire {frame:#x}"));
        assert_eq!(report["moved_bytes"], 4096, "{report}");
        let until = Instant::now() + system_tests::patience();
        while small_units(&mut system, "a") > 0 {
            assert!(Instant::now() < until, "{}", system.monitor("guest a map"));
            std::thread::sleep(Duration::from_millis(50));
        }
        let stats = system.json("stats migration");
        let counts = ["coalesced_count", "gathered_count"].map(|key| stats["guests"][0][key].as_u64());
        assert_eq!(counts, [Some(round); 2], "{stats}");
        check_books(&mut system);
    }
    end(&mut system);
}

#[test]
fn split_units_are_coalesced_by_a_cpu_without_a_guest() {
    let guest = Guest::payload("a", "pattern")
        .vcpus(1)
        .ram_mib(64)
        .memory("unit-size = <0x200000>; controllers = <0>; preferred;");
    let begin = |system: &mut System| {
        system.to_guest("a");
        system.expect("pattern ready");
    };
    let end = |system: &mut System| {
        system.to_guest("a");
        system.send("c");
        let said = system.expect(r"pattern checked \d+ errors \d+");
        assert!(said.ends_with("errors 0"), "{said}");
    };
    split_units_are_coalesced(Setup::new(), guest, begin, end);
}

#[test]
fn split_units_are_coalesced_while_vcpus_wait() {
    // Every CPU has a vCPU, so migration runs only during their WFIs.
    let guest = Guest::linux("a").vcpus(4).memory("unit-size = <0x200000>; controllers = <0>; preferred;");
    let begin = |system: &mut System| {
        system.wait_for_shell("a");
        system.run("a", "head -c 24M /dev/urandom > /tmp/data; sha256sum /tmp/data > /tmp/sum");
    };
    let end = |system: &mut System| {
        system.run("a", "sha256sum -c -s /tmp/sum");
    };
    split_units_are_coalesced(Setup::new(), guest, begin, end);
}

#[test]
fn an_evacuated_controller_is_empty_until_it_is_restored() {
    let guests = [
        Guest::payload("a", "pattern").ram_mib(64).vcpus(1),
        Guest::payload("b", "pattern").ram_mib(64).memory("controllers = <1>; unit-size = <0x200000>;"),
    ];
    let mut system = Setup::new().set(&guests, "").boot();
    system.to_guest("a");
    system.expect("pattern ready");
    let report = job(&mut system, "evacuate mc1");
    // b is placed there strictly.
    assert_eq!(report["unmoved"][0]["reason"], "its placement allows no other controller", "{report}");
    assert_eq!((&report["unmoved_bytes"], &report["state"]), (&(64 << 20).into(), &"incomplete".into()));
    let guest_bytes =
        |system: &mut System| system.json("controllers")["controllers"][1]["guest_bytes"].clone();
    assert_eq!(guest_bytes(&mut system), 64 << 20);
    assert!(system.monitor("migrate a mc1").contains("restore mc1 first"));
    let report = job(&mut system, "pin b all mc0 preferred");
    assert_eq!(report["moved_bytes"], 64 << 20, "{report}");
    assert_eq!(guest_bytes(&mut system), 0);
    assert!(system.monitor("restore mc1").contains("takes allocations again"));
    let report = job(&mut system, "migrate a mc1");
    assert_eq!(report["moved_bytes"], 64 << 20, "{report}");
    // A failing frame is vacated, and never allocated again.
    let base = system.json("controllers")["controllers"][1]["ranges"][0]["base"].as_str().unwrap().to_owned();
    let base = u64::from_str_radix(base.trim_start_matches("0x"), 16).unwrap();
    let free_before = system.json("mem")["retired_bytes"].as_u64().unwrap();
    let retired = system.json(&format!("retire {base:#x} 1G"));
    if let Some(number) = retired["job"].as_u64() {
        wait_for_job(&mut system, number);
    }
    let after = system.json("mem")["retired_bytes"].as_u64().unwrap();
    assert!(after - free_before > 900 << 20, "{after} retired: {retired}");
    system.to_guest("a");
    system.send("c");
    let said = system.expect(r"pattern checked \d+ errors \d+");
    assert!(said.ends_with("errors 0"), "{said}");
}

/// Heat shows the accessed memory, on CPUs with and without hardware access flags, and is balanced once.
fn heat_is_measured_and_evened_out(setup: Setup) {
    let memory = "controllers = <0>; preferred; unit-size = <0x200000>;";
    let guests = [
        Guest::payload("hot", "pattern").bootargs("mode=write limit=32").ram_mib(64).memory(memory),
        Guest::payload("cold", "pattern").bootargs("mode=idle").ram_mib(64).memory(memory),
    ];
    let mut system = setup.set(&guests, "").boot();
    for name in ["hot", "cold"] {
        system.to_guest(name);
        system.expect("pattern ready");
    }
    let report = system.json("heat 1");
    let of = |report: &Value, guest: &str, key: &str| {
        let rows = report["heat"].as_array().unwrap().iter().filter(|row| row["guest"] == guest);
        rows.map(|row| row[key].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(of(&report, "hot", "resident_bytes"), 64 << 20, "{report}");
    // The image, the stack and the page tables are in the half that is written to.
    let touched = of(&report, "hot", "touched_bytes");
    assert!((30 << 20..=36 << 20).contains(&touched), "{report}");
    assert!(of(&report, "cold", "touched_bytes") <= 4 << 20, "{report}");

    let report = system.json("balance heat");
    let shifts = report["shifts"].as_array().unwrap();
    assert!(
        !shifts.is_empty() && shifts.iter().all(|shift| shift["guest"] == "hot" && shift["to"] == "mc1"),
        "{report}"
    );
    for shift in shifts {
        wait_for_job(&mut system, shift["job"].as_u64().unwrap());
    }
    // About half of the used memory has moved, and stays there.
    let moved = system.json("stats migration")["guests"][0]["moved_bytes"].as_u64().unwrap();
    assert!((8 << 20..=24 << 20).contains(&moved), "{moved}");
    for _ in 0..10 {
        let report = system.json("balance heat");
        assert_eq!(report["shifts"].as_array().unwrap().len(), 0, "{report}");
        assert_eq!(report["why"], "the controllers are balanced", "{report}");
    }
    // Pinned memory stays.
    job(&mut system, "pin cold all mc0");
    job(&mut system, "pin hot all mc0");
    let report = system.json("balance bytes");
    assert_eq!(report["why"], "nothing behind mc0 can move to a controller with less load", "{report}");
    assert_eq!(report["shifts"].as_array().unwrap().len(), 0, "{report}");
    system.monitor("unpin hot all");
    let report = system.json("balance bytes");
    let shifts = report["shifts"].as_array().unwrap().clone();
    assert!(!shifts.is_empty() && shifts.iter().all(|shift| shift["guest"] == "hot"), "{report}");
    // A second command right after it waits for its jobs, and then has nothing to do.
    if system.json(&format!("job {}", shifts[0]["job"]))["state"] != "finished" {
        assert!(system.monitor("balance bytes").contains("is not over"));
    }
    for shift in shifts {
        wait_for_job(&mut system, shift["job"].as_u64().unwrap());
    }
    let report = system.json("balance bytes");
    assert_eq!(report["shifts"].as_array().unwrap().len(), 0, "{report}");
    check_books(&mut system);
}

#[test]
fn heat_is_measured_by_faults() {
    heat_is_measured_and_evened_out(Setup::new());
}

#[test]
fn heat_is_measured_by_hardware() {
    heat_is_measured_and_evened_out(Setup::new().cpu("max"));
}

/// Returns the statistics that a waiting guest prints: the number of waits, the largest delay of an end, and the duration of each,
/// in ticks.
fn waits(system: &mut System) -> [u64; 3] {
    system.to_guest("waiter");
    system.session().skip_to_now();
    // The first line may be incomplete.
    system.expect(r"tenant waits \d+ late \d+ of \d+\r\n");
    let said = system.expect(r"tenant waits \d+ late \d+ of \d+\r\n");
    let numbers: Vec<u64> =
        said.lines().last().unwrap().split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|numbers| panic!("{numbers:?} in {said}"))
}

#[test]
fn waits_with_a_deadline_keep_it_while_memory_moves() {
    let guest = Guest::payload("waiter", "tenant").bootargs("wait=1000").vcpus(4).ram_mib(64);
    // EL2's timer, which also ends a wait, fires every 10 ms.
    let rarely = "migration { share-percent = <1>; };";
    let mut system = Setup::new().cpu("max").counting_instructions().set(&[guest], rarely).boot();
    system.to_guest("waiter");
    system.expect("tenant ready");
    let before = waits(&mut system);
    for controller in ["mc1", "mc0"] {
        let migrated = job(&mut system, &format!("migrate waiter {controller}"));
        assert_eq!(migrated["unmoved_bytes"], 0, "{migrated}");
    }
    let [count, late, length] = waits(&mut system);
    eprintln!(
        "{} waits of {length} ticks, late by {late} at most, {} without migration",
        count - before[0],
        before[1]
    );
    // All CPUs wait, and did the work during their waits. A slice is a tenth of a wait.
    assert!(late < length, "a wait of {length} ticks ended {late} ticks after its deadline");
}
