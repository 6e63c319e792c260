//! NVIDIA GPUs as a device.
//!
//! Kernels are CUDA C inside the program (`kernels/`), compiled for the card at first use. [`launch`] is the only
//! module that talks to the driver, and the only one with `unsafe`. Everything else lays out arguments: shapes are
//! asserted, a kernel is launched, and nothing waits for the card but what the host reads.
//!
//! **Bits.** The kernels compute in f32 in the orders of `wels_kernels::reference`, with its `exp` and `log` and without
//! contraction, so their results have the processor's bits. A faster kernel may have an order of its own, as long as an
//! element depends on its own operands alone, and weight gradients are chains that micro-batches continue.

#![deny(unsafe_code)]

mod attention;
mod experts;
mod head;
pub mod kernels;
#[allow(unsafe_code)]
pub mod launch;
mod memory;
mod paged;
mod products;
mod rows;
mod weights;

use std::sync::{Arc, Mutex};

use wels_device::Device;

use launch::{Driver, Launch};

/// A card, or what stands for one.
pub struct Cuda {
    driver: Arc<dyn Driver>,
    last_plan: Mutex<Option<Arc<paged::Plan>>>,
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The program was built without the emulator, or where it could not be built.
    #[error("the emulator of CUDA kernels is not in this program: it takes x86-64 Linux and a C++20 compiler at build time")]
    Emulator,
}

impl Cuda {
    /// On a driver of one's own.
    pub fn on(driver: Arc<dyn Driver>) -> Arc<Cuda> {
        Arc::new(Cuda { driver, last_plan: Mutex::default() })
    }

    fn launch(&self, kernel: &str) -> Launch<'_> {
        Launch::new(&self.driver, kernel)
    }
}

impl Device for Cuda {
    fn name(&self) -> &str {
        "cuda"
    }
}
