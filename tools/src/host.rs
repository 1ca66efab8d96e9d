//! The check of a configuration against a host's device tree, by the code that Ballast runs at boot.

use std::sync::atomic::AtomicU32;

use anyhow::{Result, anyhow};
use guest_dts::config::{Configuration, Layout, Severity};
use guest_dts::guest_tree::platform::IPA_LIMIT;
use guest_dts::tree::Tree;
use hyp::board::Board;
use hyp::physical::assignment::{self, Unprobed};
use hyp::physical::{self, Loaded, MAX_CPUS, NORMAL_FLOOR_FRAMES, Owner, Tell};
use stage2::owner::GuestId;
use stage2::phys::alloc::Memory;
use stage2::phys::frame::Footprint;
use stage2::phys::map::BootMap;
use stage2::phys::pool::Pools;

/// Removes from `configuration` the guests that the host of `tree` cannot run, and reports the reasons.
/// `command_line` replaces Ballast's command line in the tree.
///
/// The memory of the image, the tree and the configuration counts as used only if the tree describes it. Guests get the
/// largest address space, 40 bits; on a CPU with fewer bits of physical addresses, Ballast gives them fewer.
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
    assignment::resolve(&board, tree, &memory, configuration, &Unprobed, tell);
    let layouts: Vec<(&str, Layout)> =
        configuration.guests.iter().filter_map(|guest| Some((guest.name, Layout::of(guest).ok()?))).collect();
    let find = |name: &str| {
        let index = layouts.iter().position(|(other, _)| *other == name)?;
        let id = GuestId::try_new(index as u8)?;
        Some(Owner { id, layout: &layouts[index].1, ipa_limit: IPA_LIMIT })
    };
    physical::set_owners(&mut Pools::of(&map), &configuration.pools, find, tell);
    Ok(())
}
