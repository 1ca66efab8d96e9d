//! Ballast's image in the memory of a running machine.

use object::{Object, ObjectSection, ObjectSymbol};

use crate::{System, elf};

/// Link address of the image (hyp/link.ld).
const IMAGE_BASE: u64 = 0x8000_0000_0000;
const PAGE: u64 = 4096;

/// The symbols of the image, and its place behind controller 0.
#[derive(Debug)]
pub struct LoadedImage {
    elf: Vec<u8>,
    base: u64,
}

impl LoadedImage {
    /// Finds the image by the first page of its code.
    ///
    /// # Panics
    /// The image is not there, or there more than once.
    #[must_use]
    #[track_caller]
    pub fn find(system: &System) -> Self {
        let elf = std::fs::read(elf()).unwrap_or_else(|error| panic!("{error}"));
        let file = object::File::parse(&*elf).unwrap_or_else(|error| panic!("{error}"));
        let text =
            file.section_by_name(".text").and_then(|text| text.data_range(IMAGE_BASE + PAGE, PAGE).ok());
        let page = text.flatten().unwrap_or_else(|| panic!("the image has no second page"));
        let places = system.find_in_controller(0, page, PAGE as usize);
        let [place] = places[..] else { panic!("the image is at {places:x?}") };
        Self { base: place - PAGE, elf }
    }

    /// Returns the address, the size, and the offset behind controller 0 of the first symbol whose name contains `part`.
    ///
    /// # Panics
    /// There is no such symbol.
    #[track_caller]
    pub fn symbol(&self, part: &str) -> (u64, u64, u64) {
        let file = object::File::parse(&*self.elf).unwrap_or_else(|error| panic!("{error}"));
        let is_it = |symbol: &object::Symbol<'_, '_>| symbol.name().is_ok_and(|name| name.contains(part));
        let symbol = file.symbols().find(is_it).unwrap_or_else(|| panic!("no symbol `{part}`"));
        (symbol.address(), symbol.size(), self.base + symbol.address() - IMAGE_BASE)
    }

    /// Returns the bytes of the symbol whose name contains `part`.
    #[track_caller]
    pub fn read(&self, system: &System, part: &str) -> Vec<u8> {
        let (_, size, place) = self.symbol(part);
        let mut bytes = vec![0; size as usize];
        system.read_controller(0, place, &mut bytes);
        bytes
    }
}
