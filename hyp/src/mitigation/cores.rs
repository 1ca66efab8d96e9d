//! Properties of cores, according to Arm. A core counts as affected unless a list or its registers say otherwise.

/// In-order cores that are affected neither by attacks on branch prediction nor by store bypass: Cortex-A35, A53, A55,
/// Brahma-B53.
pub(super) const NOT_AFFECTED: [u32; 4] = [0x41_d04, 0x41_d03, 0x41_d05, 0x42_100];

/// Further cores that branch history injection does not affect: Cortex-A510, A520.
pub(super) const HISTORY_NOT_AFFECTED: [u32; 2] = [0x41_d46, 0x41_d80];

/// Numbers of iterations, of two taken branches each, that overwrite the branch history.
const LOOPS: [(u8, &[u32]); 6] = [
    // Cortex-A57, A72.
    (8, &[0x41_d07, 0x41_d08]),
    // Ampere-1.
    (11, &[0xc0_ac3]),
    // Cortex-A76, A76AE, A77, Neoverse-N1.
    (24, &[0x41_d0b, 0x41_d0e, 0x41_d0d, 0x41_d0c]),
    // Cortex-A78, A78AE, A78C, X1, X1C, A710, X2, Neoverse-V1, N2.
    (32, &[0x41_d41, 0x41_d42, 0x41_d4b, 0x41_d44, 0x41_d4c, 0x41_d47, 0x41_d48, 0x41_d40, 0x41_d49]),
    // Cortex-A715, A720.
    (38, &[0x41_d4d, 0x41_d81]),
    // Cortex-X3, Neoverse-V2.
    (132, &[0x41_d4e, 0x41_d4f]),
];

/// Returns the number of iterations that `core` needs, if a loop protects it.
pub(super) fn loop_count(core: u32) -> Option<u8> {
    LOOPS.iter().find(|(_, cores)| cores.contains(&core)).map(|&(count, _)| count)
}
