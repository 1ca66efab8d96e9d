//! `ballast`, the tool on the PC, against a live machine and a recording.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use system_tests::{Guest, Setup, System, elf, tool};

/// A machine whose console is a socket, and the folder that this lies in.
struct Live {
    _system: System,
    folder: PathBuf,
}

impl Live {
    /// Two guests, one of which interrupts and prints for ever.
    fn boot(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ballast-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("serial");
        let load = Guest::payload("load", "irqload").bootargs("forever=1 rounds=200").ram_mib(32).vcpus(2);
        let echo = Guest::payload("echo", "probe").bootargs("probe=echo").ram_mib(64);
        // The first line is the socket; the one that the test has comes second, and stays silent.
        let system = Setup::new()
            .set(&[load, echo], "")
            .append("log=frames")
            .option("-serial")
            .option(&format!("unix:{},server=on,wait=off", socket.display()))
            .boot();
        let live = Self { _system: system, folder };
        let until = std::time::Instant::now() + system_tests::patience();
        while !live.ask("guests").contains("\"state\":\"running\"") {
            assert!(std::time::Instant::now() < until, "the guests do not run");
        }
        live
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn line(&self) -> String {
        format!("unix:{}", self.path("serial").display())
    }

    /// What passes over the line after `command`, by `ballast console`.
    fn ask(&self, command: &str) -> String {
        self.console(&[], &format!("\x1dm\x03\x15{command} --json\r"))
    }

    /// Types `keys` at `ballast console`, waits a little, and ends it.
    fn console(&self, options: &[&str], keys: &str) -> String {
        let mut child = spawn(&[&["console", &self.line()], options].concat());
        let mut input = child.stdin.take().unwrap();
        for part in keys.split_inclusive('\r') {
            // QEMU's socket listens as soon as QEMU has started; what is typed before that is not lost.
            if input.write_all(part.as_bytes()).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(700));
        }
        let _ = input.write_all(b"\x1dq");
        drop(input);
        let output = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(tool());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Runs the tool to its end.
#[track_caller]
fn run(arguments: &[&str]) -> String {
    let output = Command::new(tool()).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ballast {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a page is whole, alone and about this machine.
#[track_caller]
fn check_page(path: &Path) {
    let page = std::fs::read_to_string(path).unwrap();
    for part in
        ["<!DOCTYPE html>", "Physical memory", "Memory over time", "Migrations", "load", "echo", "mc1"]
    {
        assert!(page.contains(part), "no {part} in the report");
    }
    assert!(page.matches("<svg").count() >= 5 && page.ends_with("</html>\n"));
    for outside in ["http:", "https:", "<script", "src=", "url("] {
        assert!(!page.contains(outside), "{outside} in the report");
    }
}

#[test]
fn reports_come_from_a_live_machine_and_from_a_recording() {
    let live = Live::boot("report");
    live.ask("migrate echo mc0");
    live.ask("migrate echo mc1");
    let (out, elf) = (live.path("live.html"), elf());
    let (out_text, elf_text) = (out.to_string_lossy(), elf.to_string_lossy());
    run(&["report", &live.line(), "--seconds", "2", "--out", &out_text, "--elf", &elf_text]);
    check_page(&out);

    let (recording, split) = (live.path("session.cast"), live.path("split"));
    let options = ["--record", &recording.to_string_lossy(), "--split", &split.to_string_lossy()];
    let reports = "version guests controllers stats map jobs";
    let line: String = reports.split(' ').map(|name| format!("{name} --json\r")).collect();
    let look = format!("{line}stats migration --json\r");
    let keys = format!("\x1dm\x03\x15{look}{look}{look}log\r");
    let shown = live.console(&[&options[..], &["--elf", &elf_text]].concat(), &keys);
    assert!(shown.contains("arch::start: 4 CPUs"), "the log is put together: {shown}");
    assert!(std::fs::read_to_string(split.join("log")).unwrap().contains("4 CPUs"));
    assert!(std::fs::read_to_string(split.join("monitor")).unwrap().contains("\"report\":\"stats\""));
    let out = live.path("recorded.html");
    run(&["report", &recording.to_string_lossy(), "--out", &out.to_string_lossy(), "--elf", &elf_text]);
    check_page(&out);
}

#[test]
fn the_exporter_serves_a_live_machine() {
    let live = Live::boot("exporter");
    let mut exporter = spawn(&["exporter", &live.line(), "--listen", "127.0.0.1:0"]);
    let mut first = String::new();
    BufReader::new(exporter.stderr.take().unwrap()).read_line(&mut first).unwrap();
    let place = first.trim().strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    let scrape = || {
        let mut client = TcpStream::connect(&place).unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        prometheus_parse::Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).unwrap()
    };
    let value = |scrape: &prometheus_parse::Scrape, metric: &str, label: &str, wanted: &str| {
        let found = scrape.samples.iter().find(|sample| {
            sample.metric == metric && (label.is_empty() || sample.labels.get(label) == Some(wanted))
        });
        match found.unwrap_or_else(|| panic!("no {metric}")).value {
            prometheus_parse::Value::Counter(value) | prometheus_parse::Value::Gauge(value) => value,
            ref other => panic!("{other:?}"),
        }
    };
    let before = scrape();
    std::thread::sleep(Duration::from_secs(1));
    let after = scrape();
    assert_eq!(value(&after, "ballast_up", "", ""), 1.0);
    assert_eq!(value(&after, "ballast_guest_memory_bytes", "guest", "echo"), f64::from(64 << 20));
    let exits = |page| value(page, "ballast_guest_exits_total", "guest", "load");
    assert!(
        value(&after, "ballast_uptime_seconds", "", "") > value(&before, "ballast_uptime_seconds", "", "")
    );
    assert!(exits(&after) >= exits(&before));
    exporter.kill().unwrap();
    exporter.wait().unwrap();
}

#[test]
fn top_draws_a_live_machine_amid_garbage() {
    let live = Live::boot("top");
    // Lines of guests come between the reports' lines; what they tear is asked for again.
    live.console(&[], "\x1dm\x03\x15console all\r");
    let shell =
        format!("stty rows 40 cols 100 2>/dev/null; {} top {} --interval 1", tool().display(), live.line());
    let mut script = Command::new("script");
    script.args(["-qec", &shell, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(8));
    child.stdin.take().unwrap().write_all(b"q").unwrap();
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{shown}");
    for part in ["Memory", "mc0", "Guests", "load", "Exits"] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
}

#[test]
fn help_and_errors_say_what_is_to_be_done() {
    for command in ["console", "log", "top", "report", "exporter", "check", "image"] {
        let help = run(&[command, "--help"]);
        assert!(help.contains("Usage: ballast ") && help.lines().count() > 8, "{help}");
    }
    for (arguments, said) in [
        (&["top", "nothing"][..], "expected unix:PATH, tcp:HOST:PORT"),
        (&["top", "/no/such/socket"], "cannot open unix:/no/such/socket"),
        (&["report", "/no/such/recording"], "cannot open"),
        (&["console", "/no/such/socket", "--elf", "/dev/null"], "cannot open"),
        (&["check", "/dev/null"], "/dev/null"),
    ] {
        let output = Command::new(tool()).args(arguments).stdin(Stdio::null()).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(said), "ballast {arguments:?}: {text}");
    }
}
