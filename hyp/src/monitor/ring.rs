//! A ring buffer of bytes in borrowed storage.

/// A queue of bytes that counts line ends.
#[derive(Debug, Default)]
pub struct Ring<'a> {
    storage: &'a mut [u8],
    /// The index of the oldest byte.
    head: usize,
    len: usize,
    /// The most bytes that it keeps; at most the storage's length.
    limit: usize,
    /// The number of `\n` among the bytes.
    lines: usize,
}

impl<'a> Ring<'a> {
    /// Creates an empty ring in `storage`, which may be empty.
    pub fn new(storage: &'a mut [u8]) -> Self {
        let limit = storage.len();
        Self { storage, head: 0, len: 0, limit, lines: 0 }
    }

    /// Returns the number of bytes that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tests if it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the room for more bytes.
    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.len)
    }

    /// Returns the most bytes that it keeps.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the number of line ends that it holds.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Limits it to `limit` bytes. Drops the oldest beyond that and returns their number.
    pub fn set_limit(&mut self, limit: usize) -> usize {
        self.limit = limit.min(self.storage.len());
        let excess = self.len.saturating_sub(self.limit);
        for _ in 0..excess {
            self.pop();
        }
        excess
    }

    /// Adds `byte`; returns `false` if there is no room.
    #[inline]
    pub fn push(&mut self, byte: u8) -> bool {
        if self.len >= self.limit {
            return false;
        }
        let end = self.head + self.len;
        let at = if end >= self.storage.len() { end - self.storage.len() } else { end };
        let Some(place) = self.storage.get_mut(at) else { return false };
        *place = byte;
        self.len += 1;
        self.lines += usize::from(byte == b'\n');
        true
    }

    /// Adds `byte`, in place of the oldest if there is no room; returns `false` if a byte was lost.
    #[inline]
    pub fn push_over(&mut self, byte: u8) -> bool {
        if self.push(byte) {
            return true;
        }
        self.pop();
        self.push(byte);
        false
    }

    /// Adds all of `bytes`; returns `false` and adds none if there is no room.
    pub fn push_all(&mut self, bytes: &[u8]) -> bool {
        let has_room = bytes.len() <= self.free();
        if has_room {
            for &byte in bytes {
                self.push(byte);
            }
        }
        has_room
    }

    /// Returns the oldest byte.
    pub fn first(&self) -> Option<u8> {
        if self.len == 0 { None } else { self.storage.get(self.head).copied() }
    }

    /// Returns the newest byte.
    pub fn last(&self) -> Option<u8> {
        let end = self.head + self.len.checked_sub(1)?;
        let at = if end >= self.storage.len() { end - self.storage.len() } else { end };
        self.storage.get(at).copied()
    }

    /// Removes the oldest byte and returns it.
    #[inline]
    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.first()?;
        self.head += 1;
        if self.head == self.storage.len() {
            self.head = 0;
        }
        self.len -= 1;
        self.lines -= usize::from(byte == b'\n');
        Some(byte)
    }

    /// Removes all bytes.
    pub fn clear(&mut self) {
        self.head = 0;
        self.len = 0;
        self.lines = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_storage_it_holds_nothing() {
        let mut ring = Ring::new(&mut []);
        assert!(!ring.push(1));
        assert!(!ring.push_over(1));
        assert_eq!((ring.pop(), ring.free(), ring.is_empty()), (None, 0, true));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        PushOver(u8),
        PushAll(Vec<u8>),
        Pop,
        Limit(usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let byte = || prop_oneof![Just(b'\n'), any::<u8>()];
        prop_oneof![
            4 => byte().prop_map(Step::Push),
            4 => byte().prop_map(Step::PushOver),
            2 => prop::collection::vec(byte(), 0..12).prop_map(Step::PushAll),
            6 => Just(Step::Pop),
            1 => (0..40usize).prop_map(Step::Limit),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// The ring behaves like a queue with a limit.
        #[test]
        fn it_behaves_like_a_queue(size in 0..33usize, steps in prop::collection::vec(step(), 0..400)) {
            let mut storage = vec![0; size];
            let mut ring = Ring::new(&mut storage);
            let mut model = VecDeque::new();
            let mut limit = size;
            for step in steps {
                match step {
                    Step::Push(byte) => {
                        let has_room = model.len() < limit;
                        if has_room {
                            model.push_back(byte);
                        }
                        prop_assert_eq!(ring.push(byte), has_room);
                    }
                    Step::PushOver(byte) => {
                        let has_room = model.len() < limit;
                        if !has_room {
                            model.pop_front();
                        }
                        if limit > 0 {
                            model.push_back(byte);
                        }
                        prop_assert_eq!(ring.push_over(byte), has_room);
                    }
                    Step::PushAll(bytes) => {
                        let has_room = bytes.len() + model.len() <= limit;
                        prop_assert_eq!(ring.push_all(&bytes), has_room);
                        if has_room {
                            model.extend(bytes);
                        }
                    }
                    Step::Pop => prop_assert_eq!(ring.pop(), model.pop_front()),
                    Step::Limit(new) => {
                        limit = new.min(size);
                        let excess = model.len().saturating_sub(limit);
                        model.drain(..excess);
                        prop_assert_eq!(ring.set_limit(new), excess);
                    }
                    Step::Clear => {
                        ring.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(ring.len(), model.len());
                prop_assert_eq!(ring.free(), limit - model.len());
                prop_assert_eq!(ring.first(), model.front().copied());
                prop_assert_eq!(ring.last(), model.back().copied());
                prop_assert_eq!(ring.lines(), model.iter().filter(|byte| **byte == b'\n').count());
            }
        }
    }
}
