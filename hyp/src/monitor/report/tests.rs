use proptest::prelude::*;

use super::*;

fn report(style: Style) -> String {
    let mut out = String::new();
    let mut report = Report::begin(&mut out, style, "test").unwrap();
    report.say(format_args!("Two guests.")).unwrap();
    report
        .fields(&[
            ("uptime_ns=Uptime", Nanoseconds(61_000_000_000)),
            ("hidden", Flag(true)),
            ("load_permille=Load of all", Permille(125)),
            ("=Text alone", Text("not in JSON")),
        ])
        .unwrap();
    let abort = format!("data abort at {:#x}, which is not \"RAM\" of this guest, {}", 64, "by vCPU 1");
    let guests = [("alpha", 512 << 20, &[0, 1][..], abort.as_str()), ("b", 4096, &[], "")];
    report
        .list("guests", "No guests.", guests.into_iter(), |table, (name, bytes, cpus, reason)| {
            table.row(&[
                ("name=NAME", Text(name)),
                ("memory_bytes=MEMORY", Bytes(bytes)),
                ("table_bytes", Frames(2)),
                ("cpus=CPUS", Numbers(cpus)),
                ("reason=REASON", Text(reason).or_nothing()),
            ])
        })
        .unwrap();
    report.list("none", "", 0..0, |table, count| table.row(&[("count=COUNT", Count(count))])).unwrap();
    report.end().unwrap();
    out
}

#[test]
fn text_is_aligned_and_wrapped() {
    insta::assert_snapshot!(report(Style::default()), @r#"
    Two guests.

    Uptime       1 min 1 s
    Load of all  12.5 %
    Text alone   not in JSON

    NAME    MEMORY  CPUS  REASON
    alpha  512 MiB  0,1   data abort at 0x40, which is not "RAM" of this guest, by
                          vCPU 1
    b        4 KiB  -     -
    "#);
}

#[test]
fn exact_text_has_no_units() {
    let text = report(Style { is_exact: true, is_json: false });
    assert!(text.contains("536870912") && text.contains("61000000000"));
}

#[test]
fn json_is_one_line() {
    insta::assert_snapshot!(report(Style { is_json: true, is_exact: false }), @r#"{"report":"test","uptime_ns":61000000000,"hidden":true,"load_permille":125,"guests":[{"name":"alpha","memory_bytes":536870912,"table_bytes":8192,"cpus":[0,1],"reason":"data abort at 0x40, which is not \"RAM\" of this guest, by vCPU 1"},{"name":"b","memory_bytes":4096,"table_bytes":8192,"cpus":[],"reason":null}],"none":[],"crc32":"9a816d01"}"#);
}

#[test]
fn every_damaged_character_is_noticed() {
    let whole = report(Style { is_json: true, is_exact: false });
    let whole = whole.trim_end();
    assert!(is_intact(whole));
    for (at, character) in whole.char_indices() {
        let (before, after) = (&whole[..at], &whole[at + character.len_utf8()..]);
        for changed in ["", "0", "1", "a", "aa", "}"] {
            let damaged = format!("{before}{changed}{after}");
            assert!(damaged == whole || !is_intact(&damaged), "{damaged}");
        }
    }
    assert!(!is_intact(r#"{"report":"test"}"#), "without a checksum");
    // The standard's check value.
    assert_eq!(CRC.checksum(b"123456789"), 0xcbf4_3926);
}

#[test]
fn an_empty_table_has_words_of_its_own() {
    let mut out = String::new();
    let mut report = Report::begin(&mut out, Style::default(), "x").unwrap();
    report.table("x", "Nothing here.", &mut |_| Ok(())).unwrap();
    report.end().unwrap();
    assert_eq!(out, "Nothing here.\n");
}

proptest! {
    /// JSON strings are parsed back unchanged; only a long word passes the screen's edge.
    #[test]
    fn any_text_survives(text in any::<String>(), words in prop::collection::vec("[a-z]{0,40}", 0..40)) {
        let json = format!("\"{}\"", Escaped(&text));
        prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        let mut out = String::new();
        write_wrapped(&mut out, 10, &words.join(" ")).unwrap();
        prop_assert!(out.lines().all(|line| line.chars().count() <= SCREEN_WIDTH));
        let got: Vec<_> = out.split_whitespace().collect();
        let expected: Vec<_> = words.iter().filter(|word| !word.is_empty()).collect();
        prop_assert!(got.iter().eq(expected.iter()));
    }
}
