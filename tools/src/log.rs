//! `ballast log`: prints the log from a second serial line (`log=frames,second`) as text.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::frames::Decoder;
use crate::link::{Address, Link, Received};

/// Time limit of one wait for bytes.
const TICK: Duration = Duration::from_secs(1);

/// Options of `ballast log`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The second line: unix:PATH, tcp:HOST:PORT, /dev/DEVICE[,BAUD], or file:PATH for a capture of it
    #[arg(value_name = "LINE")]
    address: Address,
    /// ELF file of the running image
    #[arg(long, value_name = "FILE")]
    elf: PathBuf,
}

/// Prints the log until the line ends.
///
/// # Errors
/// The line cannot be opened or fails, or the ELF file is not an image of Ballast.
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
        eprintln!("{} log frames were damaged on the line", stream.bad_frame_count);
    }
    Ok(())
}
