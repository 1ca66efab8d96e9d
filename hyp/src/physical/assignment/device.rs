//! Platform devices of a guest: registers, streams and interrupts.

use super::{Assignment, Device, Host, permit_without_smmu, reserved};
use crate::board::{self, Stream, device_interrupts, device_streams};
use crate::physical::Tell;
use alloc::vec::Vec;
use guest_dts::config::{Configuration, Guest, Severity};
use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::guest_tree::platform::{DEVICE_BASE, DEVICE_SIZE};
use guest_dts::range::PaRange;
use guest_dts::tree::{Node, Reg};
use stage2::addr::FRAME_SIZE;

/// Maximum number of entries in `reg` of a device.
const REG_LIMIT: usize = 8;

/// Adds the platform devices of `guest`, whose node is `owner`. `before` are the assignments of the guests before it.
pub(super) fn add_all<'t>(
    host: &Host<'_, 't>,
    configuration: &Configuration<'t>,
    guest: &Guest<'t>,
    owner: Node<'t>,
    assignment: &mut Assignment<'t>,
    before: &[Option<Assignment<'t>>],
    tell: &mut Tell<'_>,
) -> Result<(), Finding<'t>> {
    for &path in &guest.devices {
        let finding = |rule| Finding::new(owner, Some("devices"), Value::Text(path), rule);
        let Some(node) = host.tree.find(path) else {
            return Err(finding(Rule::Must("be the path of a node in the host's tree")));
        };
        // Two paths may name one node.
        if assignment.devices.iter().any(|device| device.node == node) {
            return Err(finding(Rule::Must("not name a device of the guest a second time")));
        }
        let of = |assignment: &Option<Assignment<'t>>| {
            assignment.iter().any(|other| other.devices.iter().any(|device| device.node == node))
        };
        if let Some(other) = before.iter().position(of) {
            return Err(finding(match configuration.guests.get(other).and_then(|guest| guest.node) {
                Some(other) => Rule::SameAs(other.id()),
                None => Rule::Must("belong to no other guest"),
            }));
        }
        if !is_in_use(node) {
            return Err(finding(Rule::Must(
                "name a device that is enabled, and so is every bus above (`status`)",
            )));
        }
        let streams: Vec<Stream> = device_streams(&host.board.smmus, node)?.into_iter().collect();
        if streams.is_empty() {
            permit_without_smmu(guest, finding)?;
        }
        let is_coherent = board::is_coherent(node);
        let mut device =
            Device { node, pages: Vec::new(), regs: Vec::new(), streams, lines: Vec::new(), is_coherent };
        place(host, &mut device, assignment)?;
        let others =
            |node| configuration.guests.iter().any(|one| !is_same(one, guest) && has(host, one, node));
        let own = |node| has(host, guest, node);
        for &(_, range) in &device.pages {
            check_neighbours(host, node, range, !device.streams.is_empty(), &own, &others, tell)?;
        }
        for interrupt in device_interrupts(node)? {
            device
                .lines
                .push(assignment.line(host.board, interrupt).map_err(|rule| about_interrupts(node, rule))?);
        }
        assignment.devices.push(device);
    }
    Ok(())
}

/// Creates a finding about the interrupts of `node`.
pub(super) fn about_interrupts<'t>(node: Node<'t>, rule: Rule) -> Finding<'t> {
    match node.property("interrupts-extended").or_else(|| node.property("interrupts")) {
        Some(property) => Finding::property(node, property, rule),
        None => Finding::node(node, rule),
    }
}

/// Tests whether `node` and its ancestors are enabled.
fn is_in_use(node: Node<'_>) -> bool {
    node.is_enabled() && node.ancestors().all(|above| above.is_enabled())
}

fn is_same(one: &Guest<'_>, other: &Guest<'_>) -> bool {
    one.name == other.name
}

/// Tests whether the configuration gives `node` to `guest`.
fn has<'t>(host: &Host<'_, 't>, guest: &Guest<'t>, node: Node<'t>) -> bool {
    guest.devices.iter().any(|path| host.tree.find(path) == Some(node))
}

/// Gives the registers of `device` guest addresses, after those of the devices in `assignment`.
fn place<'t>(
    host: &Host<'_, 't>,
    device: &mut Device<'t>,
    assignment: &Assignment<'t>,
) -> Result<(), Finding<'t>> {
    let node = device.node;
    let mapped = assignment.devices.iter().flat_map(|device| &device.pages);
    let mut next = mapped.map(|(ipa, range)| ipa + range.size()).max().unwrap_or(DEVICE_BASE);
    for Reg { base, size } in node.cpu_reg::<REG_LIMIT>()? {
        let finding = |rule| Finding::new(node, Some("reg"), Value::Range { base, size }, rule);
        let whole = (|| {
            let end = base.checked_add(size)?.checked_next_multiple_of(FRAME_SIZE)?;
            PaRange::between(base & !(FRAME_SIZE - 1), end)
        })();
        let Some(whole) = whole else { return Err(finding(Rule::Must("end below 2^48"))) };
        if let Some(owner) = reserved::owner_of_range(host.board, whole) {
            return Err(finding(Rule::OverlapsWith(owner)));
        }
        let offset = base - whole.base().get();
        let mapped = assignment.devices.iter().flat_map(|device| &device.pages).chain(&device.pages);
        let mut holding = mapped.filter(|(_, range)| range.contains(&whole));
        if let Some(&(ipa, range)) = holding.next() {
            device.regs.push((ipa + (base - range.base().get()), size));
            continue;
        }
        let end = next.checked_add(whole.size()).filter(|end| *end <= DEVICE_BASE + DEVICE_SIZE);
        let Some(end) = end else {
            return Err(finding(Rule::Must("fit into the 128 MiB for the registers of a guest's devices")));
        };
        device.pages.push((next, whole));
        device.regs.push((next + offset, size));
        next = end;
    }
    Ok(())
}

/// Checks whose registers lie in the pages `range` of the device `node`.
fn check_neighbours<'t>(
    host: &Host<'_, 't>,
    node: Node<'t>,
    range: PaRange,
    is_isolated: bool,
    is_own: &dyn Fn(Node<'t>) -> bool,
    is_others: &dyn Fn(Node<'t>) -> bool,
    tell: &mut Tell<'_>,
) -> Result<(), Finding<'t>> {
    let value = Value::Range { base: range.base().get(), size: range.size() };
    for other in host.registers.within(range) {
        // Nodes below the device are part of it.
        if other == node || is_own(other) || other.ancestors().any(|above| above == node) {
            continue;
        }
        if is_others(other) {
            let rule = Rule::Must("not share a page of 4 KiB with a device of another guest");
            return Err(Finding::new(node, Some("reg"), value, rule));
        }
        if is_isolated {
            return Err(Finding::new(node, Some("reg"), value, Rule::Overlaps(other.id())));
        }
        tell(
            Severity::Warning,
            format_args!(
                "configuration: {}: the guest reaches the registers of {}, too, which lie in the same page",
                node.path(),
                other.path()
            ),
        );
    }
    Ok(())
}
