//! Rotary position embedding (J. Su et al., 2021): the pair k of a head at position p is turned by the angle p·f_k,
//! (a, b) → (a·cos − b·sin, a·sin + b·cos), with f_k = base^(−2k/dim). Backward turns by the opposite angle.
//!
//! Angles, sines and cosines are computed in f64 and rounded to f32 once. Each output is fma(a, cos, −(b·sin)) or
//! fma(a, sin, b·cos).

use crate::lanes::{Lanes, dispatch};
use crate::par::{self, SharedMut};
use std::f64::consts::TAU;

/// Which two elements of a head of 2·half elements are pair k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Elements 2k and 2k + 1, as in DeepSeek's released weights.
    Interleaved,
    /// Elements k and half + k, as in Llama and Qwen.
    HalfSplit,
}

/// The sense of the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle.
    Forward,
    /// By its opposite, which takes the output's gradient to the input's.
    Backward,
}

/// How the frequencies are changed for contexts longer than those of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by `factor` (position interpolation).
    Linear {
        /// Greater than 1 for a longer context.
        factor: f64,
    },
    /// YaRN (B. Peng et al., 2023) as DeepSeek's: frequencies that turn more than `beta_fast` times in the original
    /// context stay, those that turn less than `beta_slow` times are divided by `factor`, with a ramp between.
    Yarn {
        /// New over original context.
        factor: f64,
        /// Turns above which a frequency stays.
        beta_fast: f64,
        /// Turns below which a frequency is divided by the factor.
        beta_slow: f64,
        /// The original context's positions.
        original_max_positions: usize,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
        /// Factor of cosines and sines (1 in DeepSeek's released configurations; the softmax scale's is the model's
        /// affair).
        table_scale: f64,
    },
    /// LongRoPE (Y. Ding et al., 2024): each divided by a number of its own.
    Long {
        /// `[dim/2]`: the divisors.
        divisors: Vec<f64>,
        /// Factor of cosines and sines.
        table_scale: f64,
    },
    /// Llama 3.1's: wavelengths below original/high stay, those above original/low are divided by `factor`, with a
    /// linear blend between.
    Llama3 {
        /// New over original context.
        factor: f64,
        /// Original context over the wavelength from which on all is divided.
        low_freq_factor: f64,
        /// Original context over the wavelength up to which all stays.
        high_freq_factor: f64,
        /// The original context's positions.
        original_max_positions: usize,
    },
}

/// The frequencies [dim/2], in radians a position.
pub fn frequencies(dim: usize, base: f64, scaling: &Scaling) -> Vec<f64> {
    assert!(dim > 0 && dim.is_multiple_of(2), "rotary dimension {dim} must be even");
    let plain = (0..dim / 2).map(|k| libm::pow(base, -((2 * k) as f64) / dim as f64));
    match *scaling {
        Scaling::None => plain.collect(),
        Scaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        Scaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, .. } => {
            // The dimension whose frequency makes so many turns in the original context.
            let dimension = |turns: f64| {
                dim as f64 * libm::log(original_max_positions as f64 / (turns * TAU)) / (2.0 * libm::log(base))
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min((dim - 1) as f64));
            if low == high {
                high += 0.001;
            }
            let ramp = |k: usize| ((k as f64 - low) / (high - low)).clamp(0.0, 1.0);
            plain.enumerate().map(|(k, f)| f * (1.0 - ramp(k)) + f / factor * ramp(k)).collect()
        }
        Scaling::Long { ref divisors, .. } => {
            assert_eq!(divisors.len(), dim / 2, "divisors of {dim} rotary elements");
            plain.zip(divisors).map(|(f, divisor)| f / divisor).collect()
        }
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let original = original_max_positions as f64;
            let scaled = |f: f64| {
                let wavelength = TAU / f;
                if wavelength < original / high_freq_factor {
                    f
                } else if wavelength > original / low_freq_factor {
                    f / factor
                } else {
                    let t = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - t) * f / factor + t * f
                }
            };
            plain.map(scaled).collect()
        }
    }
}

/// Cosines and sines of the angles of all positions below a limit.
#[derive(Clone, Debug)]
pub struct Table {
    half: usize,
    /// [positions, half]
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// For heads of which `dim` elements are turned, and positions `0..max_positions`.
    pub fn new(dim: usize, base: f64, scaling: &Scaling, max_positions: usize) -> Self {
        let frequencies = frequencies(dim, base, scaling);
        let half = frequencies.len();
        let length = match *scaling {
            Scaling::Yarn { table_scale, .. } | Scaling::Long { table_scale, .. } => table_scale,
            _ => 1.0,
        };
        let mut cos = vec![0.0; max_positions * half];
        let mut sin = vec![0.0; max_positions * half];
        let shared = SharedMut::new(&mut sin);
        par::chunks_mut(&mut cos, half, |position, cos| {
            // SAFETY: each position is one task's.
            let sin = unsafe { shared.slice(position * half, half) };
            for (k, f) in frequencies.iter().enumerate() {
                let angle = position as f64 * f;
                cos[k] = (libm::cos(angle) * length) as f32;
                sin[k] = (libm::sin(angle) * length) as f32;
            }
        });
        Table { half, cos, sin }
    }

    pub fn max_positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// The number of pairs.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Cosines and sines [half] of a position.
    pub fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let at = position as usize * self.half;
        (&self.cos[at..at + self.half], &self.sin[at..at + self.half])
    }
}

/// Turns `heads` heads of each row in place. Element i of head h of row t is x[t·row_stride + offset + h·head_stride +
/// i], i < 2·half; row t is at position `positions[t]`.
pub fn apply(
    x: &mut [f32],
    positions: &[u32],
    table: &Table,
    layout: Layout,
    row_stride: usize,
    offset: usize,
    head_stride: usize,
    heads: usize,
    direction: Direction,
) {
    let dim = 2 * table.half;
    assert!(heads == 1 || head_stride >= dim, "heads of {dim} elements every {head_stride} overlap");
    let end = offset + heads.saturating_sub(1) * head_stride + dim;
    assert!(end <= row_stride, "the heads end at {end} in rows of {row_stride}");
    assert_eq!(x.len(), positions.len() * row_stride, "x is [T, row_stride] with T = {}", positions.len());
    if let Some(position) = positions.iter().find(|&&p| p as usize >= table.max_positions()) {
        panic!("position {position} of a table of {}", table.max_positions());
    }
    let rows = par::rows_per_task(positions.len(), heads * dim);
    par::chunks_mut(x, rows * row_stride, |task, x| {
        for (x, &position) in x.chunks_exact_mut(row_stride).zip(&positions[task * rows..]) {
            let (cos, sin) = table.at(position);
            for h in 0..heads {
                let head = &mut x[offset + h * head_stride..offset + h * head_stride + dim];
                // SAFETY: the kernel indexes its slices with bounds checked.
                unsafe {
                    dispatch!(turn(head: &mut [f32], cos: &[f32], sin: &[f32], layout: Layout, direction: Direction))
                };
            }
        }
    });
}

/// Plain loops, which the compiler makes into the set's instructions: each output is one chain of single operations, so
/// that it may change nothing.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn turn<L: Lanes>(head: &mut [f32], cos: &[f32], sin: &[f32], layout: Layout, direction: Direction) {
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let turn = |a: f32, b: f32, c: f32, s: f32| (a.mul_add(c, -(b * s)), a.mul_add(s, b * c));
    let half = cos.len();
    let sin = &sin[..half];
    match layout {
        Layout::Interleaved => {
            let head = &mut head.as_chunks_mut::<2>().0[..half];
            for k in 0..half {
                let [a, b] = head[k];
                head[k] = turn(a, b, cos[k], sign * sin[k]).into();
            }
        }
        Layout::HalfSplit => {
            let (first, second) = head.split_at_mut(half);
            let second = &mut second[..half];
            for k in 0..half {
                (first[k], second[k]) = turn(first[k], second[k], cos[k], sign * sin[k]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: f64, expected: f64) {
        assert!((got / expected - 1.0).abs() < 1e-6, "{got:e} instead of {expected:e}");
    }

    /// DeepSeek-V3's: the values follow from its configuration and the YaRN paper's formula, computed elsewhere.
    #[test]
    fn yarn_frequencies_of_deepseek_v3() {
        let scaling = Scaling::Yarn {
            factor: 40.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_positions: 4096,
            truncate: true,
            table_scale: 1.0,
        };
        let f = frequencies(64, 10000.0, &scaling);
        let expected = [
            (0, 1.0),
            (10, 5.623413e-2),
            (11, 3.900693e-2),
            (16, 5.5e-3),
            (22, 1.778279e-4),
            (23, 3.333804e-5),
            (31, 3.333804e-6),
        ];
        expected.iter().for_each(|&(k, value)| assert_close(f[k], value));
    }

    /// A context so short that the ramp is empty: no division by zero.
    #[test]
    fn yarn_without_a_ramp() {
        let scaling = Scaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 32.0,
            original_max_positions: 200,
            truncate: true,
            table_scale: 1.5,
        };
        let f = frequencies(4, 10000.0, &scaling);
        assert!(f.iter().all(|f| f.is_finite() && *f > 0.0), "{f:?}");
        assert_eq!(Table::new(4, 10000.0, &scaling, 1).at(0), (&[1.5, 1.5][..], &[0.0, 0.0][..]));
    }

    /// Llama 3.1's configuration: short wavelengths stay, long ones are divided by 8, those between are blended.
    #[test]
    fn llama3_frequencies() {
        let scaling =
            Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
        let plain = frequencies(128, 5e5, &Scaling::None);
        let scaled = frequencies(128, 5e5, &scaling);
        for (k, (&f, &s)) in plain.iter().zip(&scaled).enumerate() {
            let wavelength = TAU / f;
            let t = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            assert_close(s, f * (t + (1.0 - t) / 8.0));
            assert_eq!((s == f, s == f / 8.0), (k <= 28, k >= 35), "pair {k} of wavelength {wavelength}");
        }
        assert_eq!(frequencies(128, 5e5, &Scaling::Linear { factor: 4.0 })[5], plain[5] / 4.0);
    }

    #[test]
    fn backward_undoes_forward_and_layouts_are_permutations() {
        let table = Table::new(8, 100.0, &Scaling::None, 50);
        let x: Vec<f32> = (0..16).map(|i| (i as f32 * 0.7).sin()).collect();
        let turn = |mut x: Vec<f32>, layout, direction| {
            apply(&mut x, &[3, 49], &table, layout, 8, 0, 8, 1, direction);
            x
        };
        let interleaved = turn(x.clone(), Layout::Interleaved, Direction::Forward);
        let back = turn(interleaved.clone(), Layout::Interleaved, Direction::Backward);
        assert!(x.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-6), "{back:?}");
        let split =
            |x: &[f32]| -> Vec<f32> { x.chunks(8).flat_map(|h| [0, 2, 4, 6, 1, 3, 5, 7].map(|i| h[i])).collect() };
        assert_eq!(turn(split(&x), Layout::HalfSplit, Direction::Forward), split(&interleaved));
    }
}
