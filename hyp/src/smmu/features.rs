//! The features of an SMMU that decide how Ballast uses it.

use super::access::Registers;
use super::error::Error;
use super::registers::{IDR0, IDR1, IDR5, Idr0, Idr1, Idr5};

/// Most bits of a window's addresses on the device's side: tables start at level 1 and need no second root.
const INPUT_BITS: u8 = 39;

/// Stage of translation that windows use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Stage 1, of an SMMU without stage 2.
    One,
    /// Stage 2.
    Two,
}

impl Stage {
    /// Returns the stage's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::One => "stage 1",
            Self::Two => "stage 2",
        }
    }
}

/// Features, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Stage of translation that windows use.
    pub(crate) stage: Stage,
    /// IDR0.COHACC.
    pub(super) is_coherent: bool,
    /// Stream tables may have two levels.
    pub(super) has_two_levels: bool,
    /// The TLBs may hold entries of EL2.
    pub(super) has_hyp: bool,
    /// Devices may mark transactions as translated, which must not pass unchecked.
    pub(super) has_ats: bool,
    /// Stalls must be turned off for each stream.
    pub(super) has_stalls: bool,
    /// STEs override incoming memory types.
    pub(super) overrides_types: bool,
    /// Bits of a StreamID.
    pub(super) stream_bits: u8,
    /// log2 of the most commands in the queue.
    pub(super) command_bits: u8,
    /// log2 of the most events in the queue.
    pub(super) event_bits: u8,
    /// Bits of an address on the device's side.
    pub(super) input_bits: u8,
    /// Bits of a physical address.
    pub(super) output_bits: u8,
}

impl Features {
    /// Reads the ID registers.
    ///
    /// # Errors
    ///
    /// The first feature that Ballast needs and the SMMU lacks.
    pub(super) fn read(registers: &impl Registers) -> Result<Self, Error> {
        let idr0 = Idr0::from_bits(registers.read32(IDR0));
        let idr1 = Idr1::from_bits(registers.read32(IDR1));
        let idr5 = Idr5::from_bits(registers.read32(IDR5));
        let stage = match (idr0.has_stage_1(), idr0.has_stage_2()) {
            (_, true) => Stage::Two,
            (true, false) => Stage::One,
            (false, false) => return Err(Error::NoTranslation),
        };
        for (is_missing, error) in [
            (idr0.table_formats() & 0b10 == 0, Error::NoAarch64Tables),
            (idr0.endianness() == 0b11, Error::BigEndian),
            (!idr5.has_4k_granule(), Error::No4kGranule),
            (idr0.stall_model() == 0b10, Error::StallsForced),
            (idr1.has_preset_tables() || idr1.has_preset_queues(), Error::Preset),
        ] {
            if is_missing {
                return Err(error);
            }
        }
        // Larger sizes need FEAT_LPA2's descriptors or 64 KiB pages; 48 bits are all that Ballast's own tables reach.
        let output_bits = [32, 36, 40, 42, 44].get(usize::from(idr5.output_size())).copied().unwrap_or(48);
        // "Input address size and Virtual Address size": the IPA size is OAS, or 40 bits if AArch32 tables need more.
        let ipa_bits = if idr0.table_formats() & 1 != 0 { output_bits.max(40) } else { output_bits };
        Ok(Self {
            stage,
            is_coherent: idr0.is_coherent(),
            has_two_levels: idr0.stream_levels() == 0b01,
            has_hyp: idr0.has_hyp(),
            has_ats: idr0.has_ats(),
            has_stalls: idr0.stall_model() == 0b00,
            overrides_types: idr1.overrides_types(),
            stream_bits: idr1.stream_bits().min(32),
            command_bits: idr1.command_bits(),
            event_bits: idr1.event_bits(),
            input_bits: if stage == Stage::Two { ipa_bits.min(INPUT_BITS) } else { INPUT_BITS },
            output_bits,
        })
    }

    /// Returns the code of [`output_bits`](Self::output_bits) in STE.S2PS and CD.IPS.
    pub(super) fn output_code(&self) -> u8 {
        match self.output_bits {
            32 => 0,
            36 => 1,
            40 => 2,
            42 => 3,
            44 => 4,
            _ => 5,
        }
    }
}
