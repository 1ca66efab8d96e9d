//! A minimal device tree reader: one pass over the nodes, with the few properties that guests need.

/// Maximum depth of nodes.
const DEPTH: usize = 8;
const MAGIC: u32 = 0xd00d_feed;

/// A flattened device tree in memory (device-tree specification, chapter 5).
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    blob: &'static [u8],
}

/// The properties of a node that guests need.
#[derive(Clone, Copy, Debug, Default)]
pub struct Node {
    /// Name with the unit address.
    pub name: &'static str,
    /// Name of the parent.
    pub parent: &'static str,
    /// `compatible`, with its NULs.
    pub compatible: &'static [u8],
    /// `device_type`, with its NUL.
    pub device_type: &'static [u8],
    /// `reg`.
    pub reg: &'static [u8],
    /// `interrupts`.
    pub interrupts: &'static [u8],
    /// `method`, with its NUL.
    pub method: &'static [u8],
    /// `bootargs`, with its NUL.
    pub bootargs: &'static [u8],
    /// `status`, with its NUL.
    pub status: &'static [u8],
    /// Cells of an address in `reg`.
    pub address_cells: u32,
    /// Cells of a size in `reg`.
    pub size_cells: u32,
    own_address_cells: u32,
    own_size_cells: u32,
}

impl Tree {
    /// Returns the tree at `address`, if there is one. The memory must be readable.
    #[must_use]
    pub fn at(address: usize) -> Option<Self> {
        if address == 0 || !address.is_multiple_of(4) {
            return None;
        }
        // SAFETY: the loader put a tree there; otherwise the memory is readable.
        let header = unsafe { core::slice::from_raw_parts(address as *const u8, 40) };
        if word(header, 0)? != MAGIC {
            return None;
        }
        let size = word(header, 4)? as usize;
        // SAFETY: the header has the size of the tree.
        Some(Self { blob: unsafe { core::slice::from_raw_parts(address as *const u8, size) } })
    }

    /// Returns the addresses of the tree.
    #[must_use]
    pub fn range(&self) -> (usize, usize) {
        (self.blob.as_ptr() as usize, self.blob.len())
    }

    /// Calls the visitor with each node after its properties and children. Stops at the first malformed structure.
    pub fn for_each(&self, visit: impl FnMut(&Node)) {
        let _ = self.walk(visit);
    }

    fn walk(&self, mut visit: impl FnMut(&Node)) -> Option<()> {
        let mut offset = word(self.blob, 8)? as usize;
        let strings = word(self.blob, 12)? as usize;
        let mut stack = [Node::default(); DEPTH];
        let mut depth = 0;
        loop {
            let token = word(self.blob, offset)?;
            offset += 4;
            match token {
                1 => {
                    let name = string(self.blob, offset)?;
                    offset = (offset + name.len() + 1).next_multiple_of(4);
                    let parent = if depth == 0 { Node::default() } else { stack[depth - 1] };
                    *stack.get_mut(depth)? = Node {
                        name,
                        parent: parent.name,
                        address_cells: if depth == 0 { 2 } else { parent.own_address_cells },
                        size_cells: if depth == 0 { 1 } else { parent.own_size_cells },
                        own_address_cells: 2,
                        own_size_cells: 1,
                        ..Node::default()
                    };
                    depth += 1;
                }
                2 => {
                    depth = depth.checked_sub(1)?;
                    visit(&stack[depth]);
                    if depth == 0 {
                        return Some(());
                    }
                }
                3 => {
                    let length = word(self.blob, offset)? as usize;
                    let name = string(self.blob, strings + word(self.blob, offset + 4)? as usize)?;
                    let value = self.blob.get(offset + 8..offset + 8 + length)?;
                    offset = (offset + 8 + length).next_multiple_of(4);
                    property(&mut stack[depth.checked_sub(1)?], name, value);
                }
                4 => {}
                _ => return None,
            }
        }
    }
}

impl Node {
    /// Returns true if `compatible` lists `name`.
    #[must_use]
    pub fn is_compatible(&self, name: &str) -> bool {
        self.compatible.split(|&byte| byte == 0).any(|entry| entry == name.as_bytes())
    }

    /// Returns true if the node is enabled.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.status.is_empty() || text(self.status).starts_with("ok")
    }

    /// Returns entry `index` of `reg`: address and size.
    #[must_use]
    pub fn region(&self, index: usize) -> Option<(u64, u64)> {
        let stride = (self.address_cells + self.size_cells) as usize * 4;
        let entry = self.reg.get(index * stride..(index + 1) * stride)?;
        let (address, size) = entry.split_at(self.address_cells as usize * 4);
        Some((number(address), number(size)))
    }

    /// Returns cell `index` of `interrupts`.
    #[must_use]
    pub fn interrupt_cell(&self, index: usize) -> Option<u32> {
        word(self.interrupts, index * 4)
    }
}

/// Returns a string property without its NUL.
#[must_use]
pub fn text(value: &'static [u8]) -> &'static str {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    core::str::from_utf8(&value[..end]).unwrap_or("")
}

fn property(node: &mut Node, name: &str, value: &'static [u8]) {
    match name {
        "compatible" => node.compatible = value,
        "device_type" => node.device_type = value,
        "reg" => node.reg = value,
        "interrupts" => node.interrupts = value,
        "method" => node.method = value,
        "bootargs" => node.bootargs = value,
        "status" => node.status = value,
        "#address-cells" => node.own_address_cells = word(value, 0).unwrap_or(2).min(2),
        "#size-cells" => node.own_size_cells = word(value, 0).unwrap_or(1).min(2),
        _ => {}
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

fn number(cells: &[u8]) -> u64 {
    cells.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn string(blob: &'static [u8], offset: usize) -> Option<&'static str> {
    Some(text(blob.get(offset..)?))
}
