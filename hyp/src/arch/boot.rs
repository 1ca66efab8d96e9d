//! From the loader's jump to Rust code with the MMU on.
//!
//! The image begins with the arm64 Linux Image header, so that whatever boots a kernel boots Ballast: QEMU
//! `-kernel`, U-Boot `booti`. It is entered at EL2 with the MMU off, `x0` = physical address of the device tree
//! (Linux, Documentation/arch/arm64/booting: "Call the kernel image").
//!
//! The code here is position-independent and fits the one page that stays identity-mapped in EL2's final tables:
//! secondary CPUs and the change of tables need it. `EARLY_TABLES` map that page's gigabyte at its physical
//! address and the image at its linked address; they live until `mmu::init` has made the final ones.

use core::arch::global_asm;

/// Level 0, level 1 and level 2 of the image's address, level 1 of the identity map.
const EARLY_TABLE_COUNT: usize = 4;

/// The tables that the primary CPU turns its MMU on with. Written by the assembly below only.
#[repr(C, align(4096))]
struct EarlyTables([[u64; 512]; EARLY_TABLE_COUNT]);

#[unsafe(link_section = ".bss.zstart")]
#[unsafe(no_mangle)]
static mut EARLY_TABLES: EarlyTables = EarlyTables([[0; 512]; EARLY_TABLE_COUNT]);

/// MAIR_EL2: attribute 0 Normal, inner and outer write-back, read- and write-allocate; 1 Device-nGnRE; 2 Normal
/// non-cacheable (Arm ARM D24.2.122).
pub(super) const MAIR: u64 = 0x44_04_ff;

/// SCTLR_EL2 with the MMU off: RES1 bits only, little-endian (Arm ARM D24.2.146).
const SCTLR_RES1: u64 = 0x30c5_0830;

/// SCTLR_EL2 while Ballast runs: MMU, caches, stack alignment check.
/// M = bit 0, C = bit 2, SA = bit 3, I = bit 12.
const SCTLR_MMU_ON: u64 = SCTLR_RES1 | 1 | 1 << 2 | 1 << 3 | 1 << 12;

/// The same with WXN (bit 19): whatever is writable is never executed.
const SCTLR_FINAL: u64 = SCTLR_MMU_ON | 1 << 19;

/// TCR_EL2 less the physical address size: 48-bit addresses (T0SZ 16), 4 KiB granule, write-back inner shareable
/// walks, RES1 bits 23 and 31 (Arm ARM D24.2.158, EL2&0 regime not in use).
const TCR: u64 = 1 << 31 | 1 << 23 | 3 << 12 | 1 << 10 | 1 << 8 | 16;

/// Descriptor of a next-level table.
const TABLE: u64 = 3;

/// A 2 MiB or 1 GiB block: attribute 0, AP[1] RES1, inner shareable, accessed (Arm ARM D8.3.2).
const BLOCK: u64 = 1 | 1 << 6 | 3 << 8 | 1 << 10;

global_asm!(
    r#"
    .section .text.boot, "ax"
    .global image_header
image_header:
    b       primary_entry               // code0
    .long   0                           // code1
    .quad   0                           // text_offset
    .quad   __image_size                // image_size
    .quad   0xa                         // flags: little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

// Invalidates the data cache by address from x0 to x1, the start of a line (DC IVAC), and cleans the line that x0 lies
// in as well (DC CIVAC): others may have written what precedes x0 there. Stores made with the MMU off go past the cache:
// lines that the loader left must not hide them later, nor be written back over them (Arm ARM B2.8).
invalidate_range:
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x3, x3, x2
    sub     x4, x3, #1
    bic     x0, x0, x4
    dc      civac, x0
    b       2f
1:  dc      ivac, x0
2:  add     x0, x0, x3
    cmp     x0, x1
    b.lo    1b
    dsb     sy
    ret

// Sets up translation and turns the MMU on. x0 = physical address of the root table. Clobbers x1 to x3.
enable_mmu:
    ldr     x1, ={mair}
    msr     mair_el2, x1
    ldr     x1, ={tcr}
    mrs     x2, id_aa64mmfr0_el1
    and     x2, x2, #0xf                // PARange, at most 48 bits without 52-bit descriptors
    mov     x3, #5
    cmp     x2, x3
    csel    x2, x2, x3, lo
    bfi     x1, x2, #16, #3             // PS
    msr     tcr_el2, x1
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    dsb     nsh
    isb
    ldr     x1, ={sctlr}
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x1
    isb
    ret

// What both kinds of CPU need first: EL2 or nothing, interrupts masked, MMU off.
.macro begin
    msr     daifset, #0xf
    mrs     x1, currentel
    cmp     x1, #8
    b.ne    not_el2
    ldr     x1, ={sctlr_res1}
    msr     sctlr_el2, x1
    mov     x1, #0x80000000             // HCR_EL2.RW, E2H and TGE clear
    msr     hcr_el2, x1
    isb
.endm

// Nothing can be said without a console: stop where a debugger finds a name.
    .global not_el2
not_el2:
    wfe
    b       not_el2

primary_entry:
    mov     x20, x0                     // the host's device tree
    begin
    adrp    x21, __image_start          // where the image lies
    adrp    x5, __bss_start             // aligned to 64
    add     x5, x5, :lo12:__bss_start
    adrp    x6, __bss_end               // aligned to 4096
    mov     x0, x5                      // What was loaded, the loader cleaned (Linux, Documentation/arch/arm64/booting),
    mov     x1, x6                      // but not what follows it up to the image's size: a dirty line there could be
    bl      invalidate_range            // written back over the zeros.
    mov     x7, x5
1:  stp     xzr, xzr, [x7], #16
    cmp     x7, x6
    b.lo    1b

    adrp    x8, {tables}
    add     x8, x8, :lo12:{tables}
    add     x9, x8, #0x1000             // level 1 of the image's address
    add     x10, x8, #0x2000            // level 2 of the image's address
    add     x11, x8, #0x3000            // level 1 of the identity map
    orr     x12, x9, #{table}
    str     x12, [x8, #(256 * 8)]       // IMAGE_BASE is entry 256 of level 0
    orr     x12, x10, #{table}
    str     x12, [x9]
    ldr     x13, ={block}
    orr     x12, x21, x13
    str     x12, [x10]
    lsr     x14, x21, #39
    cmp     x14, #256
    b.hs    not_el2
    orr     x12, x11, #{table}
    str     x12, [x8, x14, lsl #3]
    ubfx    x14, x21, #30, #9
    lsr     x12, x21, #30
    lsl     x12, x12, #30
    orr     x12, x12, x13
    str     x12, [x11, x14, lsl #3]
    dsb     sy

    mov     x0, x5
    mov     x1, x6
    bl      invalidate_range
    mov     x0, x8
    bl      enable_mmu
    ldr     x1, =__boot_stack_top
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x20
    mov     x1, x21
    ldr     x2, ={primary_main}
    br      x2

// A secondary CPU: PSCI CPU_ON enters here with x0 = physical address of its `SecondaryStart`.
    .global secondary_entry
secondary_entry:
    mov     x20, x0
    begin
    ldp     x0, x21, [x20]              // root table, stack
    ldr     x22, [x20, #16]             // argument
    bl      enable_mmu
    ldr     x1, ={sctlr_final}
    msr     sctlr_el2, x1
    isb
    mov     sp, x21
    mov     x0, x22
    mov     x29, xzr
    mov     x30, xzr
    ldr     x2, ={secondary_main}
    br      x2

// Changes the root table to x0 (physical), called at this page's identity-mapped address. The MMU is off in
// between, so that no two translations of one address are ever live (Arm ARM D8.16.1, break-before-make).
// No memory is touched while it is off.
    .global switch_root
switch_root:
    ldr     x1, ={sctlr_final}
    ldr     x2, ={sctlr_res1}
    dsb     sy
    msr     sctlr_el2, x2
    isb
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    dsb     nsh
    isb
    msr     sctlr_el2, x1
    isb
    ret
    .ltorg
    "#,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR_MMU_ON,
    sctlr_final = const SCTLR_FINAL,
    sctlr_res1 = const SCTLR_RES1,
    table = const TABLE,
    block = const BLOCK,
    tables = sym EARLY_TABLES,
    primary_main = sym crate::arch::start::primary_main,
    secondary_main = sym crate::arch::start::secondary_main,
);

/// What a secondary CPU reads first, with its MMU off: it must be cleaned to the point of coherency.
#[repr(C, align(64))]
pub(super) struct SecondaryStart {
    /// Physical address of EL2's root table.
    pub(super) root: u64,
    /// Virtual address of the top of the CPU's stack.
    pub(super) stack: u64,
    /// Handed to `secondary_main`: the CPU's index.
    pub(super) argument: u64,
}

unsafe extern "C" {
    static image_header: u8;
    fn secondary_entry();
    fn switch_root(root: u64);
}

/// Physical address of a symbol of the boot page, given where the image lies.
fn boot_page_address(symbol: usize, image: u64) -> u64 {
    (symbol - (&raw const image_header).addr()) as u64 + image
}

/// Physical address at which a secondary CPU enters, for PSCI CPU_ON. `image` is where the image lies.
pub(super) fn secondary_entry_address(image: u64) -> u64 {
    boot_page_address(secondary_entry as *const () as usize, image)
}

/// Makes `root` (a physical address) the root of EL2's tables on this CPU.
///
/// # Safety
///
/// The tables below `root` map the image as the present ones do, the stack in use, and the boot page at its own
/// physical address.
pub(super) unsafe fn change_root(root: u64, image: u64) {
    let address = boot_page_address(switch_root as *const () as usize, image);
    // SAFETY: the boot page is identity-mapped before and after, as the caller says; `switch_root` takes one
    // register, touches no memory and keeps all but x0 to x2.
    unsafe {
        let function: unsafe extern "C" fn(u64) = core::mem::transmute(address as usize);
        function(root);
    }
}
