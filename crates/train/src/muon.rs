//! Muon: the momentum of a matrix's gradients, made orthogonal, moves the matrix.
//!
//! ```text
//! M = μ·M + G,  U = G + μ·M                                  (Nesterov)
//! X = U/‖U‖_F,  5 × X = a·X + (b·A + c·A²)·X with A = X·Xᵀ    (Newton–Schulz)
//! W = (1 − η·λ)·W − η·0.2·√max(N, K)·X
//! ```
//! Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (a, b, c, Nesterov); Liu et
//! al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982, eq. 4 (weight decay, and the factor that gives
//! updates AdamW's usual root mean square, so that learning rates for AdamW can be kept).
//!
//! The products are the device's own, so that Muon has the same bits on any number of threads and ranks: a matrix is
//! one rank's, whole. They have bf16 factors where the stage's products have half precision, as in Jordan's; an
//! update does not ask for more than a direction.

use wels_device::{Groups, Ids, Precision, Start, Tensor, WeightRef};
use wels_model::names::{ParamKind, ParamSpec};
use wels_model::tape::Execution;

/// a, b and c of Newton–Schulz: the steepest at 0 of those that end near 1.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
/// Elements of as many experts as are made orthogonal at once.
const AT_ONCE: usize = 1 << 22;
/// The root mean square that AdamW's updates usually have.
const ADAMW_RMS: f64 = 0.2;
/// Below it an update has no direction.
const NORM_LEAST: f64 = 1e-30;

/// What moves the matrices of the layers. Embeddings, head, norms, biases and routers are AdamW's in any case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    AdamW,
    Muon {
        /// μ.
        momentum: f64,
    },
}

impl Rule {
    /// Whether Muon moves a parameter of this kind.
    pub fn is_muon(self, kind: ParamKind) -> bool {
        self.momentum(kind).is_some()
    }

    /// μ, if Muon moves a parameter of this kind.
    pub(crate) fn momentum(self, kind: ParamKind) -> Option<f64> {
        match self {
            Rule::Muon { momentum } if kind.is_layer_matrix() => Some(momentum),
            _ => None,
        }
    }
}

/// One parameter's step: a matrix, or those of experts, stacked.
pub(crate) struct Matrices {
    pub spec: ParamSpec,
    /// η.
    pub rate: f64,
    /// λ.
    pub weight_decay: f64,
    /// μ.
    pub momentum: f64,
}

impl Matrices {
    /// Moves `weights` by `scale · gradient`, on the rank whose they are; on the others both are empty.
    pub fn update(
        &self,
        execution: &Execution,
        weights: &mut Tensor,
        gradient: &Tensor,
        momentum: &mut Tensor,
        scale: f32,
    ) {
        if gradient.is_empty() {
            return;
        }
        let (pool, device) = (&execution.pool, execution.device());
        let (rows, cols) = (self.spec.rows, self.spec.cols);
        device.blend(scale, gradient, self.momentum as f32, momentum);
        let mut update = pool.tensor(rows, cols);
        device.copy_rows(&momentum.clone().reshaped(rows, cols), 0, &mut update, 0, rows);
        device.blend(scale, gradient, self.momentum as f32, &mut update);
        let parts = if let ParamKind::Experts(count) = self.spec.kind { count } else { 1 };
        let rows = rows / parts;
        let at_once = (AT_ONCE / (rows * cols)).clamp(1, parts);
        for first in (0..parts).step_by(at_once) {
            let count = at_once.min(parts - first);
            let directions = orthogonal(execution, &update, first * rows, (count, rows));
            device.copy_rows(&directions, 0, &mut update, first * rows, count * rows);
        }
        let step = self.rate * ADAMW_RMS * (rows.max(cols) as f64).sqrt();
        // Added as one small number: a factor of 1 − η·λ would lose most of η·λ in f32.
        device.blend((-self.rate * self.weight_decay) as f32, weights, -step as f32, &mut update);
        device.add(&update, weights);
    }
}

/// Newton–Schulz of `count` matrices of `rows` rows, one below the other in `updates` from `first` on: matrices with
/// nearly their singular vectors and singular values around 1, from about 0.7 to 1.2. The smaller of X·Xᵀ and Xᵀ·X is
/// computed; the other gives the same. Zeros where a matrix is.
fn orthogonal(execution: &Execution, updates: &Tensor, first: usize, (count, rows): (usize, usize)) -> Tensor {
    let (pool, device, cols) = (&execution.pool, execution.device(), updates.cols());
    let precision = match execution.precision {
        Precision::F32 => Precision::F32,
        _ => Precision::Bf16,
    };
    let mut x = pool.tensor(count * rows, cols);
    for part in 0..count {
        let mut one = pool.tensor(rows, cols);
        device.copy_rows(updates, first + part * rows, &mut one, 0, rows);
        let norm = device.squares(&one).into_iter().map(f64::from).sum::<f64>().sqrt();
        let factor = if norm < NORM_LEAST { 0.0 } else { 1.0 / norm };
        let mut scaled = pool.tensor(rows, cols);
        scaled.fill(0.0);
        device.blend(factor as f32, &one, 1.0, &mut scaled);
        device.copy_rows(&scaled, 0, &mut x, part * rows, rows);
    }
    let [a, b, c] = COEFFICIENTS;
    let (each, whole): (_, Ids) = (Groups::Equal(count), vec![0, (count * rows) as u32].into());
    let least = rows.min(cols);
    for _ in 0..ITERATIONS {
        let mut square = pool.tensor(count * least, least);
        match rows <= cols {
            true => device.grouped(precision, &x, each, &mut [(WeightRef::Plain(&x), &mut square)]),
            false => device.grouped_dw(precision, &x, each, &whole, &mut [(&x, (&mut square, Start::Zero))]),
        }
        // The square and what is made of it are their own transposes, bit by bit.
        let mut mixed = pool.tensor(count * least, least);
        device.grouped(precision, &square, each, &mut [(WeightRef::Plain(&square), &mut mixed)]);
        device.blend(b as f32, &square, c as f32, &mut mixed);
        let mut next = pool.tensor(count * rows, cols);
        match rows <= cols {
            true => device.grouped_dw(precision, &x, each, &whole, &mut [(&mixed, (&mut next, Start::Zero))]),
            false => device.grouped(precision, &x, each, &mut [(WeightRef::Plain(&mixed), &mut next)]),
        }
        device.blend(a as f32, &x, 1.0, &mut next);
        x = next;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_device::host::random::Key;

    fn numbers(seed: u64, len: usize) -> Vec<f32> {
        let key = Key { seed, stream: 0 };
        (0..len as u64).map(|i| key.below_at(i, 2001) as f32 / 1000.0 - 1.0).collect()
    }

    /// A matrix in f64, row by row.
    fn product(a: &[f64], b: &[f64], inner: usize) -> Vec<f64> {
        let (rows, cols) = (a.len() / inner, b.len() / inner);
        let of = |i: usize, j: usize| (0..inner).map(|k| a[i * inner + k] * b[k * cols + j]).sum();
        (0..rows * cols).map(|at| of(at / cols, at % cols)).collect()
    }

    fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
        (0..a.len()).map(|at| a[at % (a.len() / cols) * cols + at / (a.len() / cols)]).collect()
    }

    fn orthogonal_in_f64(u: &[f64], cols: usize) -> Vec<f64> {
        let rows = u.len() / cols;
        let norm = u.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut x: Vec<f64> = u.iter().map(|x| x / norm).collect();
        for _ in 0..ITERATIONS {
            let square = product(&x, &transposed(&x, cols), cols);
            let fourth = product(&square, &square, rows);
            let [a, b, c] = COEFFICIENTS;
            let mixed: Vec<f64> = square.iter().zip(&fourth).map(|(s, f)| b * s + c * f).collect();
            let change = product(&mixed, &x, rows);
            x.iter_mut().zip(change).for_each(|(x, change)| *x = a * *x + change);
        }
        x
    }

    #[test]
    fn steps_follow_the_formula_for_wide_and_tall_matrices_and_experts() {
        let device = wels_cpu::testing::device();
        for (rows, cols, kind) in
            [(5, 9, ParamKind::Matrix), (33, 7, ParamKind::Matrix), (12, 6, ParamKind::Experts(3))]
        {
            let spec = ParamSpec { name: "w".into(), rows, cols, kind };
            let matrices = Matrices { spec, rate: 0.02, weight_decay: 0.1, momentum: 0.9 };
            let of = |seed| Tensor::of(&device, rows, cols, &numbers(seed, rows * cols));
            let (mut w, mut m) = (of(1), Tensor::zeros(&device, rows, cols));
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
            let (mut exact, mut momentum) = (wide(&w.to_host()), vec![0.0; rows * cols]);
            for step in 0..3 {
                matrices.update(&Execution::new(device.clone()), &mut w, &of(2 + step), &mut m, 0.5);
                let gradient: Vec<f64> = wide(&numbers(2 + step, rows * cols)).iter().map(|g| 0.5 * g).collect();
                momentum.iter_mut().zip(&gradient).for_each(|(m, g)| *m = 0.9 * *m + g);
                let update: Vec<f64> = momentum.iter().zip(&gradient).map(|(m, g)| g + 0.9 * m).collect();
                let part = if let ParamKind::Experts(count) = kind { rows / count } else { rows };
                let x: Vec<f64> =
                    update.chunks(part * cols).flat_map(|update| orthogonal_in_f64(update, cols)).collect();
                let factor = 0.02 * 0.2 * (part.max(cols) as f64).sqrt();
                exact.iter_mut().zip(x).for_each(|(w, x)| *w -= 0.02 * 0.1 * *w + factor * x);
            }
            let apart =
                exact.iter().zip(w.to_host().iter()).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-6, "{rows} × {cols}: {apart}");
        }
    }

    #[test]
    fn an_orthogonal_update_is_near_one_in_every_direction() {
        let device = wels_cpu::testing::device();
        for (rows, cols) in [(6, 40), (40, 6), (16, 16)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let execution = Execution { precision, ..Execution::new(device.clone()) };
                let x =
                    orthogonal(&execution, &Tensor::of(&device, rows, cols, &numbers(7, rows * cols)), 0, (1, rows));
                let x: Vec<f64> = x.to_host().iter().map(|x| f64::from(*x)).collect();
                let least = rows.min(cols);
                let (x, cols) = if rows < cols { (x, cols) } else { (transposed(&x, cols), rows) };
                let square = product(&x, &transposed(&x, cols), cols);
                let lengths = (0..least).map(|i| square[i * least + i]);
                lengths.for_each(|length| assert!((0.4..1.5).contains(&length), "{length} in {precision:?}"));
            }
        }
    }

    #[test]
    fn experts_at_once_have_the_bits_of_each_alone() {
        let device = wels_cpu::testing::device();
        for (rows, cols) in [(24, 40), (40, 24), (17, 17)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let execution = Execution { precision, ..Execution::new(device.clone()) };
                let updates = numbers(3, 3 * rows * cols);
                let stacked = Tensor::of(&device, 3 * rows, cols, &updates);
                let together = orthogonal(&execution, &stacked, rows, (2, rows));
                for (part, of) in [1, 2].iter().zip(together.to_host().chunks(rows * cols)) {
                    let alone = Tensor::of(&device, rows, cols, &updates[part * rows * cols..(part + 1) * rows * cols]);
                    assert_eq!(orthogonal(&execution, &alone, 0, (1, rows)).to_host()[..], *of, "{rows} × {cols}");
                }
            }
        }
    }

    #[test]
    fn without_gradients_weights_decay_and_stay_finite() {
        let device = wels_cpu::testing::device();
        let spec = ParamSpec { name: "w".into(), rows: 3, cols: 4, kind: ParamKind::Matrix };
        let matrices = Matrices { spec, rate: 0.5, weight_decay: 0.5, momentum: 0.9 };
        let (mut w, mut m) = (Tensor::of(&device, 3, 4, &[1.0; 12]), Tensor::zeros(&device, 3, 4));
        matrices.update(&Execution::new(device.clone()), &mut w, &Tensor::zeros(&device, 3, 4), &mut m, 1.0);
        assert_eq!(w.to_host()[..], [0.75; 12]);
    }
}
