//! `ballast`, the tool on the PC.
fn main() {}
