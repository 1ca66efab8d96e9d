//! The cost of claims: their own work, and the migration of the tenants that must move.

use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;

use super::{PATIENCE, with_transcript};
use crate::boot::Boot;
use crate::error::{AtPath, Error, Result};
use crate::image::{Image, build_payloads};
use crate::machine::Machine;
use crate::session::Session;
use crate::size::{GIB, MIB};
use crate::{configuration, place};

/// Limit of a claim, as a multiple of the migration of its tenants plus the cost of the same claim when nothing is
/// lent.
const LIMIT: f64 = 1.15;
const POOL: u64 = GIB;
const SIZES: [u64; 4] = [2 * MIB, 64 * MIB, 256 * MIB, GIB];
const FRAME: f64 = 4096.0;

/// The cost of a granted claim in instructions.
struct Figure {
    own: f64,
    migration: f64,
    moved: u64,
}

/// The cost of claims without migration, measured when nothing is lent.
struct Constant {
    /// Cost of a claim of each size if every frame is known to be zero.
    once: [f64; SIZES.len()],
    /// Additional cost of each free frame that is not known to be zero.
    scrub: f64,
}

impl Constant {
    /// Returns the limit of a claim of size `SIZES[index]`.
    fn limit(&self, index: usize, figure: &Figure) -> f64 {
        let free = SIZES[index].saturating_sub(figure.moved) as f64 / FRAME;
        LIMIT * (figure.migration + self.once[index] + self.scrub * free)
    }
}

/// Measures and prints the table. Returns `true` if all limits are met.
pub(super) fn run(image: &Image) -> Result<bool> {
    let guest = build_payloads()?.join("tenant.img");
    let constant = constant(image, &guest)?;
    println!("\nclaims from a pool of 1 GiB, tenants in units of 2 MiB, in instructions\n");
    println!("nothing lent, all zero: {:?}; scrubbing: {:.1} per frame", constant.once, constant.scrub);
    println!("limit: {LIMIT} times the sum of migration and these\n");
    println!(
        "  lent  tenant    claimed     moved   migration      other       limit  share  total/migration"
    );
    let mut is_kept = true;
    for (per_cent, is_writing) in
        [(50, false), (95, false), (100, false), (50, true), (95, true), (100, true)]
    {
        let (mut session, mut is_fresh) = (boot(image, &guest, per_cent, is_writing)?, true);
        // If no tenant must move, it does not matter whether tenants write.
        let has_tenants = |size: u64| size > POOL * (100 - per_cent) / 100;
        for (index, size) in
            SIZES.into_iter().enumerate().filter(|(_, size)| !is_writing || has_tenants(*size))
        {
            if !std::mem::take(&mut is_fresh) {
                restart(&mut session)?;
            }
            let figure = claim(&mut session, size)?;
            let (all, limit) = (figure.own + figure.migration, constant.limit(index, &figure));
            is_kept &= all <= limit;
            let ratio = match figure.moved {
                0 => "-".into(),
                _ => format!("{:.3}", all / figure.migration),
            };
            println!(
                "{per_cent:>4} %  {:7}  {:>4} MiB  {:>4} MiB  {:>10.0}  {:>9.0}  {limit:>10.0}  {:.2}  {ratio:>17}{}",
                if is_writing { "writing" } else { "idle" },
                size / MIB,
                figure.moved / MIB,
                figure.migration,
                figure.own,
                all / limit,
                if all <= limit { "" } else { "  MISSED" },
            );
        }
    }
    Ok(is_kept)
}

/// Measures claims when nothing is lent. The first claim scrubs everything once.
fn constant(image: &Image, guest: &std::path::Path) -> Result<Constant> {
    let mut session = boot(image, guest, 0, false)?;
    let dirty = claim(&mut session, POOL)?.own;
    let mut once = [0.0; SIZES.len()];
    for (own, size) in once.iter_mut().zip(SIZES) {
        *own = claim(&mut session, size)?.own;
    }
    let scrub = (dirty - once[SIZES.len() - 1]) / (POOL as f64 / FRAME);
    Ok(Constant { once, scrub })
}

fn boot(image: &Image, guest: &std::path::Path, per_cent: u64, is_writing: bool) -> Result<Session> {
    // Whole units of 4 MiB, as Linux requires.
    let size = POOL * per_cent / 100 / (4 * MIB) * (4 * MIB);
    let block = match size {
        0 => String::new(),
        _ => format!("dmb-0 {{ size = <0 {size:#x}>; controllers = <1>; unit-size = <0x200000>; }};"),
    };
    let arguments = if is_writing { "write=1" } else { "write=0" };
    let source = format!(
        "/dts-v1/;\n/ {{ compatible = \"ballast,configuration\"; #address-cells = <2>; #size-cells = <2>;\n\
         images {{ kernel: kernel {{ data = /incbin/(\"{}\"); }}; }};\n\
         pools {{ video {{ compatible = \"shared-dmb-pool\"; reusable; size = <0 {POOL:#x}>; \
         alignment = <0 {POOL:#x}>; controllers = <1>; }}; }};\n\
         guests {{ tenant {{ vcpus = <1>; kernel = <&kernel>; bootargs = \"{arguments}\"; {block} \
         memory {{ size = <0 0x4000000>; controllers = <0>; }}; }}; }};\n}};\n",
        guest.display(),
    );
    let path = place::target().join(format!("bench-claims-{per_cent}-{is_writing}.dts"));
    fs::write(&path, source).at(&path)?;
    let blob = path.with_extension("dtb");
    configuration::compile(&path, super::LINUX, &blob)?;
    let mut boot = Boot::new(Machine::with_controllers(2, &[GIB, 3 * GIB]), image.bin.clone());
    boot.ramdisk = Some(blob);
    boot.counts_instructions = true;
    let mut session = Session::start(&boot)?;
    session.expect("ballast> ", PATIENCE).map_err(|error| with_transcript(&error, &session))?;
    wait_for_tenant(&mut session)?;
    Ok(session)
}

/// Runs `command` and returns its report.
pub(super) fn ask(session: &mut Session, command: &str) -> Result<Value> {
    session.send(format!("{command} --json\r"))?;
    let said = session.expect(r#"\{"report":[^\r\n]*\}\r"#, PATIENCE);
    let said = said.map_err(|error| with_transcript(&error, session))?;
    let line = said.rsplit("{\"report\"").next().unwrap_or_default();
    let line = format!("{{\"report\"{}", line.trim_end());
    serde_json::from_str(&line)
        .map_err(|error| Error::Data { path: "Ballast".into(), reason: format!("{error}: {line}") })
}

/// Repeats `command` until `is_done` accepts its report.
pub(super) fn wait(session: &mut Session, command: &str, is_done: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let report = ask(session, command)?;
        if is_done(&report) || Instant::now() > until {
            return Ok(report);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn wait_for_tenant(session: &mut Session) -> Result<()> {
    wait(session, "guests", |report| report["guests"][0]["state"] == "running").map(drop)
}

/// Restarts the tenant, so that its RAM is in the pool again.
fn restart(session: &mut Session) -> Result<()> {
    session.send("stop tenant\r")?;
    wait(session, "guests", |report| report["guests"][0]["state"] == "off")?;
    session.send("start tenant\r")?;
    wait_for_tenant(session)
}

fn claim(session: &mut Session, size: u64) -> Result<Figure> {
    let number = ask(session, &format!("claim video {}M", size / MIB))?["claim"].clone();
    // Asks for no reports meanwhile, since answers cost instructions.
    thread::sleep(Duration::from_millis(if size > 64 * MIB { 3000 } else { 500 }));
    let over = ["granted", "failed", "cancelled"];
    let report = wait(session, &format!("claim {number}"), |report| {
        over.contains(&report["state"].as_str().unwrap_or_default())
    })?;
    if report["state"] != "granted" {
        return Err(Error::Data { path: "Ballast".into(), reason: report.to_string() });
    }
    session.send("release video\r")?;
    wait(session, "pools", |report| report["pools"][0]["claimed_bytes"] == 0)?;
    let number = |key: &str| report[key].as_f64().unwrap_or(0.0);
    Ok(Figure {
        own: number("own_ns"),
        migration: number("migration_ns"),
        moved: number("moved_bytes") as u64,
    })
}
