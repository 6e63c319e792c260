//! Matrix products of linear layers and of experts, forward and backward.
//!
//! **Order of sums.** Element (i, j) of a product is one chain of fused multiply-adds over k in ascending order, begun at
//! zero or at what the output holds ([`Start`]). It depends on row i of the left matrix and column j of the right one alone: not on
//! the other rows, the tiles, the threads or the instruction set. A weight gradient is a chain over the tokens, so a
//! step cut into micro-batches that continue one another has the bits of the whole.
//!
//! **Precision.** [`Precision::F32`] multiplies what it is given. [`Precision::Bf16`] rounds both factors to bf16 (nearest
//! even, subnormals to zero) and keeps the chain in f32, flushing subnormal sums to zero: the arithmetic of the
//! hardware's bf16 dot products, on every instruction set.

use crate::reference;

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 factors, f32 chain.
    #[default]
    F32,
    /// bf16 factors, f32 chain.
    Bf16,
}

/// What the chains of an output begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Zero; the output's contents are overwritten.
    Zero,
    /// The output's contents.
    Continue,
}

/// `y[T,N] = x[T,K] · w[N,K]ᵀ`.
pub fn linear(p: Precision, x: &[f32], w: &[f32], y: &mut [f32], k: usize, n: usize) {
    reference::gemm::linear(p, x, w, y, k, n);
}

/// `dx[T,K] = dy[T,N] · w[N,K]`.
pub fn linear_dx(p: Precision, dy: &[f32], w: &[f32], dx: &mut [f32], k: usize, n: usize, start: Start) {
    reference::gemm::linear_dx(p, dy, w, dx, k, n, start);
}

/// `dw[N,K] = dy[T,N]ᵀ · x[T,K]`, chains over tokens.
pub fn linear_dw(p: Precision, dy: &[f32], x: &[f32], dw: &mut [f32], k: usize, n: usize, start: Start) {
    reference::gemm::linear_dw(p, dy, x, dw, k, n, start);
}

/// [`linear`] for each expert: slots `offsets[e]..offsets[e+1]` are rows for expert e; `rows` names each slot's row of `x`.
pub fn grouped_linear(
    p: Precision,
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    w: &[f32],
    y: &mut [f32],
    k: usize,
    n: usize,
) {
    reference::gemm::grouped_linear(p, x, rows, offsets, w, y, k, n);
}

/// [`linear_dx`] for each expert.
pub fn grouped_linear_dx(
    p: Precision,
    dy: &[f32],
    offsets: &[u32],
    w: &[f32],
    dx: &mut [f32],
    k: usize,
    n: usize,
    start: Start,
) {
    reference::gemm::grouped_linear_dx(p, dy, offsets, w, dx, k, n, start);
}

/// [`linear_dw`] for each expert; an expert without slots gets zeros, or keeps what it holds.
pub fn grouped_linear_dw(
    p: Precision,
    dy: &[f32],
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    dw: &mut [f32],
    k: usize,
    n: usize,
    start: Start,
) {
    reference::gemm::grouped_linear_dw(p, dy, x, rows, offsets, dw, k, n, start);
}
