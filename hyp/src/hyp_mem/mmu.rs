//! EL2's own translation: stage 1 of the EL2 regime, 48-bit addresses, 4 KiB granule.
//!
//! | contents | address | attributes |
//! |---|---|---|
//! | the image | `IMAGE_BASE` | text read-execute, constants read-only, data read-write |
//! | the boot page | its physical address | read-execute, for secondary CPUs and the change of tables |
//! | stacks | `STACKS` | read-write, unmapped pages below each |
//! | windows | `WINDOWS` | two slots of 2 MiB for each CPU, for guests' memory (`window`) |
//! | devices | `SMALL`, `LARGE` | Device-nGnRE |
//! | boot data (device tree, configuration blob) | `SMALL`, `LARGE` | read-only |
//! | frame table | `LARGE` | read-write |
//! | NORMAL memory in use by Ballast | `LINEAR` + physical address | read-write, by pageblock |
//!
//! No virtual address is writable and executable (SCTLR_EL2.WXN enforces it too), and nothing else is mapped. The linear map
//! consists of pageblocks, so it also shows memory next to Ballast's frames, perhaps the image's text, as read-write. The end
//! of the image, which only boot needs, is unmapped when all CPUs have stacks of their own ([`unmap_start`]).
//!
//! Tables come from a static pool, and when that is used up, from blocks of Ballast's own frames (`table_pool`). A table takes
//! 4 KiB, so small mappings share few tables. The lock `TABLES` is a leaf.

use super::memory;
use crate::arch::coroutine::Stack;
use crate::arch::cpu::MAX_CPUS;
use crate::arch::{cpu, errata};
use crate::hyp_mem::table_pool;
use crate::hyp_mem::table_pool::{Need, Place, Stock, is_physical, tables_for};
use crate::physical::LINEAR_LIMIT;
use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use guest_dts::range::PaRange;
use spin::Mutex;
use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE, Pa};
use stage2::owner::Owner;

/// Address at which the image is linked (link.ld).
pub(crate) const IMAGE_BASE: usize = 0x8000_0000_0000;
const STACKS: usize = IMAGE_BASE + (2 << 20);
/// Mappings smaller than a pageblock, one after another, with an unmapped page between them.
const SMALL: usize = STACKS + MONITOR_STRIDE + MAX_CPUS * STACK_STRIDE + FRAME_SIZE as usize;
const WINDOWS: usize = IMAGE_BASE + (128 << 20);
/// Mappings in blocks of 2 MiB and more, one after another, with an unmapped pageblock between them.
const LARGE: usize = WINDOWS + (MAX_CPUS * WINDOWS_PER_CPU + 1) * PAGEBLOCK_SIZE as usize;
const LINEAR: usize = 0xc000_0000_0000;
const _: () = assert!(LINEAR as u64 + LINEAR_LIMIT <= 1 << 48);

/// Bytes of a CPU's stack.
pub(crate) const STACK_SIZE: usize = 16 * 1024;
/// Bytes of the monitor's stack.
pub(crate) const MONITOR_STACK_SIZE: usize = 32 * 1024;
/// Address space of a CPU's stack and the unmapped pages below it.
const STACK_STRIDE: usize = 2 * STACK_SIZE;
/// Address space of the monitor's stack, the first, and the unmapped pages below it.
const MONITOR_STRIDE: usize = 2 * MONITOR_STACK_SIZE;
/// True while the boot stack is mapped.
static BOOT_STACK: AtomicBool = AtomicBool::new(false);
/// True once the monitor's stack is mapped.
static MONITOR_STACK: AtomicBool = AtomicBool::new(false);
/// Number of slots of 2 MiB that each CPU has in `WINDOWS`.
pub(crate) const WINDOWS_PER_CPU: usize = 2;

/// Valid bit of a descriptor.
const VALID: u64 = 1;
const NORMAL: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ATTRIBUTE_INDEX_0)
    .union(El23Attributes::USER_RES1)
    .union(El23Attributes::INNER_SHAREABLE)
    .union(El23Attributes::ACCESSED);
const READ_EXECUTE: El23Attributes = NORMAL.union(El23Attributes::READ_ONLY);
const READ_ONLY: El23Attributes = READ_EXECUTE.union(El23Attributes::XN);
const READ_WRITE: El23Attributes = NORMAL.union(El23Attributes::XN);
const DEVICE: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ATTRIBUTE_INDEX_1)
    .union(El23Attributes::USER_RES1)
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::XN);

/// Attributes of an open window's level 2 entry: [`READ_WRITE`], a block.
pub(crate) const WINDOW_BLOCK: u64 = READ_WRITE.bits() as u64;
/// Attributes of a window for cache maintenance: Normal Non-cacheable memory.
pub(crate) const WINDOW_BLOCK_UNCACHED: u64 =
    READ_WRITE.difference(El23Attributes::ATTRIBUTE_INDEX_0).union(El23Attributes::ATTRIBUTE_INDEX_2).bits()
        as u64;

/// Tables in the static pool, enough for a machine of a few GiB: one for each GiB that Ballast has frames in, and about 13 for
/// the rest.
const POOL_TABLES: usize = 24;
/// Order of a block of tables that is added.
const MORE_ORDER: u8 = table_pool::BLOCK.trailing_zeros() as u8;

#[repr(C, align(4096))]
struct Pool([[AtomicU64; 512]; POOL_TABLES]);

#[unsafe(link_section = ".bss.ztables")]
static POOL: Pool = Pool([const { [const { AtomicU64::new(0) }; 512] }; POOL_TABLES]);

/// Allocator of tables.
struct PoolTranslation {
    image: u64,
    stock: Stock,
}

impl PoolTranslation {
    /// Returns the table at `pa`.
    fn table(&self, pa: usize) -> &'static [AtomicU64; 512] {
        let offset = pa.wrapping_sub(self.image as usize).wrapping_sub((&raw const POOL).addr() - IMAGE_BASE);
        match POOL.0.get(offset / FRAME_SIZE as usize) {
            Some(table) => table,
            // SAFETY: a frame of a block that `add_tables` was given: mapped forever, used as tables only.
            None => unsafe { linear(Pa::new_truncate(pa as u64)).cast().as_ref() },
        }
    }
}

impl Translation<El23Attributes> for PoolTranslation {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El23Attributes>>, PhysicalAddress) {
        let pa = match self.stock.take() {
            Some(Place::Pool(index)) => image_pa(&raw const POOL.0[index]) as usize,
            Some(Place::Added(pa)) => pa as usize,
            // `Tables::map` has checked that enough tables are free.
            None => unreachable!(),
        };
        let table = self.table(pa);
        for entry in table {
            entry.store(0, Ordering::Relaxed);
        }
        (NonNull::from(table).cast(), PhysicalAddress(pa))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El23Attributes>>) {
        let index = table.addr().get().wrapping_sub((&raw const POOL).addr()) / FRAME_SIZE as usize;
        let added = table.addr().get().wrapping_sub(LINEAR) as u64;
        self.stock.give(if index < POOL_TABLES { Place::Pool(index) } else { Place::Added(added) });
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El23Attributes>> {
        NonNull::from(self.table(pa.0)).cast()
    }
}

struct Tables {
    mapping: Mapping<PoolTranslation, El2>,
    next_small: usize,
    next_large: usize,
}

static TABLES: Mutex<Option<Tables>> = Mutex::new(None);
/// Physical address of the image.
static IMAGE: AtomicU64 = AtomicU64::new(0);
static ROOT: AtomicUsize = AtomicUsize::new(0);

/// Error of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapError {
    /// Too few tables are free.
    OutOfTables(Need),
    /// The address is above the end of EL2's map.
    AddressTooHigh(u64),
    /// The library refused the range: reversed, past the end, or already mapped differently.
    Refused,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfTables(_) => f.write_str("all of EL2's translation tables are in use"),
            Self::AddressTooHigh(address) => write!(f, "{address:#x} is above what EL2's map can hold"),
            Self::Refused => f.write_str("EL2's map already holds something else there"),
        }
    }
}

impl Tables {
    fn map(&mut self, va: usize, pa: u64, size: usize, flags: El23Attributes) -> Result<(), MapError> {
        let need = Need::tables(tables_for(va as u64, pa, size as u64));
        self.map_with(need, va, pa, size, flags)
    }

    /// Maps a range that needs `need` tables.
    fn map_with(
        &mut self,
        need: Need,
        va: usize,
        pa: u64,
        size: usize,
        flags: El23Attributes,
    ) -> Result<(), MapError> {
        if !self.mapping.translation().stock.has(need) {
            return Err(MapError::OutOfTables(need));
        }
        let region = MemoryRegion::new(va, va + size);
        self.mapping
            .map_range(&region, PhysicalAddress(pa as usize), flags, Constraints::NO_CONTIGUOUS_HINT)
            .map_err(|_| MapError::Refused)
    }

    /// Maps the frames of `size` bytes at `pa` at a free address. Returns the address of `pa`.
    fn map_anywhere(&mut self, pa: u64, size: u64, flags: El23Attributes) -> Result<NonNull<u8>, MapError> {
        if !is_physical(pa, size, crate::arch::sysreg::read!("id_aa64mmfr0_el1") & 0xf) {
            return Err(MapError::AddressTooHigh(pa));
        }
        const BLOCK: usize = PAGEBLOCK_SIZE as usize;
        let start = pa & !(FRAME_SIZE - 1);
        let bytes = ((pa + size).next_multiple_of(FRAME_SIZE) - start) as usize;
        let is_small = bytes < BLOCK && self.next_small + bytes < WINDOWS;
        // The same offset within 2 MiB as the physical address, so that blocks can be used.
        let va = if is_small { self.next_small } else { self.next_large + start as usize % BLOCK };
        self.map(va, start, bytes, flags)?;
        if is_small {
            self.next_small = va + bytes + FRAME_SIZE as usize;
        } else {
            self.next_large = (va + bytes).next_multiple_of(BLOCK) + BLOCK;
        }
        NonNull::new((va + (pa - start) as usize) as *mut u8).ok_or(MapError::Refused)
    }

    /// Returns the level 2 entry of the pageblock at `va`, if its table exists.
    fn entry(&self, va: usize) -> Result<Option<&'static AtomicU64>, MapError> {
        let mut entry = None;
        let region = MemoryRegion::new(va, va + PAGEBLOCK_SIZE as usize);
        self.mapping
            .walk_range(&region, &mut |_, descriptor, level| {
                if level == 2 {
                    // SAFETY: a descriptor is one atomic word in a table. Tables of the linear map and of windows are
                    // never freed.
                    entry = Some(unsafe { &*core::ptr::from_ref(descriptor).cast::<AtomicU64>() });
                }
                Ok(())
            })
            .map_err(|_| MapError::Refused)?;
        Ok(entry)
    }

    /// Maps the pageblock of `pa` at its linear address, unless it is mapped already.
    fn map_linear(&mut self, pa: Pa, need: Need) -> Result<(), MapError> {
        if pa.get() >= LINEAR_LIMIT {
            return Err(MapError::AddressTooHigh(pa.get()));
        }
        let start = pa.get() & !(PAGEBLOCK_SIZE - 1);
        let va = LINEAR + start as usize;
        if self.entry(va)?.is_some_and(|entry| entry.load(Ordering::Relaxed) & VALID != 0) {
            return Ok(());
        }
        self.map_with(need, va, start, PAGEBLOCK_SIZE as usize, READ_WRITE)
    }

    /// Unmaps whole pages.
    fn unmap(&mut self, start: usize, end: usize) -> Result<(), MapError> {
        let (region, flags) = (MemoryRegion::new(start, end), El23Attributes::empty());
        self.mapping
            .map_range(&region, PhysicalAddress(0), flags, Constraints::NO_CONTIGUOUS_HINT)
            .map_err(|_| MapError::Refused)?;
        // The library has invalidated the pages one by one (TLBI VAE2IS).
        errata::complete_invalidations();
        Ok(())
    }
}

unsafe extern "C" {
    static __boot_text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_file_end: u8;
    /// In the boot page (`boot::entry`).
    fn switch_root(root: u64);
}

/// Makes `root` (a physical address) the root of EL2's tables on this CPU.
///
/// # Safety
///
/// The tables below `root` map the image as the present ones do, the stack in use, and the boot page at its own
/// physical address.
unsafe fn change_root(root: u64) {
    let address = image_pa(switch_root as *const ());
    // SAFETY: the boot page is identity-mapped before and after, as the caller says; `switch_root` takes one
    // register, touches no memory and keeps all but x0 to x2.
    unsafe {
        let function: unsafe extern "C" fn(u64) = core::mem::transmute(address as usize);
        function(root);
    }
}

/// Returns the address of a linker symbol that may be out of the code model's reach.
macro_rules! far_symbol {
    ($name:literal) => {{
        let address: usize;
        // SAFETY: loads a constant.
        unsafe { core::arch::asm!(concat!("ldr {}, =", $name), out(reg) address, options(nostack, pure, readonly)) };
        address
    }};
}

fn image_end() -> usize {
    far_symbol!("__image_end")
}

fn boot_stack_bottom() -> usize {
    far_symbol!("__boot_stack_bottom")
}

/// Makes the final tables and switches to them. Called once, on the primary CPU.
///
/// # Safety
///
/// The early tables are in use and `image` is the physical address of the image.
pub(crate) unsafe fn init(image: u64) -> Result<(), MapError> {
    IMAGE.store(image, Ordering::Relaxed);
    let translation = PoolTranslation { image, stock: Stock::new(POOL_TABLES) };
    let mut tables =
        Tables { mapping: Mapping::new(translation, 0, El2), next_small: SMALL, next_large: LARGE };
    let pieces = [
        (IMAGE_BASE, (&raw const __text_end).addr(), READ_EXECUTE),
        ((&raw const __text_end).addr(), (&raw const __rodata_end).addr(), READ_ONLY),
        ((&raw const __rodata_end).addr(), far_symbol!("__boot_stack_guard"), READ_WRITE),
        (boot_stack_bottom(), image_end(), READ_WRITE),
    ];
    for (start, end, flags) in pieces {
        tables.map(start, (start - IMAGE_BASE) as u64 + image, end - start, flags)?;
    }
    tables.map(image as usize, image, FRAME_SIZE as usize, READ_EXECUTE)?;

    let root = tables.mapping.root_address().0;
    // From here on every change is checked for break-before-make and followed by TLB maintenance.
    tables.mapping.mark_active();
    *TABLES.lock() = Some(tables);
    ROOT.store(root, Ordering::Release);
    BOOT_STACK.store(true, Ordering::Relaxed);
    // SAFETY: the tables map the image, the boot stack in use (part of the image) and the boot page.
    unsafe { change_root(root as u64) };
    Ok(())
}

/// Unmaps the end of the image, which only boot needs. `kept_end` is the end of the CPUs' data, the last part that stays.
pub(crate) fn unmap_start(kept_end: usize) -> Result<(), MapError> {
    BOOT_STACK.store(false, Ordering::Relaxed);
    try_with_tables(|tables| {
        tables.unmap(kept_end.next_multiple_of(FRAME_SIZE as usize), far_symbol!("__boot_stack_guard"))?;
        tables.unmap(boot_stack_bottom(), image_end())
    })
}

/// Returns the bytes of the image that stay in use if the CPUs' data ends at `kept_end`.
pub(crate) fn kept_size(kept_end: usize) -> u64 {
    (kept_end.next_multiple_of(FRAME_SIZE as usize) - IMAGE_BASE) as u64
}

/// Returns the physical address of the root table.
pub(crate) fn root() -> u64 {
    ROOT.load(Ordering::Acquire) as u64
}

/// Returns the physical address of the image.
pub(crate) fn image() -> u64 {
    IMAGE.load(Ordering::Relaxed)
}

/// Returns the bytes of the image, with zeroed data and the boot stack.
pub(crate) fn image_size() -> u64 {
    (image_end() - (&raw const __boot_text_start).addr()) as u64
}

/// Returns the bytes of the image as it is loaded.
pub(crate) fn image_file_size() -> u64 {
    ((&raw const __image_file_end).addr() - IMAGE_BASE) as u64
}

/// Returns the physical address of an object in the image.
pub(crate) fn image_pa<T>(object: *const T) -> u64 {
    (object.addr() - IMAGE_BASE) as u64 + image()
}

/// Calls `f` to change the tables; if too few were free, adds tables and calls it again.
fn with_tables<T>(f: impl Fn(&mut Tables) -> Result<T, MapError>) -> Result<T, MapError> {
    loop {
        let result = try_with_tables(&f);
        match result {
            Err(MapError::OutOfTables(need)) if grow(need) => {}
            _ => return result,
        }
    }
}

fn try_with_tables<T>(f: impl FnOnce(&mut Tables) -> Result<T, MapError>) -> Result<T, MapError> {
    TABLES.lock().as_mut().map_or(Err(MapError::Refused), f)
}

#[inline(never)]
fn map_anywhere(pa: u64, size: u64, flags: El23Attributes) -> Result<NonNull<u8>, MapError> {
    with_tables(|tables| tables.map_anywhere(pa, size, flags))
}

/// Maps `size` bytes of a device's registers.
pub(crate) fn map_device(pa: Pa, size: u64) -> Result<NonNull<u8>, MapError> {
    map_anywhere(pa.get(), size, DEVICE)
}

/// Maps `size` bytes that the loader left (device tree, configuration blob, boot modules), read-only.
pub(crate) fn map_boot_data(pa: u64, size: u64) -> Result<NonNull<u8>, MapError> {
    map_anywhere(pa, size, READ_ONLY)
}

/// Unmaps boot data that was mapped last and is smaller than a pageblock.
pub(crate) fn unmap_boot_data(va: NonNull<u8>, size: usize) -> Result<(), MapError> {
    try_with_tables(|tables| {
        let start = va.addr().get() & !(FRAME_SIZE as usize - 1);
        tables.unmap(start, (va.addr().get() + size).next_multiple_of(FRAME_SIZE as usize))?;
        // Unless there was no room in `SMALL`.
        if start < WINDOWS {
            tables.next_small = start;
        }
        Ok(())
    })
}

/// Maps the frame table.
pub(crate) fn map_frame_table(pa: Pa, size: u64) -> Result<NonNull<u8>, MapError> {
    map_anywhere(pa.get(), size, READ_WRITE)
}

/// Maps the stack of CPU `index` onto [`STACK_SIZE`] bytes at `pa`; returns its top.
pub(crate) fn map_stack(index: usize, pa: Pa) -> Result<u64, MapError> {
    map_stack_below(stack_top(index), STACK_SIZE, pa)
}

/// Returns the top of the stack of CPU `index`.
const fn stack_top(index: usize) -> usize {
    STACKS + MONITOR_STRIDE + (index + 1) * STACK_STRIDE
}

/// Maps the monitor's stack onto [`MONITOR_STACK_SIZE`] bytes at `pa`, once.
pub(crate) fn map_monitor_stack(pa: Pa) -> Result<Stack, MapError> {
    if MONITOR_STACK.load(Ordering::Acquire) {
        return Err(MapError::Refused);
    }
    let top = map_stack_below(STACKS + MONITOR_STRIDE, MONITOR_STACK_SIZE, pa)?;
    MONITOR_STACK.store(true, Ordering::Release);
    // SAFETY: just mapped, forever, and not handed out before; pages are aligned.
    Ok(unsafe { Stack::new(top) })
}

#[inline(never)]
fn map_stack_below(top: usize, size: usize, pa: Pa) -> Result<u64, MapError> {
    with_tables(|tables| tables.map(top - size, pa.get(), size, READ_WRITE))?;
    Ok(top as u64)
}

/// Maps the pageblock of `pa` at its linear address, when Ballast begins to use it.
pub(crate) fn map_linear(pa: Pa) -> Result<(), MapError> {
    with_tables(|tables| tables.map_linear(pa, Need::tables(table_pool::RESERVE)))
}

/// Adds blocks of tables until as many are free as `need` says. Returns true if they are.
///
/// Its lock admits one CPU at a time, since there is a reserve for one block. Those of memory and `TABLES` come after it.
fn grow(need: Need) -> bool {
    static GROWING: Mutex<()> = Mutex::new(());
    let _alone = GROWING.lock();
    loop {
        match has_tables(need) {
            // Another CPU may have added some meanwhile.
            Some(true) => return true,
            Some(false) => {}
            None => return false,
        }
        let Ok((frame, contents)) = memory::take(MORE_ORDER, Owner::Hypervisor) else { return false };
        if add_tables(frame.pa()).is_err() {
            memory::free(frame, MORE_ORDER, Owner::Hypervisor, contents);
            return false;
        }
    }
}

/// Returns true if as many tables are free as `need` says; `None` if they are not and none may be added.
fn has_tables(need: Need) -> Option<bool> {
    let tables = TABLES.lock();
    let stock = &tables.as_ref()?.mapping.translation().stock;
    let has = stock.has(need);
    (has || stock.has_room()).then_some(has)
}

/// Maps the block of [`MORE_ORDER`] at `pa` and adds it to the tables, forever, if there is room.
fn add_tables(pa: Pa) -> Result<(), MapError> {
    try_with_tables(|tables| {
        tables.map_linear(pa, Need::BLOCK)?;
        tables.mapping.translation().stock.add(pa.get());
        Ok(())
    })
}

/// Returns the linear address of `pa`, which is mapped after [`map_linear`].
pub(crate) fn linear(pa: Pa) -> NonNull<u8> {
    // SAFETY: LINEAR is not zero and the sum stays below 2^48: physical addresses are below LINEAR_LIMIT.
    unsafe { NonNull::new_unchecked((LINEAR + pa.get() as usize) as *mut u8) }
}

/// Makes window `slot` of CPU `cpu`. Returns its address and its level 2 entry, which is invalid: the window is closed.
pub(crate) fn window(cpu: usize, slot: usize) -> Result<(NonNull<u8>, &'static AtomicU64), MapError> {
    let va = WINDOWS + (cpu * WINDOWS_PER_CPU + slot) * PAGEBLOCK_SIZE as usize;
    with_tables(|tables| {
        // Mapping an invalid block makes the tables down to level 2. The address is not kept. It must only differ from that
        // of an empty entry, or the library sees nothing to do.
        tables.map(va, 1 << 40, PAGEBLOCK_SIZE as usize, El23Attributes::empty())?;
        let entry = tables.entry(va)?.ok_or(MapError::Refused)?;
        Ok((NonNull::new(va as *mut u8).ok_or(MapError::Refused)?, entry))
    })
}

/// Returns true if `address` lies in a mapped stack.
pub(crate) fn is_stack(address: u64) -> bool {
    let address = address as usize;
    let is_below = |top: usize, size: usize| (top - size..top).contains(&address);
    // Only the boot CPU's stack may not be mapped yet.
    let first = usize::from(cpu::get(0).is_some_and(|cpu| cpu.stack_top() == boot_stack_top()));
    (BOOT_STACK.load(Ordering::Relaxed)
        && (boot_stack_bottom()..boot_stack_top() as usize).contains(&address))
        || (first..cpu::count()).any(|index| is_below(stack_top(index), STACK_SIZE))
        || (MONITOR_STACK.load(Ordering::Acquire) && is_below(STACKS + MONITOR_STRIDE, MONITOR_STACK_SIZE))
}

/// Returns the top of the stack that boot runs on.
pub(crate) fn boot_stack_top() -> u64 {
    far_symbol!("__boot_stack_top") as u64
}

/// Maps what the loader left in `range` read-only, forever. Returns `None`, and logs why, if it cannot be mapped.
///
/// # Safety
///
/// `range` is reserved in the memory map: nobody writes to it from now on.
pub(crate) unsafe fn map_loaded(range: PaRange) -> Option<&'static [u8]> {
    match map_boot_data(range.base().get(), range.size()) {
        // SAFETY: mapped read-only for this size and never unmapped; nobody writes to it, as the caller says.
        Ok(address) => Some(unsafe { core::slice::from_raw_parts(address.as_ptr(), range.size() as usize) }),
        Err(error) => {
            crate::observe::log::error!("cannot map what was loaded at {}: {}", range, error);
            None
        }
    }
}
