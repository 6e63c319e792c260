//! Products against plain loops: every bit, at the edges of tiles, on every instruction set, split and whole.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::gemm::{self, Precision, Start};
use wels_kernels::reference::gemm as reference;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Tokens, terms and columns: edges of tiles, panels and blocks, odd chains, empty ones.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 7, 40),
    (3, 16, 16),
    (13, 31, 33),
    (12, 32, 48),
    (29, 130, 17),
    (50, 64, 80),
    (25, 1100, 20),
    (300, 9, 70),
];

#[test]
fn linear_equals_the_reference() {
    for p in PRECISIONS {
        for (t, k, n) in SIZES {
            let (x, w) = (numbers(1, t * k), numbers(2, n * k));
            let mut expected = vec![0.0; t * n];
            reference::linear(p, &x, &w, &mut expected, k, n);
            everywhere(|isa| {
                let mut y = vec![f32::NAN; t * n];
                gemm::linear(p, &x, &w, &mut y, k, n);
                assert_same(&format!("linear {p:?} {t}×{k}×{n} {isa}"), &y, &expected);
            });
        }
    }
}

#[test]
fn gradients_equal_the_reference() {
    for p in PRECISIONS {
        for (t, k, n) in SIZES {
            let (x, w, dy) = (numbers(1, t * k), numbers(2, n * k), numbers(3, t * n));
            for start in [Start::Zero, Start::Continue] {
                let (mut dx_expected, mut dw_expected) = (numbers(4, t * k), numbers(5, n * k));
                reference::linear_dx(p, &dy, &w, &mut dx_expected, k, n, start);
                reference::linear_dw(p, &dy, &x, &mut dw_expected, k, n, start);
                everywhere(|isa| {
                    let (mut dx, mut dw) = (numbers(4, t * k), numbers(5, n * k));
                    gemm::linear_dx(p, &dy, &w, &mut dx, k, n, start);
                    gemm::linear_dw(p, &dy, &x, &mut dw, k, n, start);
                    assert_same(&format!("dx {p:?} {t}×{k}×{n} {isa}"), &dx, &dx_expected);
                    assert_same(&format!("dw {p:?} {t}×{k}×{n} {isa}"), &dw, &dw_expected);
                });
            }
        }
    }
}

#[test]
fn grouped_products_equal_the_reference() {
    let offsets = [0, 5, 5, 18, 19, 40];
    let (experts, slots, tokens, k, n) = (5, 40, 17, 33, 50);
    let rows: Vec<u32> = (0..slots as u32).map(|s| (s * 7) % tokens as u32).collect();
    let (w, dy) = (numbers(2, experts * n * k), numbers(3, slots * n));
    for p in PRECISIONS {
        for rows in [None, Some(&rows[..])] {
            let x = numbers(1, if rows.is_some() { tokens } else { slots } * k);
            let results = |plain: bool| {
                let mut y = vec![f32::NAN; slots * n];
                let (mut dx, mut dw) = (numbers(4, slots * k), numbers(5, experts * n * k));
                let mut fresh = vec![f32::NAN; experts * n * k];
                let start = Start::Continue;
                if plain {
                    reference::grouped_linear(p, &x, rows, &offsets, &w, &mut y, k, n);
                    reference::grouped_linear_dx(p, &dy, &offsets, &w, &mut dx, k, n, start);
                    reference::grouped_linear_dw(p, &dy, &x, rows, &offsets, &mut dw, k, n, start);
                    reference::grouped_linear_dw(p, &dy, &x, rows, &offsets, &mut fresh, k, n, Start::Zero);
                } else {
                    gemm::grouped_linear(p, &x, rows, &offsets, &w, &mut y, k, n);
                    gemm::grouped_linear_dx(p, &dy, &offsets, &w, &mut dx, k, n, start);
                    gemm::grouped_linear_dw(p, &dy, &x, rows, &offsets, &mut dw, k, n, start);
                    gemm::grouped_linear_dw(p, &dy, &x, rows, &offsets, &mut fresh, k, n, Start::Zero);
                }
                [y, dx, dw, fresh]
            };
            let expected = results(true);
            everywhere(|isa| {
                for (what, (got, expected)) in
                    ["y", "dx", "dw", "dw from zero"].iter().zip(results(false).iter().zip(&expected))
                {
                    assert_same(&format!("{what} {p:?} {isa}"), got, expected);
                }
            });
        }
    }
}

#[test]
fn a_weight_gradient_in_two_parts_is_the_whole() {
    let (t, k, n) = (64, 20, 24);
    let (x, dy) = (numbers(1, t * k), numbers(2, t * n));
    for p in PRECISIONS {
        let mut whole = vec![0.0; n * k];
        gemm::linear_dw(p, &dy, &x, &mut whole, k, n, Start::Zero);
        for cut in [2, 30, 62] {
            let mut parts = vec![0.0; n * k];
            gemm::linear_dw(p, &dy[..cut * n], &x[..cut * k], &mut parts, k, n, Start::Zero);
            gemm::linear_dw(p, &dy[cut * n..], &x[cut * k..], &mut parts, k, n, Start::Continue);
            assert_same(&format!("{p:?} cut at {cut}"), &parts, &whole);
        }
    }
}

#[test]
fn bf16_products_flush_subnormal_sums_everywhere_alike() {
    let (t, k, n) = (4, 40, 32);
    let tiny = |stream| -> Vec<f32> { numbers(stream, k * n.max(t)).iter().map(|x| x * 1.5e-19).collect() };
    let (x, w) = (tiny(1)[..t * k].to_vec(), tiny(2)[..n * k].to_vec());
    let mut expected = vec![0.0; t * n];
    reference::linear(Precision::Bf16, &x, &w, &mut expected, k, n);
    assert!(expected.iter().all(|y| !y.is_subnormal()) && expected.contains(&0.0));
    everywhere(|isa| {
        let mut y = vec![f32::NAN; t * n];
        gemm::linear(Precision::Bf16, &x, &w, &mut y, k, n);
        assert_same(&format!("tiny {isa}"), &y, &expected);
    });
}
