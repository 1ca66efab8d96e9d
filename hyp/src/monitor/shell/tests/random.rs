//! Random lines and bytes.

use proptest::prelude::*;

use super::*;

/// Makes lines of words that commands know and of unknown ones.
fn line() -> impl Strategy<Value = String> {
    let mut words: Vec<String> = COMMANDS.0.iter().map(|command| command.name.into()).collect();
    words.extend(
        "alpha beta gamma delta mc0 mc1 monitor all front limit --json --exact --help -h -x 0 1 2 4K 0xffff 1T info \
         warn 18446744073709551615 ' \" \\ \x7f"
            .split(' ')
            .map(String::from),
    );
    let word = prop_oneof![8 => prop::sample::select(words), 1 => "\\PC{0,12}"];
    prop::collection::vec(word, 0..7).prop_map(|words| words.join(" "))
}

/// Sends 10^5 lines and as many keys to one machine, whose state they change.
#[test]
fn a_hundred_thousand_random_lines_do_no_harm() {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let mut state = State::new();
    let mut words: Vec<String> = COMMANDS
        .0
        .iter()
        .flat_map(|command| {
            format!("{} {}", command.usage(), command.example)
                .replace(['[', ']', '|'], " ")
                .split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
        })
        .collect();
    let more = "alpha beta mc0 mc1 dmb0 ram0 --json --exact --help -h -x 0 1 3 4K 0xffff 1T 0x40200000 \" \\ \x7f \u{e4} , =";
    words.extend(more.split(' ').map(String::from));
    // Maps of all memory are long and would take most of the time.
    words.retain(|word| word != "map" && word != "zones");
    let mut random = 0x5eed_u64;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) as usize % limit
    };
    for number in 0..100_000 {
        let line: Vec<&str> = (0..=below(5)).map(|_| words[below(words.len())].as_str()).collect();
        let line = line.join(" ");
        // A key for commands that wait for one or repeat.
        let mut script = Script::typing(b"q");
        run_line(&mut Session::new(&mut script, COMMANDS, &machine, &mut state), &line);
        assert!(!script.output.is_empty() || line.starts_with("--"), "{line}");
        if let Some(migration) = machine.migration.as_ref().filter(|_| number % 64 == 0) {
            migration.work(false);
            migration.write();
        }
        if number % 16 == 0 && line.ends_with("--json") && !line.contains("watch") && !line.contains("top") {
            check_report(&script.text());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any line ends and has an answer unless it is empty; with --json, an object on each line.
    #[test]
    fn any_line_is_answered(line in line()) {
        let text = output(&line);
        let is_empty = line.split(' ').all(|word| matches!(word, "" | "--json" | "--exact"));
        prop_assert!(!text.is_empty() || is_empty, "{}", line);
        if line.split(' ').next_back() == Some("--json") && !line.contains("watch") && !line.contains("top") {
            check_report(&text);
        }
    }

    /// The prompt comes back after any bytes.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(
        prop_oneof![2 => any::<u8>(), 2 => b' '..0x7f, 1 => prop::sample::select(b"\t\r\x1b[ABCD\x03".to_vec())],
        0..300,
    )) {
        screen(&bytes);
    }
}
