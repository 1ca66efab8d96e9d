//! `ballast`, the tool on the PC: attaches to Ballast's serial line, shows the use of memory and checks
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
    /// All keys go to Ballast, including its own prefix key (Ctrl-] ? lists its keys). Ctrl-] q ends this program.
    /// Example: make run SERIAL=/tmp/serial, then ballast console /tmp/serial
    Console(console::Options),
    /// Print the log from a second serial line (needs log=frames,second on Ballast's command line)
    ///
    /// On QEMU's virt board, a second -serial option adds that line. Example: ballast log /tmp/log --elf
    /// target/ballast.elf
    Log(log::Options),
    /// Show memory and guests on a screen that refreshes itself
    ///
    /// Uses the line exclusively and brings Ballast's monitor to the front. q quits.
    Top(top::Options),
    /// Write an HTML report about a live machine or a recording
    ///
    /// Live machine: ballast report /tmp/serial --seconds 20 --run 'migrate alpha mc0' --heat. Recording: type guests
    /// --json and other reports under ballast console --record FILE, then ballast report FILE
    Report(report::Options),
    /// Serve metrics for Prometheus over HTTP
    ///
    /// Each scrape asks Ballast's monitor. Example: ballast exporter /tmp/serial --listen localhost:9750
    Exporter(exporter::Options),
    /// Check a configuration blob and print the messages that Ballast would print at boot
    Check(configuration::CheckOptions),
    /// Compile a configuration with dtc and check it
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
