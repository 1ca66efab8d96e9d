//! Rules between the parts of a configuration.

use super::devices;
use super::layout::Layout;
use super::reader::Reader;
use super::{Configuration, Extent, Guest, MovableMemory, Pool, RamRange};
use crate::finding::{Finding, Note, Rule, Value};
use crate::guest_tree::{BuildError, Choice, GuestTree, movable_argument};
use crate::image::{BootPlan, Image, NoRoom};
use crate::range::PaRange;
use crate::tree::Node;
use stage2::name::Name;

/// Checks the whole configuration and refuses guests that break a rule.
#[inline(never)]
pub(super) fn check<'t>(configuration: &mut Configuration<'t>, reader: &mut Reader<'_, 't>) {
    let mut index = 0;
    while let Some(guest) = configuration.guests.get(index) {
        reader.begin();
        check_guest(guest, configuration.guests.get(..index).unwrap_or_default(), reader);
        match reader.take_error() {
            Some(finding) => configuration.refuse(index, finding),
            None => index += 1,
        }
    }
    reader.begin();
    check_pools(configuration, reader);
    for pool in &configuration.pools {
        let is_known = |owner| configuration.guests.iter().any(|guest| guest.name == owner);
        if pool.owner.is_some_and(|owner| !is_known(owner)) {
            let rule = Rule::Must("be a guest that can start: the pool has no owner now");
            reader.warning(Finding::named(pool.node, "owner", rule));
        }
    }
}

/// Checks `guest` by itself and against the accepted guests `before` it.
#[inline(never)]
fn check_guest<'t>(guest: &Guest<'t>, before: &[Guest<'t>], reader: &mut Reader<'_, 't>) {
    let Some(node) = guest.node else { return };
    for other in before {
        if let Some(&cpu) = guest.cpus.iter().find(|cpu| other.cpus.contains(cpu)) {
            let rule = match other.node {
                Some(node) => Rule::SameAs(node.id()),
                None => Rule::Must("name CPUs that no other guest owns"),
            };
            reader.error(Finding::new(node, Some("host-cpus"), Value::Number(cpu.into()), rule));
        }
    }
    for (index, region) in guest.regions.iter().enumerate() {
        let (Some(ipa), Some(at)) = (region.ipa, region.node) else { continue };
        let value = Value::Range { base: ipa.base().get(), size: ipa.size() };
        for earlier in guest.regions.iter().take(index) {
            if let (Some(other), Some(place)) = (earlier.ipa, earlier.node)
                && other.overlaps(&ipa)
            {
                reader.error(Finding::new(at, Some("reg"), value, Rule::Overlaps(place.id())));
            }
        }
        if !region.is_pinned_in_place {
            continue;
        }
        let pinned = before.iter().flat_map(|guest| &guest.regions).filter(|other| other.is_pinned_in_place);
        for other in pinned {
            if let (Some(range), Some(place)) = (other.ipa, other.node)
                && range.overlaps(&ipa)
            {
                reader.error(Finding::new(at, Some("reg"), value, Rule::Overlaps(place.id())));
            }
        }
    }
    devices::check(guest, node, before, reader);
    if guest.movable_memory == MovableMemory::Numa {
        check_numa(guest, reader);
    }
    if !reader.has_error() {
        check_tree(guest, node, reader);
    }
}

/// Highest NUMA node of Debian's Linux 6.1 (CONFIG_NODES_SHIFT is 4).
const LAST_NUMA_NODE: u8 = 15;

/// Checks that each region names exactly one controller, which becomes the region's NUMA node.
fn check_numa<'t>(guest: &Guest<'t>, reader: &mut Reader<'_, 't>) {
    for region in guest.regions.iter().chain(&guest.dmbs) {
        let last = region.placement.controllers.iter().find(|&&id| id > LAST_NUMA_NODE);
        if let (Some(node), Some(&id)) = (region.node, last) {
            let rule = Rule::Must(
                "be at most 15 with `movable-memory = \"numa\"`: kernels support NUMA nodes 0 to 15",
            );
            reader.error(Finding::new(node, Some("controllers"), Value::Number(id.into()), rule));
        }
        if let (Some(node), false) = (region.node, region.placement.controllers.len() == 1) {
            let rule = Rule::Must("name one controller: it becomes the region's NUMA node in the guest");
            reader.error(match node.property("controllers") {
                Some(property) => Finding::property(node, property, rule),
                None => Finding::missing(node, "controllers", rule),
            });
        }
    }
}

/// Checks the guest's layout, images and tree.
#[inline(never)]
fn check_tree<'t>(guest: &Guest<'t>, node: Node<'t>, reader: &mut Reader<'_, 't>) {
    let Some(layout) = reader.ok(Layout::of(guest)) else { return };
    devices::check_layout(guest, &layout, reader);
    let Ok(image) = Image::parse(guest.kernel) else { return }; // Already reported.
    let ramdisk_size = guest.ramdisk.map(|ramdisk| ramdisk.len() as u64);
    let plan = match BootPlan::new(&image, ramdisk_size, layout.regions()) {
        Ok(plan) => plan,
        Err(NoRoom { needed, largest }) => {
            return reader.error(Finding::named(node, "memory", Rule::ImagesDoNotFit { needed, largest }));
        }
    };
    let tree =
        GuestTree { guest, layout: &layout, plan: &plan, assigned: None, kaslr_seed: None, rng_seed: None };
    if let Err(finding) = tree.check(None) {
        return reader.error(finding);
    }
    if let Err(BuildError::Bootargs(length)) = tree.bootargs() {
        let rule =
            Rule::Must("be shorter than 2048 bytes, including the argument that `movable-memory` adds");
        reader.error(Finding::new(node, Some("bootargs"), Value::Number(length as u64), rule));
    }
    if !guest.dmbs.is_empty() || guest.movable_memory != MovableMemory::Auto {
        reader.note(Finding::node(node, Rule::Note(Note::MovableMemory(Choice::of(guest)))));
    }
    if tree.mode() == MovableMemory::Movablecore && movable_argument(guest).is_some() {
        let rule = Rule::Must(
            "not have movablecore=, kernelcore= or movable_node: `movable-memory` adds its own movablecore=",
        );
        reader.warning(Finding::new(node, Some("bootargs"), Value::Text(guest.bootargs), rule));
    }
    tree.notes(None, &mut |finding| reader.note(finding));
    if tree.mode() == MovableMemory::Dmb && !has_movable_block_support(guest.kernel) {
        let rule = Rule::Must(
            "be one that supports \"designated-movable-block\": this one would leave the memory unused",
        );
        reader.warning(Finding::named(node, "kernel", rule));
    }
}

/// Tests whether the kernel contains the binding's name, as any kernel that supports the binding does.
fn has_movable_block_support(kernel: &[u8]) -> bool {
    contains(kernel, b"designated-movable-block")
}

/// Searches `bytes` for `wanted` by Horspool's algorithm: kernels are large, and boot waits for this.
fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some((_, rest)) = wanted.split_last() else { return true };
    let mut at = 0;
    while let Some(window) = bytes.get(at..at + wanted.len()) {
        if window == wanted {
            return true;
        }
        // Moves `wanted` so that its last occurrence of the window's last byte lies over that byte.
        let last = window.last();
        at += 1 + rest.iter().rev().position(|byte| Some(byte) == last).unwrap_or(rest.len());
    }
    false
}

/// Checks that static blocks do not overlap each other, nor static pools each other, and that each pool lies in one
/// block or outside all. Refuses those that break a rule.
#[inline(never)]
fn check_pools<'t>(configuration: &mut Configuration<'t>, reader: &mut Reader<'_, 't>) {
    let mut index = 0;
    while let Some(block) = configuration.blocks.get(index) {
        let before = configuration.blocks.iter().take(index).map(|block| (block.node, &block.extent));
        match overlap(block.node, &block.extent, before) {
            Some(finding) => {
                reader.error(finding);
                let block = configuration.blocks.remove(index);
                configuration.withhold(block.extent.range());
            }
            None => index += 1,
        }
    }
    index = 0;
    while let Some(pool) = configuration.pools.get(index) {
        let before = configuration.pools.iter().take(index).map(|pool| (pool.node, &pool.extent));
        let finding = same_name(pool, configuration.pools.iter().take(index));
        let finding =
            finding.or_else(|| overlap(pool.node, &pool.extent, before)).or_else(|| match pool.extent {
                Extent::Static(range) => mixed(configuration, pool.node, range, pool.is_in_dmb)
                    .or_else(|| over_owner(configuration, pool, range)),
                Extent::Dynamic { .. } => None,
            });
        match finding {
            Some(finding) => {
                reader.error(finding);
                let pool = configuration.pools.remove(index);
                configuration.withhold(pool.extent.range());
            }
            None => index += 1,
        }
    }
}

/// Checks that the name of `pool` differs from the others in the characters that Ballast keeps.
fn same_name<'a, 't: 'a>(
    pool: &Pool<'t>,
    mut before: impl Iterator<Item = &'a Pool<'t>>,
) -> Option<Finding<'t>> {
    let name = Name::new(pool.node.name());
    let is_taken = before.any(|other| Name::new(other.node.name()) == name);
    let rule = Rule::Must("have a name whose first 31 characters differ from the other pools' names");
    is_taken.then(|| Finding::node(pool.node, rule))
}

/// Checks that a pool that is pinned in place does not overlap its owner's RAM: claimed ranges appear at their own
/// address.
#[inline(never)]
fn over_owner<'t>(configuration: &Configuration<'t>, pool: &Pool<'t>, range: PaRange) -> Option<Finding<'t>> {
    let owner = pool.owner.filter(|_| pool.is_pinned_in_place)?;
    let guest = configuration.guests.iter().find(|guest| guest.name == owner)?;
    let layout = Layout::of(guest).ok()?;
    let (start, end) = (range.base().get(), range.end());
    let overlaps = |ram: &RamRange| ram.range.base().get() < end && start < ram.range.end();
    layout.ranges.iter().any(overlaps).then(|| {
        let value = Value::Range { base: start, size: range.size() };
        Finding::new(
            pool.node,
            Some("reg"),
            value,
            Rule::OverlapsWith("the owner's RAM: a `pinned-in-place` pool appears at its physical address"),
        )
    })
}

#[inline(never)]
fn overlap<'a, 't: 'a>(
    node: Node<'t>,
    extent: &Extent,
    mut before: impl Iterator<Item = (Node<'t>, &'a Extent)>,
) -> Option<Finding<'t>> {
    let Extent::Static(range) = extent else { return None };
    let overlaps = |other: &Extent| matches!(other, Extent::Static(other) if other.overlaps(range));
    let (other, _) = before.find(|(_, other)| overlaps(other))?;
    let value = Value::Range { base: range.base().get(), size: range.size() };
    Some(Finding::new(node, Some("reg"), value, Rule::Overlaps(other.id())))
}

/// Checks that a pool lies wholly in one of the configuration's blocks or wholly outside all. Blocks of the host's
/// tree and of the command line are unknown here.
#[inline(never)]
fn mixed<'t>(
    configuration: &Configuration<'t>,
    node: Node<'t>,
    range: PaRange,
    is_in_dmb: bool,
) -> Option<Finding<'t>> {
    let value = Value::Range { base: range.base().get(), size: range.size() };
    for block in &configuration.blocks {
        let Extent::Static(of_block) = block.extent else { continue };
        if !of_block.overlaps(&range) {
            continue;
        }
        if !is_in_dmb {
            return Some(Finding::new(node, Some("reg"), value, Rule::Overlaps(block.node.id())));
        }
        if !of_block.contains(&range) {
            let rule = Rule::Must("lie wholly in one designated movable block");
            return Some(Finding::new(node, Some("reg"), value, rule));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::contains;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_search_agrees_with_the_standard_library(bytes in "[ab]{0,40}", wanted in "[abc]{0,5}") {
            prop_assert_eq!(contains(bytes.as_bytes(), wanted.as_bytes()), bytes.contains(&wanted));
        }
    }
}
