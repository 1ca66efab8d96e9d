//! Commands (IHI 0070, "Commands").

/// A command as two words of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command(pub(super) [u64; 2]);

impl Command {
    /// CMD_SYNC with CS = SIG_NONE: CMDQ_CONS passes it when all commands before it are complete.
    pub(super) const SYNC: Self = Self([0x46, 0]);
    /// CMD_CFGI_ALL: drops all cached STEs and CDs.
    pub(super) const INVALIDATE_ALL_ENTRIES: Self = Self([0x04, 31]);
    /// CMD_TLBI_NSNH_ALL: drops all translations of Non-secure EL1.
    pub(super) const INVALIDATE_EL1: Self = Self([0x30, 0]);
    /// CMD_TLBI_EL2_ALL: drops all translations of EL2.
    pub(super) const INVALIDATE_EL2: Self = Self([0x20, 0]);

    /// Makes CMD_CFGI_STE, which drops a stream's STE and CDs; with `is_leaf` clear also its level 1 descriptor.
    pub(super) const fn invalidate_entry(stream: u32, is_leaf: bool) -> Self {
        Self([0x03 | (stream as u64) << 32, is_leaf as u64])
    }

    /// Makes CMD_TLBI_S12_VMALL: drops all translations of a VMID.
    pub(super) const fn invalidate_vmid(vmid: u16) -> Self {
        Self([0x28 | (vmid as u64) << 32, 0])
    }

    /// Makes CMD_TLBI_NH_ASID, with VMID 0: drops all translations of an ASID.
    pub(super) const fn invalidate_asid(asid: u16) -> Self {
        Self([0x11 | (asid as u64) << 48, 0])
    }

    /// Returns the opcode.
    pub(super) const fn opcode(self) -> u8 {
        self.0[0] as u8
    }
}
