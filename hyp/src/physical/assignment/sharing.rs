//! Interrupts and StreamIDs, which two guests must not share.

use super::device::about_interrupts;
use super::{Assignment, Host};
use crate::board::{Stream, StreamMap, has_stream};
use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::tree::Node;

/// Checks the assignment of the guest with the node `guest` against those of the guests before it and against the host's
/// tree.
pub(super) fn check<'t>(
    host: &Host<'_, 't>,
    guest: Node<'t>,
    assignment: &Assignment<'t>,
    before: &[Option<Assignment<'t>>],
) -> Result<(), Finding<'t>> {
    let is_others = |line: u8| {
        let intid = assignment.lines.get(usize::from(line)).map(|line| line.intid);
        before.iter().flatten().flat_map(|other| &other.lines).any(|line| Some(line.intid) == intid)
    };
    for function in &assignment.functions {
        let finding = |rule| {
            Finding::new(
                guest,
                Some("pci-functions"),
                Value::Address(u64::from(function.rid)),
                Rule::Must(rule),
            )
        };
        if function.line.is_some_and(is_others) {
            return Err(finding(
                "have an INTx line that no other guest has: move the function to a slot with another line",
            ));
        }
        if function.stream.is_some_and(|stream| is_shared(host, assignment, stream)) {
            return Err(finding(
                "have a StreamID that only functions and devices of the same guest have: the SMMU cannot tell it from others",
            ));
        }
    }
    for device in &assignment.devices {
        if device.lines.iter().any(|&line| is_others(line)) {
            let rule = Rule::Must("be interrupts that no other guest has");
            return Err(about_interrupts(device.node, rule));
        }
        if device.streams.iter().any(|&stream| is_shared(host, assignment, stream)) {
            let rule = Rule::Must("be StreamIDs that only functions and devices of the same guest have");
            return Err(Finding::named(device.node, "iommus", rule));
        }
    }
    Ok(())
}

/// Tests whether something outside `assignment` has `stream` by the host's tree.
fn is_shared<'t>(host: &Host<'_, 't>, assignment: &Assignment<'t>, stream: Stream) -> bool {
    let smmus = &host.board.smmus;
    host.tree.nodes().filter(|node| node.is_enabled()).any(|node| {
        let is_own = || assignment.devices.iter().any(|device| device.node == node);
        if has_stream(smmus, node, stream) && !is_own() {
            return true;
        }
        // A map that is malformed leads nowhere.
        let Ok(Some(map)) = StreamMap::read(node) else { return false };
        let bridge =
            host.board.bridges.iter().position(|bridge| bridge.node == node).map(|index| index as u8);
        let is_own = |rid| {
            let mut functions = assignment.functions.iter();
            functions.any(|function| Some(function.bridge) == bridge && function.rid == rid)
        };
        let is_absent = |rid| bridge.is_some_and(|bridge| !host.probe.is_present(bridge, rid));
        map.users(smmus, stream).any(|rid| !is_own(rid) && !is_absent(rid))
    })
}
