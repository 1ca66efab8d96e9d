//! The CPUs (specification, 3.8; binding `arm,cpus`).

use guest_dts::finding::{Finding, Rule, Value};
use guest_dts::tree::Tree;
use heapless::Vec;

use super::Warnings;

/// Maximum number of CPUs that are read.
pub const CPU_LIMIT: usize = 128;

/// Most CPUs that Ballast uses; others are left alone.
pub const MAX_CPUS: usize = 32;

/// The affinity fields: Aff3 in bits 39 to 32, Aff2 to Aff0 in bits 23 to 0 (Arm ARM, MPIDR_EL1).
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

/// A CPU of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of MPIDR_EL1.
    pub mpidr: u64,
    /// `numa-node-id`, if the tree has it.
    pub numa_node: Option<u32>,
}

/// Reads `/cpus`. CPUs beyond the limit are not used, with a warning.
#[inline(never)]
pub(super) fn read<'t>(
    tree: &Tree<'t>,
    warnings: &mut Warnings<'t>,
) -> Result<Vec<Cpu, CPU_LIMIT>, Finding<'t>> {
    let what = Rule::Required("the CPUs");
    let parent = tree.find("/cpus").ok_or_else(|| Finding::no_node("/cpus", what))?;
    let cells = parent.child_cells()?;
    let mut cpus: Vec<Cpu, CPU_LIMIT> = Vec::new();
    let nodes = parent.children().filter(|node| {
        node.base_name() == "cpu" || node.property("device_type").and_then(|kind| kind.str()) == Some("cpu")
    });
    // The boot CPU needs no `enable-method`. If it is the only CPU, QEMU does not write one.
    let mut unstartable = None;
    for (index, node) in nodes.enumerate() {
        // A "disabled" CPU waits to be started; one that says "fail" must not be started (specification, 3.8.1).
        if node
            .property("status")
            .and_then(|status| status.str())
            .is_some_and(|status| status.starts_with("fail"))
        {
            continue;
        }
        let reg = node.pairs("reg", cells)?.next().map_or(u64::MAX, |reg| reg.base);
        let finding = |property, value, rule| Finding::new(node, Some(property), value, rule);
        if reg & !AFFINITY_MASK != 0 {
            let rule = Rule::Must("be the affinity fields of an MPIDR_EL1 and nothing else");
            return Err(finding("reg", Value::Address(reg), rule));
        }
        if cpus.iter().any(|cpu| cpu.mpidr == reg) {
            return Err(finding("reg", Value::Address(reg), Rule::Must("differ from every other CPU's")));
        }
        match node.property("enable-method") {
            Some(method) if method.strings().any(|method| method == "psci") => {}
            Some(method) => return Err(Finding::property(node, method, Rule::Must("be \"psci\""))),
            None => {
                unstartable.get_or_insert(node);
            }
        }
        let numa_node = node.property("numa-node-id").and_then(|id| id.u32());
        if cpus.push(Cpu { mpidr: reg, numa_node }).is_err() {
            warnings.push(Finding::node(node, Rule::TooMany { index, limit: CPU_LIMIT, what: "CPUs" }));
        }
    }
    if cpus.is_empty() {
        return Err(Finding::node(parent, what));
    }
    if let Some(node) = unstartable.filter(|_| cpus.len() > 1) {
        return Err(Finding::missing(node, "enable-method", Rule::Must("be \"psci\"")));
    }
    Ok(cpus)
}
