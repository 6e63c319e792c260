//! The kernels as plain loops: what each of them computes and in which order, stated in the simplest way. Slow, never
//! deleted; the tests compare the fast versions with these by `==`.

pub mod attention;
pub mod compress;
pub mod compressed;
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
pub mod index;
pub mod norm;
pub mod optim;
pub mod quant;
pub mod rope;
pub mod router;
pub mod sample;
pub mod softcap;
pub mod softmax;
pub mod streams;
pub mod swiglu;
pub mod unit;
pub mod windows;

use crate::lanes::{LANES, sum_tree};

pub(crate) use crate::math::scalar as math;

/// Σ a·b: lane i of 16 partial sums takes elements i, i+16, …, then the fixed tree.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut partial = [0.0f32; LANES];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        partial[i % LANES] = a.mul_add(*b, partial[i % LANES]);
    }
    sum_tree(partial)
}
