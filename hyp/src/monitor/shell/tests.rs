use insta::assert_snapshot;

use stage2::controller::ControllerId;
use stage2::owner::{GuestId, Owner};
use stage2::phys::alloc::{MemoryKind, Request};
use stage2::phys::placement::Placement;

use super::super::fake::{Fake, Script};
use super::super::fake_devices::FakeDevices;
use super::super::fake_migration::FakeMigration;
use super::super::fake_pools::FakePools;
use super::super::machine::{GuestState, reason};
use super::super::mux::{Console, View};
use super::super::report::is_intact;
use super::*;
use crate::observe::counters::Exit;
use crate::observe::trace;

mod evacuation;
mod keys;
mod random;

/// Returns the output of `line`.
fn output_of(machine: &Fake, line: &str) -> String {
    run(machine, &mut Script::typing(b""), line)
}

fn run(machine: &Fake, script: &mut Script, line: &str) -> String {
    run_line(&mut Session::new(script, COMMANDS, machine, &mut State::new()), line);
    script.text()
}

fn output(line: &str) -> String {
    output_of(&Fake::new(), line)
}

/// Checks a report against hyp/schema/reports.json, which describes every report that a test sees.
#[track_caller]
fn check_report(text: &str) {
    use std::sync::OnceLock;
    static SCHEMA: OnceLock<jsonschema::Validator> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| {
        let schema = serde_json::from_str(include_str!("../../../schema/reports.json")).unwrap();
        jsonschema::validator_for(&schema).unwrap()
    });
    for line in text.lines() {
        let report: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(schema.is_valid(&report), "describe this in hyp/schema/reports.json: {line}");
        assert!(is_intact(line), "{line}");
    }
}

/// Returns the name of a line's snapshot.
fn name(line: &str) -> String {
    line.replace(' ', "_").replace('-', "")
}

/// Returns the text on the screen after `keys` at the prompt, without erased text.
fn screen(keys: &[u8]) -> String {
    let machine = Fake::new();
    let mut script = Script::typing(keys);
    let (mut editor, mut state) = (Editor::new(PROMPT), State::new());
    while !script.input.is_empty() {
        read_and_execute(&mut script, &machine, &mut editor, &mut state);
    }
    let text = script.text();
    let lines: Vec<_> = text.lines().map(|line| line.rsplit("\r\x1b[K").next().unwrap()).collect();
    lines.join("\n")
}

#[test]
fn help() {
    for line in ["help", "help console", "start --help"] {
        let said = output(line);
        assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
        assert_snapshot!(name(line), said);
    }
    assert_eq!(output("--help"), output("help"));
}

/// The help of all commands, in one snapshot to be read.
#[test]
fn every_command_is_explained() {
    let mut text = String::new();
    for command in COMMANDS.0 {
        let said = output(&format!("help {}", command.name));
        assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
        assert!(command.example.split(' ').any(|word| word == command.name), "an example of something else");
        text += &format!("{said}\n");
    }
    assert_snapshot!(text);
}

#[test]
fn reports() {
    for line in [
        "guests",
        "guest alpha",
        "guest beta",
        "guest gamma",
        "guest alpha tree",
        "guest alpha map",
        "guest beta map",
        "devices",
        "devices beta",
        "devices gamma",
        "cpus",
        "controllers",
        "controllers --exact",
        "console",
        "log",
        "log info",
        "version",
        "stats",
        "stats alpha",
        "stats beta",
        "trace",
        "trace exit",
        "trace device",
        "trace alpha 1",
        "cost",
        "mem",
        "mem --exact",
        "zones",
        "dmb",
        "buddyinfo",
        "pagetypeinfo",
        "check",
        "map",
        "map mc1",
        "frame 0x40201234",
        "frame 0x48000000",
        "frame 0x80001000",
    ] {
        let text = output(line);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_snapshot!(name(line), text);
    }
}

#[test]
fn reports_as_json() {
    for line in [
        "guests",
        "guest alpha",
        "guest alpha tree",
        "guest alpha map",
        "devices",
        "cpus",
        "controllers",
        "console",
        "log",
        "version",
        "help",
        "help start",
        "stats",
        "stats alpha",
        "trace",
        "cost",
        "mem",
        "zones",
        "dmb",
        "buddyinfo",
        "pagetypeinfo",
        "check",
        "map",
        "frame 0x90200000",
    ] {
        let line = format!("{line} --json");
        let text = output(&line);
        check_report(&text);
        assert_snapshot!(name(&line), text);
    }
}

#[test]
fn pools_are_claimed_and_released() {
    let mut machine = Fake::new();
    machine.pools = Some(FakePools::new());
    let lines = [
        "pools",
        "claim video 8M",
        "claim video 3M 1M",
        "claim video 2M@0x84000000",
        "claim 3",
        "claim video 64M",
        "claims",
        "claim cancel 3",
        "claim 4",
        "claim camera 2M",
        "claim video 3K",
        "claim cancel 5",
        "claim video 1G",
        "claim video 4M 3M",
        "mem",
        "claim video 65M",
        "claim video 2M@0x8a000000",
        "claim video 4K@0x84000800",
        "claim video",
        "claim audio 2M",
        "claim cancel 99",
        "pool video",
        "pool camera",
        "claims stats",
        "release 1",
        "release 1",
        "release video 1M@0x84000000",
        "release 3",
        "claims",
        "release video",
        "pools --exact",
        "pools --json",
        "pool video --json",
        "claims --json",
        "claims stats --json",
        "claim 2 --json",
        "claims --json",
        "claim video 1M --json",
        "claim cancel 99 --json",
        "release 2 --json",
        "release video --json",
        "stats claims",
    ];
    assert_snapshot!(dialogue(&machine, &lines));
}

/// Runs `lines` and checks the width of text and the schema of JSON. A line in parentheses is an event.
fn dialogue(machine: &Fake, lines: &[&str]) -> String {
    let mut text = String::new();
    for &line in lines {
        let migration = machine.migration.as_ref();
        let said = match line {
            "(works)" | "(works to the end)" => {
                migration.unwrap().work(line != "(works)");
                String::new()
            }
            "(the guest writes)" => {
                assert!(migration.unwrap().write(), "nothing is in flight");
                String::new()
            }
            _ => output_of(machine, line),
        };
        if line.ends_with("--json") {
            check_report(&said);
        } else {
            let is_narrow = |line: &str| line.starts_with("error") || line.chars().count() <= 80;
            assert!(said.lines().all(is_narrow), "{line}: {said}");
        }
        text += &format!("> {line}\n{said}");
    }
    text
}

#[test]
fn a_controller_is_evacuated_only_when_nothing_is_left_behind_it() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    assert_snapshot!(dialogue(
        &machine,
        &[
            "pin alpha ram0 mc0",
            "(works to the end)",
            "evacuate mc0",
            "(works to the end)",
            "controllers",
            "controllers --json",
            "jobs",
            "restore mc0",
            "pin alpha ram0 mc1 preferred",
            "(works to the end)",
            "evacuate mc0 --json",
            "restore mc0",
            "evacuate mc1",
            "(works to the end)",
            "controllers",
        ]
    ));
}

#[test]
fn jobs_says_what_a_queued_job_waits_for() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    // A controller's number serves as its name.
    let said = dialogue(&machine, &["migrate alpha 1", "migrate alpha dmb0 0", "(works)", "jobs"]);
    // The cell may be wrapped.
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("running") && words.ends_with("alpha 4M@0x50000000 to mc0: waits for job 1"),
        "{said}"
    );
    let said = dialogue(&machine, &["job 2"]);
    assert!(said.contains("State             queued: waits for job 1\n"), "{said}");
}

#[test]
fn what_must_not_move_is_refused() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let mut text = dialogue(
        &machine,
        &[
            "pin alpha dmb0 mc0",
            "(works to the end)",
            "migrate alpha mc1",
            "migrate alpha dmb0 mc1 --json",
            "migrate alpha ram1 mc1",
            "jobs",
            "guest alpha",
            "migrate alpha mc1 --force",
            "(works to the end)",
            "guest alpha",
            "jobs --force",
        ],
    );
    machine.migration.as_ref().unwrap().is_opted_out.set(true);
    text += &dialogue(
        &machine,
        &[
            "migrate alpha mc0",
            "migrate alpha dmb0 mc0 --force",
            "pin alpha all mc0",
            "pin alpha ram0 mc0",
            "jobs",
        ],
    );
    assert_snapshot!(text);
}

#[test]
fn retirement_says_what_it_waits_for_and_what_stays() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let memory = machine.migration.as_ref().unwrap().memory;
    // A frame of Ballast's and one of alpha's stage 2 tables; the frame behind them is free.
    let request = |owner| Request {
        order: 0,
        kind: MemoryKind::Unmovable,
        owner,
        placement: Placement::only(ControllerId::default()),
        mapping: None,
    };
    let at = |owner| memory.allocate(&request(owner)).unwrap().frame.pa();
    let (ballast, tables) = (at(Owner::Hypervisor), at(Owner::Tables(GuestId::default())));
    let free = tables.get() + 0x1000;
    let mut text = String::new();
    for line in [
        format!("retire {ballast}"),
        format!("retire {ballast} --json"),
        format!("retire {ballast} 16K"),
        format!("retire {tables}"),
        format!("retire {free:#x}"),
        "retire 0x44000000 --json".into(),
        "retire 0x40000000".into(),
        "jobs".into(),
    ] {
        text += &dialogue(&machine, &[&line]);
    }
    machine.pools = Some(FakePools::new());
    machine.migration.as_mut().unwrap().memory = machine.pools.as_ref().unwrap().memory;
    text += &dialogue(&machine, &["claim video 2M", "claims", "retire 0x86800000"]);
    assert_snapshot!(text);
}

#[test]
fn a_guest_that_starts_within_a_window_is_not_hot() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let heat = |is_new: bool| {
        machine.migration.as_ref().unwrap().restarts.set(is_new);
        let said = output_of(&machine, "heat 1 --json");
        check_report(&said);
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        (report["late"].clone(), report["heat"].as_array().unwrap().len())
    };
    assert_eq!(heat(false), (serde_json::json!([]), 1));
    assert_eq!(heat(true), (serde_json::json!(["alpha"]), 0));
    // Otherwise all of its memory would count as touched, and some would move.
    let said = output_of(&machine, "balance heat --json");
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&report["controllers"][0]["load_bytes"], &report["shifts"]),
        (&0.into(), &serde_json::json!([])),
        "{said}"
    );
    machine.migration.as_ref().unwrap().restarts.set(false);
    let said = output_of(&machine, "balance heat --json");
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["controllers"][0]["load_bytes"], 8 << 20, "{said}");
}

#[test]
fn memory_moves() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let lines = [
        "jobs",
        "stats migration",
        "rate",
        "migrate alpha mc1",
        "jobs",
        "(works)",
        "(the guest writes)",
        "jobs",
        "job 1",
        "pause 1",
        "(works)",
        "jobs",
        "resume 1",
        "(works to the end)",
        "jobs",
        "job 1",
        "stats migration",
        "migrate alpha dmb0 mc0",
        "migrate alpha 2M@0x40000000 mc0",
        "migrate alpha dmb7 mc0",
        "migrate alpha 1M@0x1000 mc0",
        "migrate alpha 1K@0x40000000 mc0",
        "migrate alpha 1T@0x40000000 mc0",
        "cancel 4",
        "pin alpha ram0 mc0,mc0 preferred",
        "cancel 5",
        "unpin alpha",
        "retire 0x40000000 0",
        "migrate beta mc0",
        "cancel 3",
        "cancel 3",
        "pause 99",
        "resume 1",
        "job 99",
        "(works to the end)",
        "heat 2",
        "balance heat",
        "balance",
        "(works to the end)",
        "balance",
        "balance bytes",
        "balance heat",
        "balance heat",
        "(works to the end)",
        "balance heat",
        "balance heat --json",
        "heat --json",
        "balance size",
        "heat 0",
        "guest alpha",
        "pin alpha ram0 mc0,mc1 interleave",
        "pin alpha dmbs mc1 preferred",
        "(works to the end)",
        "job 9",
        "guest alpha map",
        "guest alpha --json",
        "pin alpha all mc1",
        "pin alpha 1M@0x40000000 mc1",
        "(works to the end)",
        "unpin alpha ram0",
        "unpin alpha ram1",
        "restore mc1",
        "evacuate mc0",
        "evacuate mc1",
        "migrate alpha mc0",
        "(works to the end)",
        "jobs",
        "restore mc0",
        "retire 0x80000000 4M",
        "(works to the end)",
        "retire 0x80000000",
        "retire 0x80000000 4M",
        "retire 0x1000",
        "rate limit 5",
        "rate limit 65535",
        "rate limit 100M",
        "rate share 50",
        "rate share 91",
        "rate slice 5",
        "rate slice 200",
        "rate stall 4M",
        "rate stall 5",
        "rate stall 64K",
        "rate limit off",
        "rate limit",
        "jobs --exact",
        "stats migration --exact",
        "migrate alpha mc0 --json",
        "(works)",
        "jobs --json",
        "job 1 --json",
        "pause 8 --json",
        "resume 8 --json",
        "cancel 8 --json",
        "(works to the end)",
        "pin alpha ram0 mc0 --json",
        "unpin alpha ram0 --json",
        "evacuate mc1 --json",
        "restore mc1 --json",
        "retire 0x40000000 --json",
        "rate --json",
        "stats migration --json",
        "migrate beta mc0 --json",
        "job 99 --json",
        "retire 0x80400000 60M",
        "migrate alpha mc1",
        "(works to the end)",
        "job 12",
        "job 12 --json",
    ];
    assert_snapshot!(dialogue(&machine, &lines));
}

#[test]
fn commands_report_that_migration_is_not_set_up() {
    for line in
        ["jobs", "job 1", "rate", "stats migration", "migrate alpha mc0", "restore mc1", "retire 0x40000000"]
    {
        assert_eq!(output(line), "error: migration is not set up yet\n", "{line}");
    }
}

#[test]
fn a_machine_without_devices_says_so() {
    let mut machine = Fake::new();
    machine.devices = None;
    let said =
        dialogue(&machine, &["devices", "devices --json", "guest alpha --json", "mem --json", "check"]);
    assert!(said.starts_with("> devices\nNo devices are assigned.\n> devices --json\n"), "{said}");
    assert!(said.contains(&format!("\n{:25}  -\n", "SMMU tables")), "{said}");
    assert!(output_of(&Fake::new(), "devices gamma").starts_with("No devices are assigned.\n"));
}

#[test]
fn damaged_smmu_tables_are_a_problem() {
    let mut machine = Fake::new();
    let damage = reason(format_args!("SMMU 0: stream 0x8 does not abort, but no guest runs"));
    machine.devices = Some(FakeDevices { damage: Some(damage) });
    assert_snapshot!(dialogue(&machine, &["check", "check --json"]));
}

#[test]
fn commands_report_that_there_are_no_pools() {
    for line in ["pools", "claims", "claims stats"] {
        assert_eq!(output(line), "error: there are no pools\n");
    }
}

#[test]
fn actions() {
    let machine = Fake::new();
    assert_eq!(output_of(&machine, "start beta"), "beta is starting.\n");
    assert_eq!(output_of(&machine, "stop alpha"), "alpha is stopping.\n");
    let said = output_of(&machine, "reset gamma --json");
    assert!(said.starts_with("{\"report\":\"reset\",\"guest\":\"gamma\",\"crc32\":\""), "{said}");
    let states: Vec<_> = machine.states.borrow().iter().map(|(state, _)| *state).collect();
    assert_eq!(states, [GuestState::Off, GuestState::Starting, GuestState::Starting]);
    output_of(&machine, "console beta");
    assert_eq!(machine.front.get(), Console::guest(1));
    assert_eq!(output_of(&machine, "console all"), "Showing: all.\n");
    assert_eq!(machine.view.get(), View::All);
    assert_eq!(output_of(&machine, "console alpha limit 4K"), "Keeping the last 4 KiB of alpha.\n");
    assert_eq!(machine.limit.get(), 4096);
}

#[test]
fn errors_say_what_was_expected() {
    let lines = [
        "gests",
        "xyzzy",
        "quit",
        "start",
        "start delta",
        "start alpha",
        "start alpha --json",
        "start beta now",
        "guests --jsn",
        "console omega",
        "console alpha limit",
        "console all limit 4K",
        "console alpha limit lots",
        "console alpha limit 1G",
        "log loud",
        "watch 0 guests",
        "watch 2",
        "watch 2 nothing",
        "watch 2 watch 2 guests",
        "frame 0x1000",
        "frame 0xffffffffffffffff",
        "frame here",
        "map 2",
        "help nothing",
        "help nothing --json",
    ];
    let text: String = lines.iter().map(|line| format!("> {line}\n{}", output(line))).collect();
    assert_snapshot!(text);
}

#[test]
fn the_prompt_completes() {
    assert_snapshot!(screen(
        b"gue\ts\t\r\
        c\t\t\x15\
        start \t\tb\t\r\
        con\tso\tal\t\t\x15\
        watch 2 sta\tga\t\rq\
        log \t\tw\t --j\t\r\
        zz\t\x15start alpha x\t\x15"
    ));
}

#[test]
fn a_job_says_how_much_has_to_move() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let work = || machine.migration.as_ref().unwrap().work(true);
    // 2 of 22 MiB are mapped 1:1; after the first job, 4 have moved.
    assert_eq!(output_of(&machine, "migrate alpha dmb0 mc1"), "Job 1 moves 4 MiB of alpha to mc1.\n");
    work();
    assert_eq!(
        output_of(&machine, "migrate alpha mc1"),
        "Job 2 moves 16 MiB of alpha to mc1; 4 MiB are there already.\n2 MiB of it cannot move: mapped 1:1.\n"
    );
    work();
    assert_eq!(
        output_of(&machine, "migrate alpha 8M@0x40c00000 mc0"),
        "Job 3 moves 4 MiB of alpha to mc0.\n"
    );
    work();
    assert_eq!(
        output_of(&machine, "migrate alpha ram0 mc1"),
        "Job 4 moves 4 MiB of alpha to mc1; 12 MiB are there already.\n"
    );
}

#[test]
fn stats_begin_anew() {
    let machine = Fake::new();
    let mut state = State::new();
    let mut output = |line| {
        let mut script = Script::typing(b"");
        run_line(&mut Session::new(&mut script, COMMANDS, &machine, &mut state), line);
        script.text()
    };
    let before = output("stats --json");
    assert_eq!(output("stats reset"), "Counters reset.\n");
    machine.counters[0].count_exit(Exit::Uart);
    assert_snapshot!(output("stats"));
    let without_sum = |text: &str| text.rsplit_once(",\"crc32\"").unwrap().0.to_owned();
    assert_eq!(
        without_sum(&output("stats --json"))
            .replace("exit_uart_count\":66", "exit_uart_count\":65")
            .replace("exit_count\":853", "exit_count\":852"),
        without_sum(&before)
    );
}

#[test]
fn the_trace_is_turned_on() {
    let machine = Fake::new();
    assert_eq!(output_of(&machine, "trace on"), "Recording.\n");
    assert_snapshot!(output_of(&machine, "trace --json"));
    assert_eq!(output_of(&machine, "trace off"), "Not recording.\n");
    assert!(output_of(&machine, "trace --json").contains("\"is_recording\":false"));
    // The reasons for an empty list.
    let mut machine = Fake::new();
    machine.traces[1] = trace::Ring::new();
    assert_eq!(
        output_of(&machine, "trace inject 5"),
        "No such event is kept: each CPU keeps only its last ones.\n"
    );
    machine.traces[0] = trace::Ring::new();
    assert_eq!(output_of(&machine, "trace life 5"), "Nothing was recorded: trace on starts recording.\n");
    output_of(&machine, "trace on");
    assert_eq!(output_of(&machine, "trace life 5"), "Nothing was recorded yet.\n");
}

#[test]
fn top_draws_the_machine() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let mut script = Script::typing(b"\0q");
    // The job waits, so the bar shows its memory as moving in.
    output_of(&machine, "migrate alpha mc1");
    machine.migration.as_ref().unwrap().work(false);
    assert_snapshot!(run(&machine, &mut script, "top").replace('\x1b', "^"));
}

#[test]
fn actions_as_json() {
    for line in [
        "start beta",
        "stop alpha",
        "console alpha",
        "console all",
        "console alpha limit 4K",
        "stats reset",
        "trace on",
        "nothing",
        "frame 0x1000",
    ] {
        check_report(&output(&format!("{line} --json")));
    }
}
