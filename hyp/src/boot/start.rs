//! Boot, from the first Rust instruction to running guests.
//!
//! Order: EL2's own translation; the host's device tree; the console; memory; interrupts; the other CPUs; the
//! configuration; guests. If something is missing or wrong, boot stops with a message that names it.

use super::entry;
use crate::arch::cpu::MAX_CPUS;
use crate::arch::gic::{Distributor, Redistributor, Region, cpu_interface, its};
use crate::arch::{cache, cpu, errata, features, firmware, mitigation, timer, vcpu};
use crate::board::{Board, Console, Extent, Gic, REDISTRIBUTOR_REGION_LIMIT};
use crate::exit::{self, fatal, idle, vectors};
use crate::guest;
use crate::host;
use crate::hyp_mem::{heap, mmu, pages, usage, window};
use crate::observe::log;
use crate::operator::scheduler;
use crate::physical::{self, Loaded, NORMAL_FLOOR_FRAMES};
use crate::serial;
use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use guest_dts::argument;
use guest_dts::config::Configuration;
use guest_dts::tree::Tree;
use spin::Once;
use stage2::addr::{FRAME_SIZE, Pa};
use stage2::owner::Owner;
use stage2::phys::alloc::Arena;
use stage2::phys::frame::Footprint;
use stage2::phys::map::BootMap;
use stage2::phys::pool::Pools;
use stage2::range::FrameRange;

/// Order of the monitor's stack.
const MONITOR_STACK_ORDER: u8 = (mmu::MONITOR_STACK_SIZE as u64 / FRAME_SIZE).trailing_zeros() as u8;
/// Order of a CPU's stack.
const STACK_ORDER: u8 = (mmu::STACK_SIZE as u64 / FRAME_SIZE).trailing_zeros() as u8;
/// Largest accepted device tree, in bytes.
const TREE_LIMIT: u64 = 2 << 20;

/// True if the memory that only boot needs can be given back.
static IS_START_OURS: AtomicBool = AtomicBool::new(false);

/// The redistributors, for CPUs that come up.
static REDISTRIBUTORS: Once<heapless::Vec<Region, REDISTRIBUTOR_REGION_LIMIT>> = Once::new();

// SAFETY: regions are only read after they have been made.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

struct MapCell(UnsafeCell<BootMap>);

// SAFETY: used by the primary CPU before others start.
unsafe impl Sync for MapCell {}

struct ConfigurationCell(UnsafeCell<MaybeUninit<Configuration<'static>>>);

// SAFETY: used by the primary CPU, at the start.
unsafe impl Sync for ConfigurationCell {}

/// The configuration. Guests keep copies of their parts.
#[unsafe(link_section = ".bss.zstart")]
static CONFIGURATION: ConfigurationCell = ConfigurationCell(UnsafeCell::new(MaybeUninit::uninit()));

#[unsafe(link_section = ".bss.zstart")]
static BOOT_MAP: MapCell = MapCell(UnsafeCell::new(BootMap::new()));

/// Stops boot with a message.
fn refuse(text: fmt::Arguments<'_>) -> ! {
    let _ = write!(serial::Polled, "\r\nBallast cannot start: {text}\r\n");
    fatal::halt()
}

/// Entry of the primary CPU from `entry`, which names it by symbol: MMU on with the early tables. `tree_pa` and `image` are
/// physical addresses.
// SAFETY: nothing else has this name.
#[unsafe(no_mangle)]
extern "C" fn primary_main(tree_pa: u64, image: u64) -> ! {
    guest::cpu::install(0);
    exit::init();
    vectors::install();
    heap::init();
    // SAFETY: the early tables are in use, and `image` is where `boot` found the image.
    if unsafe { mmu::init(image) }.is_err() {
        fatal::halt();
    }
    cpu::current().describe(0, own_mpidr(), mmu::boot_stack_top());

    let tree_blob = map_tree(tree_pa);
    let tree = Tree::new(tree_blob).unwrap_or_else(|_| fatal::halt());
    // A console first, so that errors can be reported.
    if let Some(registers) = Console::any(&tree) {
        let _ = serial::init_early(registers);
    }
    let board = read_board(&tree);
    host::keep(tree);
    firmware::init(&board.psci);
    if !timer::init(&board.timer, &board.gic) {
        refuse(format_args!(
            "the counter's frequency is not known: CNTFRQ_EL0 is 0, and the timer's node has no clock-frequency"
        ));
    }
    stage2::sync::set_relax(cpu::relax);
    log::set_clock(|| log::Stamp { time_ns: timer::nanoseconds(), cpu: cpu::current().index() as u16 });
    if let Some(option) = argument::value(board.chosen.bootargs, "log")
        && let Err(error) = log::configure(option)
    {
        log::warn!("log={}: {}", option, error);
    }
    serial::init(&board.console);
    if log::line() == log::Line::Second {
        init_second_uart(board);
    }
    log::info!("Ballast {} at {:#x}, {} KiB", env!("CARGO_PKG_VERSION"), image, mmu::image_size() >> 10);
    mitigation::init(board.chosen.bootargs);
    for warning in board.warnings.iter() {
        log::warn!("{}", warning);
    }

    // SAFETY: this CPU alone runs, and this function once.
    let place = unsafe { &mut *CONFIGURATION.0.get() };
    // SAFETY: the ranges are those of the board's `chosen`, which `boot_memory` reserves; nobody writes before.
    let mut configuration = guest::read(board, place, &|range| unsafe { mmu::map_loaded(range) });
    // Before RAM is handed out: the GIC may be writing to it.
    let distributor = init_interrupts(&board.gic);
    boot_memory(board, tree_blob.len(), tree_pa, configuration.as_deref_mut());
    match features::guest_geometry() {
        Ok(geometry) => {
            vcpu::set_empty_stage2(own_block(geometry.root_order(), "an empty stage 2"), geometry);
        }
        Err(error) => refuse(format_args!("guests' addresses: {error}")),
    }
    init_cpu(0);
    start_secondaries(board);
    mitigation::report_gaps();
    errata::report();
    serial::enable_interrupts(distributor);
    guest::set_up(board, configuration);
    start_monitor();
    leave_boot_stack()
}

/// Moves to a stack like the other CPUs' and gives back the memory that only boot needed.
fn leave_boot_stack() -> ! {
    let top = map_stack(0);
    cpu::current().set_stack_top(top);
    // SAFETY: just mapped, for this CPU; nothing is alive on the stack that is left.
    unsafe { vectors::restart(top, give_back, 0) }
}

extern "C" fn give_back(_: u64) -> ! {
    let end = guest::cpu::end_of(cpu_limit());
    let (kept, whole) = (mmu::kept_size(end), mmu::image_size());
    // Unmapped even if it cannot be given back: nobody uses it.
    let unmapped = mmu::unmap_start(end);
    let mut released = Ok(());
    if unmapped.is_ok()
        && IS_START_OURS.load(Ordering::Relaxed)
        && let Some(range) = FrameRange::inside(mmu::image() + kept, whole - kept)
    {
        released = pages::MEMORY.release_reserved(range);
        if released.is_ok() {
            usage::set_released(whole - kept);
        }
    }
    let error: &dyn fmt::Display = match (&unmapped, &released) {
        (Err(error), _) => error,
        (_, Err(error)) => error,
        _ => idle::enter(),
    };
    log::error!("cannot give back the memory that only boot needed: {}", error);
    idle::enter()
}

/// Returns the number of CPUs that may run: this one, and those that it may start.
#[inline(never)]
fn cpu_limit() -> usize {
    let mpidr = cpu::current().mpidr();
    host::board().map_or(MAX_CPUS, |board| board.cpus.iter().filter(|host| host.mpidr != mpidr).count() + 1)
}

#[inline(never)]
fn init_second_uart(board: &Board<'_>) {
    match &board.second_uart {
        None => log::warn!("log=second: the host's tree has no second PL011; the log shares the console"),
        Some(console) => {
            if let Err(error) = serial::init_second(console) {
                log::warn!("log=second: {}", error);
            }
        }
    }
}

fn read_board(tree: &Tree<'static>) -> &'static Board<'static> {
    match host::read(tree) {
        Ok(board) => board,
        Err(error) => refuse(format_args!("{error}")),
    }
}

/// Returns the affinity fields of MPIDR_EL1.
fn own_mpidr() -> u64 {
    crate::arch::sysreg::read!("mpidr_el1") & 0xff_00ff_ffff
}

/// Maps the host's device tree.
fn map_tree(pa: u64) -> &'static [u8] {
    // Errors cannot be reported yet: the tree says where the console is.
    let header = mmu::map_boot_data(pa, FRAME_SIZE).unwrap_or_else(|_| fatal::halt());
    // SAFETY: mapped read-only for this size.
    let bytes = unsafe { core::slice::from_raw_parts(header.as_ptr(), 64) };
    let size = match Tree::total_size(bytes) {
        Ok(size) if u64::from(size) <= TREE_LIMIT => u64::from(size),
        _ => fatal::halt(),
    };
    let _ = mmu::unmap_boot_data(header, FRAME_SIZE as usize);
    let blob = mmu::map_boot_data(pa, size).unwrap_or_else(|_| fatal::halt());
    // SAFETY: mapped read-only for this size, reserved in the memory map, never unmapped.
    unsafe { core::slice::from_raw_parts(blob.as_ptr(), size as usize) }
}

/// Describes RAM and reservations in the boot memory map, and hands the map to the allocator.
fn boot_memory(
    board: &Board<'static>,
    tree_size: usize,
    tree_pa: u64,
    configuration: Option<&mut Configuration<'static>>,
) {
    // SAFETY: this CPU alone runs, and this function once.
    let map = unsafe { &mut *BOOT_MAP.0.get() };
    let fail = |what: &str, error: &dyn fmt::Display| -> ! { refuse(format_args!("{what}: {error}")) };
    let Some(tree) = host::tree() else { return };
    let (image, kept) = (mmu::image(), mmu::kept_size(guest::cpu::end_of(cpu_limit())));
    let loaded = Loaded {
        image: Some((image, kept)),
        start: Some((image + kept, mmu::image_size() - kept)),
        tree: Some((tree_pa, tree_size as u64)),
    };
    let table = match physical::lay_out(map, tree, board, &loaded, configuration, &mut guest::tell) {
        Ok(range) => range,
        Err(error) => refuse(format_args!("{error}")),
    };
    if let Some(other) = physical::other_in_start(map, &loaded) {
        log::info!("the memory that only boot needs stays reserved: it lies in {}", other);
    } else {
        IS_START_OURS.store(true, Ordering::Relaxed);
    }
    for ram in &board.ram.ranges {
        log::debug!("RAM of {}, controller {}", ram.range, ram.controller);
    }
    for reserved in &board.reservations {
        let name = reserved.node.map_or("the reservation block", |node| node.name());
        if let Extent::Static(range) = reserved.extent {
            log::debug!("{} reserves {}", name, range);
        }
    }
    guest::claims::designated(Pools::of(map));
    let footprint = Footprint::of(map);
    let address = match mmu::map_frame_table(table.base(), table.bytes()) {
        Ok(address) => address,
        Err(error) => fail("frame table", &error),
    };
    // SAFETY: reserved for this, mapped forever, used by nobody else; any value is valid for atomic words.
    let words = unsafe {
        core::slice::from_raw_parts(address.cast::<AtomicU32>().as_ptr(), footprint.words() as usize)
    };
    if footprint.arenas > 0 {
        // SAFETY: reserved with the table, behind its words and aligned; mapped forever, used by nobody else, and written
        // before the slice is made.
        let arenas = unsafe {
            let first = address.byte_add(footprint.arena_offset() as usize).cast::<Arena>();
            (0..footprint.arenas).for_each(|index| first.add(index).write(Arena::new()));
            core::slice::from_raw_parts(first.as_ptr(), footprint.arenas)
        };
        pages::MEMORY.extend(arenas);
    }
    if let Err(error) = pages::MEMORY.boot(map, words, NORMAL_FLOOR_FRAMES) {
        fail("memory", &error);
    }
    usage::set_frame_table(table.bytes());
    log::info!(
        "{} MiB of RAM behind {} controllers, frame table {} KiB",
        board.ram.size() >> 20,
        board.ram.controllers.len(),
        table.bytes() >> 10
    );
}

/// Stops what a loader may have left running that writes to RAM: the translation of message-signaled interrupts, and LPIs.
#[inline(never)]
fn stop_lpis(gic: &Gic) {
    for range in &gic.translators {
        let base = range.base();
        let registers = match mmu::map_device(base, its::ITS_SIZE) {
            Ok(registers) => registers,
            Err(error) => refuse(format_args!("GIC ITS at {:#x}: {error}", base.get())),
        };
        // SAFETY: the host's tree says that this is an ITS; mapped forever.
        match unsafe { its::stop(registers) } {
            Some(false) => {}
            Some(true) => log::warn!("GIC ITS at {:#x}: left enabled by the loader, disabled", base.get()),
            None => {
                refuse(format_args!("GIC ITS at {:#x}: enabled by the loader, does not stop", base.get()))
            }
        }
    }
    for region in REDISTRIBUTORS.get().into_iter().flatten() {
        match region.disable_lpis() {
            Ok(0) => {}
            Ok(count) => log::warn!("LPIs of {} CPUs: left enabled by the loader, disabled", count),
            Err(affinity) => refuse(format_args!(
                "LPIs of the CPU with affinity {affinity:#x}: left enabled by the loader, cannot be disabled"
            )),
        }
    }
}

fn init_interrupts(gic: &Gic) -> &'static Distributor {
    let range = gic.distributor;
    let base = match mmu::map_device(range.base(), range.size()) {
        Ok(base) => base,
        Err(error) => refuse(format_args!("GIC distributor at {:#x}: {error}", range.base().get())),
    };
    let mut regions = heapless::Vec::new();
    for range in &gic.redistributors {
        match mmu::map_device(range.base(), range.size()) {
            Ok(base) => {
                let stride = gic.redistributor_stride.map(|stride| stride as usize);
                // SAFETY: the host's tree says that these are redistributors; mapped forever.
                let region = unsafe { Region::new(base, range.size() as usize, stride) };
                // The board keeps no more regions than fit here.
                let _ = regions.push(region);
            }
            Err(error) => refuse(format_args!("GIC redistributors at {:#x}: {error}", range.base().get())),
        }
    }
    REDISTRIBUTORS.call_once(|| regions);
    stop_lpis(gic);
    // SAFETY: the host's tree says that this is the distributor; mapped forever.
    match unsafe { Distributor::new(base) } {
        Ok(distributor) => distributor,
        Err(architecture) => refuse(format_args!(
            "GIC distributor at {:#x}: architecture version {architecture}, must be 3 or 4",
            range.base().get()
        )),
    }
}

/// Initializes this CPU, once memory and the distributor are available.
fn init_cpu(index: usize) {
    let this = cpu::current();
    errata::init_cpu();
    let redistributor: Option<Redistributor> =
        REDISTRIBUTORS.get().and_then(|regions| regions.iter().find_map(|region| region.find(this.mpidr())));
    let Some(redistributor) = redistributor else {
        refuse(format_args!("CPU {index} (MPIDR {:#x}): it has no GIC redistributor", this.mpidr()))
    };
    redistributor.init();
    this.set_redistributor(redistributor);
    cpu_interface::init();
    timer::init_cpu();
    features::configure(vcpu::quiet());
    mitigation::init_cpu(this);
    vectors::install();
    if let Err(error) = window::init_cpu() {
        refuse(format_args!("CPU {index}: {error}"));
    }
    this.set_online();
}

/// Allocates a block for Ballast itself; boot stops if there is none.
fn own_block(order: u8, what: &str) -> Pa {
    match pages::allocate(order, Owner::Hypervisor) {
        Ok(frame) => frame.pa(),
        Err(error) => refuse(format_args!("{what}: {error}")),
    }
}

/// Allocates and maps the stack of CPU `index`, and returns its top.
fn map_stack(index: usize) -> u64 {
    let stack = own_block(STACK_ORDER, "a CPU's stack");
    match mmu::map_stack(index, stack) {
        Ok(top) => top,
        Err(error) => refuse(format_args!("a CPU's stack: {error}")),
    }
}

/// Starts the other CPUs, one after the other. A CPU that PSCI refuses to start is left out, with a warning.
fn start_secondaries(board: &Board<'_>) {
    let boot_mpidr = cpu::current().mpidr();
    let mut count = 1;
    let mut unused_stack = None;
    for host in board.cpus.iter().filter(|host| host.mpidr != boot_mpidr) {
        if count == MAX_CPUS {
            log::warn!("only {} of {} CPUs are used", MAX_CPUS, board.cpus.len());
            break;
        }
        cpu::set_count(count + 1);
        let Some(this) = guest::cpu::get(count) else { break };
        // If a CPU does not start, the next one gets its index and its stack.
        let top = match unused_stack.take() {
            Some(top) => top,
            None => map_stack(count),
        };
        this.describe(count, host.mpidr, top);
        let start: &entry::SecondaryStart = Box::leak(Box::new(entry::SecondaryStart {
            root: mmu::root(),
            stack: top,
            argument: count as u64,
        }));
        // The CPU reads it with the MMU off.
        cache::clean_invalidate_value(start);
        crate::arch::sysreg::instruction!("dsb sy");
        let entry = entry::secondary_entry_address();
        if let Err(error) = firmware::cpu_on(host.mpidr, entry, mmu::image_pa(start)) {
            log::warn!("cannot start the CPU with MPIDR {:#x}: PSCI returned {}", host.mpidr, error);
            cpu::set_count(count);
            unused_stack = Some(top);
            continue;
        }
        // Any CPU comes up within five seconds.
        let deadline = timer::now() + 5 * timer::frequency();
        while !this.is_online() {
            if timer::now() > deadline {
                refuse(format_args!("CPU with MPIDR {:#x} was started, but did not come up", host.mpidr));
            }
            cpu::relax();
        }
        count += 1;
    }
    log::info!("{} CPUs", count);
}

/// Entry of a secondary CPU from `entry`, which names it by symbol.
// SAFETY: nothing else has this name.
#[unsafe(no_mangle)]
extern "C" fn secondary_main(index: u64) -> ! {
    guest::cpu::install(index as usize);
    vectors::install();
    init_cpu(index as usize);
    idle::enter()
}

fn start_monitor() {
    let stack = own_block(MONITOR_STACK_ORDER, "the monitor's stack");
    let stack = match mmu::map_monitor_stack(stack) {
        Ok(stack) => stack,
        Err(error) => refuse(format_args!("the monitor's stack: {error}")),
    };
    scheduler::init(stack, crate::operator::machine::run);
    log::set_listener(scheduler::wake);
}
