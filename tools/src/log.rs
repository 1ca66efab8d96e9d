//! `ballast log`: the log from a serial line of its own (`log=frames,second`), as text.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::frames::Decoder;
use crate::link::{Address, Link, Received};

/// How long nothing may come before the line is looked at again.
const TICK: Duration = Duration::from_secs(1);

/// What `ballast log` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the second line is: unix:PATH, tcp:HOST:PORT, /dev/DEVICE[,BAUD], or file:PATH for what came over it
    #[arg(value_name = "LINE")]
    pub address: Address,
    /// The running image's ELF file
    #[arg(long, value_name = "FILE")]
    pub elf: PathBuf,
}

/// Prints the log until the line ends.
///
/// # Errors
/// The line cannot be opened or fails, or the ELF file is no image.
pub fn run(options: &Options) -> Result<()> {
    let decoder = Decoder::load(&options.elf)?;
    let mut link = Link::open(&options.address)?;
    let mut stream = decoder.stream();
    loop {
        match link.receive(TICK)? {
            Received::Bytes(bytes) => {
                let mut out = stdout().lock();
                for line in stream.take(&bytes) {
                    writeln!(out, "{line}")?;
                }
                out.flush()?;
            }
            Received::Nothing => {}
            Received::End => break,
        }
    }
    if stream.bad_frame_count != 0 {
        eprintln!("{} frames of the log came damaged", stream.bad_frame_count);
    }
    Ok(())
}
