//! Guests from what the loader left: a configuration blob, or one kernel as a boot module.

use super::devices::Devices;
use super::devices::setup::{Bridges, resolve};
use super::{MAX_GUESTS, Plan, migration, refused, seed};
use crate::arch::cpu;
use crate::board::{Board, ModuleKind};
use crate::device::vgic::MAX_VCPUS;
use crate::hyp_mem::pages;
use crate::observe::log;
use crate::physical::assignment::Assignment;
use crate::physical::{self, tell_finding};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::mem::MaybeUninit;
use guest_dts::config::{Configuration, Guest, Host, Severity};
use guest_dts::finding::Finding;
use guest_dts::range::PaRange;
use guest_dts::tree::Tree;
use stage2::controller::ControllerId;
use stage2::owner::GuestId;

/// Logs a finding.
pub(crate) fn tell(severity: Severity, text: fmt::Arguments<'_>) {
    match severity {
        Severity::Error => log::error!("{}", text),
        Severity::Warning => log::warn!("{}", text),
        Severity::Note => log::info!("{}", text),
    }
}

/// Reads what was loaded, which `map` maps, into `place`: a configuration, or boot modules. Ballast also runs without
/// guests; the console says why there are none.
pub(crate) fn read<'c>(
    board: &'static Board<'static>,
    place: &'c mut MaybeUninit<Configuration<'static>>,
    map: &dyn Fn(PaRange) -> Option<&'static [u8]>,
) -> Option<&'c mut Configuration<'static>> {
    match read_loaded(board, map) {
        Ok(Some(configuration)) => return Some(place.write(configuration)),
        Ok(None) => {
            log::warn!("no guests: the loader passed neither a configuration nor a kernel")
        }
        Err(finding) => log::error!("configuration: {}", finding),
    }
    None
}

/// Defines the guests of `configuration` that fit the host, and starts those that start at boot.
pub(crate) fn set_up(board: &'static Board<'static>, configuration: Option<&mut Configuration<'static>>) {
    let bridges = Bridges::new(board);
    let Some(configuration) = configuration else {
        // No guest has devices, but every stream shall abort.
        resolve(board, &bridges, None);
        return super::claims::set_owners(&[]);
    };
    seed::init(board.chosen.rng_seed);
    physical::fit(board, &pages::MEMORY, cpu::count(), configuration, &mut tell);
    let assignments = resolve(board, &bridges, Some(configuration));
    migration::configure(&configuration.migration);
    define_all(board, configuration, &bridges, assignments);
    super::claims::set_owners(&configuration.pools);
    for refused in &configuration.refused {
        refused::add(refused.name, refused.finding.to_string());
    }
    for guest in super::all().filter(|guest| guest.plan().starts_at_boot()) {
        // Just defined, so it is stopped.
        let _ = guest.start();
    }
}

/// Reads the configuration. Not inlined, since a configuration takes much of the stack while it is moved.
#[inline(never)]
fn read_loaded(
    board: &'static Board<'static>,
    map: &dyn Fn(PaRange) -> Option<&'static [u8]>,
) -> Result<Option<Configuration<'static>>, Finding<'static>> {
    let chosen = &board.chosen;
    if let Some(initrd) = &chosen.initrd {
        let Some(blob) = map(*initrd) else { return Ok(None) };
        return match Tree::new(blob) {
            Ok(tree) => Configuration::read(&tree, &mut tell_finding(&mut tell)).map(Some),
            Err(error) => {
                log::error!("configuration at {}: {}", initrd.base(), error);
                Ok(None)
            }
        };
    }
    let find = |kind| chosen.modules.iter().find(|module| module.kind == kind);
    let Some(kernel) = find(ModuleKind::Kernel) else { return Ok(None) };
    let Some(image) = map(kernel.range) else { return Ok(None) };
    let ramdisk = find(ModuleKind::Ramdisk).and_then(|module| map(module.range));
    let bootargs = kernel.bootargs.unwrap_or_default();
    Configuration::default_guest(image, ramdisk, bootargs, chosen.bootargs).map(Some)
}

/// Returns the resources that the host has for guests now.
pub(crate) fn room(board: &Board<'_>) -> Host {
    physical::room(board, &pages::MEMORY, cpu::count())
}

fn define_all(
    board: &'static Board<'static>,
    configuration: &Configuration<'static>,
    bridges: &Bridges,
    assignments: Vec<Option<Assignment<'static>>>,
) {
    let controller = |id: u8| board.ram.controller(u32::from(id)).and_then(ControllerId::try_new);
    let mut taken = 0u64;
    // A CPU that a guest names is not given to another.
    for guest in &configuration.guests {
        guest.cpus.iter().for_each(|&cpu| taken |= 1 << cpu);
    }
    let mut index = 0;
    let assignments = assignments.into_iter().chain(core::iter::repeat_with(|| None));
    for (guest, assignment) in configuration.guests.iter().zip(assignments).take(MAX_GUESTS) {
        let defined = match (choose_cpus(guest, &mut taken), GuestId::try_new(index as u8)) {
            (Some(cpus), Some(id)) => define_one(bridges, guest, assignment, &controller, (index, id), &cpus),
            _ => Err("the CPUs that are left do not do".to_string()),
        };
        match defined {
            Ok(_) => index += 1,
            Err(why) => {
                log::error!("{}: {}", guest.name, why);
                physical::give_back(&pages::MEMORY, guest.reserved_ranges(), &mut tell);
                refused::add(guest.name, why);
            }
        }
    }
}

/// Defines a guest with its devices.
fn define_one(
    bridges: &Bridges,
    guest: &Guest<'static>,
    assignment: Option<Assignment<'static>>,
    controller: &impl Fn(u8) -> Option<ControllerId>,
    (index, id): (usize, GuestId),
    cpus: &[usize],
) -> Result<(), String> {
    let has_devices = |assignment: &&Assignment<'_>| !assignment.is_empty();
    let tree = assignment.as_ref().filter(has_devices).map(Assignment::tree);
    let plan = Plan::new(guest.clone(), controller, tree.as_ref())?;
    let devices = match assignment {
        Some(assignment) => Devices::new(bridges, assignment).map_err(|why| format!("its devices: {why}"))?,
        None => Devices::default(),
    };
    plan.note();
    super::define(index, id, plan, devices, cpus).map(drop)
}

/// Chooses a CPU for each vCPU: those that the configuration names, else the first free ones. The boot CPU comes last, since
/// it runs the monitor too.
fn choose_cpus(guest: &Guest<'_>, taken: &mut u64) -> Option<heapless::Vec<usize, MAX_VCPUS>> {
    let mut cpus: heapless::Vec<usize, MAX_VCPUS> = guest.cpus.iter().map(|&cpu| usize::from(cpu)).collect();
    for cpu in (1..cpu::count()).chain([0]) {
        if cpus.len() >= guest.vcpu_count as usize {
            break;
        }
        if *taken >> cpu & 1 == 0 {
            *taken |= 1 << cpu;
            cpus.push(cpu).ok()?;
        }
    }
    (cpus.len() == guest.vcpu_count as usize).then_some(cpus)
}
