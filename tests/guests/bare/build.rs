//! Links every guest with the one memory layout, position-independent.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    for argument in [
        // The last of several output kinds wins: rustc asks for a fixed address for this target.
        "-pie",
        "--no-dynamic-linker",
        // Pointers in read-only data are relocated too, by the guest itself (boot.S).
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
