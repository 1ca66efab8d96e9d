//! The DMA window of a guest in the SMMUs that its devices are behind.

use super::smmus;
use crate::board::Stream;
use crate::observe::log;
use crate::physical::assignment::Assignment;
use crate::smmu::{Window, WindowId};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A guest's DMA window: its identity in each SMMU, by the SMMU's number. Dropping it frees the tables in the SMMUs: a guest
/// that is refused leaves nothing behind.
#[derive(Default)]
pub(super) struct Windows(Vec<(u8, WindowId)>);

impl Windows {
    /// Builds the DMA window in each SMMU that has a stream of the guest.
    ///
    /// # Errors
    ///
    /// The SMMU, and the reason.
    pub(super) fn new(assignment: &Assignment<'_>) -> Result<Self, String> {
        let mut windows = Self::default();
        let Some(window) = assignment.window else { return Ok(windows) };
        let window = Window { ipa: window.ipa, pa: window.pa, size: window.size };
        for stream in assignment.streams() {
            reach(stream).map_err(|why| format!("SMMU {}: {why}", stream.smmu))?;
            if windows.in_smmu(stream.smmu).is_none() {
                let id = make(stream.smmu, window).map_err(|why| format!("SMMU {}: {why}", stream.smmu))?;
                windows.0.push((stream.smmu, id));
            }
        }
        Ok(windows)
    }

    /// Returns the window in SMMU `smmu`.
    pub(super) fn in_smmu(&self, smmu: u8) -> Option<WindowId> {
        self.0.iter().find(|window| window.0 == smmu).map(|window| window.1)
    }
}

/// Checks that the SMMU can have the stream, before the guest starts.
fn reach(stream: Stream) -> Result<(), String> {
    smmus::lock(stream.smmu)?.reach(stream.id).map_err(|error| error.to_string())
}

fn make(smmu: u8, window: Window) -> Result<WindowId, String> {
    smmus::lock(smmu)?.make_window(window).map_err(|error| error.to_string())
}

impl Drop for Windows {
    fn drop(&mut self) {
        for &(smmu, id) in &self.0 {
            let dropped = smmus::lock(smmu).map(|mut driver| driver.drop_window(id));
            if let Ok(Err(error)) = dropped {
                log::error!("SMMU {}: a DMA window keeps its table: {}", smmu, error);
            }
        }
    }
}
