//! The device on the emulator: each operation against the plain loops, in eight orders of blocks, warps and lanes. And
//! what needs neither emulator nor card: kernels compiled for cards, and what is said where there is none.

#[cfg(feature = "emulator")]
mod attention;
mod cubins;
#[cfg(feature = "emulator")]
mod driver;
#[cfg(feature = "emulator")]
mod experts;
#[cfg(feature = "emulator")]
mod head;
#[cfg(feature = "emulator")]
mod lab;
mod open;
#[cfg(feature = "emulator")]
mod paged;
#[cfg(feature = "emulator")]
mod planted;
#[cfg(feature = "emulator")]
mod products;
#[cfg(feature = "emulator")]
mod quantised;
#[cfg(feature = "emulator")]
mod rows;
#[cfg(feature = "emulator")]
mod tensor_cores;
#[cfg(feature = "emulator")]
mod weights;
