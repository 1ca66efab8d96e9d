//! Configurations: those that ship, and broken ones.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::*;
use crate::build::GuestTree;
use crate::image::{BootPlan, Image};
use crate::testing::compile_with_images as compile;
use crate::tree::AlignedBlob;

/// The sets that ship.
const SETS: [(&str, &str); 5] = [
    ("alpha-beta", include_str!("../../alpha-beta.dts")),
    ("two-controllers", include_str!("../../two-controllers.dts")),
    ("own-controllers", include_str!("../../own-controllers.dts")),
    ("interleaved", include_str!("../../interleaved.dts")),
    ("pool-owner", include_str!("../../pool-owner.dts")),
];

/// A host with two controllers and four CPUs, as `make run` has it.
fn host() -> Host {
    let room = |id| ControllerRoom { id, free: 1000 << 20 };
    Host { cpu_count: 4, controllers: [room(0), room(1)].into_iter().collect() }
}

/// Everything that is said about `source`.
fn findings(source: &str) -> Vec<String> {
    let blob = compile(source);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let mut found = Vec::new();
    let mut sink = |severity: Severity, finding: Finding<'_>| found.push(format!("{severity:?}: {finding}"));
    match Configuration::read(&tree, &mut sink) {
        Ok(mut configuration) => configuration.fit(&host(), &mut sink),
        Err(finding) => found.push(format!("Refused: {finding}")),
    }
    found
}

#[test]
fn the_sets_that_ship_are_sound_and_fit() {
    for (name, source) in SETS {
        assert_eq!(findings(source), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn guests_of_the_sets_get_trees() {
    for (name, source) in SETS {
        let blob = compile(source);
        let tree = Tree::new(blob.as_slice()).unwrap();
        let mut sink = |_: Severity, finding: Finding<'_>| panic!("{finding}");
        let configuration = Configuration::read(&tree, &mut sink).unwrap();
        for guest in &configuration.guests {
            let layout = Layout::of(guest).unwrap();
            let image = Image::parse(guest.kernel).unwrap();
            let plan = BootPlan::new(&image, guest.ramdisk.map(|data| data.len() as u64), &layout).unwrap();
            let input = GuestTree { guest, layout: &layout, plan: &plan, kaslr_seed: None, rng_seed: None };
            let blob = AlignedBlob::new(&input.build().unwrap());
            let built = Tree::new(blob.as_slice()).unwrap();
            assert_eq!(built.find("/cpus").unwrap().children().count(), guest.vcpu_count as usize, "{name}");
        }
    }
}
