//! Writes the device tree of a guest of a configuration, for QEMU's `-dtb` or for `dtc`:
//! `cargo run -p guest-dts --example guest-tree -- CONFIGURATION.dtb GUEST > guest.dtb`.
//!
//! QEMU's `virt` with `gic-version=3` has the same platform and can start a kernel with the tree without Ballast. The
//! placement of the images is printed to standard error.

use std::error::Error;
use std::io::Write;

use guest_dts::config::{Configuration, Layout, Severity};
use guest_dts::finding::Finding;
use guest_dts::guest_tree::{Choice, GuestTree};
use guest_dts::image::{BootPlan, Image};
use guest_dts::tree::{AlignedBlob, Tree};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(name)) = (arguments.next(), arguments.next()) else {
        return Err("usage: guest-tree CONFIGURATION.dtb GUEST".into());
    };
    let blob = AlignedBlob::new(&std::fs::read(file)?);
    let tree = Tree::new(blob.as_slice()).map_err(|error| error.to_string())?;
    let mut sink = |severity: Severity, finding: Finding<'_>| eprintln!("{severity:?}: {finding}");
    let configuration = Configuration::read(&tree, &mut sink).map_err(|error| error.to_string())?;
    let guest = configuration.guests.iter().find(|guest| guest.name == name).ok_or("no such guest")?;
    let layout = Layout::of(guest).map_err(|error| error.to_string())?;
    let image = Image::parse(guest.kernel)?;
    let plan = BootPlan::new(&image, guest.ramdisk.map(|ramdisk| ramdisk.len() as u64), layout.regions())?;
    for ram in &layout.ranges {
        eprintln!("{:?}: {}", ram.source, ram.range);
    }
    eprintln!("{plan:?}\n{}", Choice::of(guest));
    let input =
        GuestTree { guest, layout: &layout, plan: &plan, assigned: None, kaslr_seed: None, rng_seed: None };
    std::io::stdout().write_all(&input.build().map_err(|error| error.to_string())?)?;
    Ok(())
}
