//! Fuzzing of trees and configurations: every input must get an answer, without a panic. See
//! `guest_dts::testing::fuzz`; the corpus is in corpus/.

use std::fmt::Write;
use std::path::Path;

use guest_dts::config::{Configuration, ControllerRoom, Guest, Host, Layout, Severity};
use guest_dts::finding::Finding;
use guest_dts::guest_tree::{Assigned, AssignedDevice, Choice, GuestTree, PciBus, PciSlot, platform};
use guest_dts::image::{BootPlan, Image};
use guest_dts::testing::fuzz;
use guest_dts::tree::{AlignedBlob, Tree, TreeSource};

fn corpus(kind: &str) -> Vec<Vec<u8>> {
    fuzz::corpus(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(kind))
}

/// Reads everything in a tree.
fn read_tree(bytes: &[u8]) -> String {
    let blob = AlignedBlob::new(bytes);
    let tree = match Tree::new(blob.as_slice()) {
        Ok(tree) => tree,
        Err(error) => return error.to_string(),
    };
    let mut answer = String::new();
    for node in tree.nodes() {
        let reg = node.cpu_reg::<8>().map(|reg| reg.len()).map_err(|finding| finding.rule().to_string());
        let _ = write!(answer, "{reg:?} {} {:?}", node.is_enabled(), node.phandle().is_some());
        assert!(node.parent().is_some() != node.is_root());
        assert_eq!(
            node.ancestors().count(),
            node.path().to_string().matches('/').count() - usize::from(node.is_root())
        );
        assert!(tree.nodes().any(|other| other == node));
    }
    let printed = TreeSource(tree).to_string();
    assert!(printed.ends_with("};\n"));
    answer
}

/// Returns the devices of `guest`, from the tree `host`.
fn assigned<'t>(guest: &Guest<'t>, host: &Tree<'t>) -> Assigned<'t> {
    let slot = |index| PciSlot { device: index as u8 + 1, spi: Some((platform::ASSIGNED_SPI_BASE, false)) };
    let slots = (0..guest.pci_functions.len()).map(slot).collect();
    let nodes = guest.devices.iter().filter_map(|path| host.find(path)).enumerate();
    let device = |(index, node)| AssignedDevice {
        node,
        regs: vec![(platform::DEVICE_BASE + index as u64 * 0x1_0000, 0x1000)],
        spis: vec![(platform::ASSIGNED_SPI_BASE + 1, true)],
        is_coherent: true,
    };
    let pci = (!guest.pci_functions.is_empty()).then_some(PciBus { slots, is_coherent: true });
    Assigned { pci, devices: nodes.map(device).collect() }
}

/// Reads a configuration, places its guests on a host and builds their trees.
fn read_configuration(bytes: &[u8]) -> String {
    let blob = AlignedBlob::new(bytes);
    let Ok(tree) = Tree::new(blob.as_slice()) else { return String::new() };
    let mut answer = String::new();
    let mut sink = |severity: Severity, finding: Finding<'_>| {
        let _ = writeln!(answer, "{severity:?} {}", finding.rule());
        assert!(!finding.to_string().is_empty());
    };
    let mut configuration = match Configuration::read(&tree, &mut sink) {
        Ok(configuration) => configuration,
        Err(finding) => return finding.to_string(),
    };
    let controllers = [0, 1, 7].map(|id| ControllerRoom { id, free: 1 << 30, unmovable: 1 << 29 });
    let host = Host { cpu_count: 4, controllers: controllers.into_iter().collect() };
    configuration.fit_blocks(&host, &mut sink);
    // The configuration itself serves as the host's tree.
    configuration.fit_nodes(&tree, &mut sink);
    configuration.fit(&host, &mut sink);
    assert!(configuration.guests.iter().all(|guest| guest.fit(&host).is_ok()));
    for guest in &configuration.guests {
        // An accepted guest can be built.
        let layout = Layout::of(guest).unwrap();
        let ramdisk = guest.ramdisk.map(|ramdisk| ramdisk.len() as u64);
        let plan = BootPlan::new(&Image::parse(guest.kernel).unwrap(), ramdisk, layout.regions()).unwrap();
        let assigned = assigned(guest, &tree);
        let input = GuestTree {
            guest,
            layout: &layout,
            plan: &plan,
            assigned: guest.has_devices().then_some(&assigned),
            kaslr_seed: None,
            rng_seed: None,
        };
        let _ = write!(answer, "{}", Choice::of(guest));
        match input.build_with_host(Some(&tree)) {
            Ok(built) => {
                // Ballast builds the tree on a small heap (hyp_mem/heap in hyp).
                assert!(built.len() < 48 << 10, "{} bytes", built.len());
                let built = AlignedBlob::new(&built);
                Tree::new(built.as_slice()).unwrap();
            }
            Err(error) => {
                let _ = write!(answer, "{error}");
            }
        }
    }
    answer
}

#[test]
fn hostile_trees_do_no_harm() {
    let run = fuzz::run(&[corpus("host"), corpus("configuration")].concat(), 20_000, read_tree);
    fuzz::save(&run);
    assert!(run.answer_count > 50, "{} answers", run.answer_count);
}

#[test]
fn hostile_configurations_do_no_harm() {
    let run = fuzz::run(&corpus("configuration"), 20_000, read_configuration);
    fuzz::save(&run);
    assert!(run.answer_count > 50, "{} answers", run.answer_count);
}
