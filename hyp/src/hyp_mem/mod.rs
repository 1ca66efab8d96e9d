//! EL2's own memory: translation tables, pages and heap; and the windows and copies for guests' memory.

#[cfg(target_os = "none")]
pub(crate) mod copy;
#[cfg(target_os = "none")]
pub(crate) mod heap;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
pub(crate) mod mmu;
#[cfg(target_os = "none")]
pub(crate) mod pages;
#[cfg(target_os = "none")]
pub(crate) mod smmu;
pub(crate) mod table_pool;
#[cfg(target_os = "none")]
pub(crate) mod usage;
#[cfg(target_os = "none")]
pub(crate) mod window;
