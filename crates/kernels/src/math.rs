//! Elementary functions, as our own polynomials: the platform's differ between platforms. Each stands here twice, over
//! [`Lanes`] and for one number in [`scalar`], with equal bits; the tests compare them.
//!
//! | function | error, in units in the last place (measured by the tests) |
//! |---|---|
//! | exp | ≤ 1 |
//! | log | ≤ 0.5001, that is nearly always the nearest |
//! | sigmoid, silu | ≤ 2.5 while exp(−x) is finite; 0 below x = −88.73, where the true value is < 3e-39 |
//!
//! NaN stays NaN (with unspecified sign and payload).

use crate::lanes::Lanes;

/// Below it exp is less than half of the smallest subnormal number.
const EXP_LEAST: f32 = -104.0;
/// Above it exp is more than the greatest finite number.
const EXP_GREATEST: f32 = 89.0;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 as a sum of two numbers (Cody and Waite): the greater one rounded to f32, and what it lacks.
const LN_2_HIGH: f32 = std::f32::consts::LN_2;
const LN_2_LOW: f32 = -1.904_654_3e-9;
/// (exp(r) − 1 − r)/r² on |r| ≤ ln(2)/2, highest power first: S. Moshier, Cephes, `expf.c`.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5e-1];

/// exp(x) = 2^n · exp(r) with n whole and |r| ≤ ln(2)/2. Exact limits: 0 below −104, ∞ above 88.73; subnormal results are
/// rounded once, because 2^n is multiplied in as two powers of which only the last can leave the normal range.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        // In this order the limits let NaN pass.
        let x = L::splat(EXP_GREATEST).min(L::splat(EXP_LEAST).max(x));
        let n = x.mul(L::splat(LOG2_E)).round();
        let r = n.fma(L::splat(-LN_2_LOW), n.fma(L::splat(-LN_2_HIGH), x));
        let mut p = L::splat(EXP[0]);
        for c in &EXP[1..] {
            p = p.fma(r, L::splat(*c));
        }
        let p = p.fma(r.mul(r), r).add(L::splat(1.0));
        let half = n.mul(L::splat(0.5)).round();
        p.mul(half.exp2_whole()).mul(n.sub(half).exp2_whole())
    }
}

/// 1/(1 + exp(−x)).
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let one = L::splat(1.0);
        one.div(one.add(exp(L::splat(0.0).sub(x))))
    }
}

/// x·sigmoid(x).
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn silu<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe { x.mul(sigmoid(x)) }
}

/// The same functions of one number.
pub mod scalar {
    use super::{EXP, EXP_GREATEST, EXP_LEAST, LN_2_HIGH, LN_2_LOW, LOG2_E};

    /// The bits of a lane of [`super::exp`].
    #[inline]
    pub fn exp(x: f32) -> f32 {
        if x.is_nan() {
            return x;
        }
        let x = x.clamp(EXP_LEAST, EXP_GREATEST);
        let n = (x * LOG2_E).round_ties_even();
        let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
        let p = EXP[1..].iter().fold(EXP[0], |p, c| p.mul_add(r, *c));
        let p = p.mul_add(r * r, r) + 1.0;
        let half = (n * 0.5).round_ties_even();
        p * exp2_whole(half) * exp2_whole(n - half)
    }

    fn exp2_whole(n: f32) -> f32 {
        f32::from_bits(((n as i32 + 127) as u32) << 23)
    }

    /// The bits of a lane of [`super::sigmoid`].
    #[inline]
    pub fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + exp(0.0 - x))
    }

    /// The bits of a lane of [`super::silu`].
    #[inline]
    pub fn silu(x: f32) -> f32 {
        x * sigmoid(x)
    }

    /// The natural logarithm, computed in f64 and rounded once: x = 2^e·m with m in [√½, √2), and
    /// ln m = 2·artanh(s) = 2·(s + s³/3 + s⁵/5 + …) with s = (m − 1)/(m + 1), |s| ≤ 0.172, to s¹⁵ (the rest is < 1e-14).
    pub fn log(x: f32) -> f32 {
        if x.is_nan() || x < 0.0 {
            return f32::NAN;
        }
        if x == 0.0 {
            return f32::NEG_INFINITY;
        }
        if x == f32::INFINITY {
            return x;
        }
        // Every f32 is a normal f64, the subnormal ones too.
        let bits = f64::from(x).to_bits();
        let mut exponent = (bits >> 52) as i64 - 1023;
        let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
        if m > std::f64::consts::SQRT_2 {
            m *= 0.5;
            exponent += 1;
        }
        let s = (m - 1.0) / (m + 1.0);
        let s2 = s * s;
        let series = (0..8).rev().fold(0.0, |sum, k| sum * s2 + 1.0 / f64::from(2 * k + 1));
        (exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series) as f32
    }
}
