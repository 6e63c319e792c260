//! Compute over plain slices: products, attention, norms, routing, loss, the optimizer. Knows no tensors, files or
//! models.
//!
//! **Contract.** Each function states the order of its sums; the result is a function of the arguments alone. Threads,
//! instruction set and batch change no bit. `reference` holds plain loops that state the same in the simplest way, and
//! the tests compare with `==`.
//!
//! Shape letters: T tokens, D model width, H heads, KV key-value heads, E experts, K experts per token, V vocabulary.
//! Matrices are row-major.

pub mod attention;
pub mod compress;
pub mod convert;
pub mod distil;
pub mod elementwise;
pub mod embedding;
pub mod experts;
pub mod gemm;
pub mod group_norm;
pub mod head;
pub mod image_gradients;
pub mod images;
pub mod isa;
pub mod lanes;
pub mod math;
pub mod memory;
pub mod norm;
pub mod optim;
pub mod par;
pub mod peak;
mod places;
pub mod quant;
pub mod random;
pub mod reference;
pub mod rope;
pub mod router;
pub mod sample;
pub mod softcap;
pub mod softmax;
pub mod streams;
pub mod swiglu;
pub mod unit;
pub mod windows;

mod micro;
mod pack;
mod prefetch;
mod scratch;
mod span;
