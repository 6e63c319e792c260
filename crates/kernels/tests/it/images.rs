//! LayerNorm and GELU of models of images against their plain loops.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::images;
use wels_kernels::reference::images as reference;

#[test]
fn layer_norm_has_the_bits_of_its_reference() {
    for (rows, d) in [(1, 1), (3, 7), (5, 16), (9, 33), (70, 1024)] {
        let (x, w, b) = (numbers(1, rows * d), numbers(2, d), numbers(3, d));
        let mut expected = vec![0.0; rows * d];
        reference::layer_norm(&x, &w, &b, 1e-6, &mut expected);
        everywhere(|place| {
            let mut y = vec![f32::NAN; rows * d];
            images::layer_norm(&x, &w, &b, 1e-6, &mut y);
            assert_same(&format!("layer norm of [{rows}, {d}], {place}"), &y, &expected);
        });
    }
}

#[test]
fn gelu_has_the_bits_of_its_reference() {
    for len in [1, 30, 48, 245, 23040] {
        let x: Vec<f32> = numbers(4, len).iter().map(|x| 8.0 * x).collect();
        let mut expected = vec![0.0; len];
        reference::gelu(&x, &mut expected);
        everywhere(|place| {
            let mut y = vec![f32::NAN; len];
            images::gelu(&x, &mut y);
            assert_same(&format!("gelu of {len}, {place}"), &y, &expected);
        });
    }
}
