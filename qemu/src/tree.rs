//! Edits device trees as source, with plain `dtc`.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use crate::error::{AtPath, Result};
use crate::machine::{Filling, Machine};
use crate::process;

/// Applies `overlay`, device tree source, to the tree in the file `tree`.
///
/// The source may refer to any node by path (`&{/cpus/cpu@1} { … };`) and delete nodes and properties.
///
/// # Errors
/// The file cannot be read or written, or `dtc` refuses the source.
pub(crate) fn lay_over(tree: &Path, overlay: &str) -> Result<()> {
    let mut source = source(tree)?;
    source.push_str(overlay);
    let path = tree.with_extension("dts");
    std::fs::write(&path, source).at(&path)?;
    compile(&path, tree)
}

/// Returns the source of a compiled tree.
///
/// # Errors
/// `dtc` is missing or refuses the file.
pub(crate) fn source(tree: &Path) -> Result<String> {
    process::output(Command::new("dtc").args(["-q", "-I", "dtb", "-O", "dts"]).arg(tree))
}

/// Returns the address of the ramdisk in `/chosen` of a compiled tree.
pub(crate) fn ramdisk_address(tree: &Path) -> Option<u64> {
    let mut get = Command::new("fdtget");
    let cells =
        process::output(get.args(["-t", "x"]).arg(tree).args(["/chosen", "linux,initrd-start"])).ok()?;
    let add = |sum: u64, cell: &str| Some(sum << 32 | u64::from_str_radix(cell, 16).ok()?);
    cells.split_whitespace().try_fold(0, add)
}

/// Compiles the tree in `source` to `tree`.
fn compile(source: &Path, tree: &Path) -> Result<()> {
    let mut command = Command::new("dtc");
    process::quietly(command.args(["-q", "-I", "dts", "-O", "dtb", "-o"]).arg(tree).arg(source))
}

/// Returns an overlay that removes a machine's gaps from QEMU's tree: deletes their memory nodes and renumbers the
/// NUMA nodes above them.
pub(crate) fn without_gaps(machine: &Machine) -> String {
    if !machine.has_gap() {
        return String::new();
    }
    let mut source = String::new();
    for range in machine.ranges() {
        let base = range.base;
        // Writing to a String cannot fail.
        let _ = match range.filling {
            Filling::Gap => writeln!(source, "/delete-node/ &{{/memory@{base:x}}};"),
            Filling::Controller(index) => {
                writeln!(source, "&{{/memory@{base:x}}} {{ numa-node-id = <{index}>; }};")
            }
        };
    }
    for (index, controller) in machine.controllers.iter().enumerate() {
        for cpu in cpu_numbers(controller.cpus.as_deref().unwrap_or("")) {
            // QEMU's `virt` with GICv3 has 16 CPUs to a cluster.
            let affinity = (cpu / 16) << 8 | (cpu % 16);
            let _ = writeln!(source, "&{{/cpus/cpu@{affinity:x}}} {{ numa-node-id = <{index}>; }};");
        }
    }
    source.push_str("&{/distance-map} { distance-matrix = <");
    let count = machine.controllers.len();
    for from in 0..count {
        for to in 0..count {
            let distance = if from == to { 10 } else { machine.distance };
            let _ = write!(source, " {from} {to} {distance}");
        }
    }
    source.push_str(" >; };\n");
    source
}

/// Returns the CPUs in a list such as `0-1,4`.
fn cpu_numbers(list: &str) -> Vec<u32> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let range = |item: &str| match item.split_once('-') {
        Some((first, last)) => Some(number(first)?..=number(last)?),
        None => number(item).map(|only| only..=only),
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Boot, Serial};
    use crate::workdir::WorkDir;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(cpu_numbers("0-2,5"), [0, 1, 2, 5]);
        assert!(cpu_numbers("").is_empty());
    }

    #[test]
    fn the_far_machine_has_no_memory_between() {
        let folder = WorkDir::new(0).unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, [0; 64]).unwrap();
        let mut boot = Boot::new(Machine::load("far").unwrap(), &kernel);
        boot.append = "quiet".into();
        boot.tree_overlay = "/ { model = \"edited\"; };".into();
        boot.command(&folder, Serial::Pipe).unwrap();
        let source = source(&folder.path().join("host.dtb")).unwrap();
        assert_eq!(source.matches("\tmemory@").count(), 2, "{source}");
        assert!(source.contains("memory@1000000000 {\n\t\tnuma-node-id = <0x01>;"), "{source}");
        assert!(
            source
                .contains("distance-matrix = <0x00 0x00 0x0a 0x00 0x01 0x14 0x01 0x00 0x14 0x01 0x01 0x0a>")
        );
        assert!(source.contains("model = \"edited\"") && source.contains("bootargs = \"quiet\""));
    }
}
