//! Embedding, as plain loops.

use crate::gemm::Start;

/// Reference of [`crate::embedding::gather`].
pub fn gather(table: &[f32], ids: &[u32], y: &mut [f32], d: usize) {
    for (t, &id) in ids.iter().enumerate() {
        for i in 0..d {
            y[t * d + i] = table[id as usize * d + i];
        }
    }
}

/// Reference of [`crate::embedding::gather_backward`].
pub fn gather_backward(dy: &[f32], ids: &[u32], dtable: &mut [f32], start: Start, d: usize) {
    if start == Start::Zero {
        dtable.fill(0.0);
    }
    for (t, &id) in ids.iter().enumerate() {
        for i in 0..d {
            dtable[id as usize * d + i] += dy[t * d + i];
        }
    }
}
