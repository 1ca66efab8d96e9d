//! EL2's own translation: stage 1 of the EL2 regime, 48-bit addresses, 4 KiB granule.
//!
//! | what | where | how |
//! |---|---|---|
//! | the image | `IMAGE_BASE` | text read-execute, constants read-only, data read-write |
//! | the boot page | its physical address | read-execute, for secondary CPUs and the change of tables |
//! | stacks | `STACKS` | read-write, an unmapped page below each |
//! | windows | `WINDOWS` | two 2 MiB slots a CPU, through which it reaches guest memory (`window`) |
//! | devices | `DEVICES` | Device-nGnRE |
//! | boot data (device tree, configuration blob) | `BOOT_DATA` | read-only |
//! | frame table | `FRAME_TABLE` | read-write |
//! | NORMAL memory in use by Ballast | `LINEAR` + physical address | read-write, by pageblock |
//!
//! Nothing is writable and executable (SCTLR_EL2.WXN holds beside), nothing else is mapped.
//!
//! Tables come from a static pool, and once that runs low, from a block of frames of Ballast's own. Lock: `TABLES`, a
//! leaf: nothing else is taken while it is held.

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;
use stage2::addr::{FRAME_SIZE, PAGEBLOCK_SIZE, Pa};

/// Where the image is linked (link.ld).
pub(super) const IMAGE_BASE: usize = 0x8000_0000_0000;
const STACKS: usize = 0x8080_0000_0000;
const WINDOWS: usize = 0x8080_4000_0000;
const DEVICES: usize = 0x8080_8000_0000;
const BOOT_DATA: usize = 0x8090_0000_0000;
const FRAME_TABLE: usize = 0x8100_0000_0000;
const LINEAR: usize = 0xc000_0000_0000;
/// Physical addresses above this have no place in the linear map.
const LINEAR_LIMIT: u64 = 1 << 46;

/// Bytes of a CPU's stack.
pub(super) const STACK_SIZE: usize = 16 * 1024;
/// Bytes of the monitor's stack.
pub(super) const MONITOR_STACK_SIZE: usize = 32 * 1024;
/// Distance between stacks: at least the page below each is unmapped.
const STACK_STRIDE: usize = 64 * 1024;
/// Whether the monitor's stack is mapped.
static MONITOR_STACK: AtomicBool = AtomicBool::new(false);
/// Slots of 2 MiB that each CPU has in `WINDOWS`.
pub(super) const WINDOWS_PER_CPU: usize = 2;

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

/// What a window's level 2 entry holds besides the output address when it is in use: [`READ_WRITE`], a block.
pub(super) const WINDOW_BLOCK: u64 = READ_WRITE.bits() as u64;

/// Tables in the static pool: what a machine of a few GiB needs. There is one for each GiB that Ballast has frames in,
/// and about 16 for the rest.
const POOL_TABLES: usize = 36;
/// Tables in the block that is added when these run low.
const MORE_TABLES: usize = 64;
/// log2 of the frames of that block.
pub(super) const MORE_ORDER: u8 = MORE_TABLES.trailing_zeros() as u8;
/// Tables that any one mapping may need: three new levels at each of its two ends.
const HEADROOM: usize = 6;

#[repr(C, align(4096))]
struct Pool([[AtomicU64; 512]; POOL_TABLES]);

#[unsafe(link_section = ".bss.tables")]
static POOL: Pool = Pool([const { [const { AtomicU64::new(0) }; 512] }; POOL_TABLES]);

/// Hands out tables of the pool, by number; a table given back is handed out again.
struct PoolTranslation {
    image: u64,
    /// Tables of the static pool in use, a bit each.
    used: u64,
    /// Tables of the added block in use, a bit each.
    used_more: u64,
}

impl PoolTranslation {
    fn free_count(&self) -> usize {
        let more = more_tables().map_or(0, |_| MORE_TABLES - self.used_more.count_ones() as usize);
        POOL_TABLES - self.used.count_ones() as usize + more
    }

    /// The table with the first address `pa`.
    fn table(&self, pa: usize) -> &'static [AtomicU64; 512] {
        let offset = pa.wrapping_sub(self.image as usize).wrapping_sub((&raw const POOL).addr() - IMAGE_BASE);
        match POOL.0.get(offset / FRAME_SIZE as usize) {
            Some(table) => table,
            // SAFETY: a frame of the block that `add_tables` was given: mapped for ever, used as tables only.
            None => unsafe { linear(Pa::new_truncate(pa as u64)).cast().as_ref() },
        }
    }
}

impl Translation<El23Attributes> for PoolTranslation {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El23Attributes>>, PhysicalAddress) {
        let index = self.used.trailing_ones() as usize;
        let pa = match more_tables() {
            Some(base) if index >= POOL_TABLES => {
                let index = self.used_more.trailing_ones() as usize;
                self.used_more |= 1 << index;
                base.get() as usize + index * FRAME_SIZE as usize
            }
            // Callers keep `HEADROOM`, so the pool is never empty here.
            _ => {
                self.used |= 1 << index;
                image_pa(&raw const POOL.0[index]) as usize
            }
        };
        let table = self.table(pa);
        for entry in table {
            entry.store(0, Ordering::Relaxed);
        }
        (NonNull::from(table).cast(), PhysicalAddress(pa))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El23Attributes>>) {
        let index = table.addr().get().wrapping_sub((&raw const POOL).addr()) / FRAME_SIZE as usize;
        if index < POOL_TABLES {
            self.used &= !(1 << index);
        } else if let Some(base) = more_tables() {
            let index = (table.addr().get() - linear(base).addr().get()) / FRAME_SIZE as usize;
            self.used_more &= !(1 << index);
        }
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El23Attributes>> {
        NonNull::from(self.table(pa.0)).cast()
    }
}

struct Tables {
    mapping: Mapping<PoolTranslation, El2>,
    next_device: usize,
    next_boot_data: usize,
    next_frame_table: usize,
}

static TABLES: Mutex<Option<Tables>> = Mutex::new(None);
/// The static pool runs low and nothing has been added to it.
static IS_SHORT: AtomicBool = AtomicBool::new(false);
/// Where the added block begins; 0: there is none. Set under the lock, once.
static MORE: AtomicU64 = AtomicU64::new(0);

/// The first address of the block that was added to the pool.
fn more_tables() -> Option<Pa> {
    Some(MORE.load(Ordering::Relaxed)).filter(|&base| base != 0).map(Pa::new_truncate)
}
/// Where the image lies.
static IMAGE: AtomicU64 = AtomicU64::new(0);
static ROOT: AtomicUsize = AtomicUsize::new(0);
static EMPTY_ROOT: AtomicU64 = AtomicU64::new(0);

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapError {
    /// The pool of tables is used up.
    OutOfTables,
    /// The address has no place in EL2's map.
    AddressTooHigh(u64),
    /// The library refused: a range backwards, past the end, or mapped already in another way.
    Refused,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfTables => f.write_str("all of EL2's translation tables are in use"),
            Self::AddressTooHigh(address) => write!(f, "{address:#x} is above what EL2's map can hold"),
            Self::Refused => f.write_str("EL2's map already holds something else there"),
        }
    }
}

impl Tables {
    fn map(&mut self, va: usize, pa: u64, size: usize, flags: El23Attributes) -> Result<(), MapError> {
        let free = self.mapping.translation().free_count();
        if free < HEADROOM {
            return Err(MapError::OutOfTables);
        }
        IS_SHORT.store(free < HEADROOM + 2 && more_tables().is_none(), Ordering::Relaxed);
        let region = MemoryRegion::new(va, va + size);
        self.mapping
            .map_range(&region, PhysicalAddress(pa as usize), flags, Constraints::NO_CONTIGUOUS_HINT)
            .map_err(|_| MapError::Refused)
    }
}

unsafe extern "C" {
    static __boot_text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_file_end: u8;
}

/// The address of a symbol of the linker's that may be further away than the code model reaches.
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

/// Makes the final tables and goes over to them. Once, on the primary CPU.
///
/// # Safety
///
/// The early tables are in use and `image` is the physical address of the image.
pub(super) unsafe fn init(image: u64) -> Result<(), MapError> {
    IMAGE.store(image, Ordering::Relaxed);
    let translation = PoolTranslation { image, used: 0, used_more: 0 };
    let mut tables = Tables {
        mapping: Mapping::new(translation, 0, El2),
        next_device: DEVICES,
        next_boot_data: BOOT_DATA,
        next_frame_table: FRAME_TABLE,
    };
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
    // SAFETY: the tables map the image, the boot stack in use (part of the image) and the boot page.
    unsafe { super::boot::change_root(root as u64, image) };
    // SAFETY: the final tables are in use, this CPU alone runs.
    let empty = unsafe { super::boot::empty_stage2_root() };
    EMPTY_ROOT.store(image_pa(empty), Ordering::Release);
    Ok(())
}

/// Physical address of the root table.
pub(super) fn root() -> u64 {
    ROOT.load(Ordering::Acquire) as u64
}

/// VTTBR_EL2 of a CPU that runs no guest: VMID 0, which is nobody's, and tables that hold nothing.
pub(super) fn empty_vttbr() -> u64 {
    EMPTY_ROOT.load(Ordering::Acquire)
}

/// Physical address of the image.
pub(super) fn image() -> u64 {
    IMAGE.load(Ordering::Relaxed)
}

/// Bytes from the image's first to its last, zeroed data and boot stack included.
pub(super) fn image_size() -> u64 {
    (image_end() - (&raw const __boot_text_start).addr()) as u64
}

/// Bytes of the image as it is loaded.
pub(super) fn image_file_size() -> u64 {
    ((&raw const __image_file_end).addr() - IMAGE_BASE) as u64
}

/// Physical address of something in the image.
pub(super) fn image_pa<T>(object: *const T) -> u64 {
    (object.addr() - IMAGE_BASE) as u64 + image()
}

fn with_tables<T>(f: impl FnOnce(&mut Tables) -> Result<T, MapError>) -> Result<T, MapError> {
    TABLES.lock().as_mut().map_or(Err(MapError::Refused), f)
}

/// Frames that `size` bytes at `pa` touch: the first one's address, their size, the offset in the first.
fn covering(pa: u64, size: u64) -> (u64, usize, usize) {
    let start = pa & !(FRAME_SIZE - 1);
    let end = (pa + size).next_multiple_of(FRAME_SIZE);
    (start, (end - start) as usize, (pa - start) as usize)
}

/// Maps `size` bytes of a device's registers.
pub(super) fn map_device(pa: Pa, size: u64) -> Result<NonNull<u8>, MapError> {
    let (start, bytes, offset) = covering(pa.get(), size);
    with_tables(|tables| {
        // The same offset within 2 MiB as the physical address, so that blocks can serve.
        let va = tables.next_device + (start % PAGEBLOCK_SIZE) as usize;
        tables.map(va, start, bytes, DEVICE)?;
        tables.next_device = (va + bytes).next_multiple_of(PAGEBLOCK_SIZE as usize) + PAGEBLOCK_SIZE as usize;
        NonNull::new((va + offset) as *mut u8).ok_or(MapError::Refused)
    })
}

/// Maps `size` bytes that the loader left (device tree, configuration blob, boot modules), read-only.
pub(super) fn map_boot_data(pa: u64, size: u64) -> Result<NonNull<u8>, MapError> {
    if pa.checked_add(size).is_none_or(|end| end > LINEAR_LIMIT) {
        return Err(MapError::AddressTooHigh(pa));
    }
    let (start, bytes, offset) = covering(pa, size);
    with_tables(|tables| {
        // The same offset within 2 MiB as the physical address, so that blocks can serve.
        let phase = (start % PAGEBLOCK_SIZE) as usize;
        let va = tables.next_boot_data + phase;
        tables.map(va, start, bytes, READ_ONLY)?;
        tables.next_boot_data =
            (va + bytes).next_multiple_of(PAGEBLOCK_SIZE as usize) + PAGEBLOCK_SIZE as usize;
        NonNull::new((va + offset) as *mut u8).ok_or(MapError::Refused)
    })
}

/// Unmaps boot data again.
pub(super) fn unmap_boot_data(va: NonNull<u8>, size: usize) -> Result<(), MapError> {
    with_tables(|tables| {
        let start = va.addr().get() & !(FRAME_SIZE as usize - 1);
        let region = MemoryRegion::new(start, va.addr().get() + size);
        let flags = El23Attributes::empty();
        tables
            .mapping
            .map_range(&region, PhysicalAddress(0), flags, Constraints::NO_CONTIGUOUS_HINT)
            .map_err(|_| MapError::Refused)
    })
}

/// Maps a piece of the frame table.
pub(super) fn map_frame_table(pa: Pa, size: u64) -> Result<NonNull<u8>, MapError> {
    with_tables(|tables| {
        let phase = (pa.get() % PAGEBLOCK_SIZE) as usize;
        let va = tables.next_frame_table + phase;
        let bytes = size.next_multiple_of(FRAME_SIZE) as usize;
        tables.map(va, pa.get(), bytes, READ_WRITE)?;
        tables.next_frame_table =
            (va + bytes).next_multiple_of(PAGEBLOCK_SIZE as usize) + PAGEBLOCK_SIZE as usize;
        NonNull::new(va as *mut u8).ok_or(MapError::Refused)
    })
}

/// Maps the stack of CPU `index`, or with `MAX_CPUS` the monitor's, onto `size` bytes at `pa`; returns its top.
pub(super) fn map_stack(index: usize, pa: Pa, size: usize) -> Result<u64, MapError> {
    let top = STACKS + (index + 1) * STACK_STRIDE;
    with_tables(|tables| tables.map(top - size, pa.get(), size, READ_WRITE))?;
    if index == super::cpu::MAX_CPUS {
        MONITOR_STACK.store(true, Ordering::Release);
    }
    Ok(top as u64)
}

/// Maps the pageblock that `pa` lies in at its linear address, once it is in use by Ballast.
pub(super) fn map_linear(pa: Pa) -> Result<(), MapError> {
    if pa.get() >= LINEAR_LIMIT {
        return Err(MapError::AddressTooHigh(pa.get()));
    }
    let start = pa.get() & !(PAGEBLOCK_SIZE - 1);
    with_tables(|tables| tables.map(LINEAR + start as usize, start, PAGEBLOCK_SIZE as usize, READ_WRITE))
}

/// Whether [`add_tables`] should be given a block: asked once.
pub(super) fn takes_tables() -> bool {
    IS_SHORT.load(Ordering::Relaxed) && IS_SHORT.swap(false, Ordering::Relaxed)
}

/// Adds the block of [`MORE_ORDER`] at `pa`, mapped at its linear address, to the pool of tables, for ever.
pub(super) fn add_tables(pa: Pa) {
    let _tables = TABLES.lock();
    MORE.store(pa.get(), Ordering::Relaxed);
}

/// The linear address of `pa`; meaningful after [`map_linear`].
pub(super) fn linear(pa: Pa) -> NonNull<u8> {
    // SAFETY: LINEAR is not zero and the sum stays below 2^48: physical addresses are below LINEAR_LIMIT.
    unsafe { NonNull::new_unchecked((LINEAR + pa.get() as usize) as *mut u8) }
}

/// The address of window `slot` of CPU `cpu`, and the level 2 entry that opens it, which is made invalid.
pub(super) fn window(cpu: usize, slot: usize) -> Result<(NonNull<u8>, &'static AtomicU64), MapError> {
    let va = WINDOWS + (cpu * WINDOWS_PER_CPU + slot) * PAGEBLOCK_SIZE as usize;
    with_tables(|tables| {
        // Writing an invalid block makes the tables down to level 2. The address is not kept; it only must not
        // look like the one that an empty entry holds, or the library sees nothing to do.
        tables.map(va, 1 << 40, PAGEBLOCK_SIZE as usize, El23Attributes::empty())?;
        let mut entry = None;
        let region = MemoryRegion::new(va, va + PAGEBLOCK_SIZE as usize);
        tables
            .mapping
            .walk_range(&region, &mut |_, descriptor, level| {
                if level == 2 {
                    entry = Some(core::ptr::from_ref(descriptor).cast::<AtomicU64>());
                }
                Ok(())
            })
            .map_err(|_| MapError::Refused)?;
        let entry = entry.ok_or(MapError::Refused)?;
        let pointer = NonNull::new(va as *mut u8).ok_or(MapError::Refused)?;
        // SAFETY: a descriptor is one atomic word in the static pool, never freed while the window's region is
        // not mapped anew, which nobody does.
        Ok((pointer, unsafe { &*entry }))
    })
}

/// Whether `address` lies in a stack: the boot stack or a mapped one of [`map_stack`].
pub(super) fn is_stack(address: u64) -> bool {
    let address = address as usize;
    let boot = boot_stack_bottom()..boot_stack_top() as usize;
    // Slot 0 is unused: the boot CPU keeps the boot stack.
    let in_slot = (STACKS + STACK_STRIDE..STACKS + super::cpu::count() * STACK_STRIDE).contains(&address)
        && (address - STACKS) % STACK_STRIDE >= STACK_STRIDE - STACK_SIZE;
    let monitor_top = STACKS + (super::cpu::MAX_CPUS + 1) * STACK_STRIDE;
    let in_monitor = MONITOR_STACK.load(Ordering::Acquire)
        && (monitor_top - MONITOR_STACK_SIZE..monitor_top).contains(&address);
    boot.contains(&address) || in_slot || in_monitor
}

/// Top of the boot CPU's stack.
pub(super) fn boot_stack_top() -> u64 {
    far_symbol!("__boot_stack_top") as u64
}
