//! Information from inside Linux guests.

use crate::system::System;

/// A zone of a guest's memory, from /proc/zoneinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// NUMA node.
    pub node: u32,
    /// Name: `DMA`, `Movable`, ….
    pub name: String,
    /// Number of pages.
    pub present: u64,
    /// Number of the first page.
    pub start_pfn: u64,
}

impl System {
    /// Returns the guest's zones, including empty ones.
    ///
    /// # Panics
    /// /proc/zoneinfo has an unexpected format.
    #[track_caller]
    pub fn zones(&mut self, guest: &str) -> Vec<Zone> {
        let text = self.run(guest, "grep -E '^Node|present|start_pfn' /proc/zoneinfo");
        let mut zones: Vec<Zone> = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split([' ', ',', ':']).filter(|word| !word.is_empty()).collect();
            let number = |word: &str| word.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            match (words.as_slice(), zones.last_mut()) {
                (["Node", node, "zone", name], _) => {
                    let node = number(node) as u32;
                    zones.push(Zone { node, name: (*name).into(), present: 0, start_pfn: 0 });
                }
                (["present", pages], Some(zone)) => zone.present = number(pages),
                (["start_pfn", pfn], Some(zone)) => zone.start_pfn = number(pfn),
                _ => {}
            }
        }
        assert!(!zones.is_empty(), "{text}");
        zones
    }

    /// Returns a line of the guest's /proc/meminfo, in KiB.
    ///
    /// # Panics
    /// /proc/meminfo has no such line.
    #[track_caller]
    pub fn meminfo(&mut self, guest: &str, name: &str) -> u64 {
        let text = self.run(guest, &format!("awk '/^{name}:/ {{ print $2 }}' /proc/meminfo"));
        text.parse().unwrap_or_else(|error| panic!("{name} of {guest} is `{text}`: {error}"))
    }

    /// Returns the device tree of the guest's kernel.
    ///
    /// # Panics
    /// The tree cannot be read.
    #[track_caller]
    pub fn device_tree(&mut self, guest: &str) -> Vec<u8> {
        let text = self.run(guest, "od -An -v -tx1 /sys/firmware/fdt | tr -d ' \\n'");
        let digits: Vec<u32> = text.chars().filter_map(|character| character.to_digit(16)).collect();
        assert_eq!(digits.len(), text.trim().len(), "{text}");
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit) as u8).collect()
    }

    /// Makes the guest fill `pages` pages of a file in memory. Returns the unique mark at the beginning of each page.
    ///
    /// # Panics
    /// The command fails.
    #[track_caller]
    pub fn write_pages(&mut self, guest: &str, pages: u32) -> Vec<u8> {
        // Typed in two parts, so that the mark as a whole is nowhere but in the file and in the shell that writes it.
        let page = format!("p=$(printf '%-4095s' pages-written-'by-'{guest}.)");
        self.run(guest, &format!("{page}; for i in $(seq {pages}); do echo \"$p\"; done > /tmp/pages; p="));
        format!("pages-written-by-{guest}.").into_bytes()
    }

    /// Returns the number of pages behind each controller that begin with `mark`.
    pub fn pages_behind(&self, mark: &[u8], controllers: usize) -> Vec<usize> {
        (0..controllers).map(|controller| self.find_in_controller(controller, mark, 4096).len()).collect()
    }
}
