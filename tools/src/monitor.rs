//! A client of Ballast's monitor that asks for reports.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use hyp::monitor::report::is_intact;

use crate::link::{Link, Received};
use crate::model::Snapshot;
use crate::splitter::{Chunk, Splitter};

/// Seconds that each attempt of a request waits for its answer. Request and answer may be lost on the line.
const PATIENCE: [u64; 6] = [2, 4, 8, 8, 8, 8];
/// Seconds that each attempt of the first request waits, since nobody may answer at all.
const FIRST_PATIENCE: [u64; 3] = [2, 4, 8];
/// Damaged answers after which a request fails. On a line that damages one byte of 2,500, two of three long reports
/// are damaged.
const MOST_DAMAGED: u32 = 40;
/// Time limit of a command that must not be repeated.
const LONGEST_COMMAND: Duration = Duration::from_secs(30);
/// Keys that bring the monitor to the front, cancel its command and clear its input line.
const ATTENTION: &[u8] = b"\x1dm\x03\x15";
/// First characters of a report.
const REPORT: &str = "{\"report\":";
/// Most bytes of a line that are kept.
const LONGEST: usize = 4 << 20;

/// Counts of damage on the line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Number of damaged reports.
    pub(crate) bad_report_count: u64,
    /// Number of damaged log frames.
    pub(crate) bad_frame_count: u64,
}

/// A line with the monitor in front.
pub(crate) struct Monitor {
    link: Link,
    splitter: Splitter,
    lines: Lines,
    bad_report_count: u64,
    /// True once Ballast has answered.
    has_answered: bool,
    /// Time after which requests fail.
    deadline: Option<Instant>,
    /// Log frames that arrived between reports.
    pub(crate) frames: Vec<Vec<u8>>,
    /// Other lines that arrived between reports.
    pub(crate) text: Vec<String>,
}

impl Monitor {
    /// Brings the monitor to the front of the line.
    ///
    /// # Errors
    /// The line fails.
    pub(crate) fn attach(mut link: Link) -> Result<Self> {
        link.send(ATTENTION)?;
        Ok(Self {
            link,
            splitter: Splitter::default(),
            lines: Lines::default(),
            bad_report_count: 0,
            has_answered: false,
            deadline: None,
            frames: Vec::new(),
            text: Vec::new(),
        })
    }

    /// Returns the counts of damage so far.
    pub(crate) fn losses(&self) -> Losses {
        Losses { bad_report_count: self.bad_report_count, bad_frame_count: self.splitter.bad_frame_count }
    }

    /// Lets all requests fail after `patience` from now.
    pub(crate) fn limit(&mut self, patience: Duration) {
        self.deadline = Some(Instant::now() + patience);
    }

    /// Returns the report of `command`, and repeats the command if the answer is lost or damaged.
    ///
    /// # Errors
    /// The line fails, nobody answers in time, or the monitor refuses the command.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Value> {
        // The name of the report.
        let name = match command {
            "stats migration" => "migration",
            "stats claims" => "claim_stats",
            _ => command.split(' ').next().unwrap_or(""),
        };
        let patience: &[u64] = if self.has_answered { &PATIENCE } else { &FIRST_PATIENCE };
        let (mut silent_count, mut damaged_count) = (0, 0);
        while let Some(&patience) = patience.get(silent_count)
            && damaged_count < MOST_DAMAGED
            && self.deadline.is_none_or(|last| Instant::now() < last)
        {
            if silent_count > 0 && !self.has_answered && self.deadline.is_none() {
                eprintln!("Ballast does not answer yet; Ctrl-C to stop waiting");
            }
            if silent_count > 0 || damaged_count > 0 {
                // Ctrl-C ends a command that still runs, whose answer would be confused with the next.
                self.link.send(b"\x03")?;
            }
            self.send(command)?;
            // `heat` observes guests for a second, so it takes longer than others.
            let patience = if name == "heat" { patience.max(10) } else { patience };
            let deadline = Instant::now() + Duration::from_secs(patience);
            let deadline = self.deadline.map_or(deadline, |last| last.min(deadline));
            loop {
                match self.next_report(deadline)? {
                    Answer::Report(report) => {
                        self.has_answered = true;
                        match report.get("report").and_then(Value::as_str) {
                            Some("error") if is_about(&report, command) => {
                                bail!("{command}: {}", reason(&report))
                            }
                            Some("error") => {
                                self.bad_report_count += 1;
                                damaged_count += 1;
                                break;
                            }
                            Some(found) if found == name => return Ok(report),
                            _ => {}
                        }
                    }
                    // The damaged report may have been the answer.
                    Answer::Damaged => {
                        damaged_count += 1;
                        break;
                    }
                    Answer::None => {
                        silent_count += 1;
                        break;
                    }
                }
            }
        }
        if damaged_count >= MOST_DAMAGED {
            bail!("{command:?}: {damaged_count} answers in a row were damaged on the line");
        }
        match self.has_answered {
            true => bail!("Ballast does not answer {command:?}"),
            false => {
                bail!(
                    "Ballast does not answer: it is still starting, it hangs, or another program uses the line"
                )
            }
        }
    }

    /// Runs `command` once and returns its report.
    ///
    /// # Errors
    /// The line fails, nobody answers, the answer is damaged, or the monitor refuses the command.
    pub(crate) fn give(&mut self, command: &str) -> Result<Value> {
        self.send(command)?;
        match self.next_report(Instant::now() + LONGEST_COMMAND)? {
            Answer::Report(report) if report.get("report").and_then(Value::as_str) == Some("error") => {
                bail!("{command}: {}", reason(&report))
            }
            Answer::Report(report) => Ok(report),
            Answer::Damaged => bail!("{command}: the answer was damaged on the line"),
            Answer::None => bail!("Ballast does not answer {command:?}"),
        }
    }

    fn send(&mut self, command: &str) -> Result<()> {
        // Ctrl-U clears anything else in the input line.
        self.link.send(format!("\x15{command} --json\r").as_bytes())
    }

    /// Returns the current state of the machine. Reports that this version of Ballast lacks stay empty.
    ///
    /// # Errors
    /// The line fails, or nobody answers.
    pub(crate) fn snapshot(&mut self, with_map: bool) -> Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        snapshot.take(&self.ask("version")?);
        for command in ["guests", "controllers", "stats", "console"] {
            snapshot.take(&self.ask(command)?);
        }
        // An older Ballast, and one that is still starting, refuses these.
        for command in ["stats migration", "jobs", "devices"] {
            if let Ok(report) = self.ask(command) {
                snapshot.take(&report);
            }
        }
        // Refused if there are no pools.
        if let Ok(pools) = self.ask("pools") {
            snapshot.take(&pools);
            for command in ["claims", "stats claims"] {
                if let Ok(report) = self.ask(command) {
                    snapshot.take(&report);
                }
            }
        }
        if with_map && let Ok(map) = self.ask("map") {
            snapshot.take(&map);
        }
        Ok(snapshot)
    }

    /// Measures for a second how much memory guests touch, and adds the result to `snapshot`.
    ///
    /// # Errors
    /// The line fails, nobody answers, or this version of Ballast cannot measure it.
    pub(crate) fn add_heat(&mut self, snapshot: &mut Snapshot) -> Result<()> {
        snapshot.take(&self.ask("heat")?);
        Ok(())
    }

    /// Waits for the next report until `deadline`.
    fn next_report(&mut self, deadline: Instant) -> Result<Answer> {
        loop {
            for line in self.lines.by_ref() {
                match report_in(&line) {
                    Some(Ok(report)) => return Ok(Answer::Report(report)),
                    Some(Err(_)) => {
                        self.bad_report_count += 1;
                        return Ok(Answer::Damaged);
                    }
                    None => self.text.push(line),
                }
            }
            let patience = deadline.saturating_duration_since(Instant::now());
            if patience.is_zero() {
                return Ok(Answer::None);
            }
            match self.link.receive(patience)? {
                Received::Bytes(bytes) => self.take(&bytes),
                Received::Nothing => return Ok(Answer::None),
                Received::End => bail!("the other end closed the line"),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for chunk in self.splitter.take(bytes) {
            match chunk {
                Chunk::Text(text) => self.lines.put(&text),
                Chunk::Frame(frame) => self.frames.push(frame),
            }
        }
    }
}

/// The result of waiting for a report.
enum Answer {
    /// A report.
    Report(Value),
    /// A damaged report.
    Damaged,
    /// No report in time.
    None,
}

/// Tests whether a refusal concerns `command`, and not a damaged form of it.
fn is_about(report: &Value, command: &str) -> bool {
    let refused = report.get("command").and_then(Value::as_str);
    refused.is_none_or(|refused| command.starts_with(refused))
}

fn reason(report: &Value) -> &str {
    report.get("error").and_then(Value::as_str).unwrap_or("no reason given")
}

/// An error: the checksum, the last key of a report, does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Returns the report in a line, if the line looks like one.
pub fn report_in(line: &str) -> Option<Result<Value, Damaged>> {
    let report = &line[line.find(REPORT)?..];
    let value = is_intact(report).then(|| serde_json::from_str(report).ok()).flatten();
    Some(value.ok_or(Damaged))
}

/// A splitter of text into lines, without carriage returns and erased text.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
    whole: std::collections::VecDeque<String>,
}

impl Lines {
    /// Takes more text.
    pub(crate) fn put(&mut self, text: &[u8]) {
        for &byte in text {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned();
                let line = line.rsplit("\r\x1b[K").next().unwrap_or("").trim_end_matches('\r');
                self.whole.push_back(line.into());
            } else if self.rest.len() < LONGEST {
                self.rest.push(byte);
            }
        }
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.whole.pop_front()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use hyp::monitor::report::checksum;

    use super::*;

    /// Starts a fake monitor that answers each command with the result of `answer`.
    pub(crate) fn fake(answer: impl Fn(&str) -> String + Send + 'static) -> Link {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut line = Vec::new();
            let mut byte = [0];
            while theirs.read(&mut byte).is_ok_and(|count| count == 1) {
                match byte[0] {
                    b'\r' => {
                        let command = String::from_utf8_lossy(&line).into_owned();
                        let echo = format!("\r\x1b[Kballast> {command}\r\n");
                        let text = echo + &answer(&command).replace('\n', "\r\n") + "\r\x1b[Kballast> ";
                        if theirs.write_all(text.as_bytes()).is_err() {
                            return;
                        }
                        line.clear();
                    }
                    0x15 => line.clear(),
                    byte if byte >= b' ' => line.push(byte),
                    _ => line.clear(),
                }
            }
        });
        Link::of(ours.try_clone().unwrap(), ours)
    }

    /// Returns the answers of a small machine.
    pub(crate) fn small_machine(command: &str) -> String {
        let report = match command {
            "version --json" => {
                r#"{"report":"version","version":"0.1.0","commit":"abc1234","host":"linux,dummy-virt","uptime_ns":61500000000,"image_bytes":204800,"own_bytes":716800,"frame_table_bytes":8388608}"#
            }
            "guests --json" => {
                r#"{"report":"guests","guests":[{"console":1,"name":"alpha","state":"running","vcpu_count":2,"vcpu_on_count":2,"cpus":[0,1],"memory_bytes":536870912,"resident_bytes":536870912,"start_count":1,"uptime_ns":60000000000,"reason":null},{"console":2,"name":"beta","state":"failed","vcpu_count":2,"vcpu_on_count":0,"cpus":[2,3],"memory_bytes":536870912,"resident_bytes":0,"start_count":2,"uptime_ns":0,"reason":"data abort at \"0x40\""}]}"#
            }
            "controllers --json" => {
                r#"{"report":"controllers","controllers":[{"name":"mc0","state":"in use","total_bytes":1073741824,"free_bytes":533725184,"guest_bytes":536870912,"own_bytes":3145728,"reserved_bytes":0,"dmb_bytes":0},{"name":"mc1","state":"evacuated","total_bytes":1073741824,"free_bytes":1073741824,"guest_bytes":0,"own_bytes":0,"reserved_bytes":0,"dmb_bytes":268435456}]}"#
            }
            "stats --json" => {
                r#"{"report":"stats","uptime_ns":61500000000,"guests":[{"name":"alpha","exit_count":70,"injected_count":20,"device_interrupt_count":13,"el2_ns":1220000000,"exit_hypercall_count":30,"exit_uart_count":40},{"name":"beta","exit_count":0,"injected_count":0,"el2_ns":0,"exit_hypercall_count":0,"exit_uart_count":0}]}"#
            }
            "console --json" => {
                r#"{"report":"console","consoles":[{"key":"Ctrl-] m","name":"monitor","is_front":true,"kept_bytes":0,"limit_bytes":16384,"lost_bytes":0,"input_lost_bytes":0},{"key":"Ctrl-] 1","name":"alpha","is_front":false,"kept_bytes":5,"limit_bytes":16384,"lost_bytes":56,"input_lost_bytes":0}]}"#
            }
            "stats migration --json" => {
                r#"{"report":"migration","guests":[{"name":"alpha","moved_bytes":536870912,"moved_blocks":256,"moved_pages":0,"copy_ns":400000000,"wait_ns":1000,"demotion_count":0,"promotion_count":0,"split_count":3,"retry_count":1,"invalidation_count":90,"fault_count":12,"help_count":2,"stall_count":12}],"stalls":[{"guest":"alpha","count":12,"mean_ns":90000,"p50_ns":65535,"p99_ns":262143,"max_ns":250000}],"stall_histogram":[{"guest":"alpha","below_ns":65536,"count":7},{"guest":"alpha","below_ns":131072,"count":4},{"guest":"alpha","below_ns":262144,"count":1}],"pairs":[{"from":"mc0","to":"mc1","moved_bytes":536870912,"moved_blocks":256,"moved_pages":0}]}"#
            }
            "jobs --json" => {
                r#"{"report":"jobs","jobs":[{"job":1,"state":"finished","done_permille":1000,"moved_bytes":536870912,"unmoved_bytes":0,"moved_bytes_per_s":1342177280,"elapsed_ns":400000000,"total_bytes":536870912,"scanned_bytes":536870912,"what":"alpha to mc1","reason":null},{"job":2,"state":"running","done_permille":250,"moved_bytes":134217728,"unmoved_bytes":0,"moved_bytes_per_s":1073741824,"elapsed_ns":125000000,"total_bytes":536870912,"scanned_bytes":134217728,"what":"beta to mc0","reason":null},{"job":3,"state":"cancelled","done_permille":500,"moved_bytes":268435456,"unmoved_bytes":0,"moved_bytes_per_s":1073741824,"elapsed_ns":250000000,"total_bytes":536870912,"scanned_bytes":268435456,"what":"beta to mc1","reason":"its guest stopped or was reset"}]}"#
            }
            "pools --json" => {
                r#"{"report":"pools","pools":[{"pool":"video","size_bytes":67108864,"free_bytes":8388608,"lent_bytes":41943040,"claimed_bytes":16777216,"fixed_bytes":0,"claimable_bytes":50331648,"controller":"mc1","base":"0x84000000","dmb":0,"owner":"alpha"}]}"#
            }
            "claims --json" => {
                r#"{"report":"claims","claims":[{"claim":1,"kind":"claim","pool":"video","claimant":"alpha","state":"granted","done_permille":1000,"size_bytes":16777216,"base":"0x86800000","moved_bytes":4194304,"elapsed_ns":1250000,"try_count":1,"cause":null,"blocker":null},{"claim":2,"kind":"claim","pool":"video","claimant":"operator","state":"failed","done_permille":1000,"size_bytes":67108864,"base":null,"moved_bytes":0,"elapsed_ns":39000,"try_count":0,"cause":"no-range","blocker":"no range of that size and alignment is left in the pool"},{"claim":3,"kind":"claim","pool":"video","claimant":"operator","state":"moving","done_permille":400,"size_bytes":33554432,"base":"0x84000000","moved_bytes":8388608,"elapsed_ns":2000000,"try_count":1,"cause":null,"blocker":null}]}"#
            }
            "stats claims --json" => {
                r#"{"report":"claim_stats","tried_count":3,"granted_count":1,"granted_bytes":16777216,"failed_count":1,"cancelled_count":0,"released_count":0,"retry_count":0,"moved_blocks":2,"moved_pages":0,"moved_bytes":4194304,"failures":[{"cause":"no-range","count":1}],"latency":[{"size":"to 64 MiB","lent":"to 95 %","count":1,"mean_ns":1250000,"p50_ns":1250000,"p99_ns":1250000,"max_ns":1250000}]}"#
            }
            "heat --json" => {
                r#"{"report":"heat","window_ns":1000000000,"unit_count":512,"cost_ns":90000,"heat":[{"guest":"alpha","controller":"mc0","resident_bytes":268435456,"touched_bytes":67108864,"share_permille":250},{"guest":"alpha","controller":"mc1","resident_bytes":268435456,"touched_bytes":0,"share_permille":0}]}"#
            }
            "devices --json" => {
                r#"{"report":"devices","devices":[{"guest":"alpha","device":"00:01.0","host":"0000:00:01.0","kind":"virtio-blk","streams":["0:0x8"],"is_isolated":true,"interrupt_count":12345,"fault_count":0,"state":"attached","reason":null},{"guest":"alpha","device":"00:02.0","host":"0000:00:02.0","kind":"virtio-net","streams":["0:0x10"],"is_isolated":true,"interrupt_count":678,"fault_count":66,"state":"failed","reason":"64 faults within 100 ms"},{"guest":"beta","device":"ethernet@ff0e0000","host":"/axi/ethernet@ff0e0000","kind":"cdns,zynqmp-gem","streams":[],"is_isolated":false,"interrupt_count":0,"fault_count":0,"state":"off","reason":null}],"windows":[{"guest":"alpha","ipa":"0x40000000","size_bytes":67108864,"base":"0x48000000","controller":"mc0"}],"interrupts":[],"faults":[],"smmus":[{"smmu":0,"base":"0x9050000","stage":2,"stream_count":1,"memory_bytes":344064,"event_count":66,"error_count":1,"state":"working","reason":null}]}"#
            }
            "map --json" => {
                r#"{"report":"map","ranges":[{"controller":"mc0","base":"0x40000000","unit_bytes":67108864,"cells":":R111111........"},{"controller":"mc1","base":"0x80000000","unit_bytes":67108864,"cells":"................"}]}"#
            }
            _ => {
                return sealed(&format!(
                    "{{\"report\":\"error\",\"command\":\"{}\",\"error\":\"is no command\"}}",
                    command.trim_end_matches(" --json")
                ));
            }
        };
        sealed(report)
    }

    /// Adds the checksum to a report.
    pub(crate) fn sealed(report: &str) -> String {
        let report = report.strip_suffix('}').unwrap();
        format!("{report},\"crc32\":\"{:08x}\"}}\n", checksum(report))
    }

    #[test]
    fn reports_are_found_among_other_text() {
        let mut monitor = Monitor::attach(fake(|command| {
            format!("ballast: 1.0 info something\n\x1b]7700;Zm9v\x1b\\{}", small_machine(command))
        }))
        .unwrap();
        let snapshot = monitor.snapshot(true).unwrap();
        assert_eq!(snapshot.guests.len(), 2);
        assert_eq!(snapshot.map.len(), 2);
        assert_eq!((snapshot.devices.len(), snapshot.smmus.len()), (3, 1));
        assert_eq!(monitor.frames.len(), 12);
        assert_eq!(
            (snapshot.pools.len(), snapshot.claims.len(), snapshot.claim_stats.tried_count),
            (1, 3, 3)
        );
        assert!(monitor.text.iter().any(|line| line.contains("something")));
        assert_eq!(monitor.losses(), Losses::default());
    }

    #[test]
    fn a_lost_or_changed_digit_is_noticed() {
        for (sent, came) in
            [("536870912", "53687091"), ("536870912", "536870913"), (",\"crc32\"", ",\"crc31\"")]
        {
            let count = std::cell::Cell::new(0);
            let mut monitor = Monitor::attach(fake(move |command| {
                count.set(count.get() + 1);
                let answer = small_machine(command);
                if count.get() == 1 { answer.replacen(sent, came, 1) } else { answer }
            }))
            .unwrap();
            // The damaged report is still valid JSON with plausible figures.
            let guests = monitor.ask("guests").unwrap();
            assert_eq!(guests["guests"][0]["memory_bytes"], 536_870_912);
            assert_eq!(monitor.losses().bad_report_count, 1, "{came}");
            assert!(monitor.give("jobs").is_ok());
        }
        assert_eq!(
            report_in(r#"x {"report":"guests","guests":[]}"#),
            Some(Err(Damaged)),
            "without a checksum"
        );
        assert_eq!(report_in("no report"), None);
    }

    #[test]
    fn refusals_are_reported() {
        let mut monitor = Monitor::attach(fake(small_machine)).unwrap();
        assert_eq!(monitor.ask("bogus").unwrap_err().to_string(), "bogus: is no command");
    }

    #[test]
    fn damaged_reports_are_counted_and_asked_again() {
        let count = std::cell::Cell::new(0);
        let mut monitor = Monitor::attach(fake(move |command| {
            count.set(count.get() + 1);
            let answer = small_machine(command);
            match count.get() {
                1 => {
                    answer[..answer.len() / 2].to_string() + "\n" + &small_machine("version --json") + &answer
                }
                _ => answer,
            }
        }))
        .unwrap();
        assert_eq!(monitor.ask("guests").unwrap()["guests"].as_array().unwrap().len(), 2);
        assert_eq!(monitor.losses().bad_report_count, 1);
    }

    #[test]
    fn a_request_fails_after_many_damaged_answers() {
        let ask = |damaged_count| {
            let count = std::cell::Cell::new(0);
            let mut monitor = Monitor::attach(fake(move |command| {
                count.set(count.get() + 1);
                let answer = small_machine(command);
                if count.get() <= damaged_count {
                    answer.replacen("536870912", "53687091", 1)
                } else {
                    answer
                }
            }))
            .unwrap();
            monitor.ask("guests")
        };
        assert!(ask(MOST_DAMAGED - 1).is_ok());
        assert!(ask(MOST_DAMAGED).unwrap_err().to_string().contains("40 answers in a row were damaged"));
    }

    #[test]
    fn damaged_commands_are_repeated() {
        let count = std::cell::Cell::new(0);
        let mut monitor = Monitor::attach(fake(move |command| {
            count.set(count.get() + 1);
            match count.get() {
                1 => small_machine("gests --json"),
                _ => small_machine(command),
            }
        }))
        .unwrap();
        assert_eq!(monitor.ask("guests").unwrap()["guests"].as_array().unwrap().len(), 2);
        assert_eq!(monitor.losses().bad_report_count, 1);
        assert_eq!(monitor.give("jobs").unwrap()["report"], "jobs");
        assert_eq!(monitor.give("bogus").unwrap_err().to_string(), "bogus: is no command");
    }

    #[test]
    fn the_end_of_the_line_is_reported() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::attach(Link::of(ours.try_clone().unwrap(), ours)).unwrap();
        drop(theirs);
        assert!(monitor.ask("guests").is_err());
    }
}
