//! The controllers that back a guest's memory at present, read from its stage 2.

use alloc::vec::Vec;
use stage2::addr::{FRAME_SIZE, Frame, PAGEBLOCK_SIZE, Pa};

use super::prelude::*;

/// Units that are read before others may run.
const UNITS_AT_ONCE: u64 = 64;

/// The part of a range that lies behind one controller.
#[derive(Clone, Copy, Default)]
pub(super) struct Part {
    /// The controller's index.
    pub(super) controller: usize,
    /// Bytes.
    pub(super) bytes: u64,
    /// Units of 1 GiB, 2 MiB and 4 KiB.
    pub(super) units: [u64; 3],
}

/// Returns the backed parts of the `size` bytes of a guest from `ipa` on, by ascending controller.
///
/// # Errors
/// The operator interrupts.
pub(super) fn parts(
    session: &mut Session<'_>,
    guest: usize,
    ipa: u64,
    size: u64,
) -> Result<Vec<Part>, Failure> {
    let machine = session.machine;
    let mut found: Vec<Part> =
        (0..machine.controller_count()).map(|controller| Part { controller, ..Part::default() }).collect();
    let (mut at, end, mut count) = (ipa, ipa.saturating_add(size), 0);
    while at < end {
        let unit = machine.unit(guest, at);
        let controller = unit.and_then(|(pa, _)| {
            let frame = Frame::containing(Pa::try_new(pa)?);
            machine.memory()?.controller_of(frame)
        });
        // Without a unit, the next frame may have one.
        let unit_size = unit.map_or(FRAME_SIZE, |(_, size)| size);
        let next = (at & !(unit_size - 1)).saturating_add(unit_size).min(end);
        if let Some(part) = controller.and_then(|controller| found.get_mut(controller.index())) {
            part.bytes += next - at;
            let place = usize::from(unit_size < 1 << 30) + usize::from(unit_size < PAGEBLOCK_SIZE);
            if let Some(units) = part.units.get_mut(place) {
                *units += 1;
            }
        }
        at = next;
        count += 1;
        if count % UNITS_AT_ONCE == 0 {
            session.pause()?;
        }
    }
    found.retain(|part| part.bytes != 0);
    Ok(found)
}

/// Parts with their sizes, shown as `mc0 14 MiB, mc1 2 MiB`.
pub(super) struct Parts<'a>(pub(super) &'a dyn Machine, pub(super) &'a [Part]);

impl fmt::Display for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1.is_empty() {
            return f.write_str("-");
        }
        for (at, part) in self.1.iter().enumerate() {
            let name = self.0.controller(part.controller).map_or("?", |controller| controller.name);
            write!(f, "{}{name} {}", if at == 0 { "" } else { ", " }, Size(part.bytes))?;
        }
        Ok(())
    }
}
