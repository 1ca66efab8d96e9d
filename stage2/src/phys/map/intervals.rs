//! Disjoint ranges of frames, each with a value; neighbours with equal values merge.

use crate::range::FrameRange;

/// The list has no room for the ranges that an edit makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full;

/// At most `N` disjoint ranges in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Intervals<V, const N: usize>(heapless::Vec<(FrameRange, V), N>);

impl<V: Copy + PartialEq, const N: usize> Intervals<V, N> {
    /// A list without ranges.
    pub(crate) const fn new() -> Self {
        Self(heapless::Vec::new())
    }

    /// The ranges and their values, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FrameRange, V)> + Clone {
        self.0.iter().copied()
    }

    /// The first range that ends after frame number `number`.
    pub(crate) fn at_or_after(&self, number: u64) -> Option<(FrameRange, V)> {
        let index = self.0.partition_point(|(range, _)| range.end() <= number);
        self.0.get(index).copied()
    }

    /// Gives every frame of `range` the value `value`, whatever it had.
    pub(crate) fn insert(&mut self, range: FrameRange, value: V) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        // At most two parts of cut neighbours and the range itself are new; on `Full` nothing has changed.
        let mut grown = self.clone();
        grown.cut(range)?;
        let (mut start, mut end) = (range.start(), range.end());
        let mut index = grown.0.partition_point(|(other, _)| other.start() < start);
        if let Some(&(after, other)) = grown.0.get(index)
            && after.start() == end
            && other == value
        {
            end = after.end();
            grown.0.remove(index);
        }
        if let Some(before) = index.checked_sub(1)
            && let Some(&(other_range, other)) = grown.0.get(before)
            && other_range.end() == start
            && other == value
        {
            start = other_range.start();
            grown.0.remove(before);
            index = before;
        }
        let merged = FrameRange::from_numbers(start, end).unwrap_or(range);
        grown.0.insert(index, (merged, value)).map_err(|_| Full)?;
        *self = grown;
        Ok(())
    }

    /// Takes every frame of `range` out.
    pub(crate) fn remove(&mut self, range: FrameRange) -> Result<(), Full> {
        let mut cut = self.clone();
        cut.cut(range)?;
        *self = cut;
        Ok(())
    }

    /// Takes `range` out, splitting what reaches over its edges. May leave the list half cut on `Full`.
    fn cut(&mut self, range: FrameRange) -> Result<(), Full> {
        let mut index = 0;
        while let Some(&(other, value)) = self.0.get(index) {
            if !other.overlaps(range) {
                index += 1;
                continue;
            }
            self.0.remove(index);
            let below = FrameRange::from_numbers(other.start(), range.start().max(other.start()));
            let above = FrameRange::from_numbers(range.end().min(other.end()), other.end());
            for rest in [below, above].into_iter().flatten().filter(|rest| !rest.is_empty()) {
                self.0.insert(index, (rest, value)).map_err(|_| Full)?;
                index += 1;
            }
        }
        Ok(())
    }
}
