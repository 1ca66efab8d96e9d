//! Trapped WFI, WFE, WFIT and WFET instructions.

/// A wait, decoded from the syndrome (Arm ARM, ESR_EL2, "ISS encoding for an exception from a WF* instruction").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// WFE or WFET: until an event. The wait may end at any time.
    Event,
    /// WFI: until an interrupt.
    Interrupt,
    /// WFIT: until an interrupt, or until the virtual count reaches this value.
    InterruptUntil(u64),
    /// WFIT with a deadline that the syndrome does not provide.
    Unknown,
}

impl Wait {
    /// Decodes syndrome `esr`. `read` returns a register of the vCPU; register 31 is zero.
    pub(crate) fn decode(esr: u64, read: impl FnOnce(usize) -> u64) -> Self {
        // ISS.TI, RV, RN.
        let (kind, is_register_valid, register) = (esr & 3, esr & 1 << 2 != 0, esr >> 5 & 0x1f);
        match kind {
            0 => Self::Interrupt,
            2 if is_register_valid => Self::InterruptUntil(read(register as usize)),
            2 => Self::Unknown,
            _ => Self::Event,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_syndrome_distinguishes_the_waits() {
        const EC: u64 = 1 << 26 | 1 << 25;
        let read = |register: usize| 100 + register as u64;
        for (iss, wait) in [
            (0, Wait::Interrupt),
            (1, Wait::Event),
            (2 | 1 << 2 | 7 << 5, Wait::InterruptUntil(107)),
            (2 | 1 << 2 | 31 << 5, Wait::InterruptUntil(131)),
            (3 | 1 << 2 | 7 << 5, Wait::Event),
            (2 | 7 << 5, Wait::Unknown),
        ] {
            assert_eq!(Wait::decode(EC | iss, read), wait, "{iss:#x}");
        }
    }
}
