//! `ballast top`: a terminal screen that shows memory and guests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use crate::link::{Address, Link};
use crate::model::{Claim, Job, MapRange, Snapshot};
use crate::monitor::{Losses, Monitor};

/// Number of values in a sparkline.
const HISTORY: usize = 120;
/// Interval between two checks for keys.
const TICK: Duration = Duration::from_millis(50);
/// Colours of the guests, by console number.
const COLOURS: [Color; 8] = [
    Color::Green,
    Color::Blue,
    Color::Magenta,
    Color::Cyan,
    Color::Yellow,
    Color::LightGreen,
    Color::LightBlue,
    Color::LightMagenta,
];

/// Options of `ballast top`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The line: unix:PATH, tcp:HOST:PORT or /dev/DEVICE[,BAUD]
    #[arg(value_name = "LINE")]
    address: Address,
    /// Seconds between two updates
    #[arg(short, long, default_value_t = 2.0, value_name = "SECONDS")]
    interval: f64,
    /// At each update, measure for a second how much of their memory guests touch
    #[arg(long)]
    heat: bool,
}

impl Options {
    fn look(&self, monitor: &mut Monitor) -> Result<Snapshot> {
        let mut snapshot = monitor.snapshot(true)?;
        if self.heat {
            monitor.add_heat(&mut snapshot)?;
        }
        Ok(snapshot)
    }
}

/// Shows the screen until q is pressed.
///
/// # Errors
/// The line cannot be opened, nobody answers, or the terminal fails.
pub fn run(options: &Options) -> Result<()> {
    let mut monitor = Monitor::attach(Link::open(&options.address)?)?;
    // Waits for the first answer before it takes over the screen, so that errors are printed normally.
    let mut screen = Screen::default();
    screen.take(options.look(&mut monitor)?, Instant::now(), monitor.losses());
    let answers = ask_on(monitor, options.clone());
    let mut terminal = ratatui::try_init().context("top needs a terminal")?;
    let result = (|| {
        loop {
            terminal.draw(|frame| screen.draw(frame))?;
            let deadline = Instant::now() + TICK;
            while event::poll(deadline.saturating_duration_since(Instant::now()))? {
                if is_end(&event::read()?) {
                    return Ok(());
                }
            }
            while let Ok(answer) = answers.try_recv() {
                let (snapshot, time, losses) = answer?;
                screen.take(snapshot, time, losses);
            }
        }
    })();
    ratatui::restore();
    result
}

/// Starts a thread that asks the monitor.
fn ask_on(mut monitor: Monitor, options: Options) -> Receiver<Result<(Snapshot, Instant, Losses)>> {
    let (sender, answers) = channel();
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs_f64(options.interval.max(0.1)));
            monitor.frames.clear();
            monitor.text.clear();
            let answer = options.look(&mut monitor);
            let is_over = answer.is_err();
            let losses = monitor.losses();
            if sender.send(answer.map(|snapshot| (snapshot, Instant::now(), losses))).is_err() || is_over {
                return;
            }
        }
    });
    answers
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (is_interrupt || matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc))
}

/// The contents of the screen.
#[derive(Default)]
struct Screen {
    snapshot: Snapshot,
    time: Option<Instant>,
    /// Exits per second, by guest.
    exits: BTreeMap<String, VecDeque<u64>>,
    /// Bytes moved per second, by guest that was migrated.
    moved: BTreeMap<String, VecDeque<u64>>,
    /// Waits per second for units in flight, by guest that was migrated.
    stalls: BTreeMap<String, VecDeque<u64>>,
    /// Time at EL2 since the last update, in thousandths of a CPU, by guest.
    el2: BTreeMap<String, u64>,
    losses: Losses,
}

impl Screen {
    fn take(&mut self, snapshot: Snapshot, time: Instant, losses: Losses) {
        let elapsed = self.time.map(|earlier| time.duration_since(earlier).as_secs_f64());
        if let Some(elapsed) = elapsed.filter(|&elapsed| elapsed > 0.0) {
            for now in &snapshot.stats {
                let Some(before) = self.snapshot.stats.iter().find(|before| before.name == now.name) else {
                    continue;
                };
                push(&mut self.exits, &now.name, now.exit_count(), before.exit_count(), elapsed);
                let el2_ns = now.el2_ns.saturating_sub(before.el2_ns) as f64;
                self.el2.insert(now.name.clone(), (el2_ns / elapsed / 1e6) as u64);
            }
            for now in snapshot.moved.iter().filter(|now| now.moved_bytes != 0) {
                let before = self.snapshot.moved.iter().find(|before| before.name == now.name);
                if let Some(before) = before {
                    push(&mut self.moved, &now.name, now.moved_bytes, before.moved_bytes, elapsed);
                    push(&mut self.stalls, &now.name, now.stall_count, before.stall_count, elapsed);
                }
            }
        }
        self.snapshot = snapshot;
        self.time = Some(time);
        self.losses = losses;
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let maps = self.snapshot.controllers.len() as u16 * 3;
        let guests = self.snapshot.guests.len() as u16 + 3;
        let jobs = self.open_jobs().count() as u16;
        let pools = self.snapshot.pools.len() as u16 + self.open_claims().count() as u16;
        let devices = self.snapshot.devices.len() as u16;
        let [title, map, table, device_list, pool_list, job_list, lines, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(maps + 2),
            Constraint::Length(guests),
            Constraint::Length(if devices == 0 { 0 } else { devices + 3 }),
            Constraint::Length(if pools == 0 { 0 } else { pools + 2 }),
            Constraint::Length(if jobs == 0 { 0 } else { jobs + 2 }),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_title(frame, title);
        self.draw_map(frame, map);
        self.draw_guests(frame, table);
        if devices != 0 {
            self.draw_devices(frame, device_list);
        }
        if pools != 0 {
            self.draw_pools(frame, pool_list);
        }
        self.draw_jobs(frame, job_list);
        if self.moved.is_empty() {
            draw_lines(frame, lines, "Exits per second", &self.snapshot, &self.exits, u64::to_string);
        } else {
            let [exits, moved, stalls] =
                Layout::vertical([Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1)])
                    .areas(lines);
            draw_lines(frame, exits, "Exits per second", &self.snapshot, &self.exits, u64::to_string);
            draw_lines(frame, moved, "Moved per second", &self.snapshot, &self.moved, |bytes| size(*bytes));
            draw_lines(frame, stalls, "Waits per second", &self.snapshot, &self.stalls, u64::to_string);
        }
        let damaged = self.losses.bad_frame_count + self.losses.bad_report_count;
        let note =
            if damaged == 0 { String::new() } else { format!("  {damaged} messages damaged on the line") };
        frame.render_widget(Paragraph::new(format!("q quits{note}")).dim(), foot);
    }

    fn draw_title(&self, frame: &mut Frame<'_>, area: Rect) {
        let version = &self.snapshot.version;
        let text = format!(
            "Ballast {} on {}, up {}",
            version.version,
            version.host,
            time(version.uptime_ns / 1_000_000_000)
        );
        frame.render_widget(Paragraph::new(text).bold(), area);
    }

    /// Draws a line of figures and a map of two rows for each controller.
    fn draw_map(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title("Memory");
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let mut lines = Vec::new();
        for controller in &self.snapshot.controllers {
            let note = match controller.state.as_str() {
                "closed" => ", closed",
                "evacuated" => ", evacuated",
                _ => "",
            };
            lines.push(Line::from(format!(
                "{}: {} of {} free{note}",
                controller.name,
                size(controller.free_bytes),
                size(controller.total_bytes)
            )));
            let ranges = self.snapshot.map.iter().filter(|range| range.controller == controller.name);
            let cells: Vec<char> = ranges.flat_map(MapRange::characters).collect();
            let width = usize::from(inner.width).max(1);
            for row in 0..2 {
                lines.push(map_row(&cells, row * width, width, 2 * width));
            }
        }
        frame.render_widget(Paragraph::new(lines), inner);
    }

    fn draw_guests(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.snapshot.guests.iter().map(|guest| {
            let exits = self.exits.get(&guest.name).and_then(|history| history.back()).copied().unwrap_or(0);
            let el2 = self.el2.get(&guest.name).copied().unwrap_or(0);
            let state = match guest.state.as_str() {
                "running" => Span::raw("running").green(),
                "failed" => Span::raw("failed").red(),
                other => Span::raw(other.to_owned()),
            };
            Row::new([
                Cell::from(Span::styled(guest.name.clone(), colour(guest.console))),
                Cell::from(state),
                Cell::from(format!("{} of {}", guest.vcpu_on_count, guest.vcpu_count)),
                Cell::from(size(guest.resident_bytes)),
                Cell::from(self.touched(&guest.name)),
                Cell::from(exits.to_string()),
                Cell::from(format!("{}.{} %", el2 / 10, el2 % 10)),
                Cell::from(guest.reason.clone().unwrap_or_else(|| time(guest.uptime_ns / 1_000_000_000))),
            ])
        });
        let widths = [
            Constraint::Length(16),
            Constraint::Length(9),
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Length(if self.snapshot.heat_window_ns == 0 { 0 } else { 9 }),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Min(10),
        ];
        let heads = ["GUEST", "STATE", "vCPUs", "MEMORY", "TOUCHED", "EXITS/s", "IN EL2", "UPTIME/REASON"];
        let table =
            Table::new(rows, widths).header(Row::new(heads).dim()).block(Block::bordered().title("Guests"));
        frame.render_widget(table, area);
    }

    fn draw_devices(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.snapshot.devices.iter().map(|device| {
            let console = self.snapshot.guests.iter().find(|guest| guest.name == device.guest);
            let state = match device.state.as_str() {
                "attached" => Span::raw(device.status()).green(),
                "failed" => Span::raw(device.status()).red(),
                _ => Span::raw(device.status()),
            };
            Row::new([
                Cell::from(Span::styled(
                    device.guest.clone(),
                    colour(console.map_or(0, |guest| guest.console)),
                )),
                Cell::from(device.device.clone()),
                Cell::from(device.kind.clone()),
                Cell::from(device.interrupt_count.to_string()),
                Cell::from(device.fault_count.to_string()),
                Cell::from(state),
            ])
        });
        let widths = [
            Constraint::Length(16),
            Constraint::Length(9),
            Constraint::Length(15),
            Constraint::Length(10),
            Constraint::Length(6),
            Constraint::Min(10),
        ];
        let heads = ["GUEST", "DEVICE", "KIND", "INTERRUPTS", "FAULTS", "STATE"];
        let errors: u64 = self.snapshot.smmus.iter().map(|smmu| smmu.error_count).sum();
        let title = if errors == 0 { "Devices".into() } else { format!("Devices, SMMU errors: {errors}") };
        let table =
            Table::new(rows, widths).header(Row::new(heads).dim()).block(Block::bordered().title(title));
        frame.render_widget(table, area);
    }

    /// Returns the size of the memory that the guest touched.
    fn touched(&self, guest: &str) -> String {
        let rows = self.snapshot.heat.iter().filter(|row| row.guest == guest);
        size(rows.map(|row| row.touched_bytes).sum())
    }

    fn open_claims(&self) -> impl Iterator<Item = &Claim> {
        self.snapshot.claims.iter().filter(|claim| claim.is_open())
    }

    /// Draws a line for each pool and for each claim in progress.
    fn draw_pools(&self, frame: &mut Frame<'_>, area: Rect) {
        let stats = &self.snapshot.claim_stats;
        let title = format!(
            "Pools: {} claims tried, {} granted, {} failed",
            stats.tried_count, stats.granted_count, stats.failed_count
        );
        let pools = self.snapshot.pools.iter().map(|pool| {
            Line::from(format!(
                "{:16.16} {}: {} lent, {} claimed, {} free",
                pool.pool,
                size(pool.size_bytes),
                size(pool.lent_bytes),
                size(pool.claimed_bytes),
                size(pool.free_bytes)
            ))
        });
        let claims = self.open_claims().map(|claim| {
            let (done, bytes) = (claim.done_permille / 10, size(claim.size_bytes));
            let (kind, pool, claimant) = (&claim.kind, &claim.pool, &claim.claimant);
            Line::from(format!(
                "{} {:9} {done:3} %  {kind} of {bytes} of {pool} for {claimant}",
                claim.claim, claim.state
            ))
        });
        let lines: Vec<Line<'_>> = pools.chain(claims).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
    }

    fn open_jobs(&self) -> impl Iterator<Item = &Job> {
        self.snapshot
            .jobs
            .iter()
            .filter(|job| !matches!(job.state.as_str(), "finished" | "incomplete" | "cancelled"))
    }

    fn draw_jobs(&self, frame: &mut Frame<'_>, area: Rect) {
        let lines = self.open_jobs().map(|job| {
            let rate = size(job.moved_bytes_per_s);
            let done = job.done_permille / 10;
            Line::from(format!("{} {:9} {done:3} %  {rate}/s  {}", job.job, job.state, job.what))
        });
        let lines: Vec<Line<'_>> = lines.collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Jobs")), area);
    }
}

/// Adds the increase per second to the history of `name`.
fn push(histories: &mut BTreeMap<String, VecDeque<u64>>, name: &str, now: u64, before: u64, elapsed: f64) {
    let history = histories.entry(name.to_owned()).or_default();
    history.push_back((now.saturating_sub(before) as f64 / elapsed) as u64);
    if history.len() > HISTORY {
        history.pop_front();
    }
}

/// Draws a sparkline for each guest.
fn draw_lines(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    snapshot: &Snapshot,
    histories: &BTreeMap<String, VecDeque<u64>>,
    unit: fn(&u64) -> String,
) {
    let block = Block::bordered().title(title.to_owned());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let places = Layout::vertical(histories.keys().map(|_| Constraint::Fill(1))).split(inner);
    for ((name, history), &place) in histories.iter().zip(places.iter()) {
        let [label, line] = Layout::horizontal([Constraint::Length(28), Constraint::Min(1)]).areas(place);
        let console = snapshot.guests.iter().find(|guest| guest.name == *name);
        let colour = colour(console.map_or(0, |guest| guest.console));
        let last = history.back().map(unit).unwrap_or_default();
        frame.render_widget(Paragraph::new(Span::styled(format!("{name:16.16} {last:>10}"), colour)), label);
        let shown = history.iter().skip(history.len().saturating_sub(line.width.into()));
        let shown = shown.copied().collect::<Vec<_>>();
        frame.render_widget(Sparkline::default().data(shown).style(colour), line);
    }
}

impl MapRange {
    /// Iterates over the cells.
    pub(crate) fn characters(&self) -> impl Iterator<Item = char> {
        self.cells.chars()
    }
}

fn colour(console: u64) -> Style {
    match console {
        0 => Style::new(),
        console => Style::new().fg(COLOURS[(console as usize - 1) % COLOURS.len()]),
    }
}

/// Draws `width` columns from column `start`, of `places` columns that represent all cells.
fn map_row(cells: &[char], start: usize, width: usize, places: usize) -> Line<'static> {
    let shown = (start..start + width).filter_map(|place| {
        // A cell takes several columns if there are few cells; the first of several cells in a column is drawn.
        let at = if cells.len() < places {
            (place * cells.len()).checked_div(places)?
        } else {
            place * cells.len() / places
        };
        cells.get(at)
    });
    let spans = shown.map(|&cell| match cell {
        '1'..='9' | 'a'..='z' => Span::styled("█", colour(u64::from(cell.to_digit(36).unwrap_or(0)))),
        '.' => Span::raw("·").dark_gray(),
        ':' => Span::raw("▒"),
        'X' => Span::raw("X").red(),
        'C' => Span::raw("█").red(),
        'R' => Span::raw("█").dark_gray(),
        _ => Span::raw("█").white(),
    });
    Line::from(spans.collect::<Vec<_>>())
}

/// Formats a size in binary units.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (1..units.len()).rev().find(|&power| bytes >> (10 * power) != 0).unwrap_or(0);
    let value = bytes as f64 / (1u64 << (10 * power)) as f64;
    if value.fract() == 0.0 {
        format!("{value} {}", units[power])
    } else {
        format!("{value:.1} {}", units[power])
    }
}

/// Formats a time as hours, minutes and seconds.
fn time(seconds: u64) -> String {
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::monitor::tests::{fake, small_machine};

    #[test]
    fn the_screen_shows_the_machine() {
        let mut screen = Screen::default();
        let mut snapshot = Monitor::attach(fake(small_machine)).unwrap().snapshot(true).unwrap();
        let start = Instant::now();
        screen.take(snapshot.clone(), start, Losses::default());
        for second in 1..=40u64 {
            let exits = 70 + second * second * 10;
            snapshot.stats[0].counters.insert("exit_uart_count".into(), exits.into());
            snapshot.stats[0].el2_ns += 5_000_000;
            screen.take(snapshot.clone(), start + Duration::from_secs(second), Losses::default());
        }
        screen.losses.bad_frame_count = 2;
        let mut terminal = Terminal::new(TestBackend::new(80, 46)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        insta::assert_snapshot!(terminal.backend());
    }

    #[test]
    fn small_screens_are_drawn() {
        let mut screen = Screen::default();
        screen.take(Snapshot::default(), Instant::now(), Losses::default());
        for (width, height) in [(1, 1), (5, 3), (20, 5), (200, 60)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| screen.draw(frame)).unwrap();
        }
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(5), "5 B");
    }
}
