//! `ballast exporter`: serves metrics for Prometheus over HTTP.

use std::fmt::{self, Write as _};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::link::{Address, Link};
use crate::model::{Device, Heat, Smmu, Snapshot};
use crate::monitor::{Losses, Monitor};

/// Time limit for a client's request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Default time limit for Ballast to answer a scrape: less than the 10 s that Prometheus waits by default, so that it
/// gets `ballast_up 0` in time.
const SCRAPE: Duration = Duration::from_secs(8);
/// Header with Prometheus's timeout in seconds (Prometheus, scrape/scrape.go).
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";
/// Most bytes of a request's head that are read.
const LONGEST_HEAD: u64 = 16 << 10;
/// Content type of the answer: the text format, version 0.0.4.
const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The monitor's names of guest states.
const STATES: [&str; 6] = ["off", "starting", "running", "stopping", "failed", "refused"];
/// The monitor's names of device states.
const DEVICE_STATES: [&str; 3] = ["off", "attached", "failed"];

/// Options of `ballast exporter`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The line: unix:PATH, tcp:HOST:PORT or /dev/DEVICE[,BAUD]
    #[arg(value_name = "LINE")]
    address: Address,
    /// Address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:9750")]
    listen: String,
    /// At each scrape, measure for a second how much of their memory guests touch
    #[arg(long)]
    heat: bool,
}

/// Answers each scrape with the current state of the machine.
///
/// # Errors
/// The address to listen on is in use.
pub fn run(options: &Options) -> Result<()> {
    let place = &options.listen;
    let listener = TcpListener::bind(place).with_context(|| format!("cannot listen on {place}"))?;
    eprintln!("http://{}/metrics", listener.local_addr()?);
    let mut scraper = Scraper::new(options.clone());
    // There is one line, so one client at a time. Errors of a client do not end the exporter.
    for client in listener.incoming().flatten() {
        let _ = answer(client, |patience| scraper.scrape(patience));
    }
    Ok(())
}

/// A client of the monitor that keeps the line open between scrapes.
struct Scraper {
    options: Options,
    monitor: Option<Monitor>,
    /// Losses on earlier connections.
    earlier: Losses,
    error_count: u64,
}

impl Scraper {
    fn new(options: Options) -> Self {
        Self { options, monitor: None, earlier: Losses::default(), error_count: 0 }
    }

    fn scrape(&mut self, patience: Duration) -> String {
        let snapshot = self.ask(patience);
        if let Err(error) = &snapshot {
            eprintln!("{}: {error:#}", self.options.address);
            self.error_count += 1;
            let losses = self.losses();
            self.earlier = losses;
            self.monitor = None;
        }
        page(snapshot.ok().as_ref(), self.losses(), self.error_count)
    }

    fn ask(&mut self, patience: Duration) -> Result<Snapshot> {
        let monitor = match &mut self.monitor {
            Some(monitor) => monitor,
            none => none.insert(Monitor::attach(Link::open(&self.options.address)?)?),
        };
        monitor.limit(patience);
        monitor.frames.clear();
        monitor.text.clear();
        let mut snapshot = monitor.snapshot(false)?;
        if self.options.heat {
            monitor.add_heat(&mut snapshot)?;
        }
        Ok(snapshot)
    }

    fn losses(&self) -> Losses {
        let now = self.monitor.as_ref().map_or(Losses::default(), Monitor::losses);
        Losses {
            bad_report_count: self.earlier.bad_report_count + now.bad_report_count,
            bad_frame_count: self.earlier.bad_frame_count + now.bad_frame_count,
        }
    }
}

/// Answers one request.
fn answer(client: TcpStream, scrape: impl FnOnce(Duration) -> String) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client.try_clone()?.take(LONGEST_HEAD));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let (mut line, mut patience) = (String::new(), SCRAPE);
    while reader.read_line(&mut line)? > 2 {
        if let Some(limit) = timeout(&line) {
            patience = limit;
        }
        line.clear();
    }
    let mut words = request.split(' ');
    let (status, kind, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", TYPE, scrape(patience)),
        (Some("GET"), Some("/")) => {
            ("200 OK", "text/html", "<a href=\"/metrics\">Metrics of Ballast</a>\n".into())
        }
        (Some("GET"), _) => ("404 Not Found", "text/plain", "The only page is /metrics.\n".into()),
        _ => ("405 Method Not Allowed", "text/plain", "The only method is GET.\n".into()),
    };
    let mut client = client;
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// Returns four fifths of Prometheus's timeout if `line` is the header with it.
fn timeout(line: &str) -> Option<Duration> {
    let (name, value) = line.split_once(':')?;
    let seconds: f64 = value.trim().parse().ok().filter(|_| name.eq_ignore_ascii_case(TIMEOUT_HEADER))?;
    Duration::try_from_secs_f64(seconds * 0.8).ok().filter(|patience| !patience.is_zero())
}

/// A page in the text format.
struct Page(String);

impl Page {
    /// Writes a metric with its samples: labels and value.
    fn metric<L: AsRef<str>>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{} {value}", labels.as_ref());
        }
    }
}

/// Statistics on a quantity since boot, in seconds.
struct Summary {
    /// Labels without braces.
    labels: String,
    p50: f64,
    p99: f64,
    longest: f64,
    sum: f64,
    count: u64,
}

impl Page {
    /// Writes a summary, and the longest value of each row as a separate gauge.
    fn summary(&mut self, name: &str, help: &str, rows: &[Summary]) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} summary");
        for Summary { labels, p50, p99, sum, count, .. } in rows {
            let _ = writeln!(self.0, "{name}{{{labels},quantile=\"0.5\"}} {p50}");
            let _ = writeln!(self.0, "{name}{{{labels},quantile=\"0.99\"}} {p99}");
            let _ = writeln!(self.0, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
        }
        let longest = rows.iter().map(|row| (format!("{{{}}}", row.labels), row.longest));
        let name = name.strip_suffix("_seconds").unwrap_or(name);
        self.metric(&format!("{name}_longest_seconds"), "gauge", "Longest of these since boot.", longest);
    }
}

/// Displays a label's value, escaped.
struct Label<'a>(&'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

fn label(name: &str, value: &str) -> String {
    format!("{{{name}=\"{}\"}}", Label(value))
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Returns the page: all figures of `snapshot`, and the result of the scrape.
pub(crate) fn page(snapshot: Option<&Snapshot>, losses: Losses, error_count: u64) -> String {
    let mut page = Page(String::new());
    page.metric("ballast_up", "gauge", "1 if Ballast answers.", [("", f64::from(snapshot.is_some()))]);
    let help = "Scrapes that Ballast did not answer.";
    page.metric("ballast_scrape_errors_total", "counter", help, [("", error_count as f64)]);
    page.metric(
        "ballast_line_damaged_total",
        "counter",
        "Reports and log frames damaged on the line.",
        [
            (label("what", "report"), losses.bad_report_count as f64),
            (label("what", "frame"), losses.bad_frame_count as f64),
        ],
    );
    if let Some(snapshot) = snapshot {
        write_version(&mut page, snapshot);
        write_guests(&mut page, snapshot);
        if !snapshot.devices.is_empty() {
            write_devices(&mut page, snapshot);
        }
        if !snapshot.smmus.is_empty() {
            write_smmus(&mut page, snapshot);
        }
        write_controllers(&mut page, snapshot);
        write_migration(&mut page, snapshot);
        if !snapshot.pools.is_empty() {
            write_claims(&mut page, snapshot);
        }
        if snapshot.heat_window_ns != 0 {
            write_heat(&mut page, snapshot);
        }
        let consoles = || snapshot.consoles.iter();
        let lost = consoles().map(|console| (label("console", &console.name), console.lost_bytes as f64));
        page.metric(
            "ballast_console_lost_bytes_total",
            "counter",
            "Console output lost before it was shown.",
            lost,
        );
        let lost =
            consoles().map(|console| (label("console", &console.name), console.input_lost_bytes as f64));
        page.metric(
            "ballast_console_input_lost_bytes_total",
            "counter",
            "Console input lost before the guest read it.",
            lost,
        );
    }
    page.0
}

fn write_version(page: &mut Page, snapshot: &Snapshot) {
    let version = &snapshot.version;
    let labels = format!(
        "{{version=\"{}\",commit=\"{}\",host=\"{}\"}}",
        Label(&version.version),
        Label(&version.commit),
        Label(&version.host)
    );
    page.metric("ballast_info", "gauge", "Version of Ballast and name of the host.", [(labels, 1.0)]);
    let uptime = [("", seconds(version.uptime_ns))];
    page.metric("ballast_uptime_seconds", "gauge", "Time since boot.", uptime);
    page.metric(
        "ballast_own_memory_bytes",
        "gauge",
        "Memory used by Ballast itself.",
        [
            (label("part", "image"), version.image_bytes as f64),
            (label("part", "own"), version.own_bytes as f64),
            (label("part", "frame_table"), version.frame_table_bytes as f64),
        ],
    );
}

fn write_guests(page: &mut Page, snapshot: &Snapshot) {
    let guests = || snapshot.guests.iter();
    let states = guests().flat_map(|guest| {
        STATES.iter().map(|state| {
            let labels = format!("{{guest=\"{}\",state=\"{state}\"}}", Label(&guest.name));
            (labels, f64::from(guest.state == *state))
        })
    });
    page.metric("ballast_guest_state", "gauge", "1 for the guest's current state, 0 for the others.", states);
    let memory = guests().map(|guest| (label("guest", &guest.name), guest.memory_bytes as f64));
    page.metric("ballast_guest_memory_bytes", "gauge", "Configured RAM of the guest.", memory);
    let backed = guests().map(|guest| (label("guest", &guest.name), guest.resident_bytes as f64));
    page.metric("ballast_guest_backed_bytes", "gauge", "RAM of the guest that is backed now.", backed);
    let vcpus = guests().map(|guest| (label("guest", &guest.name), guest.vcpu_count as f64));
    page.metric("ballast_guest_vcpus", "gauge", "vCPUs of the guest.", vcpus);
    let on = guests().map(|guest| (label("guest", &guest.name), guest.vcpu_on_count as f64));
    page.metric("ballast_guest_vcpus_on", "gauge", "vCPUs of the guest that are on.", on);
    let starts = guests().map(|guest| (label("guest", &guest.name), guest.start_count as f64));
    page.metric("ballast_guest_starts_total", "counter", "Starts of the guest, resets included.", starts);
    let uptime = guests().map(|guest| (label("guest", &guest.name), seconds(guest.uptime_ns)));
    page.metric("ballast_guest_uptime_seconds", "gauge", "Time since the guest's last start.", uptime);
    let stats = || snapshot.stats.iter();
    let exits = stats().flat_map(|guest| {
        guest.exits().map(|(reason, count)| {
            (format!("{{guest=\"{}\",reason=\"{}\"}}", Label(&guest.name), Label(reason)), count as f64)
        })
    });
    page.metric("ballast_guest_exits_total", "counter", "Exits of the guest to EL2.", exits);
    let injected = stats().map(|guest| (label("guest", &guest.name), guest.injected_count as f64));
    page.metric("ballast_guest_interrupts_total", "counter", "Interrupts injected into the guest.", injected);
    let device = stats().map(|guest| (label("guest", &guest.name), guest.device_interrupt_count as f64));
    let help = "Interrupts of assigned devices, a part of ballast_guest_interrupts_total.";
    page.metric("ballast_guest_device_interrupts_total", "counter", help, device);
    let time = stats().map(|guest| (label("guest", &guest.name), seconds(guest.el2_ns)));
    page.metric("ballast_guest_el2_seconds_total", "counter", "Time spent at EL2 for the guest.", time);
}

fn write_devices(page: &mut Page, snapshot: &Snapshot) {
    let devices = || snapshot.devices.iter();
    let labels = |one: &Device| format!("guest=\"{}\",device=\"{}\"", Label(&one.guest), Label(&one.device));
    let info = devices().map(|one| {
        let (host, kind) = (Label(&one.host), Label(&one.kind));
        (format!("{{{},host=\"{host}\",kind=\"{kind}\"}}", labels(one)), 1.0)
    });
    page.metric("ballast_device_info", "gauge", "Name on the host and kind of the device.", info);
    let states = devices().flat_map(|one| {
        let sample =
            |state| (format!("{{{},state=\"{state}\"}}", labels(one)), f64::from(one.state == state));
        DEVICE_STATES.map(sample)
    });
    page.metric(
        "ballast_device_state",
        "gauge",
        "1 for the device's current state, 0 for the others.",
        states,
    );
    let mut each = |name, kind, help, value: fn(&Device) -> f64| {
        page.metric(name, kind, help, devices().map(|one| (format!("{{{}}}", labels(one)), value(one))));
    };
    let help = "1 if an SMMU isolates the device.";
    each("ballast_device_isolated", "gauge", help, |one| f64::from(one.is_isolated));
    let help = "Interrupts of the device. Devices that share one share the count.";
    each("ballast_device_interrupts_total", "counter", help, |one| one.interrupt_count as f64);
    let help = "Accesses of the device that an SMMU denied.";
    each("ballast_device_faults_total", "counter", help, |one| one.fault_count as f64);
}

fn write_smmus(page: &mut Page, snapshot: &Snapshot) {
    let mut each = |name, kind, help, value: fn(&Smmu) -> f64| {
        let samples = snapshot.smmus.iter().map(|one| (label("smmu", &one.smmu.to_string()), value(one)));
        page.metric(name, kind, help, samples);
    };
    let help = "1 if the SMMU failed.";
    each("ballast_smmu_failed", "gauge", help, |one| f64::from(one.state == "failed"));
    each("ballast_smmu_memory_bytes", "gauge", "Tables and queues of the SMMU.", |one| {
        one.memory_bytes as f64
    });
    each("ballast_smmu_events_total", "counter", "Accesses that the SMMU denied.", |one| {
        one.event_count as f64
    });
    let help = "Global errors of the SMMU.";
    each("ballast_smmu_errors_total", "counter", help, |one| one.error_count as f64);
}

fn write_controllers(page: &mut Page, snapshot: &Snapshot) {
    let controllers = || snapshot.controllers.iter();
    let size = controllers().map(|one| (label("controller", &one.name), one.total_bytes as f64));
    page.metric("ballast_controller_size_bytes", "gauge", "RAM of the controller.", size);
    let uses = controllers().flat_map(|one| {
        let uses = [
            ("free", one.free_bytes),
            ("guests", one.guest_bytes),
            ("ballast", one.own_bytes),
            ("reserved", one.reserved_bytes),
        ];
        uses.map(|(what, bytes)| {
            (format!("{{controller=\"{}\",use=\"{what}\"}}", Label(&one.name)), bytes as f64)
        })
    });
    page.metric("ballast_controller_memory_bytes", "gauge", "RAM of the controller by use.", uses);
    let blocks = controllers().map(|one| (label("controller", &one.name), one.dmb_bytes as f64));
    page.metric("ballast_controller_dmb_bytes", "gauge", "RAM in designated movable blocks.", blocks);
    let closed = controllers().map(|one| (label("controller", &one.name), f64::from(one.state != "in use")));
    page.metric(
        "ballast_controller_closed",
        "gauge",
        "1 if the controller is closed to new allocations.",
        closed,
    );
    let evacuated =
        controllers().map(|one| (label("controller", &one.name), f64::from(one.state == "evacuated")));
    page.metric(
        "ballast_controller_evacuated",
        "gauge",
        "1 if the controller is closed and none of its memory is in use.",
        evacuated,
    );
}

fn write_migration(page: &mut Page, snapshot: &Snapshot) {
    let guests = || snapshot.moved.iter();
    let guest = |name: &str| label("guest", name);
    let moved = guests().map(|one| (guest(&one.name), one.moved_bytes as f64));
    page.metric(
        "ballast_migration_moved_bytes_total",
        "counter",
        "RAM of the guest that was migrated.",
        moved,
    );
    let copying = guests().map(|one| (guest(&one.name), seconds(one.copy_ns)));
    page.metric(
        "ballast_migration_copy_seconds_total",
        "counter",
        "Time spent copying the guest's RAM.",
        copying,
    );
    let faults = guests().map(|one| (guest(&one.name), one.fault_count as f64));
    page.metric(
        "ballast_migration_faults_total",
        "counter",
        "Faults of the guest on units in flight.",
        faults,
    );
    let stalls = guests().map(|one| (guest(&one.name), one.stall_count as f64));
    page.metric(
        "ballast_migration_stalls_total",
        "counter",
        "Waits of the guest for a unit in flight.",
        stalls,
    );
    let stalls = snapshot.stalls.iter().map(|one| Summary {
        labels: format!("guest=\"{}\"", Label(&one.guest)),
        p50: seconds(one.p50_ns),
        p99: seconds(one.p99_ns),
        longest: seconds(one.max_ns),
        sum: seconds(one.mean_ns.saturating_mul(one.count)),
        count: one.count,
    });
    let stalls: Vec<Summary> = stalls.collect();
    page.summary(
        "ballast_migration_stall_seconds",
        "Length of the guest's waits for a unit in flight.",
        &stalls,
    );
    let pairs = snapshot.pairs.iter().map(|pair| {
        let labels = format!("{{from=\"{}\",to=\"{}\"}}", Label(&pair.from), Label(&pair.to));
        (labels, pair.moved_bytes as f64)
    });
    let help = "Memory migrated from one controller to another.";
    page.metric("ballast_controller_moved_bytes_total", "counter", help, pairs);
    let is_over = |state: &str| matches!(state, "finished" | "incomplete" | "cancelled");
    let open = snapshot.jobs.iter().filter(|job| !is_over(&job.state)).count();
    page.metric("ballast_jobs", "gauge", "Migration jobs queued or running.", [("", open as f64)]);
}

fn write_heat(page: &mut Page, snapshot: &Snapshot) {
    let window = [("", seconds(snapshot.heat_window_ns))];
    page.metric(
        "ballast_heat_window_seconds",
        "gauge",
        "Time for which touched memory was measured.",
        window,
    );
    let labels =
        |one: &Heat| format!("{{guest=\"{}\",controller=\"{}\"}}", Label(&one.guest), Label(&one.controller));
    let rows = || snapshot.heat.iter();
    let resident = rows().map(|one| (labels(one), one.resident_bytes as f64));
    let help = "Memory of the guest on the controller.";
    page.metric("ballast_guest_resident_bytes", "gauge", help, resident);
    let touched = rows().map(|one| (labels(one), one.touched_bytes as f64));
    let help = "Memory of the guest on the controller that was touched in the window.";
    page.metric("ballast_guest_touched_bytes", "gauge", help, touched);
}

fn write_claims(page: &mut Page, snapshot: &Snapshot) {
    let pools = || snapshot.pools.iter();
    let size = pools().map(|one| {
        let labels = format!("{{pool=\"{}\",controller=\"{}\"}}", Label(&one.pool), Label(&one.controller));
        (labels, one.size_bytes as f64)
    });
    page.metric("ballast_pool_size_bytes", "gauge", "Size of the pool.", size);
    let uses = pools().flat_map(|one| {
        let uses = [
            ("free", one.free_bytes),
            ("lent", one.lent_bytes),
            ("claimed", one.claimed_bytes),
            ("fixed", one.fixed_bytes),
        ];
        uses.map(|(what, bytes)| (format!("{{pool=\"{}\",use=\"{what}\"}}", Label(&one.pool)), bytes as f64))
    });
    page.metric("ballast_pool_memory_bytes", "gauge", "Memory of the pool by use.", uses);
    let claimable = pools().map(|one| (label("pool", &one.pool), one.claimable_bytes as f64));
    page.metric(
        "ballast_pool_claimable_bytes",
        "gauge",
        "Memory of the pool that can be claimed now.",
        claimable,
    );
    let stats = &snapshot.claim_stats;
    let help = "Claims that were tried.";
    page.metric("ballast_claims_tried_total", "counter", help, [("", stats.tried_count as f64)]);
    page.metric(
        "ballast_claims_total",
        "counter",
        "Finished claims by outcome.",
        [
            (label("outcome", "granted"), stats.granted_count as f64),
            (label("outcome", "failed"), stats.failed_count as f64),
            (label("outcome", "cancelled"), stats.cancelled_count as f64),
        ],
    );
    let failures = stats.failures.iter().map(|one| (label("cause", &one.cause), one.count as f64));
    page.metric("ballast_claim_failures_total", "counter", "Failed claims by cause.", failures);
    let help = "Memory granted to claims.";
    page.metric("ballast_claim_granted_bytes_total", "counter", help, [("", stats.granted_bytes as f64)]);
    let help = "Memory moved to empty ranges for claims.";
    page.metric("ballast_claim_moved_bytes_total", "counter", help, [("", stats.moved_bytes as f64)]);
    let help = "Claimed ranges that were released.";
    page.metric("ballast_claim_releases_total", "counter", help, [("", stats.released_count as f64)]);
    let latencies = stats.latency.iter().map(|one| Summary {
        labels: format!("size=\"{}\",lent=\"{}\"", Label(&one.size), Label(&one.lent)),
        p50: seconds(one.p50_ns),
        p99: seconds(one.p99_ns),
        longest: seconds(one.max_ns),
        sum: seconds(one.mean_ns.saturating_mul(one.count)),
        count: one.count,
    });
    let latencies: Vec<Summary> = latencies.collect();
    let help = "Latency of granted claims, by size and by the share of the pool that was lent.";
    page.summary("ballast_claim_latency_seconds", help, &latencies);
    let open = snapshot.claims.iter().filter(|claim| claim.is_open()).count();
    page.metric(
        "ballast_claims_open",
        "gauge",
        "Claims and releases queued or in progress.",
        [("", open as f64)],
    );
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::model::Controller;
    use crate::monitor::tests::{fake, small_machine};

    fn snapshot() -> Snapshot {
        let mut monitor = Monitor::attach(fake(small_machine)).unwrap();
        let mut snapshot = monitor.snapshot(false).unwrap();
        monitor.add_heat(&mut snapshot).unwrap();
        snapshot
    }

    #[test]
    fn prometheus_can_parse_the_page() {
        let text = page(Some(&snapshot()), Losses { bad_report_count: 2, bad_frame_count: 3 }, 1);
        let parsed = prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
        let sample = |name: &str, label: &str, value: &str| {
            let found = parsed.samples.iter().find(|sample| {
                sample.metric == name && (label.is_empty() || sample.labels.get(label) == Some(value))
            });
            match found.unwrap_or_else(|| panic!("no {name}")).value {
                prometheus_parse::Value::Counter(value) | prometheus_parse::Value::Gauge(value) => value,
                ref other => panic!("{other:?}"),
            }
        };
        assert_eq!(sample("ballast_up", "", ""), 1.0);
        assert_eq!(sample("ballast_uptime_seconds", "", ""), 61.5);
        assert_eq!(sample("ballast_guest_memory_bytes", "guest", "alpha"), 536_870_912.0);
        assert_eq!(sample("ballast_guest_exits_total", "reason", "uart"), 40.0);
        assert_eq!(sample("ballast_guest_device_interrupts_total", "guest", "alpha"), 13.0);
        assert_eq!(sample("ballast_device_interrupts_total", "device", "00:01.0"), 12_345.0);
        assert_eq!(sample("ballast_device_faults_total", "device", "00:02.0"), 66.0);
        assert_eq!(sample("ballast_device_state", "state", "off"), 0.0);
        assert_eq!(sample("ballast_device_isolated", "device", "ethernet@ff0e0000"), 0.0);
        assert_eq!(sample("ballast_smmu_events_total", "smmu", "0"), 66.0);
        assert_eq!(sample("ballast_controller_closed", "controller", "mc0"), 0.0);
        assert_eq!(sample("ballast_controller_closed", "controller", "mc1"), 1.0);
        assert_eq!(sample("ballast_controller_evacuated", "controller", "mc1"), 1.0);
        assert_eq!(sample("ballast_line_damaged_total", "what", "frame"), 3.0);
        assert_eq!(sample("ballast_pool_size_bytes", "pool", "video"), 67_108_864.0);
        assert_eq!(sample("ballast_pool_memory_bytes", "use", "lent"), 41_943_040.0);
        assert_eq!(sample("ballast_claims_tried_total", "", ""), 3.0);
        assert_eq!(sample("ballast_claims_total", "outcome", "failed"), 1.0);
        assert_eq!(sample("ballast_claim_latency_longest_seconds", "lent", "to 95 %"), 0.001_25);
        assert!(
            text.contains("\nballast_claim_latency_seconds_count{size=\"to 64 MiB\",lent=\"to 95 %\"} 1\n")
        );
        assert!(text.contains("\nballast_migration_stall_seconds_sum{guest=\"alpha\"} 0.00108\n"));
        assert_eq!(sample("ballast_claims_open", "", ""), 1.0);
        assert_eq!(sample("ballast_guest_touched_bytes", "controller", "mc0"), 67_108_864.0);
        // Prometheus's conventions: only counters end in _total, and every metric has help.
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let name = line.split(' ').nth(2).unwrap();
            assert_eq!(line.ends_with(" counter"), name.ends_with("_total"), "{line}");
            assert!(text.contains(&format!("# HELP {name} ")));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_closed_controller_with_memory_in_use_is_not_evacuated() {
        let controller = Controller { name: "mc2".into(), state: "closed".into(), ..Controller::default() };
        let mut page = Page(String::new());
        write_controllers(&mut page, &Snapshot { controllers: vec![controller], ..Snapshot::default() });
        assert!(page.0.contains("\nballast_controller_closed{controller=\"mc2\"} 1\n"), "{}", page.0);
        assert!(page.0.contains("\nballast_controller_evacuated{controller=\"mc2\"} 0\n"), "{}", page.0);
    }

    #[test]
    fn a_machine_that_does_not_answer_is_down() {
        let text = page(None, Losses::default(), 4);
        assert!(text.contains("\nballast_up 0\n") && text.contains("\nballast_scrape_errors_total 4\n"));
        assert!(!text.contains("ballast_guest"));
    }

    #[test]
    fn a_silent_line_is_reported_down_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let address = Address::Unix(path);
        let options = Options { address: address.clone(), listen: String::new(), heat: true };
        let mut scraper = Scraper::new(options);
        let mut scrape = |patience_ms| {
            let start = std::time::Instant::now();
            let page = scraper.scrape(Duration::from_millis(patience_ms));
            assert!(page.contains("\nballast_up 0\n"), "{page}");
            start.elapsed()
        };
        // First another command of this tool uses the line, then a machine accepts and stays silent.
        let server = thread::spawn(move || listener.accept().map(|(stream, _)| (listener, stream)).unwrap());
        let first = Link::open(&address).unwrap();
        let (listener, stream) = server.join().unwrap();
        assert!(scrape(60_000) < Duration::from_secs(1));
        drop((first, stream));
        let server = thread::spawn(move || listener.accept().map(|(stream, _)| (listener, stream)).unwrap());
        assert!(scrape(1500) < Duration::from_secs(6));
        // The exporter closed the line, so that the next scrape can open it.
        let (_listener, mut stream) = server.join().unwrap();
        let mut came = Vec::new();
        stream.read_to_end(&mut came).unwrap();
        assert!(came.windows(14).any(|part| part == b"version --json"), "{came:?}");
    }

    #[test]
    fn the_timeout_header_is_understood() {
        assert_eq!(timeout("X-Prometheus-Scrape-Timeout-Seconds: 5\r\n"), Some(Duration::from_secs(4)));
        for line in [
            "Host: x",
            "x-prometheus-scrape-timeout-seconds: -1",
            "x-prometheus-scrape-timeout-seconds: nan",
            "",
        ] {
            assert_eq!(timeout(line), None, "{line}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(label("guest", "a\"b\\c\nd"), "{guest=\"a\\\"b\\\\c\\nd\"}");
    }

    fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        let server = thread::spawn(move || answer(listener.accept().unwrap().0, |_| "ballast_up 1\n".into()));
        let mut client = TcpStream::connect(place).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        server.join().unwrap().unwrap();
        answer
    }

    #[test]
    fn http_is_answered() {
        let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nballast_up 1\n"));
        assert!(ask("GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(ask("\r\n\r\n").starts_with("HTTP/1.1 405"));
    }
}
