//! Products against plain loops: every bit, at the edges of tiles, on every instruction set, split and whole.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::gemm::{self, Precision, Start};
use wels_kernels::random;
use wels_kernels::reference::gemm as reference;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

/// Tokens, terms and columns: edges of tiles, panels and blocks, odd chains, rows that begin 4 KiB apart.
const SIZES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 7, 40),
    (3, 16, 16),
    (13, 31, 33),
    (12, 32, 48),
    (29, 130, 17),
    (50, 64, 80),
    (25, 1100, 20),
    (300, 9, 70),
    (14, 1024, 40),
    (530, 20, 1024),
    (1031, 12, 61),
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

/// What x86 computes where it flushes to zero, as its bf16 dot products do: a sum is rounded first, to 24 bits.
#[test]
fn bf16_sums_are_rounded_before_they_are_flushed() {
    let least = f32::MIN_POSITIVE;
    let of = |factor: f32| (factor * 2f32.powi(-75), 2f32.powi(-75));
    // A sum so far, factors, the sum: a quarter of the last bit below the least number rounds to it, three quarters to
    // what is flushed. Zeros keep their signs; a subnormal sum so far is a zero.
    for (before, (a, b), after) in [
        (least, of(-0.25), least),
        (least, of(-0.75), 0.0),
        (-least, of(0.75), -0.0),
        (-least, of(0.25), -least),
        (-0.0, (-0.0, 1.0), -0.0),
        (-0.0, (0.0, 1.0), 0.0),
        (-least / 2.0, (-least, 0.25), -0.0),
        (least / 2.0, (2f32.powi(-61), 2f32.powi(-60)), 2f32.powi(-121)),
    ] {
        let mut expected = vec![before];
        reference::linear_dw(Precision::Bf16, &[a], &[b], &mut expected, 1, 1, Start::Continue);
        assert_same("the reference", &expected, &[after]);
        everywhere(|isa| {
            let (mut rows, mut columns) = (vec![before], vec![before]);
            gemm::linear_dw(Precision::Bf16, &[a], &[b], &mut columns, 1, 1, Start::Continue);
            gemm::linear_dx(Precision::Bf16, &[a], &[b], &mut rows, 1, 1, Start::Continue);
            assert_same(&format!("{before:e} and {a:e} · {b:e}, {isa}"), &[columns, rows].concat(), &[after, after]);
        });
    }
}

/// Gaussian numbers, each row of `width` scaled by a power of two of its own, over 40 powers; an eighth are zeros.
fn spread_numbers(stream: u64, len: usize, width: usize) -> Vec<f32> {
    let mut data = vec![0.0; len];
    let key = random::Key { seed: 9, stream };
    random::fill_normal(&mut data, 1.0, key, 0);
    for (i, x) in data.iter_mut().enumerate() {
        let power = key.below_at((len + i / width) as u64, 41) as i32 - 20;
        *x *= if key.below_at((2 * len + i) as u64, 8) == 0 { 0.0 } else { 2f32.powi(power) };
    }
    data
}

#[test]
fn f16_products_of_any_magnitude_equal_the_reference() {
    let (t, k, n) = (7, 300, 37);
    // Magnitudes: ordinary; near the limits of f32, where products are infinite or vanish; subnormal.
    for factor in [1.0, 1e-4, 3e31, 1e-25, 1e-41] {
        let scaled = |stream, len| -> Vec<f32> { spread_numbers(stream, len, 16).iter().map(|x| x * factor).collect() };
        let (x, w, dy) = (scaled(1, t * k), scaled(2, n * k), scaled(3, t * n));
        let (mut y_expected, mut dx_expected) = (vec![0.0; t * n], numbers(4, t * k));
        reference::linear(Precision::F16, &x, &w, &mut y_expected, k, n);
        reference::linear_dx(Precision::F16, &dy, &w, &mut dx_expected, k, n, Start::Continue);
        everywhere(|isa| {
            let (mut y, mut dx) = (vec![f32::NAN; t * n], numbers(4, t * k));
            gemm::linear(Precision::F16, &x, &w, &mut y, k, n);
            gemm::linear_dx(Precision::F16, &dy, &w, &mut dx, k, n, Start::Continue);
            assert_same(&format!("y, times {factor:e}, {isa}"), &y, &y_expected);
            assert_same(&format!("dx, times {factor:e}, {isa}"), &dx, &dx_expected);
        });
    }
}

#[test]
fn f16_products_hide_nothing_that_is_not_finite() {
    let (t, k, n) = (3, 200, 40);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut x, mut w) = (numbers(1, t * k), numbers(2, n * k));
        (x[k + 150], w[5 * k + 3]) = (bad, bad);
        everywhere(|isa| {
            let mut y = vec![0.0; t * n];
            gemm::linear(Precision::F16, &x, &w, &mut y, k, n);
            for (at, y) in y.iter().enumerate() {
                let touched = at / n == 1 || at % n == 5;
                assert!(y.is_nan() == touched, "{bad} {isa}: row {}, column {} is {y}", at / n, at % n);
            }
        });
    }
}

#[test]
fn a_row_of_an_f16_product_is_the_same_alone() {
    let (t, k, n) = (23, 513, 130);
    let (x, w) = (spread_numbers(1, t * k, 100), spread_numbers(2, n * k, 100));
    let mut all = vec![0.0; t * n];
    gemm::linear(Precision::F16, &x, &w, &mut all, k, n);
    for i in 0..t {
        let mut alone = vec![0.0; n];
        gemm::linear(Precision::F16, &x[i * k..][..k], &w, &mut alone, k, n);
        assert_same(&format!("row {i}"), &alone, &all[i * n..][..n]);
    }
}

/// Root mean square error against f64, over the root mean square of the sums.
fn error(p: Precision, x: &[f32], w: &[f32], k: usize, n: usize) -> f64 {
    let mut y = vec![0.0; x.len() / k * n];
    gemm::linear(p, x, w, &mut y, k, n);
    let (mut wrong, mut whole) = (0.0, 0.0);
    for (at, y) in y.iter().enumerate() {
        let pairs = x[at / n * k..][..k].iter().zip(&w[at % n * k..][..k]);
        let exact: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        wrong += (f64::from(*y) - exact).powi(2);
        whole += exact * exact;
    }
    (wrong / whole).sqrt()
}

#[test]
fn f16_products_err_less_than_bf16_products() {
    let (t, k, n) = (8, 1024, 64);
    let normal = |stream, len| {
        let mut data = vec![0.0; len];
        random::fill_normal(&mut data, 1.0, random::Key { seed: 9, stream }, 0);
        data
    };
    let positive = |stream, len| -> Vec<f32> { normal(stream, len).iter().map(|x: &f32| x.abs()).collect() };
    let cases = [
        ("either sign", 8e-4, normal(1, t * k), normal(2, n * k)),
        ("positive", 8e-5, positive(1, t * k), positive(2, n * k)),
    ];
    for (what, bound, x, w) in cases {
        let (f16, bf16) = (error(Precision::F16, &x, &w, k, n), error(Precision::Bf16, &x, &w, k, n));
        println!("{what}: f16 {f16:.2e}, bf16 {bf16:.2e}");
        assert!(f16 < bound && f16 < bf16, "{what}: f16 {f16:e}, bf16 {bf16:e}");
    }
}
