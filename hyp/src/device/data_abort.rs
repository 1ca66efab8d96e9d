//! Data aborts from a guest: their syndrome, the value that the access carries, and the order in which EL2 answers them.

/// A data abort's syndrome (Arm ARM, ESR_EL2, "ISS encoding for an exception from a Data Abort").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Syndrome(u64);

/// ISV: SAS, SSE, SRT, SF and AR describe the access.
const IS_VALID: u64 = 1 << 24;
/// CM: the fault is of a cache maintenance or address translation instruction.
const MAINTENANCE: u64 = 1 << 8;
/// S1PTW: the fault came on a stage 1 walk.
const ON_WALK: u64 = 1 << 7;
/// DFSC less its level.
const STATUS: u64 = 0x3c;
/// DFSC of a translation fault, less its level.
const TRANSLATION: u64 = 0x04;

impl Syndrome {
    /// Wraps the syndrome in ESR_EL2 = `esr`.
    #[inline(always)]
    pub(crate) const fn new(esr: u64) -> Self {
        Self(esr)
    }

    /// Returns true if stage 2 did not translate the address of a load or store that the syndrome describes.
    pub(crate) const fn is_access(self) -> bool {
        self.is_untranslated() && self.is_described()
    }

    /// Returns true if stage 2 did not translate the address of a load or store, [described](Self::is_described) or not.
    #[inline(always)]
    pub(crate) const fn is_untranslated(self) -> bool {
        self.0 & (MAINTENANCE | ON_WALK | STATUS) == TRANSLATION
    }

    /// Returns true if the syndrome describes the access.
    #[inline(always)]
    pub(crate) const fn is_described(self) -> bool {
        self.0 & IS_VALID != 0
    }

    /// Returns true if stage 2 did not translate the address of a cache maintenance instruction.
    pub(crate) const fn is_maintenance(self) -> bool {
        self.0 & (MAINTENANCE | ON_WALK | STATUS) == MAINTENANCE | TRANSLATION
    }

    /// Returns true if the access is a store.
    #[inline(always)]
    pub(crate) const fn is_write(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// Size of the access in bytes: 1, 2, 4 or 8.
    #[inline(always)]
    pub(crate) const fn size(self) -> u64 {
        1 << (self.0 >> 22 & 3)
    }

    /// Number of the register that is loaded or stored; 31 is the zero register.
    #[inline(always)]
    pub(crate) const fn register(self) -> usize {
        (self.0 >> 16 & 0x1f) as usize
    }

    /// Returns true if the access is an unsigned load of a word (SAS, SSE).
    #[inline(always)]
    pub(crate) const fn is_plain_word(self) -> bool {
        self.0 & (3 << 22 | 1 << 21) == 2 << 22
    }

    /// Returns the value that the device receives from a store of `register`. Devices are little-endian.
    pub(crate) const fn stored(self, register: u64, is_big_endian: bool) -> u64 {
        if is_big_endian { self.swapped(register) } else { register }
    }

    /// Returns the register value that a load of the device's `value` produces.
    pub(crate) const fn loaded(self, value: u64, is_big_endian: bool) -> u64 {
        self.extended(if is_big_endian { self.swapped(value) } else { value })
    }

    /// Returns `value` with the bytes of the access in reverse order.
    const fn swapped(self, value: u64) -> u64 {
        value.swap_bytes() >> (64 - 8 * self.size())
    }

    /// Answers the abort in the order that the architecture and CPU errata require. Returns the result of
    /// [`Steps::access_device`], if a device answered.
    ///
    /// A stage 1 fault has priority over one of stage 2. A device is not cached, so cache maintenance of its address completes
    /// without effect. All other accesses to a hole get an external abort.
    #[inline(always)]
    pub(crate) fn answer<R>(self, steps: &mut impl Steps<R>) -> Option<R> {
        if steps.is_stage1_fault() {
            return None;
        }
        if self.is_access()
            && let Some(result) = steps.access_device()
        {
            steps.complete();
            return Some(result);
        }
        if !steps.resolve() {
            if self.is_maintenance() {
                steps.complete();
            } else {
                steps.inject();
            }
        }
        None
    }

    const fn extended(self, value: u64) -> u64 {
        let shift = 64 - 8 * self.size();
        let is_signed = self.0 & 1 << 21 != 0;
        let is_64_bit = self.0 & 1 << 15 != 0;
        let value =
            if is_signed { ((value << shift) as i64 >> shift) as u64 } else { value << shift >> shift };
        if is_64_bit { value } else { value & 0xffff_ffff }
    }
}

/// The steps of [`Syndrome::answer`].
pub(crate) trait Steps<R> {
    /// Returns true if the access faults at stage 1: the guest repeats it, and takes that fault.
    fn is_stage1_fault(&self) -> bool;
    /// Performs the access if a device is at its address.
    fn access_device(&mut self) -> Option<R>;
    /// Returns true if there is memory at the address, so that the guest can repeat the access.
    fn resolve(&mut self) -> bool;
    /// Completes the instruction.
    fn complete(&mut self);
    /// Injects an external abort.
    fn inject(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address, and the steps after an abort.
    #[derive(Default)]
    struct Fake {
        is_stage1_fault: bool,
        is_device: bool,
        is_memory: bool,
        steps: Vec<&'static str>,
    }

    impl Steps<u64> for Fake {
        fn is_stage1_fault(&self) -> bool {
            self.is_stage1_fault
        }
        fn access_device(&mut self) -> Option<u64> {
            self.steps.push("access");
            self.is_device.then_some(7)
        }
        fn resolve(&mut self) -> bool {
            self.steps.push("resolve");
            self.is_memory
        }
        fn complete(&mut self) {
            self.steps.push("complete");
        }
        fn inject(&mut self) {
            self.steps.push("inject");
        }
    }

    #[track_caller]
    fn answers(syndrome: Syndrome, mut address: Fake, result: Option<u64>, steps: &[&str]) {
        assert_eq!(syndrome.answer(&mut address), result);
        assert_eq!(address.steps, steps);
    }

    /// A load; one without a syndrome; maintenance; a walk of stage 1 tables: each not translated by stage 2.
    const LOAD: Syndrome = access(2, false, false).untranslated();
    const BARE: Syndrome = Syndrome(LOAD.0 & !IS_VALID);
    const CLEAN: Syndrome = Syndrome(0x24 << 26 | MAINTENANCE | 1 << 6 | TRANSLATION | 3);
    const WALK: Syndrome = Syndrome(0x24 << 26 | ON_WALK | TRANSLATION | 3);

    impl Syndrome {
        const fn untranslated(self) -> Self {
            Self(self.0 | TRANSLATION | 3)
        }
    }

    #[test]
    fn maintenance_of_a_device_completes_without_effect() {
        // With or without a device, no register is accessed.
        for is_device in [false, true] {
            answers(CLEAN, Fake { is_device, ..Fake::default() }, None, &["resolve", "complete"]);
        }
        // Memory in migration: the guest repeats the instruction.
        answers(CLEAN, Fake { is_memory: true, ..Fake::default() }, None, &["resolve"]);
    }

    #[test]
    fn a_device_answers_accesses_that_the_syndrome_describes() {
        let device = || Fake { is_device: true, ..Fake::default() };
        answers(LOAD, device(), Some(7), &["access", "complete"]);
        for syndrome in [BARE, WALK] {
            answers(syndrome, device(), None, &["resolve", "inject"]);
        }
    }

    #[test]
    fn accesses_to_memory_are_repeated_and_those_to_holes_abort() {
        answers(LOAD, Fake { is_memory: true, ..Fake::default() }, None, &["access", "resolve"]);
        answers(LOAD, Fake::default(), None, &["access", "resolve", "inject"]);
        answers(WALK, Fake { is_memory: true, ..Fake::default() }, None, &["resolve"]);
    }

    #[test]
    fn a_stage_1_fault_comes_before_all_else() {
        for syndrome in [LOAD, BARE, CLEAN] {
            let address = Fake { is_stage1_fault: true, is_device: true, is_memory: true, ..Fake::default() };
            answers(syndrome, address, None, &[]);
        }
    }

    const VALUE: u64 = 0xf1e2_d3c4_b5a6_9788;

    /// A load of `2 << log_size` bytes, with SSE and SF.
    const fn access(log_size: u64, is_signed: bool, is_64_bit: bool) -> Syndrome {
        Syndrome(
            0x24 << 26 | IS_VALID | log_size << 22 | (is_signed as u64) << 21 | (is_64_bit as u64) << 15 | 7,
        )
    }

    #[test]
    fn loads_extend_as_the_instruction_asks() {
        let loads = [
            (access(0, false, false), 0x88),
            (access(0, true, false), 0xffff_ff88),
            (access(0, true, true), 0xffff_ffff_ffff_ff88),
            (access(1, false, false), 0x9788),
            (access(1, true, true), 0xffff_ffff_ffff_9788),
            (access(2, false, false), 0xb5a6_9788),
            (access(2, true, true), 0xffff_ffff_b5a6_9788),
            (access(3, false, true), VALUE),
        ];
        for (syndrome, loaded) in loads {
            assert_eq!(syndrome.loaded(VALUE, false), loaded, "{syndrome:x?}");
        }
    }

    #[test]
    fn big_endian_accesses_swap_the_bytes_of_their_size() {
        let loads = [
            (access(0, false, false), 0x88),
            (access(0, true, true), 0xffff_ffff_ffff_ff88),
            (access(1, false, false), 0x8897),
            (access(1, true, false), 0xffff_8897),
            (access(2, false, false), 0x8897_a6b5),
            (access(2, true, true), 0xffff_ffff_8897_a6b5),
            (access(3, false, true), VALUE.swap_bytes()),
        ];
        for (syndrome, loaded) in loads {
            assert_eq!(syndrome.loaded(VALUE, true), loaded, "{syndrome:x?}");
        }
        for (log_size, stored) in [(0, 0x88), (1, 0x8897), (2, 0x8897_a6b5), (3, VALUE.swap_bytes())] {
            assert_eq!(access(log_size, false, true).stored(VALUE, true), stored);
            assert_eq!(access(log_size, false, true).stored(VALUE, false), VALUE);
        }
    }

    #[test]
    fn maintenance_is_told_from_accesses_and_walks() {
        let abort = 0x24 << 26;
        for level in 0..4 {
            assert!(Syndrome(abort | IS_VALID | TRANSLATION | level).is_access());
            let maintenance = abort | MAINTENANCE | 1 << 6 | TRANSLATION | level;
            assert!(Syndrome(maintenance).is_maintenance() && !Syndrome(maintenance).is_access());
            assert!(!Syndrome(maintenance | ON_WALK).is_maintenance(), "AT whose walk faults");
            let bare = Syndrome(abort | TRANSLATION | level);
            assert!(bare.is_untranslated() && !bare.is_access(), "no syndrome");
            // An access flag fault and a permission fault.
            for status in [0x08, 0x0c] {
                assert!(!Syndrome(abort | MAINTENANCE | status | level).is_maintenance());
                assert!(!Syndrome(abort | IS_VALID | status | level).is_access());
            }
        }
    }
}
