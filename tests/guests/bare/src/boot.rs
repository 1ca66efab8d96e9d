//! From the first instruction to a guest's `main`.

use crate::platform::{Platform, Range};
use crate::{console, gic, mmu, psci, say, smp};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Size of each CPU's stack in bytes.
pub const STACK_SIZE: usize = 64 << 10;

core::arch::global_asm!(
    include_str!("boot.S"),
    start = sym start,
    secondary = sym smp::secondary,
    stack_size = const STACK_SIZE,
);

/// Stacks of all CPUs, used only by the assembly above and `smp`.
#[repr(C, align(4096))]
pub(crate) struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; crate::platform::MAX_CPUS]>);

// SAFETY: each CPU has a stack of its own.
unsafe impl Sync for Stacks {}

#[unsafe(no_mangle)]
static BOOT_STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; crate::platform::MAX_CPUS]));

static PLATFORM: AtomicPtr<Platform> = AtomicPtr::new(core::ptr::null_mut());

struct Place(UnsafeCell<core::mem::MaybeUninit<Platform>>);

// SAFETY: written once, by the first CPU, before there is another.
unsafe impl Sync for Place {}

static PLACE: Place = Place(UnsafeCell::new(core::mem::MaybeUninit::uninit()));

/// Sets the main function of a guest: `fn(&'static Platform)`. When it returns, the machine powers off.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn guest_main(platform: &'static $crate::platform::Platform) {
            let main: fn(&'static $crate::platform::Platform) = $main;
            main(platform);
        }
    };
}

unsafe extern "Rust" {
    fn guest_main(platform: &'static Platform);
}

/// Returns the machine, which is known from `main` on.
#[must_use]
pub fn platform() -> Option<&'static Platform> {
    // SAFETY: null, or `PLACE` once it was written, which then never changes.
    unsafe { PLATFORM.load(Ordering::Acquire).as_ref() }
}

/// Returns the addresses of this image, with its BSS and stacks.
#[must_use]
pub fn image() -> Range {
    let (start, end): (usize, usize);
    // SAFETY: takes the addresses of two symbols of link.ld.
    unsafe {
        core::arch::asm!(
            "adrp {0}, __image_start",
            "adrp {1}, __image_end",
            out(reg) start, out(reg) end, options(nomem, nostack)
        );
    }
    Range { start, end }
}

/// Returns the end of the stack of CPU `index`.
pub(crate) fn stack_top(index: usize) -> usize {
    BOOT_STACKS.0.get() as usize + (index + 1) * STACK_SIZE
}

extern "C" fn start(tree: usize, level: u64) -> ! {
    // SAFETY: the only CPU, before anybody else knows of the place.
    let platform: &'static Platform = unsafe { (*PLACE.0.get()).write(Platform::read(tree, level)) };
    PLATFORM.store(core::ptr::from_ref(platform).cast_mut(), Ordering::Release);
    smp::adopt_first(platform);
    mmu::start(platform);
    console::open(platform.console());
    gic::start_distributor(platform);
    gic::start_cpu(platform);
    // SAFETY: `entry!` defined it with this type.
    unsafe { guest_main(platform) };
    psci::system_off()
}

#[panic_handler]
fn panic(information: &core::panic::PanicInfo<'_>) -> ! {
    say!("fatal CPU {} {}", smp::index(), information);
    psci::system_off()
}
