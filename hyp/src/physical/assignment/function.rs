//! PCI functions of a guest: bridge, configuration space, stream and INTx.

use super::{Assignment, Function, Host, RootPin, permit_without_smmu};
use crate::board::HostBridge;
use crate::physical::Tell;
use guest_dts::config::{Guest, Severity};
use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::tree::Node;

/// Adds the functions of `guest`, whose node is `node`.
pub(super) fn add_all<'t>(
    host: &Host<'_, 't>,
    guest: &Guest<'t>,
    node: Node<'t>,
    assignment: &mut Assignment<'t>,
    tell: &mut Tell<'_>,
) -> Result<(), Finding<'t>> {
    for (index, &rid) in guest.pci_functions.iter().enumerate() {
        let finding = |rule| Finding::new(node, Some("pci-functions"), Value::Address(u64::from(rid)), rule);
        let (bridge, found) = bridge(host, rid, &finding)?;
        let Some(config) = found.config_page(rid) else { return Err(finding(NOT_THERE)) };
        if !host.probe.is_present(bridge, rid) {
            return Err(finding(NOT_THERE));
        }
        let stream = found.stream(&host.board.smmus, rid)?;
        if stream.is_none() {
            permit_without_smmu(guest, finding)?;
        }
        if assignment.functions.first().is_some_and(|first| first.is_coherent != found.is_coherent) {
            return Err(finding(Rule::Must(
                "be coherent (`dma-coherent` of its host bridge) like the guest's other functions: they share a bus",
            )));
        }
        let line = match root_pin(host, found, bridge, rid) {
            Some(RootPin { pin: 0, .. }) => None,
            Some(RootPin { device, pin }) => {
                let interrupt = found.interrupt(device, pin)?;
                Some(assignment.line(host.board, interrupt).map_err(finding)?)
            }
            None => {
                let name = guest.name;
                tell(
                    Severity::Note,
                    format_args!(
                        "guest {name}: the interrupt of PCI function {rid:#06x} depends on the bridges in front of it; only the host itself can check it"
                    ),
                );
                None
            }
        };
        // The configuration limits the number of functions.
        let device = index as u8 + 1;
        let is_coherent = found.is_coherent;
        assignment.functions.push(Function { rid, bridge, config, device, stream, line, is_coherent });
    }
    Ok(())
}

const NOT_THERE: Rule =
    Rule::Must("be the RID of a function that answers: bus << 8 | device << 3 | function");

/// Returns the pin of `rid` on the first bus of its bridge. On a PC, INTA is assumed for a function on that bus, and nothing is
/// known of a function behind another bridge.
fn root_pin(host: &Host<'_, '_>, found: &HostBridge<'_>, bridge: u8, rid: u16) -> Option<RootPin> {
    let is_on_first_bus = (rid >> 8) as u8 == found.buses.0;
    let assumed = is_on_first_bus.then_some(RootPin { device: (rid >> 3 & 0x1f) as u8, pin: 1 });
    host.probe.root_pin(bridge, rid).or(assumed)
}

/// Returns the bridge of function `rid`, with its index. If several bridges have its bus, the one of PCI domain 0 counts.
fn bridge<'a, 't>(
    host: &Host<'a, 't>,
    rid: u16,
    finding: &dyn Fn(Rule) -> Finding<'t>,
) -> Result<(u8, &'a HostBridge<'t>), Finding<'t>> {
    let bridges = || {
        let all = host.board.bridges.iter().enumerate().map(|(index, bridge)| (index as u8, bridge));
        all.filter(|(_, bridge)| bridge.has(rid))
    };
    let first = |bridge: &(u8, &HostBridge<'t>)| bridge.1.domain == Some(0);
    match (bridges().count(), bridges().filter(first).count()) {
        // A bridge that cannot be used may be the one that is meant.
        (0, _) => Err(HostBridge::errors(host.tree)
            .next()
            .unwrap_or_else(|| finding(Rule::Must("be on a bus of one of the host's PCI host bridges")))),
        (1, _) => bridges().next().ok_or_else(|| finding(NOT_THERE)),
        (_, 1) => bridges().find(first).ok_or_else(|| finding(NOT_THERE)),
        _ => Err(finding(Rule::Must(
            "be on a bus of only one of the host's PCI host bridges, or of the one with `linux,pci-domain` 0",
        ))),
    }
}
