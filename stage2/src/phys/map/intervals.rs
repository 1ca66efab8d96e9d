//! Disjoint ranges of frames, each with a value. Adjacent ranges with equal values merge.

use crate::range::FrameRange;

/// The list has no room for the ranges of an edit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Full;

/// At most `N` disjoint ranges in ascending order.
#[derive(Clone, Debug)]
pub(crate) struct Intervals<V, const N: usize>(heapless::Vec<(FrameRange, V), N>);

impl<V: Copy + PartialEq, const N: usize> Intervals<V, N> {
    /// Creates a list without ranges.
    pub(crate) const fn new() -> Self {
        Self(heapless::Vec::new())
    }

    /// Returns the ranges and their values, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FrameRange, V)> + Clone {
        self.0.iter().copied()
    }

    /// Returns the first range that ends after frame number `number`.
    pub(crate) fn at_or_after(&self, number: u64) -> Option<(FrameRange, V)> {
        let index = self.0.partition_point(|(range, _)| range.end() <= number);
        self.0.get(index).copied()
    }

    /// Sets the value of every frame of `range`.
    pub(crate) fn insert(&mut self, range: FrameRange, value: V) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        // At most two pieces of split neighbours and the range itself are new. On `Full` nothing has changed.
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

    /// Removes every frame of `range`.
    pub(crate) fn remove(&mut self, range: FrameRange) -> Result<(), Full> {
        let mut cut = self.clone();
        cut.cut(range)?;
        *self = cut;
        Ok(())
    }

    /// Removes `range`, splitting ranges that cross its ends. On `Full` the list may be changed in part.
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
