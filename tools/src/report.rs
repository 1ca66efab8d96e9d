//! `ballast report`: one HTML file about the state of a machine over time. The file is self-contained, with charts as
//! SVG, and opens without a network.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};

mod chart;
mod claims;
mod devices;

use self::chart::{Series, Style};
use crate::frames::Decoder;
use crate::link::{Address, Link};
use crate::model::{MapRange, Snapshot};
use crate::monitor::{Lines, Monitor, report_in};
use crate::recording::Recording;
use crate::splitter::{Chunk, Splitter};
use crate::top::size;

/// Cells in a row of a map.
const MAP_COLUMNS: usize = 128;
/// Width and height of a cell in pixels.
const CELL: (usize, usize) = (7, 11);
/// Colours of guests, by console number, in rotation.
const COLOURS: [&str; 8] =
    ["#2e7d32", "#1565c0", "#ad1457", "#00838f", "#ef6c00", "#6a1b9a", "#558b2f", "#4e342e"];

/// Options of `ballast report`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The line (unix:PATH, tcp:HOST:PORT or /dev/DEVICE[,BAUD]), or a recording of `ballast console`
    #[arg(value_name = "LINE|RECORDING")]
    source: String,
    /// File to write
    #[arg(short, long, value_name = "FILE.html", default_value = "ballast.html")]
    out: PathBuf,
    /// Duration of the observation of a line
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    /// Seconds between two snapshots
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// ELF file of the running image, to decode log frames (log=frames)
    #[arg(long, value_name = "FILE")]
    elf: Option<PathBuf>,
    /// A command to run meanwhile, such as 'migrate alpha mc0'; may be repeated, and commands are spread over the
    /// time
    #[arg(long, value_name = "COMMAND")]
    run: Vec<String>,
    /// At the end, measure for a second how much of their memory guests touch
    #[arg(long)]
    heat: bool,
}

/// The input of a report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Material {
    /// The source, as a title.
    pub(crate) title: String,
    /// The states of the machine, in order.
    pub(crate) snapshots: Vec<Snapshot>,
    /// Lines of the log.
    pub(crate) log: Vec<String>,
    /// Commands that were run: seconds, command, and the error if it was refused.
    pub(crate) given: Vec<(f64, String, Option<String>)>,
    /// Number of messages damaged on the line.
    pub(crate) damaged_count: u64,
}

/// Writes a report.
///
/// # Errors
/// The source cannot be read or has no reports, or the file cannot be written.
pub fn run(options: &Options) -> Result<()> {
    let decoder = options.elf.as_deref().map(Decoder::load).transpose()?;
    let path = PathBuf::from(&options.source);
    let mut material = if path.is_file() {
        from_recording(&Recording::load(&path)?, decoder.as_ref())
    } else {
        let address = options.source.parse::<Address>().map_err(anyhow::Error::msg)?;
        watch(Monitor::attach(Link::open(&address)?)?, decoder.as_ref(), options)?
    };
    if material.snapshots.is_empty() {
        bail!("{} has no reports: type `guests --json` and other reports while recording", options.source);
    }
    material.title = options.source.clone();
    fs::write(&options.out, html(&material))
        .with_context(|| format!("cannot write {}", options.out.display()))?;
    println!("{}", options.out.display());
    Ok(())
}

/// Observes a live machine.
fn watch(mut monitor: Monitor, decoder: Option<&Decoder>, options: &Options) -> Result<Material> {
    let start = Instant::now();
    let mut material = Material::default();
    // Commands are spread evenly. The first follows a snapshot of the initial state.
    let step = options.seconds / (options.run.len() + 1) as f64;
    let mut commands =
        (0..).zip(&options.run).map(|(at, command)| (0.5 * step + f64::from(at) * step, command)).peekable();
    loop {
        let seconds = start.elapsed().as_secs_f64();
        let is_last = seconds >= options.seconds;
        let mut snapshot = monitor.snapshot(true)?;
        if is_last && options.heat {
            monitor.add_heat(&mut snapshot)?;
        }
        material.snapshots.push(Snapshot { seconds, ..snapshot });
        for frame in monitor.frames.drain(..) {
            material.take_frame(decoder, &frame);
        }
        material.log.extend(monitor.text.drain(..).filter_map(|line| text_log_line(&line)));
        if is_last {
            let losses = monitor.losses();
            material.damaged_count += losses.bad_frame_count + losses.bad_report_count;
            return Ok(material);
        }
        if let Some((_, command)) = commands.next_if(|(at, _)| *at <= seconds) {
            let given = start.elapsed().as_secs_f64();
            let refused = monitor.give(command).err().map(|error| format!("{error:#}"));
            if let Some(error) = &refused {
                eprintln!("ballast: {error}");
            }
            material.given.push((given, command.clone(), refused));
            continue;
        }
        thread::sleep(Duration::from_secs_f64(options.interval.max(0.05)));
    }
}

impl Material {
    /// Returns the times of commands.
    fn marks(&self) -> Vec<f64> {
        self.given.iter().map(|(seconds, ..)| *seconds).collect()
    }

    fn take_frame(&mut self, decoder: Option<&Decoder>, frame: &[u8]) {
        let decoded = decoder.map(|decoder| decoder.decode(frame));
        self.damaged_count += u64::from(matches!(decoded, Some(Err(_))));
        self.log.push(match decoded {
            None => format!("(a frame of {} bytes; use --elf to decode it)", frame.len()),
            Some(Ok(line)) => line.to_string(),
            Some(Err(error)) => format!("({error})"),
        });
    }
}

/// Returns `line` if it is a log line (log=text), without its console prefix.
fn text_log_line(line: &str) -> Option<String> {
    let line = line.strip_prefix("ballast| ").unwrap_or(line);
    let mut words = line.split_whitespace();
    let is_time = words.next()?.split_once('.').is_some_and(|(seconds, fraction)| {
        fraction.len() == 6 && (seconds.to_owned() + fraction).bytes().all(|byte| byte.is_ascii_digit())
    });
    let is_level = matches!(words.next()?, "error" | "warn" | "info" | "debug");
    (is_time && is_level).then(|| line.to_owned())
}

/// Extracts snapshots, one for each sequence of different reports, from a recording.
pub(crate) fn from_recording(recording: &Recording, decoder: Option<&Decoder>) -> Material {
    let mut material = Material { damaged_count: recording.bad_line_count, ..Material::default() };
    let (mut splitter, mut lines) = (Splitter::default(), Lines::default());
    let mut current = Snapshot::default();
    let mut seen: Vec<String> = Vec::new();
    for event in &recording.events {
        for chunk in splitter.take(event.text.as_bytes()) {
            match chunk {
                Chunk::Text(text) => lines.put(&text),
                Chunk::Frame(frame) => material.take_frame(decoder, &frame),
            }
        }
        for line in lines.by_ref() {
            match report_in(&line) {
                None => material.log.extend(text_log_line(&line)),
                Some(Err(_)) => material.damaged_count += 1,
                Some(Ok(report)) => {
                    let name = report.get("report").and_then(|name| name.as_str()).unwrap_or("").to_owned();
                    // A repeated report starts the next snapshot, which inherits all other reports.
                    if seen.contains(&name) {
                        material.snapshots.push(current.clone());
                        seen.clear();
                    }
                    if current.take(&report) {
                        current.seconds = event.seconds;
                        seen.push(name);
                    }
                }
            }
        }
    }
    if !seen.is_empty() {
        material.snapshots.push(current);
    }
    material.damaged_count += splitter.bad_frame_count;
    material
}

/// Returns the report as HTML.
pub(crate) fn html(material: &Material) -> String {
    let mut page = String::from(HEAD);
    let (Some(first), Some(last)) = (material.snapshots.first(), material.snapshots.last()) else {
        return page + "<p>No snapshots.</p></html>\n";
    };
    // Writing to a string does not fail.
    let _ = write_page(&mut page, material, first, last);
    page
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Ballast</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5em 1.5em 3em; max-width: 940px; color: #24292f; }
h1 { font-size: 1.7em; margin: 0.2em 0; }
h2 { font-size: 1.2em; margin: 2em 0 0.6em; padding-bottom: 0.2em; border-bottom: 1px solid #d0d7de; }
h3 { font-size: 1em; margin: 1em 0 0.2em; }
p { margin: 0.4em 0; }
table { border-collapse: collapse; width: 100%; }
th { font-weight: 600; color: #57606a; }
th, td { text-align: left; padding: 0.2em 1em 0.2em 0; border-bottom: 1px solid #eaeef2; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; max-width: 100%; height: auto; margin: 0.2em 0 0.8em; font: 12px system-ui, sans-serif; }
svg text { fill: #57606a; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.grid { stroke: #d8dee4; fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
pre { background: #f6f8fa; padding: 0.8em; overflow-x: auto; font-size: 12px; border-radius: 6px; }
.mark { stroke: #8c959f; stroke-dasharray: 3 3; fill: none; }
.given { padding-left: 1.6em; columns: 2; }
.given span { color: #57606a; }
.given span.failed { color: #b71c1c; }
.quiet { color: #57606a; }
.failed { color: #b71c1c; }
.running { color: #1a7f37; }
.key span { display: inline-block; width: 0.8em; height: 0.8em; margin: 0 0.35em 0 1em; border-radius: 2px; }
</style>
";

fn write_page(page: &mut String, material: &Material, first: &Snapshot, last: &Snapshot) -> fmt::Result {
    let version = &last.version;
    writeln!(page, "<h1>Ballast {} on {}</h1>", Text(&version.version), Text(&version.host))?;
    writeln!(
        page,
        "<p>From {}: {} snapshots in {:.1} s, commit {}, up {:.1} s. Image {}, own memory {}, frame table {}.{}</p>",
        Text(&material.title),
        material.snapshots.len(),
        last.seconds - first.seconds,
        Text(&version.commit),
        version.uptime_ns as f64 / 1e9,
        size(version.image_bytes),
        size(version.own_bytes),
        size(version.frame_table_bytes),
        match material.damaged_count {
            0 => String::new(),
            count => format!(" {count} messages were damaged on the line."),
        }
    )?;
    if !material.given.is_empty() {
        page.push_str("<ol class=given>\n");
        for (seconds, command, refused) in &material.given {
            write!(page, "<li><code>{}</code> <span>at {seconds:.1} s</span>", Text(command))?;
            if let Some(reason) = refused {
                let reason = reason.strip_prefix(&format!("{command}: ")).unwrap_or(reason);
                write!(page, " <span class=failed>{}</span>", Text(reason))?;
            }
            page.push('\n');
        }
        page.push_str("</ol>\n");
    }
    write_guests(page, last)?;
    devices::write(page, last)?;
    write_maps(page, first, last)?;
    write_memory(page, material, last)?;
    write_migrations(page, material, last)?;
    claims::write(page, material, last)?;
    write_heat(page, last)?;
    page.push_str("<h2>Exits to EL2</h2>\n");
    let rates = rates(material, last, &|snapshot, name| {
        let stats = snapshot.stats.iter().find(|stats| stats.name == name)?;
        Some(stats.exit_count())
    });
    chart::write(page, "per second", &rates, Style::Lines, &material.marks(), |value| format!("{value:.0}"))?;
    if !material.log.is_empty() {
        page.push_str("<h2>Log</h2>\n<pre>");
        for line in &material.log {
            writeln!(page, "{}", Text(line))?;
        }
        page.push_str("</pre>\n");
    }
    page.push_str("</html>\n");
    Ok(())
}

fn write_guests(page: &mut String, last: &Snapshot) -> fmt::Result {
    page.push_str(
        "<h2>Guests</h2>\n<table><tr><th>Guest<th>State<th class=n>vCPUs<th class=n>Memory\
         <th class=n>Starts<th class=n>Exits<th class=n>Interrupts<th class=n>In EL2<th>Reason\n",
    );
    for guest in &last.guests {
        let stats = last.stats.iter().find(|stats| stats.name == guest.name);
        let class = match guest.state.as_str() {
            "failed" => " class=failed",
            "running" => " class=running",
            _ => "",
        };
        writeln!(
            page,
            "<tr><td>{}<td{class}>{}<td class=n>{} of {}<td class=n>{}<td class=n>{}<td class=n>{}\
             <td class=n>{}<td class=n>{:.3} s<td>{}",
            Text(&guest.name),
            Text(&guest.state),
            guest.vcpu_on_count,
            guest.vcpu_count,
            size(guest.resident_bytes),
            guest.start_count,
            stats.map_or(0, crate::model::GuestStats::exit_count),
            stats.map_or(0, |stats| stats.injected_count),
            stats.map_or(0.0, |stats| stats.el2_ns as f64 / 1e9),
            Text(guest.reason.as_deref().unwrap_or("")),
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}

/// Writes the use of each controller's RAM over time.
fn write_memory(page: &mut String, material: &Material, last: &Snapshot) -> fmt::Result {
    page.push_str("<h2>Memory over time</h2>\n");
    for controller in &last.controllers {
        let line = |name: &str, colour: &'static str, value: fn(&crate::model::Controller) -> u64| Series {
            name: name.into(),
            colour,
            points: material
                .snapshots
                .iter()
                .map(|snapshot| {
                    let one = snapshot.controllers.iter().find(|one| one.name == controller.name);
                    (snapshot.seconds, one.map_or(0.0, |one| value(one) as f64))
                })
                .collect(),
        };
        let series = [
            line("guests", "#4a86c5", |one| one.guest_bytes),
            line("Ballast", "#24292f", |one| one.own_bytes),
            line("reserved", "#8c959f", |one| one.reserved_bytes),
            line("claimed or retired", "#ffab00", crate::model::Controller::other_bytes),
            line("free", "#e6ebf0", |one| one.free_bytes),
        ];
        chart::write(page, &controller.name, &series, Style::Stack, &material.marks(), |value| {
            size(value as u64)
        })?;
    }
    Ok(())
}

/// Writes the migrations: jobs, rates over time, and the guests' waits.
fn write_migrations(page: &mut String, material: &Material, last: &Snapshot) -> fmt::Result {
    if last.moved.iter().all(|moved| moved.moved_bytes == 0) && last.jobs.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<h2>Migrations</h2>\n<table><tr><th class=n>Job<th>Description<th>State<th class=n>Done<th class=n>Moved\
         <th class=n>Not moved<th class=n>Per second<th class=n>Time\n",
    );
    for job in &last.jobs {
        writeln!(
            page,
            "<tr><td class=n>{}<td>{}<td>{}<td class=n>{}.{} %<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}",
            job.job,
            Text(&job.what),
            Text(&job.reason.as_ref().map_or(job.state.clone(), |why| format!("{}: {why}", job.state))),
            job.done_permille / 10,
            job.done_permille % 10,
            size(job.moved_bytes),
            size(job.unmoved_bytes),
            size(job.moved_bytes_per_s),
            job.elapsed_ns.map_or("-".into(), time),
        )?;
    }
    page.push_str("</table>\n");
    let rates = rates(material, last, &|snapshot, name| {
        Some(snapshot.moved.iter().find(|moved| moved.name == name)?.moved_bytes)
    });
    chart::write(page, "Moved per second", &rates, Style::Lines, &material.marks(), |value| {
        size(value as u64)
    })?;
    for stalls in &last.stalls {
        writeln!(
            page,
            "<h3>Waits of {}</h3>\n<p class=quiet>{} waits for a unit in flight: mean {}, median {}, \
             99th percentile {}, maximum {}.</p>",
            Text(&stalls.guest),
            stalls.count,
            time(stalls.mean_ns),
            time(stalls.p50_ns),
            time(stalls.p99_ns),
            time(stalls.max_ns)
        )?;
        let steps = last.stall_steps.iter().filter(|step| step.guest == stalls.guest);
        let bars: Vec<(String, u64)> =
            steps.map(|step| (format!("< {}", time(step.below_ns)), step.count)).collect();
        let colour = last.guests.iter().find(|guest| guest.name == stalls.guest);
        let colour = guest_colour(colour.map_or(1, |guest| guest.console));
        chart::write_bars(page, "waits", colour, &bars, |count| count.to_string())?;
    }
    Ok(())
}

/// Writes the memory that guests touched, by controller.
fn write_heat(page: &mut String, last: &Snapshot) -> fmt::Result {
    if last.heat.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "<h2>Heat</h2>\n<p class=quiet>Memory that guests touched in {}.</p>\n<table><tr><th>Guest<th>Controller\
         <th class=n>Resident<th class=n>Touched<th class=n>Share<th>",
        time(last.heat_window_ns)
    )?;
    for row in &last.heat {
        let share = row.touched_bytes.min(row.resident_bytes) as f64 / row.resident_bytes.max(1) as f64;
        let guest = last.guests.iter().find(|guest| guest.name == row.guest);
        writeln!(
            page,
            "<tr><td>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{:.1} %<td><svg width=\"200\" height=\"12\" \
             role=\"img\" aria-label=\"share\"><rect width=\"200\" height=\"12\" fill=\"#eeeeee\"/>\
             <rect width=\"{:.0}\" height=\"12\" fill=\"{}\"/></svg>",
            Text(&row.guest),
            Text(&row.controller),
            size(row.resident_bytes),
            size(row.touched_bytes),
            share * 100.0,
            share * 200.0,
            guest_colour(guest.map_or(1, |guest| guest.console))
        )?;
    }
    page.push_str("</table>\n");
    Ok(())
}

/// Formats a time in a suitable unit.
fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} µs", nanoseconds as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.1} s", nanoseconds as f64 / 1e9),
    }
}

/// Writes the physical map before and after.
fn write_maps(page: &mut String, first: &Snapshot, last: &Snapshot) -> fmt::Result {
    page.push_str("<h2>Physical memory</h2>\n<p class=key>");
    for guest in &last.guests {
        let colour = guest_colour(guest.console);
        write!(page, "<span style=\"background:{colour}\"></span>{}", Text(&guest.name))?;
    }
    for (cell, name) in [
        ('B', "Ballast"),
        ('T', "tables"),
        ('R', "reserved"),
        ('C', "claimed"),
        ('X', "retired"),
        (':', "mixed"),
        ('.', "free"),
    ] {
        write!(page, "<span style=\"background:{}\"></span>{name}", cell_colour(cell))?;
    }
    page.push_str("</p>\n");
    for (title, snapshot) in [("Before", first), ("After", last)] {
        if snapshot.map.is_empty() || (title == "After" && first.map == last.map) {
            continue;
        }
        let title = if first.map == last.map { "Throughout" } else { title };
        writeln!(page, "<h3>{title}</h3>")?;
        for range in &snapshot.map {
            write_map(page, range)?;
        }
    }
    Ok(())
}

fn write_map(page: &mut String, range: &MapRange) -> fmt::Result {
    let cells: Vec<char> = range.characters().collect();
    let rows = cells.len().div_ceil(MAP_COLUMNS);
    let (width, height) = (MAP_COLUMNS * CELL.0, rows * CELL.1);
    writeln!(
        page,
        "<p><b>{}</b> from {}, {} per cell</p>\n<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\" \
         aria-label=\"map of {}\">",
        Text(&range.controller),
        Text(&range.base),
        size(range.unit_bytes),
        Text(&range.controller)
    )?;
    for (row, cells) in cells.chunks(MAP_COLUMNS).enumerate() {
        let mut column = 0;
        for run in cells.chunk_by(|one, other| one == other) {
            writeln!(
                page,
                "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                column * CELL.0,
                row * CELL.1,
                run.len() * CELL.0 - 1,
                CELL.1 - 1,
                cell_colour(run[0])
            )?;
            column += run.len();
        }
    }
    page.push_str("</svg>\n");
    Ok(())
}

fn guest_colour(console: u64) -> &'static str {
    COLOURS[(console.max(1) as usize - 1) % COLOURS.len()]
}

fn cell_colour(cell: char) -> &'static str {
    match cell {
        '1'..='9' | 'a'..='z' => guest_colour(u64::from(cell.to_digit(36).unwrap_or(1))),
        '.' => "#eeeeee",
        ':' => "#bcaaa4",
        'R' => "#757575",
        'X' => "#d50000",
        'C' => "#ffab00",
        'T' => "#37474f",
        _ => "#000000",
    }
}

/// Returns the increase per second of a counter of each guest, between snapshots.
fn rates(
    material: &Material,
    last: &Snapshot,
    counter: &dyn Fn(&Snapshot, &str) -> Option<u64>,
) -> Vec<Series> {
    let rate = |guest: &crate::model::Guest| {
        let points = material.snapshots.windows(2).filter_map(|pair| {
            let before = counter(&pair[0], &guest.name)?;
            let added = counter(&pair[1], &guest.name)?.saturating_sub(before) as f64;
            let elapsed = pair[1].seconds - pair[0].seconds;
            (elapsed > 0.0).then_some((pair[1].seconds, added / elapsed))
        });
        Series { name: guest.name.clone(), colour: guest_colour(guest.console), points: points.collect() }
    };
    last.guests.iter().map(rate).collect()
}

/// Displays text, escaped for HTML.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\0'..' ' | '\x7f' => f.write_char('\u{fffd}')?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::tests::{fake, sealed, small_machine};
    use crate::recording::Event;

    fn material() -> Material {
        let mut monitor = Monitor::attach(fake(small_machine)).unwrap();
        let first = monitor.snapshot(true).unwrap();
        let heat = {
            let mut snapshot = first.clone();
            monitor.add_heat(&mut snapshot).unwrap();
            (snapshot.heat, snapshot.heat_window_ns)
        };
        let mut middle = Snapshot { seconds: 1.0, ..first.clone() };
        middle.moved[0].moved_bytes += 64 << 20;
        middle.claim_stats.granted_count = 0;
        let mut last = Snapshot { seconds: 2.0, ..first.clone() };
        (last.heat, last.heat_window_ns) = heat;
        last.map[0].cells = ":R...........111".into();
        last.stats[0].counters.insert("exit_uart_count".into(), 400.into());
        Material {
            title: "<test>".into(),
            snapshots: vec![first, middle, last],
            log: vec!["a & b".into()],
            given: vec![
                (0.5, "migrate alpha mc1".into(), None),
                (1.5, "claim video 1G".into(), Some("claim video 1G: <no>".into())),
            ],
            damaged_count: 3,
        }
    }

    #[test]
    fn a_report_is_complete_and_self_contained() {
        let page = html(&material());
        for part in [
            "&lt;test&gt;",
            "3 messages",
            "Before",
            "After",
            "a &amp; b",
            "data abort at &quot;0x40&quot;",
            "&lt;no&gt;",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for forbidden in ["http:", "https:", "<script", "src=", "NaN", "inf"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 2 * 2 + 2 + 1 + 2 + 3 + 2);
        insta::assert_snapshot!(page);
    }

    #[test]
    fn one_snapshot_is_enough() {
        let mut material = material();
        material.snapshots.truncate(1);
        let page = html(&material);
        assert!(page.contains("Throughout") && page.contains("no course over time"));
        assert!(html(&Material::default()).contains("No snapshots."));
    }

    #[test]
    fn recordings_become_snapshots() {
        let event = |seconds: f64, text: &str| Event { seconds, text: text.replace('\n', "\r\n") };
        let guests = sealed(r#"{"report":"guests","guests":[{"name":"alpha"}]}"#);
        let (head, tail) = guests.split_at(40);
        let version = sealed(r#"{"report":"version","version":"0.1"}"#);
        let none = sealed(r#"{"report":"guests","guests":[]}"#);
        let recording = Recording {
            events: vec![
                event(1.0, &format!("ballast> guests --json\n{head}")),
                event(1.5, &format!("{tail}ballast|     0.001500 info  board: 2 controllers\n")),
                event(2.0, &format!("{version}{{\"report\":\"guests\",\"gue\n")),
                // A digit was damaged.
                event(2.5, &version.replace("0.1", "0.7")),
                event(3.0, &format!("\x1b]7700;Zm9v\x1b\\{none}")),
            ],
            bad_line_count: 1,
        };
        let material = from_recording(&recording, None);
        assert_eq!(material.snapshots.len(), 2);
        assert_eq!((material.snapshots[0].seconds, material.snapshots[0].guests.len()), (2.0, 1));
        assert_eq!((material.snapshots[1].seconds, material.snapshots[1].guests.len()), (3.0, 0));
        assert_eq!(material.damaged_count, 3);
        assert_eq!(material.snapshots[1].version.version, "0.1");
        assert_eq!(material.log[0], "    0.001500 info  board: 2 controllers");
        assert!(material.log[1].contains("frame of 3 bytes"));
    }
}
