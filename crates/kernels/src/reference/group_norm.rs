//! GroupNorm of pictures and its backward part, as plain loops.

use super::math;
use crate::gemm::Start;
use crate::group_norm::{Activation, BLOCK, GroupNorm};

/// The sum over a picture's rows of a column, as `add` adds to it.
fn column_sum(rows: usize, add: &dyn Fn(f32, usize) -> f32) -> f32 {
    let block = |first: usize| (first..rows.min(first + BLOCK)).fold(0.0f32, add);
    (0..rows).step_by(BLOCK).fold(0.0f32, |sum, first| sum + block(first))
}

/// Reference of [`crate::group_norm::group_norm`].
pub fn group_norm(of: GroupNorm, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], stats: &mut [f32]) {
    let c = w.len();
    let (len, width) = (x.len() / of.pictures, c / of.groups);
    let (rows, elements) = (len / c, (len / of.groups) as f32);
    for picture in 0..of.pictures {
        let x = &x[picture * len..][..len];
        for group in 0..of.groups {
            let columns = group * width..(group + 1) * width;
            let group_sum = |add: &dyn Fn(f32, f32) -> f32| {
                let of_column = |column| column_sum(rows, &|sum, row| add(sum, x[row * c + column]));
                columns.clone().fold(0.0f32, |sum, column| sum + of_column(column))
            };
            let mean = group_sum(&|sum, x| sum + x) / elements;
            let variance = group_sum(&|sum, x| (x - mean).mul_add(x - mean, sum)) / elements;
            let rstd = 1.0 / (variance + of.eps).sqrt();
            for column in columns {
                stats[2 * picture * c + column] = mean;
                stats[(2 * picture + 1) * c + column] = rstd;
                for row in 0..rows {
                    let scaled = ((x[row * c + column] - mean) * rstd).mul_add(w[column], b[column]);
                    let out = if of.activation == Activation::Silu { math::silu(scaled) } else { scaled };
                    y[picture * len + row * c + column] = out;
                }
            }
        }
    }
}

/// Reference of [`crate::group_norm::group_norm_backward`].
pub fn group_norm_backward(
    of: GroupNorm,
    dy: &[f32],
    x: &[f32],
    [w, b]: [&[f32]; 2],
    stats: &[f32],
    dx: &mut [f32],
    (dw, dw_start): (&mut [f32], Start),
    (db, db_start): (&mut [f32], Start),
) {
    let c = w.len();
    let (len, width) = (x.len() / of.pictures, c / of.groups);
    let (rows, elements) = (len / c, (len / of.groups) as f32);
    for (gradient, start) in [(&mut *dw, dw_start), (&mut *db, db_start)] {
        if start == Start::Zero {
            gradient.fill(0.0);
        }
    }
    for picture in 0..of.pictures {
        let at = |row: usize, column: usize| picture * len + row * c + column;
        let (mean, rstd) = stats[2 * picture * c..][..2 * c].split_at(c);
        let normal = |row, column: usize| (x[at(row, column)] - mean[column]) * rstd[column];
        let du = |row, column: usize| {
            let u = normal(row, column).mul_add(w[column], b[column]);
            let s = math::sigmoid(u);
            let slope = if of.activation == Activation::Silu { Some(s * u.mul_add(1.0 - s, 1.0)) } else { None };
            slope.map_or(dy[at(row, column)], |slope| dy[at(row, column)] * slope)
        };
        let sums: Vec<f32> = (0..c).map(|i| column_sum(rows, &|sum, row| sum + du(row, i))).collect();
        let normal_sums: Vec<f32> =
            (0..c).map(|i| column_sum(rows, &|sum, row| du(row, i).mul_add(normal(row, i), sum))).collect();
        dw.iter_mut().zip(&normal_sums).for_each(|(dw, sum)| *dw += sum);
        db.iter_mut().zip(&sums).for_each(|(db, sum)| *db += sum);
        for column in 0..c {
            let group = column / width * width..(column / width + 1) * width;
            let mean_of = |sums: &[f32]| group.clone().fold(0.0f32, |sum, i| sum + sums[i] * w[i]) / elements;
            let (mean_d, mean_normal) = (mean_of(&sums), mean_of(&normal_sums));
            for row in 0..rows {
                let d = du(row, column).mul_add(w[column], 0.0 - mean_d);
                let minus_normal = (mean[column] - x[at(row, column)]) * rstd[column];
                dx[at(row, column)] = minus_normal.mul_add(mean_normal, d) * rstd[column];
            }
        }
    }
}
