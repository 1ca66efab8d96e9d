//! The operator's names for parts of a guest's RAM.

use super::machine::{Machine, reason};
use super::migration::{Migration, Piece};
use super::units;

/// A part of a guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// All of it: `all`.
    All,
    /// All designated movable blocks: `dmbs`.
    Blocks,
    /// One block, `dmb0`, or one of the other regions, `ram0`.
    Piece {
        /// True for a block.
        is_dmb: bool,
        /// Its number in the configuration.
        number: u8,
    },
    /// A range of guest addresses: `64M@0x48000000`.
    Range {
        /// The first address.
        ipa: u64,
        /// The size in bytes.
        size: u64,
    },
}

impl Region {
    /// Parses a name. A guest need not have such a region.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => return Some(Self::All),
            "dmbs" => return Some(Self::Blocks),
            _ => {}
        }
        if let Some((size, ipa)) = text.split_once('@') {
            return Some(Self::Range { ipa: units::parse_number(ipa)?, size: units::parse_size(size)? });
        }
        let (is_dmb, number) = match text.strip_prefix("dmb") {
            Some(number) => (true, number),
            None => (false, text.strip_prefix("ram")?),
        };
        Some(Self::Piece { is_dmb, number: u8::try_from(units::parse_number(number)?).ok()? })
    }

    /// Tests if this region contains `piece`; a range must be equal to it.
    pub fn names(self, piece: &Piece) -> bool {
        match self {
            Self::All => true,
            Self::Blocks => piece.is_dmb,
            Self::Piece { is_dmb, number } => piece.is_dmb == is_dmb && piece.number == number,
            Self::Range { ipa, size } => piece.ipa == ipa && piece.size == size,
        }
    }

    /// Returns the first address and the size of this region; `None` if the guest has no such region.
    pub fn range(self, migration: &dyn Migration, guest: usize) -> Option<(u64, u64)> {
        if let Self::Range { ipa, size } = self {
            let touches = |piece: Piece| piece.ipa < ipa.saturating_add(size) && ipa < piece.ipa + piece.size;
            return pieces(migration, guest).any(touches).then_some((ipa, size));
        }
        let named = || pieces(migration, guest).filter(|piece| self.names(piece));
        let first = named().map(|piece| piece.ipa).min()?;
        let end = named().map(|piece| piece.ipa + piece.size).max()?;
        Some((first, end - first))
    }
}

/// Calls `take` with each name of a part of a guest's RAM.
pub fn each_name(machine: &dyn Machine, guest: Option<usize>, take: &mut dyn FnMut(&str)) {
    let Some((migration, guest)) = machine.migration().zip(guest) else { return };
    let mut has_block = false;
    take("all");
    for piece in pieces(migration, guest) {
        take(reason(format_args!("{}", piece.name())).as_str());
        has_block |= piece.is_dmb;
    }
    if has_block {
        take("dmbs");
    }
}

/// Iterates over the pieces of a guest's RAM, by ascending address.
pub fn pieces(migration: &dyn Migration, guest: usize) -> impl Iterator<Item = Piece> + Clone {
    (0..).map_while(move |index| migration.piece(guest, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_named() {
        for (text, region) in [
            ("all", Some(Region::All)),
            ("dmbs", Some(Region::Blocks)),
            ("dmb3", Some(Region::Piece { is_dmb: true, number: 3 })),
            ("ram0", Some(Region::Piece { is_dmb: false, number: 0 })),
            ("64M@0x48000000", Some(Region::Range { ipa: 0x4800_0000, size: 64 << 20 })),
            ("dmb", None),
            ("dmb256", None),
            ("@0", None),
            ("4K@", None),
            ("mc0", None),
        ] {
            assert_eq!(Region::parse(text), region, "{text}");
        }
    }
}
