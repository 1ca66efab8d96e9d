//! The image's header and entry: from the loader's jump to Rust code with the MMU on.
//!
//! The image begins with the arm64 Linux Image header, so any boot loader of Linux can boot Ballast: QEMU `-kernel`, U-Boot
//! `booti`. It is entered at EL2 with the MMU off, and `x0` = physical address of the device tree (Linux,
//! Documentation/arch/arm64/booting: "Call the kernel image").
//!
//! The code here is position-independent and fits into one page, the boot page. EL2's final tables keep that page
//! identity-mapped for secondary CPUs and for changes of the root table. `EARLY_TABLES` map the boot page at its physical
//! address and the image at its linked address, text read-only and the rest execute-never. They map nothing else: memory
//! next to the image may be secure, `no-map` or a device, and a CPU may access Normal memory speculatively (Arm ARM,
//! "Memory types and attributes"). They are used until `mmu::init` has made the final tables.
//!
//! The boot protocol guarantees EL2 (or EL1), the MMU off, and `x0`. `begin` sets the state of EL2 that the entry itself
//! needs, `features::configure` the rest.

use crate::hyp_mem::mmu;
use core::arch::global_asm;

/// Number of early tables: level 0; levels 1 to 3 of the image's address; levels 1 to 3 of the identity map.
const EARLY_TABLE_COUNT: usize = 7;

/// Tables with which the primary CPU turns its MMU on. Only the assembly below writes them.
#[repr(C, align(4096))]
struct EarlyTables([[u64; 512]; EARLY_TABLE_COUNT]);

#[unsafe(link_section = ".bss.zstart")]
#[unsafe(no_mangle)]
static mut EARLY_TABLES: EarlyTables = EarlyTables([[0; 512]; EARLY_TABLE_COUNT]);

/// MAIR_EL2: attribute 0 Normal, inner and outer write-back, read- and write-allocate; 1 Device-nGnRE; 2 Normal
/// non-cacheable (Arm ARM, MAIR_EL2).
pub(crate) const MAIR: u64 = 0x44_04_ff;

/// SCTLR_EL2 with the MMU off: RES1 bits only, little-endian (Arm ARM, SCTLR_EL2).
const SCTLR_RES1: u64 = 0x30c5_0830;

/// SCTLR_EL2 while Ballast runs: MMU, caches, stack alignment check, no execution of writable memory.
/// M = bit 0, C = bit 2, SA = bit 3, I = bit 12, WXN = bit 19.
const SCTLR_MMU_ON: u64 = SCTLR_RES1 | 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

/// TCR_EL2 without the physical address size: 48-bit addresses (T0SZ 16), 4 KiB granule, write-back inner shareable
/// walks, RES1 bits 23 and 31 (Arm ARM, TCR_EL2, EL2&0 regime not in use).
const TCR: u64 = 1 << 31 | 1 << 23 | 3 << 12 | 1 << 10 | 1 << 8 | 16;

/// Descriptor of a next-level table.
const TABLE: u64 = 3;

/// A page of data: attribute 0, `AP[1]` RES1, inner shareable, accessed, XN (Arm ARM, "VMSAv8-64 descriptor formats").
const DATA_PAGE: u64 = 3 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 54;

/// A page of text: like a page of data, but read-only and not XN.
const TEXT_PAGE: u64 = 3 | 1 << 6 | 1 << 7 | 3 << 8 | 1 << 10;

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

// Invalidates the data cache by address from x0 to x1, which starts a line (DC IVAC). The line of x0 is cleaned as well
// (DC CIVAC), since it may hold data of others before x0. Stores with the MMU off bypass the cache: lines that the loader
// left must not hide them later, nor be written back over them (Arm ARM, "Mismatched memory attributes").
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

// First steps of primary and secondary CPUs: stop unless at EL2; mask interrupts; select SP_EL2; MMU off, little-endian
// (no load, of literals either, before that); the EL2 translation regime.
.macro begin
    msr     daifset, #0xf
    msr     spsel, #1
    mrs     x1, currentel
    cmp     x1, #8
    b.ne    not_el2
    mov     x1, #{sctlr_res1} & 0xffff
    movk    x1, #{sctlr_res1} >> 16, lsl #16
    msr     sctlr_el2, x1
    isb
    mov     x1, #0x80000000             // HCR_EL2.RW, E2H and TGE clear
    msr     hcr_el2, x1
    isb
    mrs     x1, hcr_el2                 // E2H is RES1 without FEAT_E2H0 (ID_AA64MMFR4_EL1.E2H0)
    tbnz    x1, #34, only_vhe
    mrs     x1, S3_0_C0_C7_3            // ID_AA64MMFR3_EL1.TCRX
    tst     x1, #0xf
    b.eq    9f
    msr     S3_4_C2_C0_3, xzr           // TCR2_EL2: permissions are not indirect (PIE)
9:
.endm

// There is no console yet: stop at a label that a debugger shows.
    .global not_el2
not_el2:
    wfe
    b       not_el2
    .global only_vhe
only_vhe:
    wfe
    b       only_vhe

primary_entry:
    mov     x20, x0                     // the host's device tree
    begin
    adrp    x21, __image_start          // where the image lies
    adrp    x5, __bss_start             // aligned to 64
    add     x5, x5, :lo12:__bss_start
    adrp    x6, __bss_end               // aligned to 4096
    mov     x0, x5                      // The loader cleaned what it loaded (Linux, Documentation/arch/arm64/booting),
    mov     x1, x6                      // but not the rest of the image's size: a dirty line there could be
    bl      invalidate_range            // written back over the zeros.
    mov     x7, x5
1:  stp     xzr, xzr, [x7], #16
    cmp     x7, x6
    b.lo    1b

    adrp    x8, {tables}
    add     x8, x8, :lo12:{tables}      // level 0
    lsr     x14, x21, #39
    cmp     x14, #256
    b.hs    not_el2
    ldr     x15, ={text_page}

    add     x9, x8, #0x1000             // the image's address: IMAGE_BASE is entry 256 of level 0,
    add     x10, x8, #0x2000            // and entry 0 of levels 1 to 3
    add     x11, x8, #0x3000
    orr     x12, x9, #{table}
    str     x12, [x8, #(256 * 8)]
    orr     x12, x10, #{table}
    str     x12, [x9]
    orr     x12, x11, #{table}
    str     x12, [x10]
    mov     x7, x21
    adrp    x13, __text_end             // all of these are aligned to 4096
    mov     x12, x15
2:  orr     x9, x7, x12
    str     x9, [x11], #8
    add     x7, x7, #0x1000
    cmp     x7, x13
    b.lo    2b
    ldr     x12, ={data_page}
    mov     x13, x6
    cmp     x7, x6
    b.lo    2b

    add     x9, x8, #0x4000             // the boot page's physical address
    add     x10, x8, #0x5000
    add     x11, x8, #0x6000
    orr     x12, x9, #{table}
    str     x12, [x8, x14, lsl #3]
    ubfx    x14, x21, #30, #9
    orr     x12, x10, #{table}
    str     x12, [x9, x14, lsl #3]
    ubfx    x14, x21, #21, #9
    orr     x12, x11, #{table}
    str     x12, [x10, x14, lsl #3]
    ubfx    x14, x21, #12, #9
    orr     x12, x21, x15
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
    ldr     x2, =primary_main
    br      x2

// A secondary CPU: PSCI CPU_ON enters here with x0 = physical address of its `SecondaryStart`.
    .global secondary_entry
secondary_entry:
    mov     x20, x0
    begin
    ldp     x0, x21, [x20]              // root table, stack
    ldr     x22, [x20, #16]             // argument
    bl      enable_mmu
    mov     sp, x21
    mov     x0, x22
    mov     x29, xzr
    mov     x30, xzr
    ldr     x2, =secondary_main
    br      x2

// Changes the root table to x0 (physical). Called at this page's identity-mapped address. The MMU is off meanwhile, so
// that no address ever has two live translations (Arm ARM, "Using break-before-make when updating translation table
// entries"). No memory is accessed while it is off.
    .global switch_root
switch_root:
    ldr     x1, ={sctlr}
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
    sctlr_res1 = const SCTLR_RES1,
    table = const TABLE,
    text_page = const TEXT_PAGE,
    data_page = const DATA_PAGE,
    tables = sym EARLY_TABLES,
);

/// Start parameters of a secondary CPU, which reads them with its MMU off: they must be cleaned to the point of coherency.
#[repr(C, align(64))]
pub(crate) struct SecondaryStart {
    /// Physical address of EL2's root table.
    pub(crate) root: u64,
    /// Virtual address of the top of the CPU's stack.
    pub(crate) stack: u64,
    /// Argument of `secondary_main`: the CPU's index.
    pub(crate) argument: u64,
}

unsafe extern "C" {
    fn secondary_entry();
}

/// Returns the physical address at which a secondary CPU enters, for PSCI CPU_ON.
pub(crate) fn secondary_entry_address() -> u64 {
    mmu::image_pa(secondary_entry as *const ())
}
