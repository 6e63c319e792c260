//! Norms, GELU and softmax of models of images against their plain loops.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::images::{self, Activation};
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
fn group_norm_has_the_bits_of_its_reference() {
    for (rows, c, groups) in [(1, 4, 2), (7, 32, 32), (300, 64, 32), (600, 96, 32), (1025, 33, 3)] {
        let (x, w, b) = (numbers(1, rows * c), numbers(2, c), numbers(3, c));
        for activation in [Activation::None, Activation::Silu] {
            let mut expected = vec![0.0; rows * c];
            reference::group_norm(&x, groups, &w, &b, 1e-6, activation, &mut expected);
            everywhere(|place| {
                let mut y = vec![f32::NAN; rows * c];
                images::group_norm(&x, groups, &w, &b, 1e-6, activation, &mut y);
                assert_same(&format!("{groups} groups of [{rows}, {c}], {activation:?}, {place}"), &y, &expected);
            });
        }
    }
}

#[test]
fn gelu_and_softmax_have_the_bits_of_their_references() {
    for (rows, n) in [(1, 1), (2, 15), (3, 16), (5, 49), (40, 576)] {
        let x: Vec<f32> = numbers(4, rows * n).iter().map(|x| 8.0 * x).collect();
        let (mut gelu, mut softmax) = (vec![0.0; rows * n], x.clone());
        reference::gelu(&x, &mut gelu);
        reference::softmax(&mut softmax, 0.3, n);
        everywhere(|place| {
            let mut y = vec![f32::NAN; rows * n];
            images::gelu(&x, &mut y);
            assert_same(&format!("gelu of {rows} · {n}, {place}"), &y, &gelu);
            y.copy_from_slice(&x);
            images::softmax(&mut y, 0.3, n);
            assert_same(&format!("softmax of [{rows}, {n}], {place}"), &y, &softmax);
        });
        for row in softmax.chunks(n) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{n} probabilities");
        }
    }
}
