//! What the verbs compute with.

use std::sync::Arc;

use wels_device::Device;

/// The processor.
pub fn device() -> Arc<dyn Device> {
    wels_cpu::device()
}
