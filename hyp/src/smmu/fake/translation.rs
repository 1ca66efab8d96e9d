//! Accesses of devices: stream table, walks, and events.

use super::*;

impl Machine {
    /// Returns the address of a stream's entry.
    fn locate(&mut self, stream: u32) -> Option<u64> {
        let (base, layout) =
            (self.register64(STRTAB_BASE) & 0xf_ffff_ffff_ffc0, self.register(STRTAB_BASE_CFG));
        if u64::from(stream) >> (layout & 0x3f) != 0 {
            return None;
        }
        if layout >> 16 & 3 == 0 {
            return Some(base + u64::from(stream) * 64);
        }
        assert_eq!(layout >> 6 & 0x1f, 8, "SPLIT");
        let number = stream >> 8;
        let fetched = self.fetch(base + u64::from(number) * 8);
        let descriptor = *self.spans.entry(number).or_insert(fetched);
        let span = descriptor & 0x1f;
        let index = u64::from(stream & 0xff);
        (span != 0 && index < 1 << (span - 1)).then(|| (descriptor & 0xf_ffff_ffff_ffc0) + index * 64)
    }

    fn fetch_entry(&mut self, stream: u32) -> Option<[u64; 8]> {
        let at = self.locate(stream)?;
        let fetched = core::array::from_fn(|word| self.fetch(at + word as u64 * 8));
        Some(*self.entries.entry(stream).or_insert(fetched))
    }

    /// Fetches entries in two parts, word 0 last, as an SMMU may at any time.
    pub(super) fn race(&mut self) {
        if self.register(CR0ACK) & CR0_SMMUEN == 0 {
            return;
        }
        for stream in 0..RACES {
            let known = self.entries.get(&stream).copied();
            let Some(mut fetched) = self.fetch_entry(stream) else { continue };
            match known {
                Some(entry) => self.entries.insert(stream, entry),
                None => self.entries.remove(&stream),
            };
            if let Some(partial) = self.partial.get(&stream) {
                let word = fetched[0];
                fetched = *partial;
                fetched[0] = word;
                assert!(word >> 1 & 7 != 0b110 || fetched[3] != 0, "an entry was mixed: {fetched:x?}");
                self.entries.entry(stream).or_insert(fetched);
            }
            self.partial.insert(stream, fetched);
        }
    }

    fn record(&mut self, kind: u64, stream: u32, address: u64, is_write: bool) -> Outcome {
        let base = self.register64(EVENTQ_BASE);
        let (producer, consumer) = (self.register(EVENTQ_PROD), self.register(EVENTQ_CONS));
        let count = producer.wrapping_sub(consumer) & Self::wraps(base);
        if count > Self::wraps(base) >> 1 {
            if (producer ^ consumer) & OVERFLOW == 0 {
                self.registers.insert(EVENTQ_PROD, producer ^ OVERFLOW);
            }
            return Outcome::Aborted;
        }
        let at = Self::entry(base, producer, 32);
        let words = [kind | u64::from(stream) << 32, u64::from(!is_write) << 35, address, 0];
        for (word, at) in words.into_iter().zip((at..).step_by(8)) {
            self.ram.insert(at, word);
        }
        let index = (producer + 1) & Self::wraps(base);
        self.registers.insert(EVENTQ_PROD, producer & OVERFLOW | index);
        Outcome::Aborted
    }

    pub(super) fn access(&mut self, stream: u32, address: u64, is_write: bool) -> Outcome {
        if self.register(CR0ACK) & CR0_SMMUEN == 0 {
            let aborts = self.register(GBPA) & GBPA_ABORT != 0;
            return if aborts { Outcome::Aborted } else { Outcome::Bypassed };
        }
        let Some(entry) = self.fetch_entry(stream) else { return self.record(0x02, stream, 0, is_write) };
        let (tag, root, bits, is_stage_2) = match entry[0] & 0xf {
            1 => return Outcome::Aborted,
            0b1011 => {
                let at = entry[0] & 0xf_ffff_ffff_ffc0;
                let fetched = core::array::from_fn(|word| self.fetch(at + word as u64 * 8));
                let context = *self.contexts.entry(stream).or_insert(fetched);
                // V, AA64, R, A, EPD1 set; S clear.
                let flags = 1 << 31 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 30;
                assert_eq!(context[0] & (flags | 1 << 44), flags, "CD {context:x?}");
                (context[0] >> 48 | 1 << 16, context[1] & ADDRESS, 64 - (context[0] & 0x3f), false)
            }
            0b1101 => {
                // S2AA64, S2AFFD, S2R set; S2S, S2ENDI clear; S2SL0 = 1, S2TG = 0.
                let flags = 1 << 51 | 1 << 53 | 1 << 58;
                let mask = flags | 1 << 57 | 1 << 52 | 3 << 46;
                assert_eq!(entry[2] & mask, flags, "STE {entry:x?}");
                assert_eq!(entry[2] >> 38 & 3, 1, "S2SL0");
                (entry[2] & 0xffff, entry[3] & ADDRESS, 64 - (entry[2] >> 32 & 0x3f), true)
            }
            _ => return self.record(0x04, stream, 0, is_write),
        };
        assert_eq!(entry[1] >> 28 & 0xf, 0, "EATS and STRW");
        let key = (tag, address >> 12);
        if let Some(page) = self.translations.get(&key) {
            return Outcome::Memory(page | address & 0xfff);
        }
        let Some(page) = self.walk(root, address, bits, is_stage_2) else {
            return self.record(0x10, stream, address, is_write);
        };
        self.translations.insert(key, page);
        Outcome::Memory(page | address & 0xfff)
    }

    fn walk(&self, root: u64, address: u64, bits: u64, is_stage_2: bool) -> Option<u64> {
        if address >> bits != 0 {
            return None;
        }
        let table = self.fetch(root + (address >> 30 & 0x1ff) * 8);
        if table & 3 != 3 {
            return None;
        }
        let block = self.fetch((table & ADDRESS) + (address >> 21 & 0x1ff) * 8);
        if block & 3 != 1 {
            return None;
        }
        assert_eq!(block >> 8 & 7, 0b111, "SH and AF of {block:#x}");
        assert_eq!(block >> 6 & 3, if is_stage_2 { 3 } else { 1 }, "access permissions of {block:#x}");
        Some(block & ADDRESS & !0x1f_ffff | address & 0x1f_f000)
    }
}
