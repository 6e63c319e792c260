//! Softmax over whole rows and its backward part against their plain loops.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::reference::softmax as reference;
use wels_kernels::softmax;

const SHAPES: [(usize, usize); 5] = [(1, 1), (2, 15), (3, 16), (5, 49), (40, 576)];

#[test]
fn softmax_has_the_bits_of_its_reference() {
    for (rows, n) in SHAPES {
        let x: Vec<f32> = numbers(4, rows * n).iter().map(|x| 8.0 * x).collect();
        let mut expected = x.clone();
        reference::softmax(&mut expected, 0.3, n);
        everywhere(|place| {
            let mut y = x.clone();
            softmax::softmax(&mut y, 0.3, n);
            assert_same(&format!("softmax of [{rows}, {n}], {place}"), &y, &expected);
        });
        for row in expected.chunks(n) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{n} probabilities");
        }
    }
}

#[test]
fn its_backward_part_has_the_bits_of_its_reference() {
    for (rows, n) in SHAPES {
        let mut p = numbers(4, rows * n);
        reference::softmax(&mut p, 3.0, n);
        let dy = numbers(5, rows * n);
        let mut expected = dy.clone();
        reference::softmax_backward(&p, 3.0, &mut expected, n);
        everywhere(|place| {
            let mut dx = dy.clone();
            softmax::softmax_backward(&p, 3.0, &mut dx, n);
            assert_same(&format!("backward of softmax of [{rows}, {n}], {place}"), &dx, &expected);
        });
    }
}

/// By differences of the loss Σ dy·softmax(2·x).
#[test]
fn its_backward_part_is_the_derivative() {
    let (n, h) = (9, 1e-3);
    let (x, dy) = (numbers(6, n), numbers(7, n));
    let loss = |x: &[f32]| {
        let mut y = x.to_vec();
        reference::softmax(&mut y, 2.0, n);
        y.iter().zip(&dy).map(|(y, dy)| f64::from(y * dy)).sum::<f64>()
    };
    let mut p = x.clone();
    reference::softmax(&mut p, 2.0, n);
    let mut dx = dy.clone();
    reference::softmax_backward(&p, 2.0, &mut dx, n);
    for i in 0..n {
        let [up, down] = [h, -h].map(|step| {
            let mut x = x.clone();
            x[i] += step;
            loss(&x)
        });
        let slope = (up - down) / f64::from(2.0 * h);
        assert!((slope - f64::from(dx[i])).abs() < 1e-3, "element {i}: {} instead of {slope}", dx[i]);
    }
}
