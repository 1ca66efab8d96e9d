//! Keys at the prompt and while a command runs.

use super::*;

/// Returns the output after `keys` on a machine that can migrate.
fn completed(keys: &str) -> String {
    let mut machine = Fake::new();
    machine.migration = Some(FakeMigration::new());
    let mut script = Script::typing(keys.as_bytes());
    let (mut editor, mut state) = (Editor::new(PROMPT), State::new());
    while !script.input.is_empty() {
        read_and_execute(&mut script, &machine, &mut editor, &mut state);
    }
    script.text()
}

#[test]
fn tab_offers_the_parts_of_ram_that_the_guest_has() {
    let offered = completed("migrate alpha \t\t\x15");
    assert!(offered.contains("\nall  ram0  ram1  dmb0  dmbs  mc0  mc1  \n"), "{offered}");
    assert!(completed("pin --json alpha dm\t\t\x15").contains("\ndmb0  dmbs  \n"));
    assert!(completed("unpin alpha ra\t\t\x15").contains("\nram0  ram1  \n"));
    // beta has no memory.
    let offered = completed("migrate beta \t\t\x15");
    assert!(!offered.contains("ram") && !offered.contains("dmb") && offered.contains("mc0"), "{offered}");
    assert!(!completed("migrate nobody \t\t\x15").contains("dmb"));
}

#[test]
fn a_screen_holds_back_other_consoles() {
    let machine = Fake::new();
    // The multiplexer sends Ctrl-L when the monitor comes to the front: the screen is redrawn.
    let mut script = Script::typing(b"\x0cq");
    let text = run(&machine, &mut script, "top");
    assert_eq!(text.matches("\x1b[2J\x1b[HBallast").count(), 2, "{text:?}");
    assert!(!machine.has_screen.get());
    // Ctrl-C while the screen is drawn.
    run(&machine, &mut Script::typing(b"\x03"), "top");
    assert!(!machine.has_screen.get());
    // Nothing is drawn while another console is in front.
    machine.show_console(Console::guest(0).unwrap());
    assert!(!run(&machine, &mut Script::typing(b"\0q"), "top").contains("Ballast, up"));
}

#[test]
fn watch_repeats_until_a_key() {
    let machine = Fake::new();
    let mut script = Script::typing(b"\0\x0c\0qrest");
    let text = run(&machine, &mut script, "watch 5 version");
    assert_eq!(text.matches("Every 5 s: version").count(), 3);
    assert!(text.contains("1 min 1 s") && text.contains("1 min 11 s"));
    assert_eq!(script.input, b"rest");
}

#[test]
fn ctrl_c_ends_a_command() {
    let machine = Fake::new();
    let mut script = Script::typing(b"\x03guests\r");
    assert_eq!(run(&machine, &mut script, "help"), "\nerror: interrupted\n");
    assert_eq!(script.input, b"guests\r");
}
