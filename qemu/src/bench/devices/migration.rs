//! Migration of a guest while it transfers, against the same guest while it sleeps.

use super::{RAM_BASE, shell, start_ballast};
use crate::bench::migration::there_and_back;
use crate::bench::{PATIENCE, with_transcript};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::session::Session;
use crate::size::MIB;

/// Most instructions of a page during transfers, as a multiple of those without.
const LIMIT: f64 = 1.05;
/// Bytes moved there and back.
const MOVED: u64 = 256 * MIB;

/// Measures and prints the table. Returns `true` if the limit is met.
pub(super) fn run(image: &Image) -> Result<bool> {
    let mut session = start_ballast(image)?;
    let idle = cost(&mut session)?;
    // Without an end, and quiet.
    shell(
        &mut session,
        "fio --name=t --filename=/dev/vda --direct=1 --ioengine=psync --thread --gtod_reduce=1 --norandommap --size=128m \
         --bs=4k --rw=randrw --time_based --runtime=100000 > /dev/null 2>&1 &",
    )?;
    shell(&mut session, "sleep 5")?;
    let transferred = sectors(&mut session)?;
    let busy = cost(&mut session)?;
    let transferred = (sectors(&mut session)? - transferred) * 512 / MIB;
    let is_good = busy <= LIMIT * idle;
    println!(
        "\nmigration of a guest with devices, instructions per 4 KiB in units of 2 MiB: {idle:.0} while it sleeps, {busy:.0} \
         while it\ntransfers ({transferred} MiB meanwhile); ratio {:.3}, {}limit: {LIMIT}",
        busy / idle,
        if is_good { "" } else { "MISSED, " },
    );
    Ok(is_good)
}

/// Returns the cost of a page of the guest, which is in front.
fn cost(session: &mut Session) -> Result<f64> {
    session.send("\x1dm")?;
    let figure = there_and_back(session, MOVED, RAM_BASE)?;
    session.send("\x1d1")?;
    Ok(figure.moving)
}

/// Returns the number of sectors that the guest has read and written.
fn sectors(session: &mut Session) -> Result<u64> {
    session.send("awk '/ vda / { print \"sectors \" $6 + $10 \" end\" }' /proc/diskstats\r")?;
    let said = session.expect(r"sectors \d+ end", PATIENCE);
    let said = said.map_err(|error| with_transcript(&error, session))?;
    let number = said.split_whitespace().rev().nth(1).and_then(|word| word.parse().ok());
    number.ok_or(Error::Data { path: "Linux".into(), reason: said })
}
