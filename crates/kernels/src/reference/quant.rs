//! Products with quantised weights, as plain loops over the file's blocks.

use crate::quant::blocks::{BlockType, Parts};

/// Terms of a row of x that share a scale.
const BLOCK: usize = 32;

/// Reference of [`crate::quant::quantise_rows`] for one row: whole numbers and scales.
pub fn quantise_row(x: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let (mut values, mut scales) = (vec![], vec![]);
    for block in x.chunks(BLOCK) {
        let most = block.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        let scale = most / 127.0;
        if block.iter().any(|x| !x.is_finite()) {
            scales.push(f32::NAN);
            values.extend([0; BLOCK]);
        } else if scale < 2f32.powi(-100) {
            scales.push(0.0);
            values.extend([0; BLOCK]);
        } else {
            scales.push(scale);
            let inverse = 127.0 / most;
            values.extend((0..BLOCK).map(|i| {
                let x = block.get(i).copied().unwrap_or(0.0);
                (x * inverse).round_ties_even() as i32
            }));
        }
    }
    (values, scales)
}

/// Reference of [`crate::quant::linear`] for w as the blocks of n rows.
pub fn linear(x: &[f32], block_type: BlockType, w: &[u8], y: &mut [f32], k: usize, n: usize) {
    let row_bytes = k / block_type.len() * block_type.bytes();
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
        let (values, scales) = quantise_row(x);
        for (y, w) in y.iter_mut().zip(w.chunks_exact(row_bytes)) {
            *y = match block_type.len() {
                32 => dot::<32>(&values, &scales, block_type, w),
                _ => dot::<256>(&values, &scales, block_type, w),
            };
        }
    }
}

fn dot<const LEN: usize>(values: &[i32], scales: &[f32], block_type: BlockType, w: &[u8]) -> f32 {
    let group = block_type.group();
    let mut y = 0.0;
    for (block, bytes) in w.chunks_exact(block_type.bytes()).enumerate() {
        let parts = Parts::<LEN>::of(block_type, bytes);
        for g in 0..LEN / group {
            let first = block * LEN + g * group;
            let (mut whole, mut sum) = (0, 0);
            for i in 0..group {
                whole += values[first + i] * block_type.whole(parts.quants[g * group + i]);
                sum += values[first + i];
            }
            let (scale, minimum) = parts.scale(block_type, g);
            let x_scale = scales[first / BLOCK];
            y = (whole as f32).mul_add(scale * x_scale, y);
            if block_type.has_minima() {
                y = (-minimum).mul_add(x_scale * sum as f32, y);
            }
        }
    }
    y
}
