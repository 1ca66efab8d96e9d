//! PSCI of the host's firmware (binding `arm,psci`).

use guest_dts::finding::{Finding, Rule};
use guest_dts::tree::{Node, Tree};

/// The host's PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Psci {
    /// Instruction that calls firmware.
    pub conduit: Conduit,
    /// Version according to the tree.
    pub version: PsciVersion,
}

/// The instruction that calls firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC: firmware at EL3.
    Smc,
    /// HVC: Ballast runs under another hypervisor.
    Hvc,
}

/// The version in `compatible`. From 0.2, PSCI_VERSION has the exact one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciVersion {
    /// Before 0.2: only functions whose numbers are in the tree.
    V0_1 {
        /// CPU_ON.
        cpu_on: u32,
        /// CPU_OFF.
        cpu_off: Option<u32>,
        /// CPU_SUSPEND.
        cpu_suspend: Option<u32>,
    },
    /// 0.2: standard function numbers.
    V0_2,
    /// 1.0 or newer.
    V1_0,
}

impl Psci {
    /// Reads the PSCI node.
    #[inline(never)]
    pub(super) fn read<'t>(tree: &Tree<'t>) -> Result<Self, Finding<'t>> {
        let compatible = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
        let mut nodes = tree.nodes();
        let node =
            nodes.find(|node| node.is_enabled() && compatible.iter().any(|name| node.is_compatible(name)));
        let node = node.ok_or_else(|| {
            let what = "node compatible with \"arm,psci-1.0\", \"arm,psci-0.2\" or \"arm,psci\"";
            Finding::no_node(what, Rule::Required("starts and stops CPUs"))
        })?;
        let method_rule = Rule::Must("be \"smc\" or \"hvc\"");
        let conduit = match node.property("method") {
            None => return Err(Finding::missing(node, "method", method_rule)),
            Some(method) => match method.str() {
                Some("smc") => Conduit::Smc,
                Some("hvc") => Conduit::Hvc,
                _ => return Err(Finding::property(node, method, method_rule)),
            },
        };
        let version = if node.is_compatible("arm,psci-1.0") {
            PsciVersion::V1_0
        } else if node.is_compatible("arm,psci-0.2") {
            PsciVersion::V0_2
        } else {
            let number = |name| node.property(name).and_then(|property| property.u32());
            let cpu_on = number("cpu_on").ok_or_else(|| cpu_on_missing(node))?;
            PsciVersion::V0_1 { cpu_on, cpu_off: number("cpu_off"), cpu_suspend: number("cpu_suspend") }
        };
        Ok(Self { conduit, version })
    }
}

fn cpu_on_missing(node: Node<'_>) -> Finding<'_> {
    Finding::missing(
        node,
        "cpu_on",
        Rule::Required("the number of CPU_ON, since the node is only \"arm,psci\""),
    )
}
