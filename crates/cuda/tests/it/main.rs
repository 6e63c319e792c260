//! The device on the emulator: each operation against the plain loops, in eight orders of blocks, warps and lanes.
#![cfg(feature = "emulator")]

mod attention;
mod driver;
mod experts;
mod head;
mod lab;
mod paged;
mod products;
mod rows;
mod weights;
