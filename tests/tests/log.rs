//! The log: as frames in the console's text, on its own serial line, and in memory.

use ballast_tools::frames::Decoder;
use ballast_tools::splitter::{Chunk, Splitter};
use system_tests::{Guest, Setup, System, elf};

fn setup() -> Setup {
    Setup::new().set(&[Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32)], "")
}

fn wait_until_running(system: &mut System) {
    while system.json("guests")["guests"][0]["state"] != "running" {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Messages of every boot.
#[track_caller]
fn has_boot(lines: &[String]) {
    for part in ["boot::start: Ballast", "boot::start: 4 CPUs", "guest::life: p: started, entry"] {
        assert!(lines.iter().any(|line| line.contains(part)), "no `{part}` in {lines:#?}");
    }
}

#[test]
fn frames_share_the_line_with_text() {
    let mut system = setup().append("log=frames").boot();
    wait_until_running(&mut system);
    let shown = system.monitor("log");
    assert!(shown.contains("lines are frames"), "{shown}");
    // A terminal ignores the frames: nothing of the log is visible.
    assert!(!system.transcript().contains("CPUs\n"), "{}", system.transcript());
    let decoder = Decoder::load(&elf()).unwrap();
    let mut splitter = Splitter::default();
    let mut lines = Vec::new();
    for chunk in splitter.take(&system.session().transcript_bytes()) {
        if let Chunk::Frame(frame) = chunk {
            lines.push(decoder.decode(&frame).unwrap().to_string());
        }
    }
    assert_eq!(splitter.bad_frame_count, 0);
    has_boot(&lines);
    // Each message appears twice: when it was written, and by the command.
    assert_eq!(lines.iter().filter(|line| line.contains("4 CPUs")).count(), 2);
}

#[test]
fn frames_take_a_line_of_their_own() {
    let file = std::env::temp_dir().join(format!("ballast-log-{}", std::process::id()));
    let mut system = setup().append("log=frames,second").second_serial(&file).boot();
    system.wait_for_monitor();
    wait_until_running(&mut system);
    assert_eq!(system.monitor("stop p"), "p is stopping.");
    let decoder = Decoder::load(&elf()).unwrap();
    let until = std::time::Instant::now() + system_tests::patience();
    let lines = loop {
        let mut stream = decoder.stream();
        let lines: Vec<String> =
            stream.take(&std::fs::read(&file).unwrap()).iter().map(ToString::to_string).collect();
        assert_eq!(stream.bad_frame_count, 0);
        if lines.iter().any(|line| line.contains("stopped by the operator")) {
            break lines;
        }
        assert!(std::time::Instant::now() < until, "{lines:#?}");
    };
    std::fs::remove_file(&file).unwrap();
    has_boot(&lines);
    assert!(!system.session().transcript().contains("\x1b]7700"), "nothing of it on the console");
}

/// defmt's own programs need only `ballast.elf`: it has the indices of the messages where they expect them, and the source
/// location for each index.
#[test]
fn stock_decoders_read_the_elf_file() {
    let file = std::env::temp_dir().join(format!("ballast-stock-{}", std::process::id()));
    let mut system = setup().append("log=frames,second").second_serial(&file).boot();
    system.wait_for_monitor();
    wait_until_running(&mut system);
    let image = std::fs::read(elf()).unwrap();
    let table = defmt_decoder::Table::parse(&image).unwrap().unwrap();
    let locations = table.get_locations(&image).unwrap();
    assert!(table.indices().all(|number| locations.contains_key(&(number as u64))), "{locations:?}");
    let until = std::time::Instant::now() + system_tests::patience();
    let frames = loop {
        let mut stream = table.new_stream_decoder();
        stream.received(&std::fs::read(&file).unwrap());
        let decoded = std::iter::from_fn(|| match stream.decode() {
            Ok(frame) => Some((frame.index(), frame.display(false).to_string())),
            Err(defmt_decoder::DecodeError::UnexpectedEof) => None,
            Err(error) => panic!("{error}"),
        });
        let frames: Vec<(u64, String)> = decoded.collect();
        if frames.iter().any(|(_, text)| text.contains("p: started, entry")) {
            break frames;
        }
        assert!(std::time::Instant::now() < until, "{frames:#?}");
    };
    std::fs::remove_file(&file).unwrap();
    let (number, text) = frames.iter().find(|(_, text)| text.contains("4 CPUs")).unwrap();
    assert!(text.contains("INFO"), "{text}");
    assert!(locations[number].file.ends_with("hyp/src/boot/start.rs"), "{:?}", locations[number]);
}

#[test]
fn text_takes_a_line_of_its_own() {
    let file = std::env::temp_dir().join(format!("ballast-text-{}", std::process::id()));
    let mut system = setup().append("log=text,second").second_serial(&file).boot();
    system.wait_for_monitor();
    let until = std::time::Instant::now() + system_tests::patience();
    let lines = loop {
        let lines: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(String::from).collect();
        if lines.iter().any(|line| line.contains("p: started, entry")) {
            break lines;
        }
        assert!(std::time::Instant::now() < until, "{lines:#?}");
    };
    std::fs::remove_file(&file).unwrap();
    has_boot(&lines);
    assert!(!system.transcript().contains("4 CPUs"));
}

#[test]
fn debug_says_more() {
    let mut system = setup().append("log=debug").boot();
    wait_until_running(&mut system);
    let number = system.json("migrate p mc1")["job"].clone();
    while system.json(&format!("job {number}"))["state"] != "finished" {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    system.monitor("stop p");
    system.expect("p: stopped");
    let report = system.json("log debug");
    let of = |level: &str| -> Vec<String> {
        let lines = report["lines"].as_array().unwrap().iter().filter(|line| line["level"] == level);
        lines.map(|line| line["text"].as_str().unwrap().to_owned()).collect()
    };
    has_boot(&of("info"));
    let debug = of("debug");
    for part in [
        "RAM of 1 GiB at 0x40000000",
        "p: movable memory: ",
        ": on, entry",
        ": off, phase",
        "job 1: running",
        "job 1: finished",
    ] {
        assert!(debug.iter().any(|line| line.contains(part)), "no `{part}` in {debug:#?}");
    }
    assert!(debug.len() < 64, "no flood: {}", debug.len());
}

#[test]
fn without_a_second_line_the_log_stays_on_the_console() {
    let mut system = setup().append("log=text,second").boot();
    system.expect("log=second: the host's tree has no second PL011");
    system.expect("p: started");
}

#[test]
fn the_log_lies_in_memory_for_a_debugger() {
    let mut system = setup().append("log=off").boot();
    system.wait_for_monitor();
    system.monitor("guests");
    assert!(system.json("log").to_string().contains("boot::start: 4 CPUs"));
    let places: Vec<(usize, u64)> = (0..2)
        .flat_map(|index| {
            system.find_in_controller(index, b"BALLASTL", 8).into_iter().map(move |at| (index, at))
        })
        .collect();
    let is_ring = |&&(index, at): &&(usize, u64)| {
        let mut ring = vec![0; 64 << 10];
        system.read_controller(index, at, &mut ring);
        ring.windows(19).any(|text| text == b"boot::start: 4 CPUs")
    };
    assert_eq!(places.iter().filter(is_ring).count(), 1, "{places:?}");
}
