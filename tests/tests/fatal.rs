//! A fatal error at EL2: its message, and its record in memory.

use ballast_tools::frames::Decoder;
use ballast_tools::splitter::{Chunk, Splitter};
use system_tests::{Guest, LoadedImage, Setup, System, elf};

/// Overwrites the code of a command that has not run yet with undefined instructions, and runs the command. Returns their
/// address.
fn provoke(system: &mut System, image: &LoadedImage) -> std::ops::Range<u64> {
    while system.json("guests")["guests"][0]["state"] != "running" {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let (address, size, place) = image.symbol("monitor7command4cost3run17h");
    system.write_controller(0, place, &vec![0; size as usize]);
    system.send("cost\r");
    system.expect("Ballast: fatal error: synchronous exception at EL2");
    // An unknown reason (Arm ARM, ESR_EL2.EC 0b000000), from an instruction of 32 bits.
    system.expect(r"ESR_EL2 0x2000000 ");
    // The monitor has a stack of its own.
    system.expect("called from 0x8000[0-9a-f]{8}");
    system.expect("The log is kept at symbol BALLAST_LOG. Its last lines:");
    address..address + size
}

fn setup() -> Setup {
    Setup::new().set(&[Guest::payload("p", "probe").bootargs("probe=echo").ram_mib(32)], "")
}

#[test]
fn a_fatal_error_tells_its_end_and_leaves_record_and_log() {
    let mut system = setup().append("log=text").boot();
    system.wait_for_monitor();
    let image = LoadedImage::find(&system);
    let code = provoke(&mut system, &image);
    let said = system.expect(r"(?s).*p: started, entry[^\n]*\n");
    assert!(said.contains("boot::start: 4 CPUs"), "{said}");

    let record = image.read(&system, "FATAL_RECORD");
    let word = |at: usize| u64::from_le_bytes(record[at * 8..at * 8 + 8].try_into().unwrap());
    assert_eq!(&record[..8], b"BALLAST!");
    assert_eq!(word(2), 0x200_0000, "ESR_EL2");
    assert!(code.contains(&word(3)), "ELR_EL2 {:#x}", word(3));
    assert!(record.windows(28).any(|text| text == b"synchronous exception at EL2"));
    // The whole ring is there, not only the lines that were printed.
    let ring = image.read(&system, "BALLAST_LOG");
    assert!(ring.starts_with(b"BALLASTL") && ring.len() >= 64 << 10);
    for part in ["boot::start: Ballast", "boot::start: 4 CPUs", "p: started, entry"] {
        assert!(ring.windows(part.len()).any(|text| text == part.as_bytes()), "no `{part}` in the ring");
    }
}

#[test]
fn frames_of_the_log_come_out_after_a_fatal_error() {
    let mut system = setup().append("log=frames").boot();
    system.wait_for_monitor();
    let before = system.session().transcript_bytes().len();
    let image = LoadedImage::find(&system);
    provoke(&mut system, &image);
    let decoder = Decoder::load(&elf()).unwrap();
    let until = std::time::Instant::now() + system_tests::patience();
    loop {
        let said = system.session().transcript_bytes();
        let fatal = said.windows(21).rposition(|text| text == b"Ballast: fatal error:").unwrap();
        assert!(fatal >= before);
        let mut splitter = Splitter::default();
        let pieces = splitter.take(&said[fatal..]);
        let lines = pieces.iter().filter_map(|chunk| match chunk {
            Chunk::Frame(frame) => Some(decoder.decode(frame).unwrap().to_string()),
            Chunk::Text(_) => None,
        });
        let lines: Vec<String> = lines.collect();
        if lines.iter().any(|line| line.contains("p: started, entry")) {
            assert!(lines.iter().any(|line| line.contains("4 CPUs")), "{lines:#?}");
            assert_eq!(splitter.bad_frame_count, 0);
            return;
        }
        assert!(std::time::Instant::now() < until, "{lines:#?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
