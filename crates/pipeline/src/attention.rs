//! Whether a device has the attention that a model needs.

use anyhow::Result;
use wels_device::Device;
use wels_model::config::ModelConfig;

use crate::refusal::refuse;

/// Fails for a model that attends to chosen or compressed keys on a device that has no operations for these.
///
/// # Errors
/// A refusal that says what computes it.
pub fn check(config: &ModelConfig, device: &dyn Device) -> Result<()> {
    let lacks = match config.attention.is_compressed() {
        true => device.compressed().is_none().then_some("compressed keys"),
        false => {
            (config.indexer.is_some() && device.sparse_attention().is_none()).then_some("keys that an indexer chooses")
        }
    };
    let Some(lacks) = lacks else { return Ok(()) };
    let (family, device) = (config.family.model_type(), device.name());
    let message = format!("{family} attends to {lacks}, and {device} has no operations for these");
    Err(refuse(message, "--device cpu computes them on the processor"))
}
