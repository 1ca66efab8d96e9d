//! Tests with trees of `dtc`, broken trees and random ones.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::compile;

const SAMPLE: &str = r#"/dts-v1/;
/memreserve/ 0x1000 0x2000;

/ {
	#address-cells = <0x2>;
	#size-cells = <0x2>;
	compatible = "one", "two";

	aliases {
		serial0 = "/bus@10000000/serial@1000";
	};

	bus@10000000 {
		#address-cells = <0x1>;
		#size-cells = <0x1>;
		compatible = "simple-bus";
		ranges = <0x0 0x1 0x10000000 0x10000 0x20000 0x0 0x20000 0x1000>;

		serial@1000 {
			reg = <0x1000 0x100 0x20800 0x800>;
			phandle = <0x7>;
			flag;
			odd = [01 02 03];
			text = "a \"quoted\" \\ text\n";
		};

		designated-movable-block-with-a-name-of-many-characters@40000000 {
			status = "disabled";
		};

		far@90000 {
			reg = <0x90000 0x100>;
		};
	};

	island {
		#address-cells = <0x1>;
		#size-cells = <0x0>;

		child@5 {
			reg = <0x5>;
		};
	};
};
"#;

#[test]
fn nodes_are_found() {
    let blob = compile(SAMPLE);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let serial = tree.find("serial0").unwrap();
    assert_eq!(serial.path().to_string(), "/bus@10000000/serial@1000");
    assert_eq!(Some(serial), tree.find("/bus/serial"));
    assert_eq!(serial.phandle(), Some(7));
    assert!(serial.parent().unwrap().is_compatible("simple-bus"));
    assert_eq!(serial.ancestors().map(|node| node.name()).collect::<Vec<_>>(), ["bus@10000000", ""]);
    assert_eq!(serial.unit_address(), Some("1000"));
    assert!(tree.root().is_compatible("two") && !tree.root().is_compatible("tw"));
    assert!(tree.find("/").unwrap().is_root());
    for path in ["", "serial1", "/bus@1", "/bus/serial/x", "serial0/x"] {
        assert!(tree.find(path).is_none_or(|node| node.is_root()), "{path}");
    }
    let long = tree.find("/bus/designated-movable-block-with-a-name-of-many-characters").unwrap();
    assert!(!long.is_enabled() && serial.is_enabled());
    let entries: Vec<_> = tree.reservations().collect();
    assert_eq!(entries, [Reservation { base: 0x1000, size: 0x2000 }]);
    assert_eq!(tree.nodes().count(), 8);
    assert_eq!(tree.root().descendants().count(), 7);
    assert_eq!(tree.find("/bus").unwrap().children().count(), 3);
}

/// Covers the `unsafe` block and fdt-rs behind it under Miri, which cannot run `dtc`.
#[test]
fn trees_of_the_corpus_are_read() {
    let blobs: [&[u8]; 2] = [
        include_bytes!("../../corpus/configuration/rich.dtb"),
        include_bytes!("../../corpus/host/host-other.dtb"),
    ];
    for bytes in blobs {
        let blob = AlignedBlob::new(bytes);
        assert!(read_everything(&Tree::new(blob.as_slice()).unwrap()) > 1000);
    }
}

#[test]
fn properties_are_read_as_what_they_are() {
    let blob = compile(SAMPLE);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let serial = tree.find("serial0").unwrap();
    let property = |name| serial.property(name).unwrap();
    assert_eq!(property("phandle").u32(), Some(7));
    assert_eq!(property("phandle").u64(), None);
    assert_eq!(property("reg").cells().unwrap().collect::<Vec<_>>(), [0x1000, 0x100, 0x20800, 0x800]);
    assert!(property("odd").cells().is_none());
    assert_eq!(property("odd").str(), None);
    assert_eq!(property("text").str(), Some("a \"quoted\" \\ text\n"));
    assert!(serial.has("flag") && !serial.has("fla"));
    let compatible = tree.root().property("compatible").unwrap();
    assert_eq!(compatible.str(), None);
    assert_eq!(compatible.strings().collect::<Vec<_>>(), ["one", "two"]);
    assert!(compatible.is_strings() && !property("odd").is_strings() && !property("flag").is_strings());
}

#[test]
fn addresses_go_up_through_ranges() {
    let blob = compile(SAMPLE);
    let tree = Tree::new(blob.as_slice()).unwrap();
    let serial = tree.find("serial0").unwrap();
    let regs = serial.cpu_reg::<4>().unwrap();
    let expected = [Reg { base: 0x1_1000_1000, size: 0x100 }, Reg { base: 0x2_0800, size: 0x800 }];
    assert_eq!(regs[..], expected);
    assert_eq!(
        tree.find("/bus/far").unwrap().translate(Reg { base: 0x90000, size: 1 }),
        Ok(Translation::Unreachable)
    );
    let island = tree.find("/island/child").unwrap();
    assert_eq!(island.reg().unwrap().next(), Some(Reg { base: 5, size: 0 }));
    assert_eq!(island.translate(Reg { base: 5, size: 0 }), Ok(Translation::Unreachable));
    let messages: Vec<String> = ["/bus/far", "/island/child", "/bus", "/aliases"]
        .iter()
        .map(|path| tree.find(path).unwrap().cpu_reg::<4>().unwrap_err().to_string())
        .collect();
    insta::assert_snapshot!(messages.join("\n"));
    assert!(serial.cpu_reg::<1>().unwrap_err().to_string().contains("at most 1"));
}

#[test]
fn a_tree_is_printed_as_its_source() {
    let blob = compile(SAMPLE);
    let tree = Tree::new(blob.as_slice()).unwrap();
    assert_eq!(TreeSource(tree).to_string(), SAMPLE);
}

/// Makes a structure block of `words`.
fn structure(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Makes a blob of `structure`, `strings` and `reservations`.
fn assemble(structure: &[u8], strings: &[u8], reservations: &[u8]) -> Vec<u8> {
    let off_structure = 40 + reservations.len() as u32;
    let off_strings = off_structure + structure.len() as u32;
    let total = off_strings + strings.len() as u32;
    let header = [
        0xd00d_feed,
        total,
        off_structure,
        off_strings,
        40,
        17,
        16,
        0,
        strings.len() as u32,
        structure.len() as u32,
    ];
    let mut blob: Vec<u8> = header.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    blob.extend(reservations);
    blob.extend(structure);
    blob.extend(strings);
    blob
}

fn error_of(blob: &[u8]) -> TreeError {
    Tree::new(AlignedBlob::new(blob).as_slice()).unwrap_err()
}

#[test]
fn broken_structures_are_refused() {
    let none = [0; 16];
    let name = u32::from_be_bytes(*b"abc\0");
    let cases: [(&str, &[u32]); 12] = [
        ("nothing", &[]),
        ("no root", &[9]),
        ("no end", &[1, 0, 2]),
        ("root not ended", &[1, 0, 9]),
        ("two roots", &[1, 0, 2, 1, 0, 2, 9]),
        ("end without begin", &[1, 0, 2, 2, 9]),
        ("property outside", &[3, 0, 0, 9]),
        ("property after a child", &[1, 0, 1, name, 2, 3, 0, 0, 2, 9]),
        ("unknown token", &[1, 0, 7, 2, 9]),
        ("property too long", &[1, 0, 3, 100, 0, 2, 9]),
        ("name of a property outside", &[1, 0, 3, 0, 100, 2, 9]),
        ("named root", &[1, name, 2, 9]),
    ];
    let mut report = String::new();
    for (case, words) in cases {
        report += &format!("{case}: {}\n", error_of(&assemble(&structure(words), b"a\0", &none)));
    }
    let unterminated = structure(&[1, 0, 1, u32::from_be_bytes(*b"abcd")]);
    report += &format!("unterminated name: {}\n", error_of(&assemble(&unterminated, b"a\0", &none)));
    let deep: Vec<u32> = [1, 0].into_iter().chain([1, name].into_iter().cycle().take(128)).collect();
    report += &format!("too deep: {}\n", error_of(&assemble(&structure(&deep), b"a\0", &none)));
    let fine = structure(&[1, 0, 2, 9]);
    report += &format!("reservations: {}\n", error_of(&assemble(&fine, b"a\0", &[1; 16])));
    let overflow = [0xff; 16].into_iter().chain([0; 16]).collect::<Vec<_>>();
    report += &format!("reservation overflows: {}\n", error_of(&assemble(&fine, b"a\0", &overflow)));
    let property = structure(&[1, 0, 3, 0, 0, 2, 9]);
    report += &format!("strings unterminated: {}\n", error_of(&assemble(&property, b"a", &none)));
    report += &format!("name of a property empty: {}\n", error_of(&assemble(&property, b"\0", &none)));
    insta::assert_snapshot!(report);
}

#[test]
fn broken_headers_are_refused() {
    let good = assemble(&structure(&[1, 0, 2, 9]), b"a\0", &[0; 16]);
    assert!(Tree::new(AlignedBlob::new(&good).as_slice()).is_ok());
    let mut report = String::new();
    for (field, value) in [
        (0, 1),
        (1, 10),
        (1, 5000),
        (2, 58),
        (2, 4000),
        (3, 4000),
        (4, 44),
        (5, 16),
        (6, 18),
        (8, 9999),
        (9, 9999),
    ] {
        let mut blob = good.clone();
        blob[field * 4..][..4].copy_from_slice(&u32::to_be_bytes(value));
        report += &format!("{}\n", error_of(&blob));
    }
    let mut overlapping = good.clone();
    overlapping[12..16].copy_from_slice(&56u32.to_be_bytes());
    report += &format!("{}\n{}\n", error_of(&overlapping), error_of(&good[..30]));
    insta::assert_snapshot!(report);
    let mut shifted = AlignedBlob::new(&[&[0; 4], &good[..]].concat()).as_slice().to_vec();
    shifted.truncate(good.len() + 4);
    let aligned = AlignedBlob::new(&shifted);
    assert_eq!(Tree::new(&aligned.as_slice()[4..]).unwrap_err(), TreeError::Unaligned);
}

/// Reads everything in a tree, to check that reading terminates without a panic.
fn read_everything(tree: &Tree<'_>) -> usize {
    let mut seen = tree.reservations().count();
    for node in tree.nodes() {
        seen += node.name().len() + node.path().to_string().len() + usize::from(node.parent().is_some());
        seen += node.children().count()
            + usize::from(node.is_enabled())
            + node.phandle().unwrap_or(0) as usize % 2;
        seen += usize::from(node.reg().is_ok_and(|reg| reg.count() > 0))
            + usize::from(node.cpu_reg::<4>().is_ok());
        for property in node.properties() {
            seen += property.name().len() + property.strings().count();
            seen += property.number().is_some() as usize + property.str().map_or(0, str::len);
        }
    }
    seen + TreeSource(*tree).to_string().len()
}

/// Generates nearly valid structure blocks: tokens and names in an order that is often allowed.
fn words() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        4 => Just(structure(&[1, u32::from_be_bytes(*b"ab\0\0")])),
        4 => Just(structure(&[2])),
        2 => (0u32..9, 0u32..5).prop_map(|(length, name)| {
            let mut bytes = structure(&[3, length, name]);
            bytes.extend(std::iter::repeat_n(b'x', length.next_multiple_of(4) as usize));
            bytes
        }),
        1 => Just(structure(&[4])),
        1 => any::<u32>().prop_map(|word| structure(&[word])),
    ];
    prop::collection::vec(token, 0..24)
        .prop_map(|tokens| [structure(&[1, 0]), tokens.concat(), structure(&[2, 9])].concat())
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = Tree::new(AlignedBlob::new(&bytes).as_slice());
    }

    #[test]
    fn nearly_right_trees_do_no_harm(structure in words(), tail in any::<bool>()) {
        let strings: &[u8] = if tail { b"reg\0#size-cells\0" } else { b"reg\0" };
        let blob = AlignedBlob::new(&assemble(&structure, strings, &[0; 16]));
        if let Ok(tree) = Tree::new(blob.as_slice()) {
            read_everything(&tree);
        }
    }

    #[test]
    fn changed_trees_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = sample().to_vec();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let blob = AlignedBlob::new(&bytes);
        if let Ok(tree) = Tree::new(blob.as_slice()) {
            read_everything(&tree);
        }
    }

    #[test]
    fn cut_trees_are_refused(length in any::<prop::sample::Index>()) {
        let bytes = sample();
        let cut = &bytes[..length.index(bytes.len())];
        prop_assert!(Tree::new(AlignedBlob::new(cut).as_slice()).is_err());
    }
}

/// Returns the sample, compiled once.
fn sample() -> &'static [u8] {
    static SAMPLE_BLOB: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE_BLOB.get_or_init(|| compile(SAMPLE).as_slice().to_vec())
}
