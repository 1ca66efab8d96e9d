//! Links every guest with the same memory layout, position-independent.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    for argument in [
        // The last output kind wins: rustc requests a fixed address for this target.
        "-pie",
        "--no-dynamic-linker",
        // The guest itself relocates pointers, also in read-only data (boot.S).
        "-znotext",
        "-znorelro",
        "--orphan-handling=error",
        &format!("-T{directory}/link.ld"),
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=link.ld");
    println!("cargo::rerun-if-changed=build.rs");
}
