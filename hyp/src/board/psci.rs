//! How firmware is called (binding `arm,psci`).

use guest_dts::finding::{Finding, Rule};
use guest_dts::tree::{Node, Tree};

/// The host's PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Psci {
    /// The instruction that calls it.
    pub conduit: Conduit,
    /// What the tree says of its version.
    pub version: PsciVersion,
}

/// The instruction that calls firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC: firmware at EL3.
    Smc,
    /// HVC: another hypervisor below.
    Hvc,
}

/// The oldest version that the node is compatible with; from 0.2 on, PSCI_VERSION tells more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciVersion {
    /// Before 0.2: function numbers as the tree has them, and nothing but them.
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
    Finding::missing(node, "cpu_on", Rule::Required("the function's number, with \"arm,psci\" alone"))
}
