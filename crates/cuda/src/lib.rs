//! NVIDIA GPUs as a device.
//!
//! Kernels are CUDA C inside the program (`kernels/`), compiled for the card at first use. [`launch`] is the only
//! module that talks to the driver, and the only one with `unsafe`.

#![deny(unsafe_code)]

pub mod kernels;
#[allow(unsafe_code)]
pub mod launch;

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The program was built without the emulator, or where it could not be built.
    #[error("the emulator of CUDA kernels is not in this program: it takes x86-64 Linux and a C++20 compiler at build time")]
    Emulator,
}
