//! From what was loaded beside Ballast to guests: a configuration blob, or one kernel as a boot module.

use super::{MAX_GUESTS, Plan};
use crate::arch::{cpu, map_loaded, own};
use crate::board::{Board, ModuleKind};
use crate::device::vgic::MAX_VCPUS;
use crate::log;
use alloc::boxed::Box;
use guest_dts::config::{Configuration, ControllerRoom, Guest, Host, Severity};
use guest_dts::finding::Finding;
use guest_dts::tree::Tree;
use stage2::addr::FRAME_SIZE;
use stage2::controller::ControllerId;
use stage2::owner::GuestId;

/// Tells of a finding.
fn tell(severity: Severity, finding: Finding<'static>) {
    match severity {
        Severity::Error => log::error!("configuration: {finding}"),
        Severity::Warning => log::warn!("configuration: {finding}"),
        Severity::Note => log::info!("configuration: {finding}"),
    }
}

/// Reads what was loaded and starts the guests that start at boot. Without any guest Ballast runs all the same:
/// its console says why.
pub fn set_up(board: &'static Board<'static>) {
    let mut configuration = match read(board) {
        Ok(Some(configuration)) => configuration,
        Ok(None) => return log::warn!("nothing was loaded: neither a configuration nor a kernel"),
        Err(finding) => return log::error!("configuration: {finding}"),
    };
    configuration.fit(&host(board), &mut tell);
    define_all(board, &configuration);
    for guest in super::all().filter(|guest| guest.plan().starts_at_boot()) {
        // Just defined: it is stopped.
        let _ = guest.start();
    }
}

/// A function of its own, since a configuration takes much of the stack on its way to the heap.
#[inline(never)]
fn read(board: &'static Board<'static>) -> Result<Option<Box<Configuration<'static>>>, Finding<'static>> {
    let chosen = &board.chosen;
    if let Some(initrd) = &chosen.initrd {
        let Some(blob) = map_loaded(initrd.base(), initrd.size()) else { return Ok(None) };
        return match Tree::new(blob) {
            Ok(tree) => Configuration::read(&tree, &mut tell).map(Box::new).map(Some),
            Err(error) => {
                log::error!("configuration at {}: {error}", initrd.base());
                Ok(None)
            }
        };
    }
    let find = |kind| chosen.modules.iter().find(|module| module.kind == kind);
    let Some(kernel) = find(ModuleKind::Kernel) else { return Ok(None) };
    let Some(image) = map_loaded(kernel.range.base(), kernel.range.size()) else { return Ok(None) };
    let ramdisk =
        find(ModuleKind::Ramdisk).and_then(|module| map_loaded(module.range.base(), module.range.size()));
    let bootargs = kernel.bootargs.unwrap_or_default();
    Configuration::default_guest(image, ramdisk, bootargs, chosen.bootargs).map(Box::new).map(Some)
}

/// What the host has for guests.
fn host(board: &Board<'_>) -> Host {
    let controllers = board.ram.controllers.iter().enumerate().filter_map(|(place, controller)| {
        let id = ControllerId::try_new(place as u8)?;
        let free = own::MEMORY.controller_totals(id).free() * FRAME_SIZE;
        Some(ControllerRoom { id: u8::try_from(controller.id).ok()?, free })
    });
    Host { cpu_count: cpu::count() as u32, controllers: controllers.collect() }
}

fn define_all(board: &Board<'_>, configuration: &Configuration<'static>) {
    let controller = |id: u8| board.ram.controller(u32::from(id)).and_then(ControllerId::try_new);
    let mut taken = 0u64;
    // CPUs that guests name are not given to others.
    for guest in &configuration.guests {
        guest.cpus.iter().for_each(|&cpu| taken |= 1 << cpu);
    }
    for (index, guest) in configuration.guests.iter().enumerate().take(MAX_GUESTS) {
        let Some(cpus) = choose_cpus(guest, &mut taken) else {
            log::error!("{}: not enough CPUs are left for its {} vCPUs", guest.name, guest.vcpu_count);
            continue;
        };
        let Some(id) = GuestId::try_new(index as u8) else { continue };
        match Plan::new(guest.clone(), &controller) {
            Ok(plan) => {
                super::define(index, id, plan, &cpus);
            }
            Err(error) => log::error!("{}: {error}", guest.name),
        }
    }
}

/// A CPU for each vCPU: those that the configuration names, else the first that are nobody's, the boot CPU last,
/// since it runs the monitor beside.
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
