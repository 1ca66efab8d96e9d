//! Links the EL2 image with its own script; the library on a PC needs none.

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // What is logged is decided when it runs: the macros leave no level out.
    println!("cargo::rustc-env=DEFMT_LOG=debug");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{directory}/link.ld");
        println!("cargo::rustc-link-arg-bins=--no-rosegment");
        println!("cargo::rustc-link-arg-bins=--icf=all");
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
        // ERRATA.md. The compiler's part, 835769, is in `ballast-qemu image`.
        println!("cargo::rustc-link-arg-bins=--fix-cortex-a53-843419");
    }
}
