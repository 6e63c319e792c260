//! What changes from step to step: the learning rate (warm-up, stable, decay) and the weight of multi-token prediction.

use std::f64::consts::PI;

/// How the learning rate falls from its peak to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// On a straight line.
    Linear,
    /// On half a cosine wave, as DeepSeek-V3.
    Cosine,
}

/// Warm-up, stable, decay: the learning rate rises on a straight line for `warmup_steps`, stays, and falls to `min`
/// during the last `decay_steps` of `steps`. Where warm-up and decay overlap the lower one holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The stable value.
    pub peak: f64,
    /// The value of the last step.
    pub min: f64,
    /// Steps of the whole training.
    pub steps: u64,
    /// Steps of the rise.
    pub warmup_steps: u64,
    /// Steps of the fall.
    pub decay_steps: u64,
    /// Shape of the fall.
    pub decay: Decay,
}

impl LearningRate {
    /// The learning rate of `step`, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        let rising = match step < self.warmup_steps {
            true => self.peak * step as f64 / self.warmup_steps as f64,
            false => self.peak,
        };
        let decay_begin = self.steps.saturating_sub(self.decay_steps);
        if step <= decay_begin {
            return rising;
        }
        let passed = ((step - decay_begin) as f64 / self.decay_steps as f64).min(1.0);
        let left = match self.decay {
            Decay::Linear => 1.0 - passed,
            Decay::Cosine => 0.5 * (1.0 + libm::cos(PI * passed)),
        };
        rising.min(self.min + (self.peak - self.min) * left)
    }
}

/// A value that holds until a step, and another one from it on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Switch {
    /// The value before.
    pub early: f64,
    /// The value of step `late_step` and all after it.
    pub late: f64,
    /// Counted from 1.
    pub late_step: u64,
}

impl Switch {
    /// The value of `step`, counted from 1.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.late_step { self.early } else { self.late }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_stable_decay() {
        let rate =
            LearningRate { peak: 1.0, min: 0.1, steps: 100, warmup_steps: 10, decay_steps: 20, decay: Decay::Linear };
        assert_eq!([1, 5, 10, 80].map(|step| rate.at(step)), [0.1, 0.5, 1.0, 1.0]);
        assert!((rate.at(90) - 0.55).abs() < 1e-12 && (rate.at(100) - 0.1).abs() < 1e-12);
        let cosine = LearningRate { decay: Decay::Cosine, ..rate };
        assert!((cosine.at(90) - 0.55).abs() < 1e-12 && (cosine.at(100) - 0.1).abs() < 1e-12);
        assert!(cosine.at(85) > rate.at(85) && cosine.at(95) < rate.at(95));
        let all_decay = LearningRate { decay_steps: 100, ..rate };
        assert_eq!(all_decay.at(1), 0.1);
        assert!((1..100).all(|step| all_decay.at(step) <= 1.0));
    }
}
