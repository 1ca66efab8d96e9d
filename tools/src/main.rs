//! `ballast`, the tool on the PC: attaches to Ballast's serial line, shows where memory lies, checks
//! configurations.

use std::process::ExitCode;

use anyhow::Result;
use ballast_tools::{configuration, console, exporter, log, report, top};
use clap::{Parser, Subcommand};

/// Ballast's tool on the PC.
#[derive(Parser)]
#[command(name = "ballast", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attach this terminal to Ballast's serial line
    ///
    /// Everything that is typed goes to Ballast, its own keys too (Ctrl-] ? lists them); Ctrl-] q ends this program.
    /// Example: make run SERIAL=/tmp/serial, then ballast console /tmp/serial
    Console(console::Options),
    /// Print the log from a second serial line (Ballast's command line: log=frames,second)
    ///
    /// On QEMU's virt board, a second -serial option makes that line. Example: ballast log /tmp/log --elf
    /// target/ballast.elf
    Log(log::Options),
    /// Show where memory lies and what the guests do, on a screen that refreshes itself
    ///
    /// Takes the line to itself: Ballast's monitor comes to front. q ends.
    Top(top::Options),
    /// Write one HTML file from a live machine or a recording
    ///
    /// From a live machine: ballast report /tmp/serial --seconds 20 --run 'migrate alpha mc0' --heat. From what ballast
    /// console --record FILE recorded while reports were asked for (guests --json and the like): ballast report FILE
    Report(report::Options),
    /// Serve figures for Prometheus over HTTP
    ///
    /// Each scrape asks Ballast's monitor. Example: ballast exporter /tmp/serial --listen localhost:9750
    Exporter(exporter::Options),
    /// Check a configuration blob, in the words that Ballast has for what is wrong
    Check(configuration::CheckOptions),
    /// Compile a configuration by plain dtc, and check it
    Image(configuration::ImageOptions),
}

fn run(command: &Command) -> Result<bool> {
    match command {
        Command::Console(options) => console::run(options)?,
        Command::Log(options) => log::run(options)?,
        Command::Top(options) => top::run(options)?,
        Command::Report(options) => report::run(options)?,
        Command::Exporter(options) => exporter::run(options)?,
        Command::Check(options) => return configuration::check(options),
        Command::Image(options) => return configuration::image(options),
    }
    Ok(true)
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ballast: {error:#}");
            ExitCode::FAILURE
        }
    }
}
