//! Weights to sample a token by.
//!
//! **Order of sums.** As [`crate::head::loss`] at an inverse temperature of 1: 16 partial sums over the vocabulary and
//! the fixed tree. So `logits[i] − max − log(sum)` is the log-probability that training computes, bit for bit.

use crate::lanes::Lanes;
use crate::math;

/// `out[i]` = exp((`logits[i]` − max)·`inverse_temperature`); returns the maximum and the sum of `out`.
///
/// # Panics
/// If the two differ in length.
pub fn weights(logits: &[f32], inverse_temperature: f32, out: &mut [f32]) -> (f32, f32) {
    assert_eq!(logits.len(), out.len(), "logits and weights");
    // SAFETY: both slices have one length, as was just checked.
    unsafe {
        crate::lanes::dispatch!(exponentials(logits: &[f32], inverse_temperature: f32, out: &mut [f32]) -> (f32, f32))
    }
}

/// log p of a token by its logit, given what [`weights`] returned for an inverse temperature of 1: the bits of
/// [`crate::head::loss`].
pub fn logprob(logit: f32, (max, sum): (f32, f32)) -> f32 {
    logit - max - math::scalar::log(sum)
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn exponentials<L: Lanes>(logits: &[f32], inverse_temperature: f32, out: &mut [f32]) -> (f32, f32) {
    let whole = logits.len() / 16 * 16;
    let rest = logits.len() - whole;
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for l in logits.as_chunks::<16>().0 {
            max = L::load(l.as_ptr()).max(max);
        }
        let max = logits[whole..].iter().fold(max.max_lane(), |m, &l| if l > m { l } else { m });
        let mut sum = L::splat(0.0);
        for (l, out) in logits.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
            let e = weight(L::load(l.as_ptr()), max, inverse_temperature);
            sum = sum.add(e);
            e.store(out.as_mut_ptr());
        }
        if rest > 0 {
            let out = out[whole..].as_mut_ptr();
            let l = L::load_first(logits[whole..].as_ptr(), rest);
            weight(l, max, inverse_temperature).store_first(out, rest);
            sum = sum.add(L::load_first(out, rest));
        }
        (max, sum.sum())
    }
}

/// exp((l − max)·inverse_temperature); no closure, which would not be compiled with the set's instructions.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn weight<L: Lanes>(l: L, max: f32, inverse_temperature: f32) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { math::exp(l.sub(L::splat(max)).mul(L::splat(inverse_temperature))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Precision;
    use crate::isa::{self, Isa};
    use crate::random::{Key, fill_normal};
    use crate::{head, reference};

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn weights_have_the_bits_of_the_reference() {
        for len in [1, 7, 16, 61, 4096, 49_153] {
            let mut logits = vec![0.0; len];
            fill_normal(&mut logits, 4.0, Key { seed: 1, stream: len as u64 }, 0);
            logits[len / 3] = f32::NEG_INFINITY;
            for inverse_temperature in [1.0, 0.7, 1.0 / 0.3] {
                let mut expected = vec![0.0; len];
                let total = reference::sample::weights(&logits, inverse_temperature, &mut expected);
                for isa in Isa::all_available() {
                    let mut out = vec![f32::NAN; len];
                    let got = isa::with(isa, || weights(&logits, inverse_temperature, &mut out));
                    assert_eq!(bits(&out), bits(&expected), "{len} on {}", isa.name());
                    assert_eq!(bits(&[got.0, got.1]), bits(&[total.0, total.1]), "{len} on {}", isa.name());
                }
            }
        }
    }

    /// The head's loss over a width of 1 with input 1 has the weights themselves as logits.
    #[test]
    fn log_probabilities_have_the_bits_of_the_loss() {
        let mut logits = vec![0.0; 1000];
        fill_normal(&mut logits, 3.0, Key { seed: 2, stream: 0 }, 0);
        let total = weights(&logits, 1.0, &mut vec![0.0; 1000]);
        for target in [0, 17, 999] {
            let mut logp = [0.0];
            head::loss(Precision::F32, &[1.0], &logits, None, &[target], 1, 1000, &mut logp, None);
            assert_eq!(logprob(logits[target as usize], total).to_bits(), logp[0].to_bits());
        }
    }
}
