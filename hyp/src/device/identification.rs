//! Identification registers as a guest reads them. A guest gets a feature completely or not at all.
//!
//! A field that is not listed reads as zero, which hides features that are newer than this table. EL2 leaves their enables
//! off (HCRX_EL2, fine-grained traps, MDCR_EL2), so that using them is UNDEFINED. Registers and fields: Arm ARM,
//! ID_AA64*_EL1; all of them trap by HCR_EL2.TID3.

/// ID_AA64MMFR0_EL1.PARange for the largest intermediate physical address of a guest: 40 bits.
const PA_RANGE_40_BITS: u64 = 2;

/// A four-bit field: its lowest bit, and the largest value that a guest sees.
type Field = (u32, u64);

/// No limit: the guest sees the value of the CPU. Also for signed fields, in which 15 means absent.
const ANY: u64 = 15;

/// EL0, EL1, FP, AdvSIMD, GIC, RAS, SVE, DIT, CSV2, CSV3. Hidden: EL2, EL3, SEL2, MPAM, AMU, RME. RAS comes without
/// error records, which trap; DISR_EL1 cannot trap.
const PFR0: &[Field] =
    &[(0, 2), (4, 1), (16, ANY), (20, ANY), (24, 1), (28, 1), (32, 1), (48, 1), (56, 1), (60, 1)];
/// BT, SSBS, MTE. Hidden: SME, NMI, GCS and others. MTE is limited to the instructions of EL0, which cannot
/// trap (FEAT_MTE); allocation tags and their registers are hidden and trap (HCR_EL2.ATA).
const PFR1: &[Field] = &[(0, 1), (4, 2), (8, 1)];
/// DebugVer, BRPs, WRPs, CTX_CMPs, DoubleLock. Hidden: trace, PMU, SPE, TRBE, BRBE.
const DFR0: &[Field] = &[(0, 8), (12, ANY), (20, ANY), (28, ANY), (36, ANY)];
/// All fields except TME.
const ISAR0: &[Field] = &[
    (4, ANY),
    (8, ANY),
    (12, ANY),
    (16, ANY),
    (20, ANY),
    (28, ANY),
    (32, ANY),
    (36, ANY),
    (40, ANY),
    (44, ANY),
    (48, ANY),
    (52, ANY),
    (56, ANY),
    (60, ANY),
];
/// All fields except XS and LS64, which HCRX_EL2 would have to enable.
const ISAR1: &[Field] = &[
    (0, ANY),
    (4, ANY),
    (8, ANY),
    (12, ANY),
    (16, ANY),
    (20, ANY),
    (24, ANY),
    (28, ANY),
    (32, ANY),
    (36, ANY),
    (40, ANY),
    (44, ANY),
    (48, ANY),
    (52, ANY),
];
/// WFxT, RPRES, GPA3, APA3, BC, PAC_frac, CLRBHB, CSSC. Hidden: MOPS, SYSREG_128 and others.
const ISAR2: &[Field] =
    &[(0, ANY), (4, ANY), (8, ANY), (12, ANY), (20, ANY), (24, ANY), (28, ANY), (52, ANY)];
/// PARange, ASIDBits, BigEnd, BigEndEL0, TGran16, TGran64, TGran4, ExS, ECV. Hidden: 52-bit addresses, stage 2
/// granules, FGT, counter offsets.
const MMFR0: &[Field] = &[
    (0, PA_RANGE_40_BITS),
    (4, ANY),
    (8, ANY),
    (16, ANY),
    (20, 1),
    (24, ANY),
    (28, ANY),
    (44, ANY),
    (60, 1),
];
/// HAFDBS, HPDS, PAN, ETS, AFP, nTLBPA. Hidden: VMIDBits, VH, LO, XNX, TWED, HCX and others.
const MMFR1: &[Field] = &[(0, 2), (12, ANY), (20, 3), (36, ANY), (44, ANY), (48, ANY)];
/// CnP, UAO, LSM, IESB, VARange, CCIDX, ST, AT, IDS, TTL, BBM, E0PD. Hidden: NV, FWB, EVT.
const MMFR2: &[Field] = &[
    (0, ANY),
    (4, ANY),
    (8, ANY),
    (12, ANY),
    (16, ANY),
    (20, ANY),
    (28, ANY),
    (32, ANY),
    (36, ANY),
    (48, ANY),
    (52, ANY),
    (60, ANY),
];

/// Lowest bit of ID_AA64MMFR0_EL1.TGran4. The value 1 means 52-bit addresses, which guests do not get; 15 means absent.
const TGRAN4: u32 = 28;

fn field(value: u64, shift: u32) -> u64 {
    value >> shift & 15
}

fn keep(value: u64, fields: &[Field]) -> u64 {
    fields.iter().fold(0, |kept, &(shift, most)| kept | field(value, shift).min(most) << shift)
}

/// Returns the guest's value of the identification register with op0 3, op1 0, CRn 0, CRm `crm` and op2 `op2`. `host` is the
/// value of the CPU. `has_sve`: the CPU has SVE, which a guest gets completely.
pub(crate) fn guest_value(crm: u64, op2: u64, host: u64, has_sve: bool) -> u64 {
    match (crm, op2) {
        // AArch32, for programs at EL0. ID_PFR0: no RAS, no AMU.
        (1, 0) => host & !(0xf << 28 | 0xf << 20),
        // ID_PFR1: no security extensions, no virtualization, generic timer, GIC.
        (1, 1) => host & !(0xf << 12 | 0xf << 4),
        // ID_DFR0: no PMU, no trace.
        (1, 2) => host & !(0xf << 24 | 0xf << 28 | 0xf << 20 | 0xf << 16 | 0xf << 12),
        // ID_AFR0: implementation defined.
        (1, 3) => 0,
        (1, 4..=7) | (2, 0..=7) | (3, 0..=2) => host,
        // ID_PFR2: CSV3, SSBS.
        (3, 4) => host & 0xff,
        // ID_MMFR5: ETS.
        (3, 6) => host & 0xf,
        (4, 0) => keep(host, PFR0),
        (4, 1) => keep(host, PFR1),
        (4, 4) if has_sve => host,
        (5, 0) => keep(host, DFR0),
        (6, 0) => keep(host, ISAR0),
        (6, 1) => keep(host, ISAR1),
        (6, 2) => keep(host, ISAR2),
        (7, 0) => {
            let value = keep(host, MMFR0);
            if field(value, TGRAN4) == 1 { value & !(0xf << TGRAN4) } else { value }
        }
        (7, 1) => keep(host, MMFR1),
        (7, 2) => keep(host, MMFR2),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_above_the_guest_are_hidden() {
        let host = 0x1201_1011_2121_2222;
        let guest = guest_value(4, 0, host, true);
        assert_eq!(field(guest, 0), 2);
        assert_eq!(field(guest, 4), 1, "EL1 is AArch64 only");
        assert_eq!(field(guest, 8), 0, "no EL2");
        assert_eq!(field(guest, 12), 0, "no EL3");
    }

    #[test]
    fn absent_floating_point_stays_absent() {
        assert_eq!(field(guest_value(4, 0, 0xff_0011, false), 16), 15);
        assert_eq!(field(guest_value(4, 0, 0xff_0011, false), 20), 15);
    }

    #[test]
    fn features_that_el2_must_enable_are_hidden() {
        let all = u64::MAX / 15 * 2;
        for (crm, op2, shift, what) in [
            (4, 1, 24, "SME"),
            (4, 1, 36, "NMI"),
            (4, 0, 44, "AMU"),
            (5, 0, 8, "PMU"),
            (5, 0, 32, "SPE"),
            (6, 2, 16, "MOPS"),
            (6, 1, 60, "LS64"),
            (7, 0, 56, "FGT"),
            (7, 1, 8, "VH"),
            (7, 2, 24, "NV"),
        ] {
            assert_eq!(field(guest_value(crm, op2, all, true), shift), 0, "{what}");
        }
        assert_eq!(field(guest_value(4, 1, all, true), 8), 1, "MTE: its instructions, no tags");
    }

    #[test]
    fn registers_that_the_table_does_not_know_read_as_zero() {
        for (crm, op2) in [(4, 2), (4, 5), (4, 7), (5, 1), (5, 4), (6, 3), (7, 3), (7, 4), (8, 0), (15, 7)] {
            assert_eq!(guest_value(crm, op2, u64::MAX, true), 0);
        }
    }

    #[test]
    fn sve_details_are_shown_only_with_sve() {
        assert_eq!(guest_value(4, 4, 0x123, false), 0);
        assert_eq!(guest_value(4, 4, 0x123, true), 0x123);
    }

    #[test]
    fn addresses_have_at_most_40_bits_and_no_52_bit_granule() {
        let guest = guest_value(7, 0, 0x1000_0005 | 2 << 20, false);
        assert_eq!(field(guest, 0), 2);
        assert_eq!(field(guest, 28), 0);
        assert_eq!(field(guest, 20), 1);
        assert_eq!(guest_value(7, 0, 1, false), 1);
    }
}
