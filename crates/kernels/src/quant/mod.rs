//! Weights for inference: the formats of files, and products with them.
//!
//! **Formula.** `y[T,N] = x[T,K] · w[N,K]ᵀ`. Row n of w is [`blocks`] of whole numbers q with a scale w_s and a minimum
//! m_s for each group s of 32 or 16 (both exact in f32): an element is w_s·(q − zero) − m_s. A row of x is quantised in
//! blocks b of 32: d_b = max|x| / 127, a = x · (127 / max|x|) rounded to nearest, ties to even ([`quantise_rows`]).
//!
//! **Order of sums.** Element (t, n) is one chain over the groups in ascending order, begun at +0:
//! 1. I = Σ a·(q − zero), a whole number, exact;
//! 2. y ← fma(I, w_s · d_b, y), the product of the scales rounded once;
//! 3. in formats with minima, y ← fma(−m_s, d_b · A, y), where A = Σ a is exact and the product rounded once.
//!
//! So it depends on row t and row n alone: not on the other rows, tiles, threads, instruction set, or on whether the
//! weights are packed or read from the file's blocks.
//!
//! In types with a codebook q − zero is an entry of it. A power of two that belongs to all scales of a type goes with
//! d_b.
//!
//! With weights in f32, f16 or bf16 the product is that of [`gemm`](crate::gemm) in f32 with the widened weights, in
//! every bit: one chain over k, and x as it is given. So it is with weights of all types where x is [`whole_rows`], as
//! for training beside weights that stay: their numbers are decoded to f32 a few panels at a time.
//!
//! **Layout.** Packed weights are panels of 16 rows, so that one vector holds 4 consecutive terms of each row: see
//! `pack`. They take the bytes of the file or up to 3% more (MXFP4 6%), but 2- and 3-bit formats, which take 4 bits,
//! and those with long codes (IQ1, IQ2, IQ3), which take 8.

pub mod activations;
mod backward;
pub mod blocks;
mod codebooks;
mod decode;
mod dots;
mod kernel;
mod low_rank;
mod matrix;
mod pack;
mod product;
mod repack;
mod wide;

pub use activations::{Activations, quantise_rows, whole_rows};
pub use backward::{grouped_linear_dx, linear_dx};
pub use blocks::BlockType;
pub(crate) use kernel::{peak, peak_ops};
pub use low_rank::{AdaptedRows, add_low_rank};
pub use matrix::{MemoryBudget, QuantMatrix};
pub use product::{grouped_linear, linear, linear_many};
