//! `ballast`, the tool on the PC, against a live machine and a recording.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use system_tests::{Guest, Setup, System, elf, tool};

/// A machine whose console is a socket, and the folder of the socket.
struct Live {
    _system: System,
    folder: PathBuf,
}

impl Live {
    /// Boots two guests, one of which interrupts and prints without end.
    fn boot(name: &str) -> Self {
        let load = Guest::payload("load", "irqload").bootargs("forever=1 rounds=200").ram_mib(32).vcpus(2);
        let echo = Guest::payload("echo", "probe").bootargs("probe=echo").ram_mib(64);
        Self::boot_set(name, &[load, echo], "")
    }

    /// Boots a guest that writes to its memory without end, and a pool that is lent to it.
    fn boot_pool(name: &str) -> Self {
        let tenant = Guest::payload("tenant", "pattern")
            .bootargs("mode=write")
            .ram_mib(16)
            .memory("controllers = <0>;")
            .with("dmb-0 { size = <0 0x4000000>; controllers = <1>; };");
        let pool = "pools { video { compatible = \"shared-dmb-pool\"; reusable; size = <0 0x4000000>; \
                    controllers = <1>; }; };";
        Self::boot_set(name, &[tenant], pool)
    }

    fn boot_set(name: &str, guests: &[Guest], more: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ballast-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("serial");
        // The first serial line is the socket. The test's own line is the second, and stays silent.
        let system = Setup::new()
            .set(guests, more)
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

    /// Damages the line: one byte in this number is lost, and a wrong one is inserted after another. Returns the address of the
    /// damaged line.
    fn damaged_line(&self, one_of: u64) -> String {
        let (serial, path) = (self.path("serial"), self.path(&format!("damaged-{one_of}")));
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut machine = UnixStream::connect(&serial).unwrap();
                let (mut typed, mut keys) = (client.try_clone().unwrap(), machine.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut typed, &mut keys);
                    let _ = keys.shutdown(std::net::Shutdown::Both);
                });
                let mut random = 0x2545_f491_4f6c_dd1d_u64;
                let mut next = move || {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random
                };
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = machine.read(&mut bytes) {
                    let mut damaged = Vec::new();
                    for &byte in &bytes[..count] {
                        match next() % (2 * one_of) {
                            0 => {}
                            1 => damaged.extend([byte, next() as u8]),
                            _ => damaged.push(byte),
                        }
                    }
                    if client.write_all(&damaged).is_err() {
                        break;
                    }
                }
                let _ = machine.shutdown(std::net::Shutdown::Both);
            }
        });
        format!("unix:{}", path.display())
    }

    fn line(&self) -> String {
        format!("unix:{}", self.path("serial").display())
    }

    /// Runs `command` through `ballast console`. Returns the output of the line.
    fn ask(&self, command: &str) -> String {
        self.console(&[], &format!("\x1dm\x03\x15{command} --json\r"))
    }

    /// Types `keys` at `ballast console`, waits a little, and ends it.
    fn console(&self, options: &[&str], keys: &str) -> String {
        let mut child = spawn(&[&["console", &self.line()], options].concat());
        let mut input = child.stdin.take().unwrap();
        for part in keys.split_inclusive('\r') {
            // QEMU's socket listens as soon as QEMU has started, and keeps earlier keys.
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

/// Returns true if a page of metrics is complete and from this machine.
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
    live.ask("migrate echo mc1 --force");
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
    assert!(shown.contains("boot::start: 4 CPUs"), "the log is put together: {shown}");
    assert!(std::fs::read_to_string(split.join("log")).unwrap().contains("4 CPUs"));
    assert!(std::fs::read_to_string(split.join("monitor")).unwrap().contains("\"report\":\"stats\""));
    let out = live.path("recorded.html");
    run(&["report", &recording.to_string_lossy(), "--out", &out.to_string_lossy(), "--elf", &elf_text]);
    check_page(&out);
}

/// A running `ballast exporter`.
struct Exporter {
    child: Child,
    place: String,
    timeout: Duration,
}

impl Exporter {
    fn start(arguments: &[&str]) -> Self {
        let mut child = spawn(&[&["exporter", "--listen", "127.0.0.1:0"], arguments].concat());
        let mut first = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut first).unwrap();
        let place =
            first.trim().strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
        Self { child, place, timeout: system_tests::patience() }
    }

    fn page(&self) -> String {
        let mut client = TcpStream::connect(&self.place).unwrap();
        // The machine may be slow and the line damaged, so each test sets the timeout of a scrape.
        let seconds = self.timeout.as_secs_f64();
        let head = format!(
            "GET /metrics HTTP/1.1\r\nHost: here\r\nX-Prometheus-Scrape-Timeout-Seconds: {seconds}\r\n\r\n"
        );
        client.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        body.to_owned()
    }

    fn scrape(&self) -> Scrape {
        Scrape(prometheus_parse::Scrape::parse(self.page().lines().map(|line| Ok(line.to_owned()))).unwrap())
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Scrape(prometheus_parse::Scrape);

impl Scrape {
    /// Returns the metric with these labels.
    #[track_caller]
    fn value(&self, metric: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.0.samples.iter().find(|sample| {
            sample.metric == metric
                && labels.iter().all(|&(label, wanted)| sample.labels.get(label) == Some(wanted))
        });
        match found.unwrap_or_else(|| panic!("no {metric} {labels:?}")).value {
            prometheus_parse::Value::Counter(value) | prometheus_parse::Value::Gauge(value) => value,
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_exporter_serves_a_live_machine() {
    let live = Live::boot("exporter");
    let exporter = Exporter::start(&[&live.line()]);
    let before = exporter.scrape();
    std::thread::sleep(Duration::from_secs(1));
    let after = exporter.scrape();
    assert_eq!(after.value("ballast_up", &[]), 1.0);
    assert_eq!(after.value("ballast_guest_memory_bytes", &[("guest", "echo")]), f64::from(64 << 20));
    assert!(after.value("ballast_uptime_seconds", &[]) > before.value("ballast_uptime_seconds", &[]));
    let exits = |page: &Scrape| page.value("ballast_guest_exits_total", &[("guest", "load")]);
    assert!(exits(&after) >= exits(&before));
}

#[test]
fn claims_migration_and_heat_of_a_live_machine_are_shown() {
    let live = Live::boot_pool("claims");
    let (out, elf) = (live.path("claims.html"), elf());
    let commands = ["claim video 16M", "migrate tenant mc0 --force", "claim video 1G"];
    let mut arguments = vec!["report".to_owned(), live.line(), "--seconds=8".into(), "--interval=0.2".into()];
    arguments.extend(["--heat".into(), "--elf".into(), elf.to_string_lossy().into_owned()]);
    arguments.extend(["--out".into(), out.to_string_lossy().into_owned()]);
    arguments.extend(commands.iter().flat_map(|command| ["--run".into(), (*command).into()]));
    run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let page = std::fs::read_to_string(&out).unwrap();
    for part in [
        "video",
        "<h2>Claims</h2>",
        "1 tried since boot: 1 granted (16 MiB)",
        "<h2>Heat</h2>",
        "tenant to mc0",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    assert!(page.contains("the pool has"), "the claim that is too large is refused: {page}");

    let exporter = Exporter::start(&[&live.line(), "--heat"]);
    let scrape = exporter.scrape();
    assert_eq!(scrape.value("ballast_claims_total", &[("outcome", "granted")]), 1.0);
    let claimed = [("pool", "video"), ("use", "claimed")];
    assert_eq!(scrape.value("ballast_pool_memory_bytes", &claimed), f64::from(16 << 20));
    assert!(scrape.value("ballast_claim_moved_bytes_total", &[]) > 0.0);
    assert!(scrape.value("ballast_migration_moved_bytes_total", &[("guest", "tenant")]) > 0.0);
    let touched = [("guest", "tenant"), ("controller", "mc0")];
    assert!(scrape.value("ballast_guest_touched_bytes", &touched) > 0.0);
    // Prometheus's own checker, if it is installed.
    if let Ok(mut checker) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        checker.stdin.take().unwrap().write_all(exporter.page().as_bytes()).unwrap();
        let output = checker.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

/// One byte in some hundreds is lost or wrong: damaged reports are requested again, dropped and counted.
#[test]
fn loss_and_garbage_on_the_line_are_survived_and_counted() {
    let live = Live::boot("damage");
    let line = live.damaged_line(2500);
    let out = live.path("damaged.html");
    run(&["report", &line, "--seconds", "6", "--interval", "0.1", "--out", &out.to_string_lossy()]);
    let page = std::fs::read_to_string(&out).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(page.contains("Memory over time") && page.matches("<svg").count() >= 5);
    assert!(page.contains("messages were damaged on the line"), "nothing was counted: {page}");

    let exporter = Exporter::start(&[&line]);
    let (mut damaged_count, mut right_count) = (0.0, 0);
    for _ in 0..5 {
        let scrape = exporter.scrape();
        assert_eq!(scrape.value("ballast_up", &[]), 1.0);
        damaged_count = scrape.value("ballast_line_damaged_total", &[("what", "report")]);
        // A report that lost a digit is still valid JSON; its checksum is wrong.
        let echo = scrape.0.samples.iter().find(|sample| {
            sample.metric == "ballast_guest_memory_bytes" && sample.labels.get("guest") == Some("echo")
        });
        let size = prometheus_parse::Value::Gauge(f64::from(64 << 20));
        assert!(echo.is_none_or(|sample| sample.value == size), "{echo:?}");
        right_count += u32::from(echo.is_some());
    }
    assert!(damaged_count > 0.0 && right_count >= 3, "{damaged_count} damaged, {right_count} right");
    drop(exporter);

    // Frames, every second of which is damaged.
    let elf = elf();
    let mut child = spawn(&["console", &live.damaged_line(100), "--elf", &elf.to_string_lossy()]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"\x1dm\x03\x15log\rlog\rlog\r").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    input.write_all(b"\x1dq").unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("log frames were damaged"), "{said}");
    let whole = shown.lines().filter(|line| line.starts_with("log| ") && !line.contains('('));
    assert!(whole.count() > 5, "{shown}");
}

#[test]
fn top_draws_a_live_machine_amid_garbage() {
    let live = Live::boot("top");
    // Output of guests interrupts reports, which are then requested again.
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

/// Returns the output of a client that cannot get the line.
#[track_caller]
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(tool()).args(arguments).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("the line is in use by"),
        "ballast {arguments:?}: {said}"
    );
    said
}

#[test]
fn a_second_client_is_told_that_the_line_is_in_use() {
    let live = Live::boot("second");
    let (line, elf) = (live.line(), elf());
    let elf = elf.to_string_lossy();
    let commands =
        [&["top", &line][..], &["console", &line], &["report", &line], &["log", &line, "--elf", &elf]];
    let until = std::time::Instant::now() + system_tests::patience();
    // Without a terminal, top reports that when it has the line.
    let output = Command::new(tool()).args(["top", &line]).stdin(Stdio::null()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("top needs a terminal"), "{output:?}");
    let mut exporter = Exporter::start(&[&line]);
    assert_eq!(exporter.scrape().value("ballast_up", &[]), 1.0);
    for command in commands {
        let said = refusal(command);
        assert!(said.contains(&format!("by ballast exporter (process {})", exporter.child.id())), "{said}");
    }
    drop(exporter);

    // In the opposite order: the exporter comes second.
    let mut first = spawn(&["console", &line]);
    while !live.path("serial.lock").exists() {
        assert!(std::time::Instant::now() < until && first.try_wait().unwrap().is_none());
    }
    exporter = Exporter::start(&[&line]);
    exporter.timeout = Duration::from_secs(1);
    assert_eq!(exporter.scrape().value("ballast_up", &[]), 0.0);
    first.stdin.as_mut().unwrap().write_all(b"\x1dq").unwrap();
    first.wait().unwrap();

    // After a program that does not use locks.
    let foreign = UnixStream::connect(live.path("serial")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    for command in commands {
        assert!(refusal(command).contains("in use by another program"));
    }
    assert_eq!(exporter.scrape().value("ballast_up", &[]), 0.0);
    drop(foreign);
    exporter.timeout = system_tests::patience();
    while exporter.scrape().value("ballast_up", &[]) != 1.0 {
        assert!(std::time::Instant::now() < until, "the line is free again");
    }
}

#[test]
fn help_and_errors_tell_what_to_do() {
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
