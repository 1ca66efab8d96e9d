//! Single frames at hand.
//!
//! Of each type an arena has the free frames of one *group*, 64 frames side by side, *at hand*: taken out of the free map,
//! and handed out and taken back with no more than a bit set or cleared. They are free by every counter, and belong to
//! nobody. A group is put back in one step when a frame of the group beside it is freed, and before anything but a single
//! frame is looked for in vain.
//!
//! Whoever locks an arena for more than a plain allocation or free finds nothing at hand: see
//! [`Arena::lock`](crate::arena::Arena::lock). So frames at hand are never isolated, and no walk over the table meets one.
//! And whoever looked under that lock finds out later whether anything has changed since, although what is at hand comes
//! and goes uncounted: before any of it can, there must be a group again, and that counts as a change.

use super::{FreeLists, Taken};
use crate::addr::PAGEBLOCK_FRAMES;
use crate::frame::{Contents, Entry, FrameTable, GROUP_FRAMES, Group, SMALL_ORDERS, Slot};
use crate::pageblock::{LIST_SLOTS, LISTS};

/// For each type the free frames of one group, none of which the free map has. All zero: none.
///
/// Where there are entries, they are those of a group of a split pageblock of that type that is not isolated.
pub(super) struct Fronts<'a> {
    entries: [Option<Group<'a>>; LIST_SLOTS],
    /// The number of the group's first frame.
    first: [u64; LIST_SLOTS],
    free: [u64; LIST_SLOTS],
    /// Those of which it is known that all bytes are zero.
    zeroed: [u64; LIST_SLOTS],
    /// The slot of the group's first frame.
    slot: [Slot; LIST_SLOTS],
}

/// A single frame that was at hand.
#[derive(Clone, Copy)]
pub(crate) struct AtHand<'a> {
    pub(crate) entry: Entry<'a>,
    /// The frame's number.
    pub(crate) number: u64,
    pub(crate) contents: Contents,
}

impl<'a> Fronts<'a> {
    pub(super) const fn new() -> Self {
        Self {
            entries: [None; LIST_SLOTS],
            first: [0; LIST_SLOTS],
            free: [0; LIST_SLOTS],
            zeroed: [0; LIST_SLOTS],
            slot: [Slot(0); LIST_SLOTS],
        }
    }

    /// Takes the first frame: how far into the group it lies, and what is known of its bytes.
    #[inline]
    fn take(&mut self, list: usize) -> Option<(u32, Contents)> {
        let (free, zeroed) = (self.free[list], self.zeroed[list]);
        if free == 0 {
            return None;
        }
        let at = free.trailing_zeros();
        let contents = if zeroed >> at & 1 == 0 { Contents::Dirty } else { Contents::Zeroed };
        let left = free & (free - 1);
        self.free[list] = left;
        self.zeroed[list] = zeroed & left;
        Some((at, contents))
    }

    /// Has the group at `slot`, whose first frame is number `first`, at hand, and `free` frames of it.
    #[inline]
    fn set(
        &mut self,
        table: &FrameTable<'a>,
        list: usize,
        slot: Slot,
        first: u64,
        free: u64,
        contents: Contents,
    ) {
        self.entries[list] = table.words.group(slot);
        self.first[list] = first;
        self.free[list] = free;
        self.zeroed[list] = if contents == Contents::Zeroed { free } else { 0 };
        self.slot[list] = slot;
    }
}

impl<'a> FreeLists<'a> {
    /// Takes a single frame that is at hand.
    #[inline]
    pub(crate) fn take_at_hand(&mut self, list: usize) -> Option<AtHand<'a>> {
        let list = list % LIST_SLOTS;
        let (at, contents) = self.fronts.take(list)?;
        let number = self.fronts.first[list] | u64::from(at);
        Some(AtHand { entry: self.fronts.entries[list]?.entry(at), number, contents })
    }

    /// Takes a single frame from the lists of one type, and has others of its group at hand after that.
    pub(super) fn take_frame(&mut self, table: &FrameTable<'a>, list: usize) -> Option<Taken> {
        let list = list % LIST_SLOTS;
        if self.fronts.free[list] == 0 {
            let classes = self.orders[list] & ((1 << SMALL_ORDERS) - 1);
            let index = if classes == 0 {
                let whole = self.take_whole(&table.words, list, SMALL_ORDERS)?;
                self.split_whole(&table.words, whole, list);
                whole.slot.pageblock()
            } else {
                self.first(list, classes.trailing_zeros() as u8)
            };
            self.fetch(table, index, list);
        }
        let (at, contents) = self.fronts.take(list)?;
        Some(Taken { slot: self.fronts.slot[list].add(at.into()), contents })
    }

    /// Takes the first group with free frames of a split pageblock on `list`, none of which is at hand.
    fn fetch(&mut self, table: &FrameTable<'a>, index: u32, list: usize) {
        let map = table.words.free_map(index);
        let before = map.info();
        let (offset, free, left) = map.take_group();
        if left == 0 {
            self.unlink(&table.words, index, list, before.class());
        }
        let slot = Slot::of_pageblock(index).add(offset.into());
        self.fronts.set(table, list, slot, table.frame(slot).number(), free, before.contents());
    }

    /// The entry of frame `number`, and how far into its group it lies, if that is the one that `list` has frames of at
    /// hand.
    ///
    /// Two RAM ranges may share a group, by number. The entry is that of the range that the group is in: as nothing of that
    /// range begins there, no block in use has its head at that entry.
    #[inline]
    pub(crate) fn entry_at_hand(&self, list: usize, number: u64) -> Option<(Entry<'a>, u32)> {
        let list = list % LIST_SLOTS;
        let (entries, at) = (self.fronts.entries[list]?, number ^ self.fronts.first[list]);
        (at < GROUP_FRAMES).then(|| (entries.entry(at as u32), at as u32))
    }

    /// Gives the single frame back that lies `at` frames into the group of which `list` has frames at hand.
    #[inline]
    pub(crate) fn give_at_hand(&mut self, list: usize, at: u32, contents: Contents) {
        let (list, bit) = (list % LIST_SLOTS, 1 << (u64::from(at) % GROUP_FRAMES));
        self.fronts.free[list] |= bit;
        if contents == Contents::Zeroed {
            self.fronts.zeroed[list] |= bit;
        }
    }

    /// Has the group at hand that frame `number`, at `slot`, is in: one of a split pageblock of type `list` that is not
    /// isolated. Yields how far into it the frame lies. Yields `None`, and does not do so, where frames come and go in no
    /// order: it is not worth the effort then.
    #[inline]
    pub(crate) fn turn_to(
        &mut self,
        table: &FrameTable<'a>,
        list: usize,
        number: u64,
        slot: Slot,
    ) -> Option<u32> {
        let list = list % LIST_SLOTS;
        let at = number % GROUP_FRAMES;
        let (number, slot) = (number - at, Slot(slot.0 - at as u32));
        if self.fronts.free[list] != 0 {
            if self.fronts.slot[list] == slot {
                return Some(at as u32);
            }
            // The group before, or the one after?
            if self.fronts.first[list].wrapping_sub(number).wrapping_add(GROUP_FRAMES) > 2 * GROUP_FRAMES {
                return None;
            }
            self.put_back(table, list);
        }
        self.fronts.set(table, list, slot, number, 0, Contents::Dirty);
        Some(at as u32)
    }

    /// Whether nothing is at hand, and no group is named.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.fronts.entries.iter().all(Option::is_none)
    }

    /// Puts all that is at hand back.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle(&mut self, table: &FrameTable<'a>) {
        for list in 0..LISTS {
            if self.fronts.free[list] != 0 {
                self.put_back(table, list);
            }
            self.fronts.entries[list] = None;
        }
    }

    #[inline(never)]
    fn put_back(&mut self, table: &FrameTable<'a>, list: usize) {
        let list = list % LIST_SLOTS;
        let (slot, free) = (self.fronts.slot[list], self.fronts.free[list]);
        let contents = if free == self.fronts.zeroed[list] { Contents::Zeroed } else { Contents::Dirty };
        self.fronts.entries[list] = None;
        self.fronts.free[list] = 0;
        self.fronts.zeroed[list] = 0;
        let map = table.words.free_map(slot.pageblock());
        let before = map.give_group(slot.offset(), free, contents);
        let class = match before.class() {
            // The class of a pageblock without free frames is a left-over.
            class if class == SMALL_ORDERS - 1 && before.count() != 0 => class,
            _ => map.largest_in_group(slot.offset()),
        };
        let is_whole = map.info().count() == PAGEBLOCK_FRAMES as u32;
        if before.count() == 0 || is_whole || class > before.class() {
            self.relist(table, slot, class, before);
        }
    }
}
