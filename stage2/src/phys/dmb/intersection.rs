//! How a range lies to the designated blocks.

use super::Block;
use crate::range::FrameRange;

/// How a range lies to the designated movable blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Intersection {
    /// No frame of it lies in a block; so it is with an empty range.
    Disjoint,
    /// Every frame of it lies in a block, be it one, or several that adjoin.
    Inside,
    /// Some of its frames lie in blocks, others do not.
    Mixed,
}

impl Intersection {
    /// How `range` lies to `blocks`, which may stand in any order and do not overlap.
    pub fn of(range: FrameRange, blocks: &[Block]) -> Self {
        let shared: u64 = blocks.iter().map(|block| block.range.intersection(range).frames()).sum();
        match shared {
            0 => Self::Disjoint,
            frames if frames == range.frames() => Self::Inside,
            _ => Self::Mixed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ControllerId;
    use crate::name::Name;
    use crate::phys::dmb::Source;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> FrameRange {
        FrameRange::from_numbers(start, end).unwrap()
    }

    fn block(start: u64, end: u64) -> Block {
        let (controller, source) = (ControllerId::default(), Source::CommandLine);
        Block { range: range(start, end), controller, source, name: Name::new("block") }
    }

    #[test]
    fn p13_the_order_of_blocks_does_not_matter_and_adjoining_ones_are_one() {
        // Descending, as no table sorted by address would have them.
        let blocks = [block(3000, 4000), block(2000, 3000), block(500, 1000)];
        let at = |start, end| Intersection::of(range(start, end), &blocks);
        assert_eq!(at(500, 1000), Intersection::Inside);
        assert_eq!(at(600, 601), Intersection::Inside);
        assert_eq!(at(2500, 3500), Intersection::Inside, "over the seam of two blocks");
        assert_eq!(at(2000, 4000), Intersection::Inside);
        assert_eq!(at(1000, 2000), Intersection::Disjoint, "between, touching both");
        assert_eq!(at(0, 500), Intersection::Disjoint);
        assert_eq!(at(700, 700), Intersection::Disjoint, "an empty range lies nowhere");
        assert_eq!(at(999, 1001), Intersection::Mixed);
        assert_eq!(at(0, 10_000), Intersection::Mixed);
        assert_eq!(at(500, 2500), Intersection::Mixed);
        assert_eq!(Intersection::of(range(0, 10), &[]), Intersection::Disjoint);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases::cases(256, 8), failure_persistence: None, ..Default::default() })]

        /// As a look at every frame says.
        #[test]
        fn it_is_what_every_frame_says(
            edges in proptest::collection::btree_set(0u64..64, 0..10),
            at in 0u64..64, length in 0u64..64, seed in any::<u64>(),
        ) {
            let edges: Vec<u64> = edges.into_iter().collect();
            let mut blocks: Vec<Block> = edges.chunks_exact(2).map(|pair| block(pair[0], pair[1])).collect();
            let turn = if blocks.is_empty() { 0 } else { seed as usize % blocks.len() };
            blocks.rotate_left(turn);
            let asked = range(at, at + length);
            let is_inside = |number: u64| blocks.iter().any(|block| (block.range.start()..block.range.end()).contains(&number));
            let (mut any, mut all) = (false, length > 0);
            for number in at..at + length {
                any |= is_inside(number);
                all &= is_inside(number);
            }
            let expected = match (any, all) {
                (false, _) => Intersection::Disjoint,
                (_, true) => Intersection::Inside,
                _ => Intersection::Mixed,
            };
            prop_assert_eq!(Intersection::of(asked, &blocks), expected);
        }
    }
}
