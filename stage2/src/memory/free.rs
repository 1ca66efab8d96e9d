//! Why a block cannot be given back.

use super::{BlockReason, Layout, Memory};
use crate::addr::Frame;
use crate::frame::{Region, State};
use crate::owner::Owner;

impl<'a> Memory<'a> {
    /// What is wrong with a block that is not in use as the caller says.
    #[cold]
    pub(super) fn why_not_freed(
        layout: &Layout<'a>,
        region: &Region,
        number: u64,
        owner: Owner,
    ) -> BlockReason {
        let Some(head) = layout.table.head(region, number) else { return BlockReason::NotRam };
        let meta = layout.table.words.entry(region.slot(head.number)).meta();
        match head.state {
            State::Free => BlockReason::AlreadyFree,
            State::Reserved => BlockReason::Reserved,
            State::Retired => BlockReason::Retired,
            State::Used => match (meta.owner(), Frame::try_new(head.number)) {
                (_, Some(first)) if head.number != number => {
                    BlockReason::InsideBlock { head: first, order: head.order }
                }
                (Some(other), _) if other != owner => BlockReason::OtherOwner { owner: other },
                _ => BlockReason::OtherOrder { order: head.order },
            },
        }
    }
}
