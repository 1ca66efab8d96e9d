//! Tests of headers and placements.

use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use proptest::prelude::*;

use super::*;

/// Makes an image of `length` bytes with a header.
fn image(text_offset: u64, image_size: u64, flags: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&flags.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

/// Makes a kernel with a PE header of one section that ends at `end`, cut to `length` bytes.
fn efi_image(end: u32, length: usize) -> Vec<u8> {
    let mut bytes = image(0, 1 << 20, 0xa, 0x1000);
    bytes[0..2].copy_from_slice(b"MZ");
    bytes[60] = 64;
    bytes[64..68].copy_from_slice(b"PE\0\0");
    bytes[70] = 1;
    bytes[84] = 16;
    bytes[120..124].copy_from_slice(&(end - 0x200).to_le_bytes());
    bytes[124..128].copy_from_slice(&0x200u32.to_le_bytes());
    bytes.truncate(length);
    bytes
}

/// Returns ranges of `sizes`, one after the other.
fn regions(sizes: &[u64]) -> impl Iterator<Item = IpaRange> + Clone {
    let bases = sizes.iter().scan(0x4000_0000, |next, size| Some(core::mem::replace(next, *next + size)));
    bases.zip(sizes).map(|(base, &size)| IpaRange::from_numbers(base, size).unwrap())
}

#[test]
fn the_header_is_read() {
    let page = |flags| Image::parse(&image(0, 4096, flags, 1024)).unwrap().page_size();
    assert_eq!(page(0x8), None);
    assert_eq!(
        [page(2), page(4), page(6)],
        [PageSize::Size4K, PageSize::Size16K, PageSize::Size64K].map(Some)
    );
    let parsed = Image::parse(&image(0x1000, 0x20_0000, 0xa, 0x10_0000)).unwrap();
    assert_eq!((parsed.size(), parsed.has_header), (0x20_0000, true));
    let old = Image::parse(&image(0, 0, 0, 0x1000)).unwrap();
    assert_eq!((old.text_offset, old.size()), (0x8_0000, 0x1000));
}

#[test]
fn a_kernel_that_is_cut_short_is_refused() {
    assert!(Image::parse(&efi_image(0x1000, 0x1000)).is_ok());
    for length in [130, 0x800, 0xfff] {
        assert_eq!(Image::parse(&efi_image(0x1000, length)), Err(ImageError::Truncated), "{length}");
    }
}

#[test]
fn other_files_are_refused() {
    let mut report = String::new();
    for (start, _) in FORMATS {
        report += &format!("{}\n", Image::parse(&[start, &[0; 80]].concat()).unwrap_err());
    }
    let odd: [&[u8]; 5] = [b"", b"hello, kernel\n", &[0; 100], &[0xff; 8], b"\x01\x02"];
    for bytes in odd {
        report += &format!("{}\n", Image::parse(bytes).unwrap_err());
    }
    for bytes in [
        image(0, 4096, 1, 1024),
        image(0x20_0000, 4096, 0, 1024),
        image(0, 1 << 40, 0, 1024),
        efi_image(0x1000, 0xfff),
    ] {
        report += &format!("{}\n", Image::parse(&bytes).unwrap_err());
    }
    insta::assert_snapshot!(report);
}

#[test]
fn images_lie_where_the_boot_protocol_has_them() {
    let image = Image::parse(&image(0x1000, 0x180_0000, 0xa, 0x80_0000)).unwrap();
    let plan = BootPlan::new(&image, Some(0x12_3456), regions(&[256 << 20])).unwrap();
    assert_eq!(plan.kernel, IpaRange::from_numbers(0x4000_1000, 0x180_0000).unwrap());
    assert_eq!(plan.tree, IpaRange::from_numbers(0x4fe0_0000, 0x20_0000).unwrap());
    assert_eq!(plan.ramdisk, IpaRange::from_numbers(0x4fcd_0000, 0x12_3456));
    assert_eq!(plan.entry().get(), 0x4000_1000);
    let raw = Image::parse(&[0xd5; 4096]).unwrap();
    let plan = BootPlan::new(&raw, None, regions(&[64 << 20])).unwrap();
    assert_eq!(plan.entry().get(), 0x4008_0000);
    assert!(plan.tree.base() > plan.kernel.base());
}

#[test]
fn too_little_room_is_counted() {
    let image = Image::parse(&image(0, 0x180_0000, 0xa, 0x80_0000)).unwrap();
    let error = BootPlan::new(&image, Some(1 << 20), regions(&[16 << 20, 20 << 20]));
    insta::assert_snapshot!(format!("{}", error.unwrap_err()));
    // The second region is large enough.
    let plan = BootPlan::new(&image, Some(1 << 20), regions(&[16 << 20, 64 << 20])).unwrap();
    assert_eq!(plan.entry().get(), 0x4100_0000);
}

#[test]
fn a_large_region_is_used_up_to_the_window_only() {
    let image = Image::parse(&image(0, 0x180_0000, 0xa, 0x80_0000)).unwrap();
    let plan = BootPlan::new(&image, Some(1 << 20), regions(&[100 << 30])).unwrap();
    assert_eq!(plan.tree.end(), 0x4000_0000 + (32 << 30));
}

proptest! {
    #[test]
    fn placement_never_overlaps(
        text_offset in 0u64..(2 << 20), size in 64u64..(96 << 20), ramdisk in prop::option::of(1u64..(64 << 20)),
        sizes in prop::collection::vec(1u64..128, 1..5),
    ) {
        let bytes = image(text_offset & !0xfff, size, 2, 64);
        let parsed = Image::parse_header(&bytes, &bytes);
        prop_assume!(parsed.is_ok());
        let sizes: Vec<u64> = sizes.iter().map(|size| size << 20).collect();
        if let Ok(plan) = BootPlan::new(&parsed.unwrap(), ramdisk, regions(&sizes)) {
            let parts: Vec<IpaRange> =
                [Some(plan.kernel), plan.ramdisk, Some(plan.tree)].into_iter().flatten().collect();
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(parts.iter().skip(index + 1).all(|other| !other.overlaps(part)));
                prop_assert!(regions(&sizes).any(|region| region.contains(part)));
            }
            prop_assert!(plan.tree.base() > plan.kernel.base());
        }
    }

    #[test]
    fn random_images_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..128), with_magic in any::<bool>()) {
        let mut bytes = bytes;
        if with_magic && bytes.len() >= 64 {
            bytes[56..60].copy_from_slice(b"ARM\x64");
        }
        if let Ok(image) = Image::parse(&bytes) {
            let _ = BootPlan::new(&image, Some(100), regions(&[64 << 20]));
        }
    }
}
