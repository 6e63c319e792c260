//! Kernels of networks of pictures against their plain loops, and their backward parts against derivatives.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::gemm::{self, Precision, Start};
use wels_kernels::group_norm::{self, Activation, GroupNorm};
use wels_kernels::reference::{gemm as slow_gemm, group_norm as slow_norm, unit as slow_unit, windows as slow_windows};
use wels_kernels::unit;
use wels_kernels::windows::{self, Step, Windows};

const NORMS: [(usize, usize, usize, usize); 6] =
    [(1, 1, 4, 2), (3, 7, 32, 32), (1, 300, 64, 32), (2, 600, 96, 32), (1, 1025, 33, 3), (5, 36, 64, 32)];

fn norms() -> impl Iterator<Item = (GroupNorm, usize, usize)> {
    NORMS.into_iter().flat_map(|(pictures, rows, c, groups)| {
        let of = |activation| GroupNorm { pictures, groups, eps: 1e-6, activation };
        [Activation::None, Activation::Silu].map(|activation| (of(activation), pictures * rows, c))
    })
}

#[test]
fn group_norm_has_the_bits_of_its_reference() {
    for (of, rows, c) in norms() {
        let (x, w, b) = (numbers(1, rows * c), numbers(2, c), numbers(3, c));
        let (mut expected, mut expected_stats) = (vec![0.0; rows * c], vec![0.0; 2 * of.pictures * c]);
        slow_norm::group_norm(of, &x, &w, &b, &mut expected, &mut expected_stats);
        everywhere(|place| {
            let (mut y, mut stats) = (vec![f32::NAN; rows * c], vec![f32::NAN; 2 * of.pictures * c]);
            group_norm::group_norm(of, &x, &w, &b, &mut y, &mut stats);
            let what = format!("{of:?} of [{rows}, {c}], {place}");
            assert_same(&what, &y, &expected);
            assert_same(&what, &stats, &expected_stats);
        });
    }
}

#[test]
fn its_backward_part_has_the_bits_of_its_reference_in_one_piece_and_in_two() {
    for (of, rows, c) in norms() {
        let (x, w, b, dy) = (numbers(1, rows * c), numbers(2, c), numbers(3, c), numbers(4, rows * c));
        let (mut y, mut stats) = (vec![0.0; rows * c], vec![0.0; 2 * of.pictures * c]);
        slow_norm::group_norm(of, &x, &w, &b, &mut y, &mut stats);
        let [mut dx, mut dw, mut db] = [vec![0.0; rows * c], vec![0.0; c], vec![0.0; c]];
        let (zero, go_on) = (Start::Zero, Start::Continue);
        slow_norm::group_norm_backward(of, &dy, &x, [&w, &b], &stats, &mut dx, (&mut dw, zero), (&mut db, zero));
        everywhere(|place| {
            let [mut dx2, mut dw2, mut db2] = [rows * c, c, c].map(|len| vec![f32::NAN; len]);
            // The first picture, then the others.
            let one = GroupNorm { pictures: 1, ..of };
            let others = GroupNorm { pictures: of.pictures - 1, ..of };
            let at = rows / of.pictures * c;
            let mut run = |of, range: std::ops::Range<usize>, stats: &[f32], start| {
                let (dy, x, dx) = (&dy[range.clone()], &x[range.clone()], &mut dx2[range]);
                group_norm::group_norm_backward(of, dy, x, [&w, &b], stats, dx, (&mut dw2, start), (&mut db2, start));
            };
            run(one, 0..at, &stats[..2 * c], zero);
            if of.pictures > 1 {
                run(others, at..rows * c, &stats[2 * c..], go_on);
            }
            let what = format!("backward of {of:?} of [{rows}, {c}], {place}");
            [(&dx2, &dx), (&dw2, &dw), (&db2, &db)].into_iter().for_each(|(a, b)| assert_same(&what, a, b));
        });
    }
}

/// The slope of a loss by its differences at `x[i] ± h`.
fn slope(x: &[f32], i: usize, loss: &dyn Fn(&[f32]) -> f64) -> f64 {
    let h = 1.0 / 512.0;
    let [up, down] = [h, -h].map(|step| {
        let mut x = x.to_vec();
        x[i] += step;
        loss(&x)
    });
    (up - down) / f64::from(2.0 * h)
}

fn assert_slopes(what: &str, x: &[f32], dx: &[f32], loss: &dyn Fn(&[f32]) -> f64) {
    for (i, dx) in dx.iter().enumerate() {
        let slope = slope(x, i, loss);
        assert!((slope - f64::from(*dx)).abs() < 2e-3 * slope.abs().max(1.0), "{what} {i}: {dx} instead of {slope}");
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn the_backward_part_of_group_norm_is_the_derivative() {
    let (rows, c) = (10, 6);
    let of = GroupNorm { pictures: 2, groups: 3, eps: 1e-2, activation: Activation::Silu };
    let (x, w, b, dy) = (numbers(1, rows * c), numbers(2, c), numbers(3, c), numbers(4, rows * c));
    let run = |x: &[f32], w: &[f32], b: &[f32]| {
        let (mut y, mut stats) = (vec![0.0; rows * c], vec![0.0; 4 * c]);
        slow_norm::group_norm(of, x, w, b, &mut y, &mut stats);
        (dot(&y, &dy), stats)
    };
    let [mut dx, mut dw, mut db] = [vec![0.0; rows * c], vec![0.0; c], vec![0.0; c]];
    let stats = run(&x, &w, &b).1;
    let zero = Start::Zero;
    slow_norm::group_norm_backward(of, &dy, &x, [&w, &b], &stats, &mut dx, (&mut dw, zero), (&mut db, zero));
    assert_slopes("x", &x, &dx, &|x| run(x, &w, &b).0);
    assert_slopes("w", &w, &dw, &|w| run(&x, w, &b).0);
    assert_slopes("b", &b, &db, &|b| run(&x, &w, b).0);
}

fn geometries() -> impl Iterator<Item = (Windows, usize)> {
    [(1, 1, 3), (2, 5, 4), (3, 8, 32), (1, 24, 33)]
        .into_iter()
        .flat_map(|(pictures, side, c)| [Step::One, Step::Two].map(|step| (Windows { pictures, side, step }, c)))
}

#[test]
fn windows_are_those_of_their_reference() {
    for (of, c) in geometries() {
        let (x, dy) = (numbers(1, of.inputs() * c), numbers(2, of.outputs() * c));
        let mut expected = vec![0.0; of.outputs() * 9 * c];
        slow_windows::gather(of, &x, 0, &mut expected, c);
        let mut expected_back = vec![0.0; of.inputs() * 9 * c];
        slow_windows::gather_backward(of, &dy, 0, &mut expected_back, c);
        everywhere(|place| {
            // In two strips.
            for first in [0, of.outputs() / 3] {
                let mut y = vec![f32::NAN; (of.outputs() - first) * 9 * c];
                windows::gather(of, &x, first, &mut y, c);
                assert_same(&format!("{of:?} from {first} on, {place}"), &y, &expected[first * 9 * c..]);
            }
            for first in [0, of.inputs() / 3] {
                let mut y = vec![f32::NAN; (of.inputs() - first) * 9 * c];
                windows::gather_backward(of, &dy, first, &mut y, c);
                assert_same(&format!("back, {of:?} from {first} on, {place}"), &y, &expected_back[first * 9 * c..]);
            }
        });
    }
}

/// Widths of which blocks of terms end inside of a pixel, and tasks inside of a picture.
#[test]
fn convolutions_have_the_bits_of_products_with_gathered_windows() {
    let wide = [(1, 7, 61, 33), (2, 9, 130, 16)]
        .into_iter()
        .flat_map(|(pictures, side, c, n)| [Step::One, Step::Two].map(|step| (Windows { pictures, side, step }, c, n)));
    let cases = geometries().map(|(of, c)| (of, c, 5)).chain(wide);
    for (of, c, n) in cases {
        let (x, w, dy) = (numbers(1, of.inputs() * c), numbers(2, n * 9 * c), numbers(3, of.outputs() * n));
        let (mut gathered, mut back) = (vec![0.0; of.outputs() * 9 * c], vec![0.0; of.inputs() * 9 * n]);
        slow_windows::gather(of, &x, 0, &mut gathered, c);
        slow_windows::gather_backward(of, &dy, 0, &mut back, n);
        let mut turned = vec![0.0; w.len()];
        slow_windows::turn(&w, &mut turned, c);
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let (mut expected, mut expected_dx) = (vec![0.0; of.outputs() * n], vec![0.0; of.inputs() * c]);
            slow_gemm::linear(precision, &gathered, &w, &mut expected, 9 * c, n);
            slow_gemm::linear(precision, &back, &turned, &mut expected_dx, 9 * n, c);
            everywhere(|place| {
                let (mut y, mut dx) = (vec![f32::NAN; expected.len()], vec![f32::NAN; expected_dx.len()]);
                gemm::conv(precision, of, &x, &w, &mut y, c, n);
                gemm::conv_dx(precision, of, &dy, &turned, &mut dx, c, n);
                let what = format!("{of:?} of {c} and {n} channels in {precision:?}, {place}");
                assert_same(&what, &y, &expected);
                assert_same(&what, &dx, &expected_dx);
            });
        }
    }
}

/// Σ dy·(windows(x)·wᵀ) is linear in x, so with dx by the turned weights it is Σ dx·x.
#[test]
fn turned_weights_give_the_gradient_of_a_convolution() {
    for (of, c) in geometries() {
        let n = 5;
        let (x, w, dy) = (numbers(1, of.inputs() * c), numbers(2, n * 9 * c), numbers(3, of.outputs() * n));
        let mut gathered = vec![0.0; of.outputs() * 9 * c];
        windows::gather(of, &x, 0, &mut gathered, c);
        let products = gathered.chunks(9 * c).flat_map(|window| w.chunks(9 * c).map(|w| dot(window, w) as f32));
        let loss = dot(&products.collect::<Vec<f32>>(), &dy);
        let mut turned = vec![0.0; w.len()];
        windows::turn(&w, &mut turned, c);
        let mut slow = vec![0.0; w.len()];
        slow_windows::turn(&w, &mut slow, c);
        assert_same("turned weights", &turned, &slow);
        let mut back = vec![0.0; of.inputs() * 9 * n];
        windows::gather_backward(of, &dy, 0, &mut back, n);
        let dx = back.chunks(9 * n).flat_map(|window| turned.chunks(9 * n).map(|w| dot(window, w) as f32));
        let other = dot(&dx.collect::<Vec<f32>>(), &x);
        assert!((loss - other).abs() < 1e-4 * loss.abs().max(1.0), "{of:?}: {loss} and {other}");
    }
}

#[test]
fn doubled_pixels_are_those_of_their_reference() {
    for (pictures, side, c) in [(1, 1, 1), (2, 3, 5), (3, 12, 32)] {
        let (small, large) = (pictures * side * side * c, 4 * pictures * side * side * c);
        let (x, dy) = (numbers(1, small), numbers(2, large));
        let (mut expected, mut expected_back) = (vec![0.0; large], vec![0.0; small]);
        slow_windows::double(side, &x, &mut expected, c);
        slow_windows::double_backward(side, &dy, &mut expected_back, c);
        let [there, back] = [dot(&expected, &dy), dot(&x, &expected_back)];
        assert!((there - back).abs() < 1e-5 * there.abs().max(1.0), "{there} and {back}");
        everywhere(|place| {
            let (mut y, mut dx) = (vec![f32::NAN; large], vec![f32::NAN; small]);
            windows::double(side, &x, &mut y, c);
            windows::double_backward(side, &dy, &mut dx, c);
            assert_same(&format!("doubled, {side}, {place}"), &y, &expected);
            assert_same(&format!("doubled back, {side}, {place}"), &dx, &expected_back);
        });
    }
}

#[test]
fn unit_rows_and_differences_have_the_bits_of_their_references() {
    for (rows, d) in [(1, 1), (5, 8), (33, 16), (70, 100)] {
        let mut x = numbers(1, rows * d);
        x[..d].fill(0.0);
        let (dy, held) = (numbers(2, rows * d), numbers(3, rows * d));
        let (mut y, mut lengths, mut difference) = (vec![0.0; rows * d], vec![0.0; rows], vec![0.0; rows * d]);
        slow_unit::unit_rows(&x, &mut y, &mut lengths, d);
        slow_unit::differences(&x, &dy, 0.7, &mut difference);
        everywhere(|place| {
            let what = format!("[{rows}, {d}], {place}");
            let [mut y2, mut lengths2] = [rows * d, rows].map(|len| vec![f32::NAN; len]);
            unit::unit_rows(&x, &mut y2, &mut lengths2, d);
            [(&y2, &y), (&lengths2, &lengths)].into_iter().for_each(|(a, b)| assert_same(&what, a, b));
            for start in [Start::Zero, Start::Continue] {
                let (mut dx, mut expected) = (held.clone(), held.clone());
                slow_unit::unit_rows_backward(&dy, &y, &lengths, &mut expected, start, d);
                unit::unit_rows_backward(&dy, &y, &lengths, &mut dx, start, d);
                assert_same(&what, &dx, &expected);
            }
            unit::differences(&x, &dy, 0.7, &mut y2);
            assert_same(&what, &y2, &difference);
        });
    }
}

#[test]
fn the_backward_part_of_unit_rows_is_the_derivative() {
    let (rows, d) = (3, 8);
    let (x, dy) = (numbers(1, rows * d), numbers(2, rows * d));
    let run = |x: &[f32]| {
        let (mut y, mut lengths) = (vec![0.0; rows * d], vec![0.0; rows]);
        slow_unit::unit_rows(x, &mut y, &mut lengths, d);
        (y, lengths)
    };
    let (y, lengths) = run(&x);
    let mut dx = vec![0.0; rows * d];
    slow_unit::unit_rows_backward(&dy, &y, &lengths, &mut dx, Start::Zero, d);
    assert_slopes("x", &x, &dx, &|x| dot(&run(x).0, &dy));
}
