//! `ballast report`: one HTML file that tells how a machine was and what became of it. It opens without a
//! network: pictures are SVG, everything is in the file.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::frames::Decoder;
use crate::link::{Address, Link};
use crate::model::{MapRange, Snapshot};
use crate::monitor::{Lines, Monitor, report_in};
use crate::recording::Recording;
use crate::splitter::{Piece, Splitter};
use crate::top::size;

/// Cells in a row of a map.
const MAP_COLUMNS: usize = 128;
/// Side of a cell.
const CELL: usize = 7;
/// Size of a chart.
const CHART: (f64, f64) = (900.0, 180.0);
/// Colours of guests, by number; after them they begin again.
const COLOURS: [&str; 8] =
    ["#2e7d32", "#1565c0", "#ad1457", "#00838f", "#ef6c00", "#6a1b9a", "#558b2f", "#4e342e"];

/// What `ballast report` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the line is (unix:PATH, tcp:HOST:PORT, /dev/DEVICE[,BAUD]), or a recording of `ballast console`
    #[arg(value_name = "LINE|RECORDING")]
    pub source: String,
    /// Where the report goes
    #[arg(short, long, value_name = "FILE.html", default_value = "ballast.html")]
    pub out: PathBuf,
    /// How long to watch a line
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds between two looks at a line
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
    /// The image's ELF file, for the log's frames (log=frames)
    #[arg(long, value_name = "FILE")]
    pub elf: Option<PathBuf>,
}

/// What a report is made of.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// Where it came from.
    pub title: String,
    /// The machine, again and again.
    pub snapshots: Vec<Snapshot>,
    /// Lines of the log.
    pub log: Vec<String>,
    /// What was damaged on its way.
    pub damaged_count: u64,
}

/// Writes a report.
///
/// # Errors
/// The source cannot be read or says nothing, or the file cannot be written.
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
        bail!("{} holds no reports: type `guests --json` and the like while recording", options.source);
    }
    material.title = options.source.clone();
    fs::write(&options.out, html(&material))
        .with_context(|| format!("cannot write {}", options.out.display()))?;
    println!("{}", options.out.display());
    Ok(())
}

/// Looks at a live machine for a while.
fn watch(mut monitor: Monitor, decoder: Option<&Decoder>, options: &Options) -> Result<Material> {
    let start = Instant::now();
    let mut material = Material::default();
    loop {
        let seconds = start.elapsed().as_secs_f64();
        let snapshot = monitor.snapshot(true)?;
        material.snapshots.push(Snapshot { seconds, ..snapshot });
        let lines = monitor.frames.drain(..).map(|frame| log_line(decoder, &frame));
        material.log.extend(lines.collect::<Vec<_>>());
        material.log.extend(monitor.text.drain(..).filter_map(|line| text_log_line(&line)));
        if seconds >= options.seconds {
            let losses = monitor.losses();
            material.damaged_count = losses.bad_frame_count + losses.bad_report_count;
            return Ok(material);
        }
        thread::sleep(Duration::from_secs_f64(options.interval.max(0.05)));
    }
}

fn log_line(decoder: Option<&Decoder>, frame: &[u8]) -> String {
    match decoder.map(|decoder| decoder.decode(frame)) {
        None => format!("(a frame of {} bytes; --elf puts it together)", frame.len()),
        Some(Ok(line)) => line.to_string(),
        Some(Err(error)) => format!("({error})"),
    }
}

/// A line of the log in text, as Ballast shows it between others.
fn text_log_line(line: &str) -> Option<String> {
    let line = line.strip_prefix("ballast| ").unwrap_or(line);
    let mut words = line.split_whitespace();
    let is_time = words.next()?.split_once('.').is_some_and(|(seconds, fraction)| {
        fraction.len() == 6 && (seconds.to_owned() + fraction).bytes().all(|byte| byte.is_ascii_digit())
    });
    let is_level = matches!(words.next()?, "error" | "warn" | "info" | "debug");
    (is_time && is_level).then(|| line.to_owned())
}

/// What a recording holds: a snapshot for each run of reports.
pub fn from_recording(recording: &Recording, decoder: Option<&Decoder>) -> Material {
    let mut material = Material { damaged_count: recording.bad_line_count, ..Material::default() };
    let (mut splitter, mut lines) = (Splitter::default(), Lines::default());
    let mut current = Snapshot::default();
    let mut seen: Vec<String> = Vec::new();
    for event in &recording.events {
        for piece in splitter.take(event.text.as_bytes()) {
            match piece {
                Piece::Text(text) => lines.put(&text),
                Piece::Frame(frame) => material.log.push(log_line(decoder, &frame)),
            }
        }
        for line in lines.by_ref() {
            match report_in(&line) {
                None => material.log.extend(text_log_line(&line)),
                Some(Err(_)) => material.damaged_count += 1,
                Some(Ok(report)) => {
                    let name = report.get("report").and_then(|name| name.as_str()).unwrap_or("").to_owned();
                    // The same report again begins the next snapshot; what it lacks is as it was.
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

/// The report.
pub fn html(material: &Material) -> String {
    let mut page = String::from(HEAD);
    let (Some(first), Some(last)) = (material.snapshots.first(), material.snapshots.last()) else {
        return page + "<p>Nothing was seen.</p></html>\n";
    };
    // Writing to a string does not fail.
    let _ = write_page(&mut page, material, first, last);
    page
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Ballast</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 940px; color: #222; }
h1, h2 { font-weight: 600; }
h2 { margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: 0.15em 1em 0.15em 0; }
td.n, th.n { text-align: right; }
svg { display: block; max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 0.7em; overflow-x: auto; font-size: 12px; }
.failed { color: #b71c1c; }
.key span { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 1em; vertical-align: -0.1em; }
</style>
";

fn write_page(page: &mut String, material: &Material, first: &Snapshot, last: &Snapshot) -> fmt::Result {
    let version = &last.version;
    writeln!(page, "<h1>Ballast {} on {}</h1>", Text(&version.version), Text(&version.host))?;
    writeln!(
        page,
        "<p>From {}: {} looks in {:.1} s, commit {}, up {:.1} s. Image {}, own memory {}, frame table {}.{}</p>",
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
            count => format!(" {count} pieces came damaged over the line."),
        }
    )?;
    write_guests(page, last)?;
    write_maps(page, first, last)?;
    page.push_str("<h2>Memory over time</h2>\n");
    for controller in &last.controllers {
        let of = |snapshot: &Snapshot, value: fn(&crate::model::Controller) -> u64| {
            let one = snapshot.controllers.iter().find(|one| one.name == controller.name);
            one.map_or(0.0, |one| value(one) as f64)
        };
        let line = |name: &str, colour: &'static str, value: fn(&crate::model::Controller) -> u64| Series {
            name: name.into(),
            colour,
            points: material.snapshots.iter().map(|one| (one.seconds, of(one, value))).collect(),
        };
        let series = [
            line("guests", COLOURS[0], |one| one.guest_bytes),
            line("Ballast", COLOURS[1], |one| one.own_bytes),
            line("free", "#9e9e9e", |one| one.free_bytes),
        ];
        write_chart(page, &controller.name, &series, |value| size(value as u64))?;
    }
    page.push_str("<h2>Exits a second</h2>\n");
    write_chart(page, "exits", &exit_rates(&material.snapshots), |value| format!("{value:.0}"))?;
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
         <th class=n>Starts<th class=n>Exits<th class=n>Interrupts<th class=n>In EL2<th>Why\n",
    );
    for guest in &last.guests {
        let stats = last.stats.iter().find(|stats| stats.name == guest.name);
        let class = if guest.state == "failed" { " class=failed" } else { "" };
        writeln!(
            page,
            "<tr><td>{}<td{class}>{}<td class=n>{} of {}<td class=n>{}<td class=n>{}<td class=n>{}\
             <td class=n>{}<td class=n>{:.3} s<td>{}",
            Text(&guest.name),
            Text(&guest.state),
            guest.vcpu_on_count,
            guest.vcpu_count,
            size(guest.memory_bytes),
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

/// The physical map before and after.
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
    let (width, height) = (MAP_COLUMNS * CELL, rows * CELL);
    writeln!(
        page,
        "<p>{} from {}, {} a cell</p>\n<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\" \
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
                column * CELL,
                row * CELL,
                run.len() * CELL - 1,
                CELL - 1,
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

/// Exits a second between looks, by guest.
fn exit_rates(snapshots: &[Snapshot]) -> Vec<Series> {
    let Some(last) = snapshots.last() else { return Vec::new() };
    let rates = last.guests.iter().map(|guest| {
        let count = |snapshot: &Snapshot| {
            snapshot
                .stats
                .iter()
                .find(|stats| stats.name == guest.name)
                .map(crate::model::GuestStats::exit_count)
        };
        let points = snapshots.windows(2).filter_map(|pair| {
            let added = count(&pair[1])?.saturating_sub(count(&pair[0])?) as f64;
            let elapsed = pair[1].seconds - pair[0].seconds;
            (elapsed > 0.0).then_some((pair[1].seconds, added / elapsed))
        });
        Series { name: guest.name.clone(), colour: guest_colour(guest.console), points: points.collect() }
    });
    rates.collect()
}

/// A line of a chart.
struct Series {
    name: String,
    colour: &'static str,
    /// Seconds and value.
    points: Vec<(f64, f64)>,
}

fn write_chart(
    page: &mut String,
    title: &str,
    series: &[Series],
    unit: impl Fn(f64) -> String,
) -> fmt::Result {
    let points = || series.iter().flat_map(|line| line.points.iter());
    let largest = points().map(|point| point.1).fold(0.0, f64::max);
    let start = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let end = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
    if points().next().is_none() {
        return writeln!(page, "<p>{}: one look is no course of time.</p>", Text(title));
    }
    let (width, height) = CHART;
    let (left, bottom) = (80.0, 24.0);
    let across = (width - left) / (end - start).max(f64::EPSILON);
    let up = (height - bottom - 12.0) / largest.max(f64::EPSILON);
    writeln!(page, "<p class=key>{}:", Text(title))?;
    for line in series {
        write!(page, "<span style=\"background:{}\"></span>{}", line.colour, Text(&line.name))?;
    }
    writeln!(
        page,
        "</p>\n<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" role=\"img\" aria-label=\"{}\">",
        Text(title)
    )?;
    let base = height - bottom;
    writeln!(
        page,
        "<path d=\"M{left} 12V{base}H{width}\" fill=\"none\" stroke=\"#999\"/>\
         <text x=\"{}\" y=\"18\" text-anchor=\"end\" font-size=\"12\">{}</text>\
         <text x=\"{}\" y=\"{base}\" text-anchor=\"end\" font-size=\"12\">0</text>\
         <text x=\"{left}\" y=\"{}\" font-size=\"12\">{start:.1} s</text>\
         <text x=\"{width}\" y=\"{}\" text-anchor=\"end\" font-size=\"12\">{end:.1} s</text>",
        left - 6.0,
        Text(&unit(largest)),
        left - 6.0,
        height - 6.0,
        height - 6.0
    )?;
    for line in series {
        let mut path = String::new();
        for (at, (seconds, value)) in line.points.iter().enumerate() {
            let letter = if at == 0 { 'M' } else { 'L' };
            write!(path, "{letter}{:.1} {:.1}", left + (seconds - start) * across, base - value * up)?;
        }
        // A single point is a dot.
        if line.points.len() == 1 {
            path.push_str("h0.1");
        }
        writeln!(
            page,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-linecap=\"round\"/>",
            line.colour
        )?;
    }
    page.push_str("</svg>\n");
    Ok(())
}

/// Text in HTML.
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
    use crate::monitor::tests::{fake, small_machine};
    use crate::recording::Event;

    fn material() -> Material {
        let mut monitor = Monitor::attach(fake(small_machine)).unwrap();
        let first = monitor.snapshot(true).unwrap();
        let mut last = Snapshot { seconds: 2.0, ..first.clone() };
        last.map[0].cells = ":R...........111".into();
        last.stats[0].counters.insert("exit_uart_count".into(), 400.into());
        Material {
            title: "<test>".into(),
            snapshots: vec![first, last],
            log: vec!["a & b".into()],
            damaged_count: 3,
        }
    }

    #[test]
    fn a_report_is_whole_and_alone() {
        let page = html(&material());
        for part in
            ["&lt;test&gt;", "3 pieces", "Before", "After", "a &amp; b", "data abort at &quot;0x40&quot;"]
        {
            assert!(page.contains(part), "{part}");
        }
        for forbidden in ["http:", "https:", "<script", "src=", "NaN", "inf"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<svg").count(), 2 * 2 + 2 + 1);
        insta::assert_snapshot!(page);
    }

    #[test]
    fn one_look_is_enough() {
        let mut material = material();
        material.snapshots.truncate(1);
        let page = html(&material);
        assert!(page.contains("Throughout") && page.contains("no course of time"));
        assert!(html(&Material::default()).contains("Nothing was seen."));
    }

    #[test]
    fn recordings_become_snapshots() {
        let event = |seconds: f64, text: &str| Event { seconds, text: text.into() };
        let recording = Recording {
            events: vec![
                event(1.0, "ballast> guests --json\r\n{\"report\":\"guests\",\"guests\":[{\"name\":"),
                event(1.5, "\"alpha\"}]}\r\nballast|     0.001500 info  board: 2 controllers\r\n"),
                event(
                    2.0,
                    "{\"report\":\"version\",\"version\":\"0.1\"}\r\n{\"report\":\"guests\",\"gue\r\n",
                ),
                event(3.0, "\x1b]7700;Zm9v\x1b\\{\"report\":\"guests\",\"guests\":[]}\r\n"),
            ],
            bad_line_count: 1,
        };
        let material = from_recording(&recording, None);
        assert_eq!(material.snapshots.len(), 2);
        assert_eq!((material.snapshots[0].seconds, material.snapshots[0].guests.len()), (2.0, 1));
        assert_eq!((material.snapshots[1].seconds, material.snapshots[1].guests.len()), (3.0, 0));
        assert_eq!(material.damaged_count, 2);
        assert_eq!(material.log[0], "    0.001500 info  board: 2 controllers");
        assert!(material.log[1].contains("frame of 3 bytes"));
    }
}
