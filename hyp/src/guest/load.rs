//! A guest's plan, made from its configuration, and the loading of its images.

use super::seed;
use super::space::{Piece, Space};
use crate::hyp_mem::pages;
use crate::observe::log;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_dts::config::{self, Layout, RamRegion, RamSource, Spread, Unit};
use guest_dts::guest_tree::{Assigned, Choice, GuestTree};
use guest_dts::image::{BootPlan, Image};
use guest_dts::tree::Tree;
use stage2::addr::{Ipa, MAX_ORDER, PAGEBLOCK_ORDER};
use stage2::controller::{ControllerId, ControllerSet};
use stage2::phys::alloc::MemoryKind;
use stage2::phys::placement::{ControllerList, Placement, Strictness};

/// A guest's plan: its checked configuration, and the layout, placements and device tree that follow from it.
pub(crate) struct Plan {
    guest: config::Guest<'static>,
    layout: Layout,
    boot: BootPlan,
    pieces: Vec<Piece>,
    /// The device tree, the same at every start but for the seeds.
    tree: &'static [u8],
}

/// Entry of a loaded guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Address of the first instruction.
    pub(crate) kernel: Ipa,
    /// Address of the device tree.
    pub(crate) tree: Ipa,
}

impl Plan {
    /// Makes the plan of `guest`. `controller` finds a controller by its number in the configuration; `assigned` describes the
    /// guest's devices.
    ///
    /// # Errors
    ///
    /// The part that does not fit.
    pub(crate) fn new(
        guest: config::Guest<'static>,
        controller: &impl Fn(u8) -> Option<ControllerId>,
        assigned: Option<&Assigned<'static>>,
    ) -> Result<Self, String> {
        let image =
            Image::parse(guest.kernel).map_err(|error| format!("its kernel must {}", error.must()))?;
        let layout = Layout::of(&guest).map_err(|finding| finding.to_string())?;
        let ramdisk = guest.ramdisk.map(|bytes| bytes.len() as u64);
        let boot = BootPlan::new(&image, ramdisk, layout.regions()).map_err(|error| error.to_string())?;
        let mut pieces = Vec::new();
        for ram in &layout.ranges {
            let Some(region) = guest.ram(ram.source) else { continue };
            if region.is_dma_window && region.backing.is_none() {
                return Err(String::from("no memory was reserved for its DMA window at boot"));
            }
            pieces.push(Piece {
                ipa: ram.range.base(),
                size: ram.range.size(),
                order: order(region.unit),
                // Memory that cannot move must not use a pool's frames.
                kind: match region.is_pinned_in_place || region.is_dma_window || guest.migration.is_opted_out
                {
                    true => MemoryKind::Unmovable,
                    false => MemoryKind::Movable,
                },
                placement: placement(region, controller)?,
                backing: region.backing.map(|range| range.base()),
                is_dma_window: region.is_dma_window,
                wants_units: matches!(region.unit, Unit::Medium | Unit::Large),
            });
        }
        // Room for seeds, new ones at each start, unless the operator's template has its own.
        let chosen = guest.template.and_then(|node| node.children().find(|child| child.name() == "chosen"));
        let needs = |name| seed::is_available() && !chosen.is_some_and(|node| node.has(name));
        let kaslr_seed = needs("kaslr-seed").then_some(0);
        let rng_seed = needs("rng-seed").then_some([0; 32]);
        let tree = GuestTree { guest: &guest, layout: &layout, plan: &boot, assigned, kaslr_seed, rng_seed };
        let tree = tree.build_with_host(crate::host::tree()).map_err(|error| error.to_string())?;
        let tree = pages::keep(&tree).map_err(|error| format!("its device tree: {error}"))?;
        Ok(Self { guest, layout, boot, pieces, tree })
    }

    /// Logs how the guest's movable memory is described in its tree.
    pub(crate) fn note(&self) {
        let choice = Choice::of(&self.guest);
        let mode = choice.mode.name();
        log::debug!("{}: movable memory: {} ({})", self.guest.name, mode, choice.reason);
    }

    /// Returns the guest's configuration.
    pub(crate) fn guest(&self) -> &config::Guest<'static> {
        &self.guest
    }

    /// Returns the layout of the guest's RAM.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the guest's device tree.
    pub(crate) fn tree(&self) -> &'static [u8] {
        self.tree
    }

    /// Checks that there is memory for the guest now.
    ///
    /// # Errors
    ///
    /// The amount that is missing, where, and where it would fit.
    pub(crate) fn fit(&self) -> Result<(), String> {
        let Some(board) = crate::host::board() else { return Ok(()) };
        self.guest.fit(&super::setup::room(board)).map_err(|finding| finding.to_string())
    }

    /// Returns the guest's name.
    pub(crate) fn name(&self) -> &'static str {
        self.guest.name
    }

    /// Returns true if the guest starts at boot.
    pub(crate) fn starts_at_boot(&self) -> bool {
        self.guest.starts_at_boot
    }

    /// Returns the bytes of RAM.
    pub(crate) fn ram_size(&self) -> u64 {
        self.guest.ram_size()
    }

    /// Returns the settings of the guest's migration.
    pub(crate) fn migration(&self) -> &config::GuestMigration {
        &self.guest.migration
    }

    /// Returns the pieces of RAM, by ascending IPA.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns the region or block of the configuration that the RAM at `ipa` belongs to.
    pub(crate) fn kind_at(&self, ipa: Ipa) -> Option<RamSource> {
        self.layout.range_at(ipa.get()).map(|ram| ram.source)
    }

    /// Returns true if there is RAM at `ipa`.
    pub(crate) fn is_ram(&self, ipa: Ipa) -> bool {
        self.layout.range_at(ipa.get()).is_some()
    }
}

fn order(unit: Unit) -> u8 {
    match unit {
        Unit::Small => 0,
        Unit::Medium => PAGEBLOCK_ORDER,
        Unit::Large | Unit::Any => MAX_ORDER,
    }
}

fn placement(
    region: &RamRegion<'_>,
    controller: &impl Fn(u8) -> Option<ControllerId>,
) -> Result<Placement, String> {
    let wanted = &region.placement;
    if wanted.controllers.is_empty() {
        return Ok(Placement::Any);
    }
    let mut list: heapless::Vec<ControllerId, { config::CONTROLLER_LIMIT }> = heapless::Vec::new();
    for &number in &wanted.controllers {
        let id = controller(number).ok_or_else(|| format!("there is no controller {number}"))?;
        // There is room for as many as the configuration can name.
        let _ = list.push(id);
    }
    let strictness = match wanted.strictness {
        config::Strictness::Strict => Strictness::Strict,
        config::Strictness::Preferred => Strictness::Preferred,
    };
    Ok(match wanted.spread {
        Spread::InOrder => Placement::Listed(ControllerList::new(&list), strictness),
        Spread::Interleaved => {
            let set = list.iter().fold(ControllerSet::EMPTY, |set, &id| set.with(id));
            Placement::Interleave(set, strictness)
        }
    })
}

impl Space {
    /// Scrubs the guest's RAM and loads its images.
    ///
    /// # Errors
    ///
    /// The image that does not fit.
    pub(crate) fn load(&self, plan: &Plan) -> Result<Entry, String> {
        self.scrub(&plan.pieces);
        let boot = &plan.boot;
        if !self.write(boot.kernel.base(), plan.guest.kernel) {
            return Err(format!("its kernel does not fit its RAM at {}", boot.kernel.base()));
        }
        if let (Some(range), Some(bytes)) = (boot.ramdisk, plan.guest.ramdisk)
            && !self.write(range.base(), bytes)
        {
            return Err(format!("its ramdisk does not fit its RAM at {}", range.base()));
        }
        if plan.tree.len() as u64 > boot.tree.size() || !self.write(boot.tree.base(), plan.tree) {
            return Err(format!("its device tree does not fit its RAM at {}", boot.tree.base()));
        }
        if let Some(seeds) = seed::draw() {
            self.write_chosen(plan, "kaslr-seed", &seeds.kaslr);
            self.write_chosen(plan, "rng-seed", &seeds.rng);
        }
        crate::arch::complete_loading();
        Ok(Entry { kernel: boot.entry(), tree: boot.tree.base() })
    }

    /// Sets a property of `/chosen` in the guest's tree, if the tree has room for it.
    fn write_chosen(&self, plan: &Plan, name: &str, value: &[u8]) {
        let property = || Tree::new(plan.tree).ok()?.find("/chosen")?.property(name);
        if let Some(property) = property()
            && property.bytes().len() == value.len()
            && property.bytes().iter().all(|&byte| byte == 0)
        {
            let offset = property.bytes().as_ptr().addr() - plan.tree.as_ptr().addr();
            let base = plan.boot.tree.base();
            // The value lies inside the tree that was just written.
            self.write(base.checked_add(offset as u64).unwrap_or(base), value);
        }
    }
}
