//! `rope_freqs.weight`: Llama 3.1's change of the frequencies, as one divisor for each pair.
//!
//! The file holds divisors only. The numbers they come from are needed to write a `config.json`, and in f64 they give
//! the frequencies that `transformers` computes. With s = original/(high − low), a divisor is 1 for short wavelengths,
//! `factor` for long ones, and between 1/divisor = (1 − t)/factor + t with t = s·frequency/2π − low/(high − low). Of
//! original, low and high only two ratios matter, so low is taken as 1, as in all published models.

use std::f64::consts::TAU;

use wels_device::host::{Scaling, frequencies};

use crate::config::RopeScaling;

/// How far a divisor may be from what the numbers found give: torch computes them in f32.
const TOLERANCE: f64 = 1e-4;

/// Factor and original context of Llama 3.1, and of Llama 3.2 1B and 3B; low is 1 and high 4.
const PUBLISHED: [(f64, usize); 2] = [(8.0, 8192), (32.0, 8192)];

/// The scaling that gives these divisors for rotary width `dim`; `None` if none does.
pub(super) fn from_divisors(divisors: &[f32], dim: usize, base: f64) -> Option<RopeScaling> {
    if divisors.len() != dim / 2 || divisors.iter().any(|divisor| !divisor.is_finite() || *divisor < 1.0) {
        return None;
    }
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Some(RopeScaling::None);
    }
    let published = PUBLISHED.map(|(factor, original)| (factor, 4.0, original));
    let (factor, high_freq_factor, original_max_positions) =
        published.into_iter().chain(fit(divisors, dim, base)).find(|&(factor, high, original)| {
            let computed = self::divisors(dim, base, factor, 1.0, high, original);
            divisors
                .iter()
                .zip(computed)
                .all(|(found, computed)| (f64::from(*found) / f64::from(computed) - 1.0).abs() < TOLERANCE)
        })?;
    Some(RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor, original_max_positions })
}

/// The divisors [dim/2] of Llama 3.1's scaling.
pub(super) fn divisors(dim: usize, base: f64, factor: f64, low: f64, high: f64, original: usize) -> Vec<f32> {
    let scaling =
        Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions: original };
    let plain = frequencies(dim, base, &Scaling::None);
    plain.iter().zip(frequencies(dim, base, &scaling)).map(|(plain, scaled)| (plain / scaled) as f32).collect()
}

/// Factor, high and original from the two outermost divisors on the slope.
fn fit(divisors: &[f32], dim: usize, base: f64) -> Option<(f64, f64, usize)> {
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let t = |divisor: f32| (1.0 / f64::from(divisor) - 1.0 / factor) / (1.0 - 1.0 / factor);
    let plain = frequencies(dim, base, &Scaling::None);
    let on_slope = |(_, divisor): &(f64, f32)| *divisor > 1.0 && f64::from(*divisor) < factor;
    let mut slope = plain.into_iter().zip(divisors.iter().copied()).filter(on_slope);
    let (first, last) = (slope.next()?, slope.next_back()?);
    let per_frequency = (t(first.1) - t(last.1)) / (first.0 - last.0);
    let offset = t(first.1) - per_frequency * first.0;
    // offset = −1/(high − 1), per_frequency = original/(2π(high − 1))
    let high = 1.0 - 1.0 / offset;
    let original = (per_frequency * TAU * (high - 1.0)).round();
    let high = (high * 1e3).round() / 1e3;
    ((1.0..1e9).contains(&original) && high > 1.0 && high < 1e6).then_some((factor, high, original as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_give_back_the_numbers_they_come_from() {
        for (dim, base, factor, high, original) in [
            (64, 5e5, 32.0, 4.0, 8192),
            (128, 5e5, 8.0, 4.0, 8192),
            (128, 1e4, 16.0, 8.0, 4096),
            (16, 1e4, 8.0, 4.0, 8192),
        ] {
            let found = from_divisors(&divisors(dim, base, factor, 1.0, high, original), dim, base);
            let expected = RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: high,
                original_max_positions: original,
            };
            assert_eq!(found, Some(expected), "{dim}");
        }
        assert_eq!(from_divisors(&[1.0; 8], 16, 1e4), Some(RopeScaling::None));
        for damaged in [vec![1.0; 7], vec![1.0, 3.0, 2.0, 5.0, 1.0, 1.0, 1.0, 1.0], vec![f32::NAN; 8], vec![0.5; 8]] {
            assert_eq!(from_divisors(&damaged, 16, 1e4), None);
        }
    }
}
