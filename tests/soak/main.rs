//! `make soak`: performs all actions of an operator at random, for a given time, on busy guests that check themselves, then
//! checks that nothing was lost.
//!
//! Part `mix` boots eight guests on a machine with four controllers and migrates, pins, evacuates, restores, retires,
//! balances, claims, releases, starts, stops, resets and makes noise on the console. Meanwhile, the guests check their memory
//! and count their interrupts, and Ballast checks its accounts. At the end everything is undone and stopped, and the same
//! number of frames must be free as before. Part `resets` resets small guests 10,000 times, with the same check.
//!
//! The seed determines the actions, but not their timing relative to the guests. `BALLAST_TEST_PATIENCE` is the time after
//! which silence counts as a hang, as for tests.

mod actions;
mod books;
mod fleet;
mod mix;
mod noise;
mod resets;
mod tally;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use system_tests::System;

/// Performs all actions of an operator at random on busy guests, and checks that nothing is lost.
#[derive(Parser)]
#[command(name = "soak", max_term_width = 100)]
struct Options {
    /// Duration in hours
    #[arg(long, default_value = "1")]
    hours: f64,
    /// Part to run; by default the mix, then the number of resets that belongs to its duration
    #[arg(long)]
    part: Option<Part>,
    /// Seed of the random numbers; by default the time of day
    #[arg(long)]
    seed: Option<u64>,
    /// Print every step
    #[arg(long)]
    verbose: bool,
    /// Number of resets; by default 10,000 for an hour or more
    #[arg(long)]
    resets: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// All actions at random.
    Mix,
    /// Resets of small guests.
    Resets,
}

/// Number of resets that belongs to an hour or more.
const RESETS: u64 = 10_000;

/// The progress of a part: its last steps, for a failure, and the time of its last message.
pub(crate) struct Progress {
    started: Instant,
    told: Instant,
    /// Number of steps.
    pub(crate) step: u64,
    is_verbose: bool,
    recent: std::collections::VecDeque<String>,
}

impl Progress {
    /// Number of last steps to print after a failure.
    const RECENT: usize = 40;

    fn new(is_verbose: bool) -> Self {
        let now = Instant::now();
        Self { started: now, told: now, step: 0, is_verbose, recent: std::collections::VecDeque::new() }
    }

    /// Records the next step.
    pub(crate) fn note(&mut self, what: String) {
        if self.recent.len() == Self::RECENT {
            self.recent.pop_front();
        }
        let seconds = self.started.elapsed().as_secs_f32();
        let line = format!("step {} after {seconds:.1} s: {what}", self.step);
        if self.is_verbose {
            println!("{line}");
        }
        self.recent.push_back(line);
    }

    /// Prints `line` if a minute has passed since the last one.
    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.told.elapsed() >= Duration::from_secs(60) {
            self.told = Instant::now();
            println!("{:7.1} min  step {}: {}", self.elapsed().as_secs_f32() / 60.0, self.step, line());
        }
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let by_time = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let seed = options.seed.unwrap_or_else(by_time);
    println!("soak: seed {seed}, {} h", options.hours);
    // Build everything before the time starts.
    system_tests::image();
    let time = Duration::from_secs_f64((options.hours * 3600.0).clamp(0.0, 1e9));
    let resets = options.resets.unwrap_or((RESETS as f64 * options.hours.clamp(0.0, 1.0)) as u64);
    let is_right = |part| options.part.is_none_or(|only| only == part);
    let mut is_well = true;
    if is_right(Part::Mix) {
        is_well &= run(&options, seed, "mix", |progress, system| mix::run(progress, system, seed, time));
    }
    if is_well && is_right(Part::Resets) {
        is_well &= run(&options, seed, "resets", |progress, system| resets::run(progress, system, resets));
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a part, and prints the result. The part stores its system in the place that it is given, so that the transcript can be
/// printed after a failure.
fn run(
    options: &Options,
    seed: u64,
    part: &str,
    work: impl FnOnce(&mut Progress, &mut Option<System>),
) -> bool {
    let (mut progress, mut system) = (Progress::new(options.verbose), None);
    let result = catch_unwind(AssertUnwindSafe(|| work(&mut progress, &mut system)));
    let minutes = progress.elapsed().as_secs_f32() / 60.0;
    if result.is_ok() {
        println!(
            "soak: {part}: nothing was lost in {minutes:.1} min and {} steps, seed {seed}",
            progress.step
        );
        return true;
    }
    println!("soak: {part}: FAILED at step {} after {minutes:.1} min, seed {seed}", progress.step);
    for line in &progress.recent {
        println!("  {line}");
    }
    if let Some(system) = system {
        let file = ballast_qemu::place::target().join(format!("soak-{part}-{seed}.log"));
        match save(&file, &system) {
            Ok(()) => println!("transcript of the serial line: {}", file.display()),
            Err(error) => println!("{}: {error}", file.display()),
        }
    }
    false
}

fn save(file: &PathBuf, system: &System) -> std::io::Result<()> {
    std::fs::write(file, system.transcript())
}
