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
//! The products are the device's own in f32, so that Muon has the same bits on any number of threads and ranks: a
//! matrix is one rank's, whole.

use wels_device::{Ids, Pool, Precision, Start, Tensor, WeightRef};
use wels_model::names::{ParamKind, ParamSpec};

/// a, b and c of Newton–Schulz: the steepest at 0 of those that end near 1.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
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
    pub fn update(&self, pool: &Pool, weights: &mut Tensor, gradient: &Tensor, momentum: &mut Tensor, scale: f32) {
        if gradient.is_empty() {
            return;
        }
        let device = &**pool.device();
        let (rows, cols) = (self.spec.rows, self.spec.cols);
        device.blend(scale, gradient, self.momentum as f32, momentum);
        let mut update = pool.tensor(rows, cols);
        device.copy_rows(&momentum.clone().reshaped(rows, cols), 0, &mut update, 0, rows);
        device.blend(scale, gradient, self.momentum as f32, &mut update);
        let parts = if let ParamKind::Experts(count) = self.spec.kind { count } else { 1 };
        let rows = rows / parts;
        for part in 0..parts {
            let mut x = pool.tensor(rows, cols);
            device.copy_rows(&update, part * rows, &mut x, 0, rows);
            device.copy_rows(&orthogonal(pool, &x), 0, &mut update, part * rows, rows);
        }
        let step = self.rate * ADAMW_RMS * (rows.max(cols) as f64).sqrt();
        // Added as one small number: a factor of 1 − η·λ would lose most of η·λ in f32.
        device.blend((-self.rate * self.weight_decay) as f32, weights, -step as f32, &mut update);
        device.add(&update, weights);
    }
}

/// Newton–Schulz: a matrix with nearly the singular vectors of `x` and singular values around 1, from about 0.7 to 1.2.
/// The smaller of X·Xᵀ and Xᵀ·X is computed; the other gives the same. Zeros if `x` is.
fn orthogonal(pool: &Pool, x: &Tensor) -> Tensor {
    let device = &**pool.device();
    let (rows, cols) = (x.rows(), x.cols());
    let norm = device.squares(x).into_iter().map(f64::from).sum::<f64>().sqrt();
    let scaled = |factor: f64, x: &Tensor| {
        let mut y = pool.tensor(rows, cols);
        y.fill(0.0);
        device.blend(factor as f32, x, 1.0, &mut y);
        y
    };
    if norm < NORM_LEAST {
        return scaled(0.0, x);
    }
    let [a, b, c] = COEFFICIENTS;
    let (whole, least): (Ids, usize) = (vec![0, rows as u32].into(), rows.min(cols));
    let mut x = scaled(1.0 / norm, x);
    for _ in 0..ITERATIONS {
        let (mut square, mut fourth) = (pool.tensor(least, least), pool.tensor(least, least));
        match rows <= cols {
            true => device.linear(Precision::F32, &x, &mut [(WeightRef::Plain(&x), &mut square)]),
            false => device.linear_dw(Precision::F32, &x, &whole, &mut [(&x, (&mut square, Start::Zero))]),
        }
        // Its own transpose, bit by bit.
        device.linear(Precision::F32, &square, &mut [(WeightRef::Plain(&square), &mut fourth)]);
        device.blend(b as f32, &square, c as f32, &mut fourth);
        let mut next = pool.tensor(rows, cols);
        let term = if rows <= cols { (&fourth, &x) } else { (&x, &fourth) };
        device.linear_dx(Precision::F32, &[(term.0, term.1.into())], (&mut next, Start::Zero));
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
                matrices.update(&Pool::new(device.clone()), &mut w, &of(2 + step), &mut m, 0.5);
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
            let x = orthogonal(&Pool::new(device.clone()), &Tensor::of(&device, rows, cols, &numbers(7, rows * cols)));
            let x: Vec<f64> = x.to_host().iter().map(|x| f64::from(*x)).collect();
            let least = rows.min(cols);
            let (x, cols) = if rows < cols { (x, cols) } else { (transposed(&x, cols), rows) };
            let square = product(&x, &transposed(&x, cols), cols);
            (0..least).for_each(|i| assert!((0.4..1.5).contains(&square[i * least + i]), "{}", square[i * least + i]));
        }
    }

    #[test]
    fn without_gradients_weights_decay_and_stay_finite() {
        let device = wels_cpu::testing::device();
        let spec = ParamSpec { name: "w".into(), rows: 3, cols: 4, kind: ParamKind::Matrix };
        let matrices = Matrices { spec, rate: 0.5, weight_decay: 0.5, momentum: 0.9 };
        let (mut w, mut m) = (Tensor::of(&device, 3, 4, &[1.0; 12]), Tensor::zeros(&device, 3, 4));
        matrices.update(&Pool::new(device.clone()), &mut w, &Tensor::zeros(&device, 3, 4), &mut m, 1.0);
        assert_eq!(w.to_host()[..], [0.75; 12]);
    }
}
