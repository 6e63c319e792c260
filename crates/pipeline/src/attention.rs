//! Whether a device has the attention that a model needs.

use anyhow::Result;
use wels_device::Device;
use wels_model::config::ModelConfig;

use crate::refusal::refuse;

/// Fails for a model that attends to chosen keys on a device that has no operations for these.
///
/// # Errors
/// A refusal that says what computes it.
pub fn check(config: &ModelConfig, device: &dyn Device) -> Result<()> {
    if config.indexer.is_none() || device.sparse_attention().is_some() {
        return Ok(());
    }
    let (family, device) = (config.family.model_type(), device.name());
    let message = format!("{family} attends to keys that an indexer chooses, and {device} has no operations for these");
    Err(refuse(message, "--device cpu computes them on the processor"))
}
