//! What a loss asks of the log-probability of each target, as data.

use std::ops::Range;

use crate::host::scalar;

/// −∂loss/∂logp of the target of each row, given its log-probability.
#[derive(Clone, Copy, Debug)]
pub enum Coefficient<'a> {
    /// The same for all rows: 1/N for the mean over N targets.
    Uniform(f32),
    /// `[T]`: one for each row.
    PerToken(&'a [f32]),
    Policy(Policy<'a>),
}

/// A clipped policy objective with a KL term (DeepSeekMath eq. 3, 4; PPO):
/// `w · [ρ·A, 0 where the clipped ratio gives the lesser term − β·(1 − exp(logp_ref − logp))]`, ρ = exp(logp −
/// logp_old).
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// `[T]`: one for each row.
    pub terms: &'a [PolicyTerm],
    /// 1 − ε_low.
    pub clip_low: f32,
    /// 1 + ε_high.
    pub clip_high: f32,
    /// β; 0 for no reference.
    pub kl: f32,
}

/// A token's part of a policy's objective besides its log-probability.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyTerm {
    pub advantage: f32,
    /// w.
    pub weight: f32,
    /// Log-probability when it was sampled.
    pub old: f32,
    /// Log-probability under the reference.
    pub reference: f32,
}

impl<'a> Coefficient<'a> {
    /// That of row `row` with log-probability `logp`: what a device's loss multiplies with.
    pub fn at(&self, row: usize, logp: f32) -> f32 {
        match self {
            Coefficient::Uniform(coefficient) => *coefficient,
            Coefficient::PerToken(coefficients) => coefficients[row],
            Coefficient::Policy(policy) => policy.at(row, logp),
        }
    }

    /// Of some of the rows, for a micro-batch.
    pub fn rows(self, rows: Range<usize>) -> Coefficient<'a> {
        match self {
            Coefficient::Uniform(_) => self,
            Coefficient::PerToken(coefficients) => Coefficient::PerToken(&coefficients[rows]),
            Coefficient::Policy(policy) => Coefficient::Policy(Policy { terms: &policy.terms[rows], ..policy }),
        }
    }
}

impl Policy<'_> {
    fn at(&self, row: usize, logp: f32) -> f32 {
        let term = &self.terms[row];
        let ratio = scalar::exp(logp - term.old);
        let policy = if self.clips(term, ratio) { 0.0 } else { ratio * term.advantage };
        let kl = if self.kl == 0.0 { 0.0 } else { self.kl * (1.0 - scalar::exp(term.reference - logp)) };
        term.weight * (policy - kl)
    }

    /// Whether the clipped ratio gives the lesser term.
    pub fn clips(&self, term: &PolicyTerm, ratio: f32) -> bool {
        match term.advantage > 0.0 {
            true => ratio > self.clip_high,
            false => ratio < self.clip_low,
        }
    }
}
