//! The cost of mitigations of speculative execution: the benchmark's operations with each of the sequences by which
//! Ballast's vectors clear branch predictors.

use super::{Figures, PATIENCE, Plan, bring_guest_to_front, figure, under_ballast, with_transcript};
use crate::error::Result;
use crate::image::Image;
use crate::session::Session;

/// Mitigations: name, Ballast's command line, and whether to run firmware that offers it.
const WAYS: [(&str, &str, bool); 6] = [
    ("off", "mitigations=off", false),
    ("CLRBHB", "mitigations=clrbhb", false),
    // Cortex-A57 and A72; A76 and Neoverse-N1; A710 and Neoverse-N2.
    ("loop of 8", "mitigations=loop:8", false),
    ("of 24", "mitigations=loop:24", false),
    ("of 32", "mitigations=loop:32", false),
    ("firmware", "", true),
];

/// Measures and prints the table.
pub(super) fn run(plan: &Plan, image: &Image, guest: &std::path::Path) -> Result<()> {
    println!("\nmeasuring mitigations of speculative execution");
    let mut columns = Vec::new();
    for (_, arguments, has_firmware) in WAYS {
        columns.push(measure(plan, image, guest, arguments, has_firmware)?);
    }
    println!(
        "\ncost of mitigations, in instructions per operation; includes the instructions of a firmware that returns at once\n"
    );
    print!("{:26}", "operation");
    WAYS.iter().for_each(|(name, ..)| print!("  {name:>9}"));
    println!();
    for operation in plan.operation.iter().filter(|operation| operation.cpus == 1) {
        print!("{:26}", operation.title);
        for figures in &columns {
            let text = figures.get(&operation.name).map_or("-".into(), |figure| format!("{figure:.0}"));
            print!("  {text:>9}");
        }
        println!();
    }
    Ok(())
}

fn measure(
    plan: &Plan,
    image: &Image,
    guest: &std::path::Path,
    arguments: &str,
    has_firmware: bool,
) -> Result<Figures> {
    let mut boot = under_ballast(1, image, guest)?;
    boot.append = arguments.into();
    if has_firmware {
        boot.use_firmware(guest.with_file_name("firmware.bin"));
    }
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    bring_guest_to_front(&mut session)?;
    let said = session.expect("bench done", PATIENCE).map_err(|error| with_transcript(&error, &session))?;
    let found = plan
        .operation
        .iter()
        .filter_map(|operation| Some((operation.name.clone(), figure(&said, &operation.name)?)));
    Ok(found.collect())
}
