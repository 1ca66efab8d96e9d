//! The check of a configuration against a host's device tree, by the code that Ballast runs at boot.

use std::sync::atomic::AtomicU32;

use anyhow::{Result, anyhow};
use guest_dts::config::{Configuration, Severity};
use guest_dts::tree::Tree;
use hyp::board::Board;
use hyp::physical::{self, Loaded, MAX_CPUS, NORMAL_FLOOR_FRAMES, Tell};
use stage2::phys::alloc::Memory;
use stage2::phys::frame::Footprint;
use stage2::phys::map::BootMap;

/// Removes from `configuration` the guests that the host of `tree` cannot run, and reports the reasons.
/// `command_line` replaces Ballast's command line in the tree.
///
/// The memory of the image, the tree and the configuration counts as used only if the tree describes it.
///
/// # Errors
/// Ballast would not start on this host.
pub(crate) fn fit<'t>(
    tree: &Tree<'t>,
    command_line: Option<&'t str>,
    configuration: &mut Configuration<'t>,
    tell: &mut Tell<'_>,
) -> Result<()> {
    let board = Board::read_with(tree, command_line).map_err(|error| anyhow!("the host: {error}"))?;
    for warning in board.warnings.iter() {
        tell(Severity::Warning, format_args!("the host: {warning}"));
    }
    let mut map = BootMap::new();
    physical::lay_out(&mut map, tree, &board, &Loaded::default(), Some(configuration), tell)
        .map_err(|error| anyhow!("{error}"))?;
    let words: Vec<AtomicU32> = (0..Footprint::of(&map).words()).map(|_| AtomicU32::new(0)).collect();
    let memory = Box::new(Memory::new());
    memory.boot(&map, &words, NORMAL_FLOOR_FRAMES).map_err(|error| anyhow!("memory: {error}"))?;
    physical::fit(&board, &memory, board.cpus.len().min(MAX_CPUS), configuration, tell);
    Ok(())
}
