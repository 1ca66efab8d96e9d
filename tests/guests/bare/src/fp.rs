//! Access to FP/SIMD registers from code that is compiled without them.

/// The 32 vector registers, as pairs of doublewords.
pub type Vectors = [[u64; 2]; 32];

core::arch::global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".global fp_load",
    "fp_load:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "ldr q\\n, [x0, #(16 * \\n)]",
    ".endr",
    "ret",
    ".global fp_store",
    "fp_store:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "str q\\n, [x0, #(16 * \\n)]",
    ".endr",
    "ret",
);

unsafe extern "C" {
    fn fp_load(from: *const Vectors);
    fn fp_store(to: *mut Vectors);
}

/// Loads all vector registers.
pub fn load(vectors: &Vectors) {
    // SAFETY: reads 512 bytes; code that is compiled without vector registers does not miss them.
    unsafe { fp_load(vectors) }
}

/// Returns the vector registers.
#[must_use]
pub fn store() -> Vectors {
    let mut vectors = [[0; 2]; 32];
    // SAFETY: writes 512 bytes.
    unsafe { fp_store(&mut vectors) };
    vectors
}
