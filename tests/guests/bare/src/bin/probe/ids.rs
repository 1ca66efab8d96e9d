//! The identification registers are correct: features that they show work, other features are undefined, and EL2 and EL3 are
//! hidden.

use crate::report::{check, equal, skip};
use bare::exception::class;
use bare::execute::{Encoding, data, execute, read, write};
use bare::platform::{Host, Platform};
use bare::{gic, mmio, mrs, msr, timer};

const PFR0: Encoding = (3, 0, 0, 4, 0);
const PFR1: Encoding = (3, 0, 0, 4, 1);
const DFR0: Encoding = (3, 0, 0, 5, 0);
const ISAR0: Encoding = (3, 0, 0, 6, 0);
const ISAR1: Encoding = (3, 0, 0, 6, 1);
const ISAR2: Encoding = (3, 0, 0, 6, 2);
const MMFR0: Encoding = (3, 0, 0, 7, 0);
const MMFR1: Encoding = (3, 0, 0, 7, 1);
const MMFR2: Encoding = (3, 0, 0, 7, 2);
const MMFR3: Encoding = (3, 0, 0, 7, 3);

/// A four-bit field that shows a feature, with the minimum value; any of a feature's fields is enough.
type Field = (Encoding, u32, u64);

/// A feature: its name, its fields, and an instruction that is undefined without it. x0 holds an address of RAM.
type Feature = (&'static str, &'static [Field], u32);

const fn system(op1: u32, n: u32, m: u32, op2: u32) -> u32 {
    0xd508_0000 | op1 << 16 | n << 12 | m << 8 | op2 << 5
}

const FEATURES: [Feature; 74] = [
    ("fp16", &[(PFR0, 16, 1)], 0x1ee0_2800),
    ("sve_zcr", &[(PFR0, 32, 1)], read((3, 0, 1, 2, 0))),
    ("sve_rdvl", &[(PFR0, 32, 1)], 0x04bf_5020),
    ("sme_smcr", &[(PFR1, 24, 1)], read((3, 0, 1, 2, 6))),
    ("sme_svcr", &[(PFR1, 24, 1)], read((3, 3, 4, 2, 2))),
    ("sme_rdsvl", &[(PFR1, 24, 1)], 0x04bf_5820),
    ("sme_smidr", &[(PFR1, 24, 1)], read((3, 1, 0, 0, 6))),
    ("sme_mpamsm", &[(PFR1, 24, 1)], read((3, 0, 10, 5, 3))),
    ("mte_gmid", &[(PFR1, 8, 2)], read((3, 1, 0, 0, 4))),
    ("mte_tco", &[(PFR1, 8, 1)], read((3, 3, 4, 2, 7))),
    ("mte_irg", &[(PFR1, 8, 1)], 0x9adf_1000),
    ("mte_gcr", &[(PFR1, 8, 2)], read((3, 0, 1, 0, 6))),
    ("mte_rgsr", &[(PFR1, 8, 2)], read((3, 0, 1, 0, 5))),
    ("mte_tfsr", &[(PFR1, 8, 2)], read((3, 0, 5, 6, 0))),
    ("pauth_key", &[(ISAR1, 4, 1), (ISAR1, 8, 1), (ISAR2, 12, 1)], read((3, 0, 2, 1, 0))),
    ("pauth_sign", &[(ISAR1, 4, 1), (ISAR1, 8, 1), (ISAR2, 12, 1)], 0xdac1_23e0),
    ("pauth_generic", &[(ISAR1, 24, 1), (ISAR1, 28, 1), (ISAR2, 8, 1)], 0x9ac0_3000),
    ("pmu_pmcr", &[(DFR0, 8, 1)], read((3, 3, 9, 12, 0))),
    ("pmu_pmccntr", &[(DFR0, 8, 1)], read((3, 3, 9, 13, 0))),
    ("pmu_pmintenset", &[(DFR0, 8, 1)], read((3, 0, 9, 14, 1))),
    ("ras_erridr", &[(PFR0, 28, 1)], read((3, 0, 5, 3, 0))),
    ("ras_disr", &[(PFR0, 28, 1)], read((3, 0, 12, 1, 1))),
    ("spe_pmsidr", &[(DFR0, 32, 1)], read((3, 0, 9, 9, 7))),
    ("spe_pmbptr", &[(DFR0, 32, 1)], read((3, 0, 9, 10, 1))),
    ("trbe_limit", &[(DFR0, 44, 1)], read((3, 0, 9, 11, 0))),
    ("brbe_control", &[(DFR0, 52, 1)], read((2, 1, 9, 0, 0))),
    ("trace_filter", &[(DFR0, 40, 1)], read((3, 0, 1, 2, 1))),
    ("trace_id", &[(DFR0, 4, 1)], read((2, 1, 0, 8, 7))),
    ("amu_control", &[(PFR0, 44, 1)], read((3, 3, 13, 2, 0))),
    ("mpam_id", &[(PFR0, 40, 1), (PFR1, 16, 1)], read((3, 0, 10, 4, 4))),
    ("mpam_control", &[(PFR0, 40, 1), (PFR1, 16, 1)], read((3, 0, 10, 5, 0))),
    ("lor_id", &[(MMFR1, 16, 1)], read((3, 0, 10, 4, 7))),
    ("scxtnum", &[(PFR0, 56, 2), (PFR1, 32, 2)], read((3, 0, 13, 0, 7))),
    ("dit", &[(PFR0, 48, 1)], read((3, 3, 4, 2, 5))),
    ("ssbs", &[(PFR1, 4, 2)], read((3, 3, 4, 2, 6))),
    ("pan", &[(MMFR1, 20, 1)], read((3, 0, 4, 2, 3))),
    ("uao", &[(MMFR2, 4, 1)], read((3, 0, 4, 2, 4))),
    // MSR ALLINT, XZR. Reads cannot trap.
    ("allint", &[(PFR1, 36, 1)], 0xd518_431f),
    ("gcs", &[(PFR1, 44, 1)], read((3, 0, 2, 5, 0))),
    ("rcw_mask", &[(PFR1, 48, 1)], read((3, 0, 13, 0, 6))),
    ("tcr2", &[(MMFR3, 0, 1)], read((3, 0, 2, 0, 3))),
    ("pir", &[(MMFR3, 8, 1)], read((3, 0, 10, 2, 3))),
    ("por", &[(MMFR3, 16, 1)], read((3, 0, 10, 2, 4))),
    ("ecv_counter", &[(MMFR0, 60, 1)], read((3, 3, 14, 0, 6))),
    ("rndr", &[(ISAR0, 60, 1)], read((3, 3, 2, 4, 0))),
    ("tlbi_outer", &[(ISAR0, 56, 1)], system(0, 8, 1, 0)),
    ("tlbi_range", &[(ISAR0, 56, 2)], system(0, 8, 2, 1)),
    ("dc_cvap", &[(ISAR1, 0, 1)], system(3, 7, 12, 1)),
    ("dc_cvadp", &[(ISAR1, 0, 2)], system(3, 7, 13, 1)),
    ("cfp_rctx", &[(ISAR1, 40, 1)], system(3, 7, 3, 4)),
    ("at_pan", &[(MMFR1, 20, 2)], system(0, 7, 9, 0)),
    ("lse", &[(ISAR0, 20, 2)], 0xb820_0000),
    ("crc32", &[(ISAR0, 16, 1)], 0x1ac0_4000),
    ("aes", &[(ISAR0, 4, 1)], 0x4e28_4800),
    ("sha1", &[(ISAR0, 8, 1)], 0x5e28_0800),
    ("sha256", &[(ISAR0, 12, 1)], 0x5e28_2800),
    ("sha512", &[(ISAR0, 12, 2)], 0xcec0_8000),
    ("sm3", &[(ISAR0, 36, 1)], 0xce40_0000),
    ("sm4", &[(ISAR0, 40, 1)], 0xcec0_8400),
    ("dot_product", &[(ISAR0, 44, 1)], 0x2e80_9400),
    ("fhm", &[(ISAR0, 48, 1)], 0x0e20_ec00),
    ("flag_cfinv", &[(ISAR0, 52, 1)], 0xd500_401f),
    ("flag_axflag", &[(ISAR0, 52, 2)], 0xd500_405f),
    ("rdm", &[(ISAR0, 28, 1)], 0x2e40_8400),
    ("jscvt", &[(ISAR1, 12, 1)], 0x1e7e_0000),
    ("fcma", &[(ISAR1, 16, 1)], 0x2e80_e400),
    ("lrcpc", &[(ISAR1, 20, 1)], 0xb8bf_c000),
    ("lrcpc2", &[(ISAR1, 20, 2)], 0x9900_0000),
    ("frintts", &[(ISAR1, 32, 1)], 0x1e28_4000),
    ("sb", &[(ISAR1, 36, 1)], 0xd503_30ff),
    ("bf16", &[(ISAR1, 44, 1)], 0x2e40_fc00),
    ("i8mm", &[(ISAR1, 52, 1)], 0x0e80_9c00),
    ("wfxt", &[(ISAR2, 0, 1)], 0xd503_1020),
    ("rmif", &[(ISAR0, 52, 1)], 0xba00_8401),
];

/// Instructions that EL1 never has: registers of EL2 and EL3, and maintenance of stage 2.
const HIGHER: [(&str, u32); 26] = [
    ("sctlr_el2", read((3, 4, 1, 0, 0))),
    ("hcr_el2", read((3, 4, 1, 1, 0))),
    ("hcr_el2_write", write((3, 4, 1, 1, 0))),
    ("cptr_el2", read((3, 4, 1, 1, 2))),
    ("ttbr0_el2", read((3, 4, 2, 0, 0))),
    ("vttbr_el2", read((3, 4, 2, 1, 0))),
    ("vttbr_el2_write", write((3, 4, 2, 1, 0))),
    ("vtcr_el2", read((3, 4, 2, 1, 2))),
    ("spsr_el2", read((3, 4, 4, 0, 0))),
    ("elr_el2", read((3, 4, 4, 0, 1))),
    ("esr_el2", read((3, 4, 5, 2, 0))),
    ("hpfar_el2", read((3, 4, 6, 0, 4))),
    ("vbar_el2", read((3, 4, 12, 0, 0))),
    ("vbar_el2_write", write((3, 4, 12, 0, 0))),
    ("ich_hcr_el2", read((3, 4, 12, 11, 0))),
    ("ich_lr0_el2", read((3, 4, 12, 12, 0))),
    ("tpidr_el2", read((3, 4, 13, 0, 2))),
    ("cnthctl_el2", read((3, 4, 14, 1, 0))),
    ("cntvoff_el2", read((3, 4, 14, 0, 3))),
    ("sctlr_el12", read((3, 5, 1, 0, 0))),
    ("scr_el3", read((3, 6, 1, 1, 0))),
    ("vbar_el3", read((3, 6, 12, 0, 0))),
    ("tlbi_ipas2e1", system(4, 8, 4, 1)),
    ("tlbi_alle1", system(4, 8, 7, 4)),
    ("tlbi_vmalls12e1", system(4, 8, 7, 6)),
    ("at_s12e1r", system(4, 7, 8, 4)),
];

/// Registers that always exist at EL1.
const ALWAYS: [(&str, u32); 30] = [
    ("midr", read((3, 0, 0, 0, 0))),
    ("revidr", read((3, 0, 0, 0, 6))),
    ("actlr", read((3, 0, 1, 0, 1))),
    ("afsr0", read((3, 0, 5, 1, 0))),
    ("afsr1", read((3, 0, 5, 1, 1))),
    ("amair", read((3, 0, 10, 3, 0))),
    ("contextidr", read((3, 0, 13, 0, 1))),
    ("par", read((3, 0, 7, 4, 0))),
    ("isr", read((3, 0, 12, 1, 0))),
    ("cntkctl", read((3, 0, 14, 1, 0))),
    ("clidr", read((3, 1, 0, 0, 1))),
    ("ccsidr", read((3, 1, 0, 0, 0))),
    ("aidr", read((3, 1, 0, 0, 7))),
    ("csselr", read((3, 2, 0, 0, 0))),
    ("ctr", read((3, 3, 0, 0, 1))),
    ("dczid", read((3, 3, 0, 0, 7))),
    ("tpidr_el0", read((3, 3, 13, 0, 2))),
    ("tpidrro_el0", read((3, 3, 13, 0, 3))),
    ("cntfrq", read((3, 3, 14, 0, 0))),
    ("cntpct", read((3, 3, 14, 0, 1))),
    ("cntvct", read((3, 3, 14, 0, 2))),
    ("mdscr", read((2, 0, 0, 2, 2))),
    ("dbgbvr0", read((2, 0, 0, 0, 4))),
    ("dbgbcr0", read((2, 0, 0, 0, 5))),
    ("dbgwvr0", read((2, 0, 0, 0, 6))),
    ("dbgwcr0", read((2, 0, 0, 0, 7))),
    ("mdrar", read((2, 0, 1, 0, 0))),
    ("oslsr", read((2, 0, 1, 1, 4))),
    ("osdlr", read((2, 0, 1, 3, 4))),
    ("mdccsr_el0", read((2, 3, 0, 1, 0))),
];

fn field(&(register, shift, least): &Field) -> bool {
    execute(read(register)).is_ok_and(|value| value >> shift & 0xf >= least)
}

pub(crate) fn run(platform: &'static Platform) {
    let cpacr = mrs!("cpacr_el1");
    msr!("cpacr_el1", 3 << 16 | 3 << 20 | 3 << 24);
    identification_space();
    features();
    higher();
    always();
    identity(platform);
    msr!("cpacr_el1", cpacr);
}

/// Checks that all encodings of op0 3, op1 0, CRn 0, CRm 1 to 7 can be read; unallocated ones read as zero (Arm ARM,
/// chapter "AArch64 System Register Descriptions").
fn identification_space() {
    let mut undefined = None;
    for m in 1..8 {
        for op2 in 0..8 {
            if execute(read((3, 0, 0, m, op2))).is_err() {
                undefined = undefined.or(Some((m, op2)));
            }
        }
    }
    check!("ids_all_readable", undefined.is_none(), "CRm, op2: {:?}", undefined);
}

fn features() {
    let has_fp = execute(read(PFR0)).is_ok_and(|value| value >> 16 & 0xf != 0xf);
    for (name, fields, instruction) in FEATURES {
        let shown = fields.iter().any(field) && (has_fp || name != "fp16");
        let result = execute(instruction);
        let label = Name::new("feature_", name);
        if shown {
            check!(label.text(), result.is_ok(), "shown, but {:#010x} raises {:x?}", instruction, result);
        } else {
            let undefined = result.is_err_and(|caught| caught.class() == undefined_class(instruction));
            check!(label.text(), undefined, "not shown, but {:#010x} gives {:x?}", instruction, result);
        }
    }
}

/// Returns the exception class of an undefined `instruction`. With FEAT_IDST, reads of identification registers (op0 3, op1 0, 1
/// or 3, CRn 0, CRm 0 to 7) have the class of a trapped read.
fn undefined_class(instruction: u32) -> u64 {
    let is_identification =
        instruction & 0xfff8_f800 == 0xd538_0000 && matches!(instruction >> 16 & 7, 0 | 1 | 3);
    if is_identification && field(&(MMFR2, 36, 1)) { class::SYSTEM_REGISTER } else { class::UNKNOWN }
}

fn higher() {
    for (name, instruction) in HIGHER {
        let result = execute(instruction);
        let undefined = result.is_err_and(|caught| caught.class() == class::UNKNOWN);
        check!(Name::new("undefined_", name).text(), undefined, "{:x?}", result);
    }
}

fn always() {
    for (name, instruction) in ALWAYS {
        let result = execute(instruction);
        check!(Name::new("readable_", name).text(), result.is_ok(), "{:x?}", result);
    }
}

fn identity(platform: &Platform) {
    let own = bare::register::affinity();
    check!("mpidr_in_tree", platform.cpus().contains(&own), "{:#x} is not in {:x?}", own, platform.cpus());
    let kind = mmio::read64(gic::redistributor(0) + gic::register::GICR_TYPER);
    let packed = own & 0xff_ffff | own >> 8 & 0xff00_0000;
    equal!("mpidr_of_redistributor", kind >> 32, packed);
    equal!(
        "ids_gic_system_registers",
        (mrs!("id_aa64pfr0_el1") >> 24 & 0xf > 0, mrs!("icc_sre_el1") & 1),
        (true, 1)
    );
    check!("counter_frequency", timer::frequency() > 1_000_000, "{} Hz", timer::frequency());
    if platform.host == Host::Hypervisor {
        equal!("ids_no_el2", mrs!("id_aa64pfr0_el1") >> 8 & 0xf, 0);
    } else {
        skip("ids_no_el2", "only under Ballast");
    }
    let address_bits = [32, 36, 40, 42, 44, 48, 52].get((mrs!("id_aa64mmfr0_el1") & 0xf) as usize).copied();
    let top = platform.ram().iter().map(|range| range.end).max().unwrap_or(0);
    check!(
        "ids_ram_in_address_range",
        address_bits.is_some_and(|bits| top <= 1 << bits),
        "{:?} bits",
        address_bits
    );
    let zva = mrs!("dczid_el0");
    if zva & 1 << 4 == 0 {
        let size = 4usize << (zva & 0xf);
        let data = data();
        mmio::write64(data + size - 8, u64::MAX);
        equal!("dc_zva", (execute(system(3, 7, 4, 1)).is_ok(), mmio::read64(data + size - 8)), (true, 0));
    }
    equal!("dc_by_set_and_way", execute(system(0, 7, 14, 2)).is_ok(), true);
}

/// A name that consists of two parts.
struct Name {
    bytes: [u8; 48],
    length: usize,
}

impl Name {
    fn new(prefix: &str, name: &str) -> Self {
        let mut bytes = [0; 48];
        let mut length = 0;
        for byte in prefix.bytes().chain(name.bytes()).take(48) {
            bytes[length] = byte;
            length += 1;
        }
        Self { bytes, length }
    }

    fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }
}
