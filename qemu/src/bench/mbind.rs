//! The cost of moving memory between two NUMA nodes in Linux (mbind with MPOL_MF_MOVE), on the same machine as
//! Ballast.

use super::{LINUX, PATIENCE, with_transcript};
use crate::boot::Boot;
use crate::error::{Error, Result};
use crate::image::build_payloads;
use crate::machine::Machine;
use crate::session::Session;
use crate::size::MIB;
use crate::{place, ramdisk, store};

/// Instructions per 4 KiB.
#[derive(Clone, Copy)]
pub(super) struct Mbind {
    /// Cost in pages of 4 KiB.
    pub(super) small: f64,
    /// Cost in transparent huge pages of 2 MiB.
    pub(super) huge: f64,
}

/// Boots Linux without Ballast on one CPU and two nodes, with the benchmark as `/init`.
pub(super) fn measure() -> Result<Mbind> {
    let archive = place::target().join("bench-mbind.cpio");
    ramdisk::of_program(&build_payloads()?.join("mbind"), &archive)?;
    let machine = Machine::with_controllers(1, &[512 * MIB; 2]);
    let mut boot = Boot::new(machine, store::get(LINUX)?.file);
    boot.board = "virt,gic-version=3".into();
    boot.ramdisk = Some(archive);
    boot.append = "console=ttyAMA0 quiet nokaslr initcall_blacklist=jent_mod_init".into();
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    let said = session.expect("mbind (done|failed[^\n]*)", PATIENCE);
    let said = said.map_err(|error| with_transcript(&error, &session))?;
    match (figure(&said, 4096), figure(&said, 2 * MIB)) {
        (Some(small), Some(huge)) if said.ends_with("done") => Ok(Mbind { small, huge }),
        _ => Err(Error::Data { path: "mbind".into(), reason: said }),
    }
}

/// Computes instructions per page from the line `mbind UNIT PAGES NANOSECONDS`. An instruction takes one nanosecond.
fn figure(said: &str, unit: u64) -> Option<f64> {
    let mut lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find_map(|words| match words.as_slice() {
        [.., "mbind", found, pages, nanoseconds] if found.parse() == Ok(unit) => {
            Some(nanoseconds.parse::<f64>().ok()? / pages.parse::<f64>().ok()?)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_page() {
        let said = "[    0.9] Run /init\r\nmbind 4096 100 1340000\r\nmbind 2097152 512 1000000\r\nmbind done";
        assert_eq!(figure(said, 4096), Some(13_400.0));
        assert_eq!(figure(said, 2 << 20), Some(1_953.125));
        assert_eq!(figure(said, 1 << 30), None);
    }
}
