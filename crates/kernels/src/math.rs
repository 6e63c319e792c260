//! Elementary functions, as our own polynomials: the platform's differ between platforms. Each stands here twice, over
//! [`Lanes`] and for one number in [`scalar`], with equal bits; the tests compare them.
//!
//! | function | error, in units in the last place (measured by the tests) |
//! |---|---|
//! | exp | ≤ 1 |
//! | log | ≤ 0.5001, that is nearly always the nearest |
//! | sigmoid | ≤ 2.5 while exp(−x) is finite; 0 below x = −88.73, where the true value is < 3e-39 |
//! | silu | ≤ 3 in the same range |
//! | tanh | ≤ 5.1 from 1e-35 on, below it ≤ 1e-41 in all; 1 − 1.8e-7 from 7.91 on |
//!
//! gelu is off by at most 5e-7 and 5e-7 of its argument, its slope by at most 5e-7.
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

/// Of erf(z) = 1 − (a₁t + … + a₅t⁵)·exp(−z²) with t = 1/(1 + pz), z ≥ 0, highest power first, error ≤ 1.5e-7:
/// M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 7.1.26.
const ERF: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
/// What z is multiplied with in the t of [`ERF`].
const ERF_P: f32 = 0.327_591_1;
/// Where tanh is taken to be constant.
const TANH_GREATEST: f32 = 7.905_311;
/// tanh(x) = x·P(x²)/Q(x²), highest power first: Eigen, `MathFunctionsImpl.h`, `ptanh_float`.
const TANH_P: [f32; 7] =
    [-2.760_768_4e-16, 2.000_188e-13, -8.604_672e-11, 5.122_297_3e-8, 1.485_722_35e-5, 6.372_619_5e-4, 4.893_524_6e-3];
const TANH_Q: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];

/// 1/√(2π).
const DENSITY: f32 = 0.398_942_3;
/// What a number is multiplied with and cut to −1..1 for its sign: the sign of those so small that it is not, matters
/// to no product with erf.
const STEEP: f32 = 1e38;

/// exp(x) = 2^n · exp(r) with n whole and |r| ≤ ln(2)/2. Exact limits: 0 below −104, ∞ above 88.73; subnormal results
/// are rounded once, because 2^n is multiplied in as two powers of which only the last can leave the normal range.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
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
    // SAFETY: no memory is touched; instructions by this function's contract.
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
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { x.mul(sigmoid(x)) }
}

/// x·Φ(x) = (x + |x|·erf(|x|/√2))/2.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn gelu<L: Lanes>(x: L) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let size = x.max(zero.sub(x));
        let z = size.mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = one.div(z.fma(L::splat(ERF_P), one));
        let mut p = L::splat(ERF[0]);
        for c in &ERF[1..] {
            p = p.fma(t, L::splat(*c));
        }
        let erf = one.sub(p.mul(t).mul(exp(zero.sub(z.mul(z)))));
        size.fma(erf, x).mul(L::splat(0.5))
    }
}

/// tanh(x).
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn tanh<L: Lanes>(x: L) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract. In this order the limits let NaN pass.
    unsafe {
        let x = L::splat(TANH_GREATEST).min(L::splat(-TANH_GREATEST).max(x));
        let square = x.mul(x);
        let (mut p, mut q) = (L::splat(TANH_P[0]), L::splat(TANH_Q[0]));
        for c in &TANH_P[1..] {
            p = p.fma(square, L::splat(*c));
        }
        for c in &TANH_Q[1..] {
            q = q.fma(square, L::splat(*c));
        }
        x.mul(p).div(q)
    }
}

/// The derivative of [`gelu`], Φ(x) + x·exp(−x²/2)/√(2π): Φ(x) = (1 + sign(x)·erf(|x|/√2))/2.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub unsafe fn gelu_slope<L: Lanes>(x: L) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let size = x.max(zero.sub(x));
        // In this order the limits let NaN pass.
        let sign = one.min(L::splat(-1.0).max(x.mul(L::splat(STEEP))));
        let z = size.mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = one.div(z.fma(L::splat(ERF_P), one));
        let mut p = L::splat(ERF[0]);
        for c in &ERF[1..] {
            p = p.fma(t, L::splat(*c));
        }
        let bell = exp(zero.sub(z.mul(z)));
        let erf = one.sub(p.mul(t).mul(bell));
        let half = L::splat(0.5);
        x.mul(L::splat(DENSITY)).fma(bell, sign.mul(half).fma(erf, half))
    }
}

/// The same functions of one number.
pub mod scalar {
    use super::{DENSITY, ERF, ERF_P, EXP, EXP_GREATEST, EXP_LEAST, LN_2_HIGH, LN_2_LOW, LOG2_E, STEEP};
    use super::{TANH_GREATEST, TANH_P, TANH_Q};

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

    /// The bits of a lane of [`super::gelu`].
    #[inline]
    pub fn gelu(x: f32) -> f32 {
        let minus = 0.0 - x;
        let size = if x > minus { x } else { minus };
        let z = size * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / z.mul_add(ERF_P, 1.0);
        let p = ERF[1..].iter().fold(ERF[0], |p, c| p.mul_add(t, *c));
        let erf = 1.0 - p * t * exp(0.0 - z * z);
        size.mul_add(erf, x) * 0.5
    }

    /// The bits of a lane of [`super::tanh`].
    #[inline]
    pub fn tanh(x: f32) -> f32 {
        if x.is_nan() {
            return x;
        }
        let x = x.clamp(-TANH_GREATEST, TANH_GREATEST);
        let chain = |terms: &[f32]| terms[1..].iter().fold(terms[0], |sum, c| sum.mul_add(x * x, *c));
        x * chain(&TANH_P) / chain(&TANH_Q)
    }

    /// The bits of a lane of [`super::gelu_slope`].
    #[inline]
    pub fn gelu_slope(x: f32) -> f32 {
        let minus = 0.0 - x;
        let size = if x > minus { x } else { minus };
        let sign = if x.is_nan() { x } else { (x * STEEP).clamp(-1.0, 1.0) };
        let z = size * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / z.mul_add(ERF_P, 1.0);
        let p = ERF[1..].iter().fold(ERF[0], |p, c| p.mul_add(t, *c));
        let bell = exp(0.0 - z * z);
        let erf = 1.0 - p * t * bell;
        (x * DENSITY).mul_add(bell, (sign * 0.5).mul_add(erf, 0.5))
    }

    /// The natural logarithm, computed in f64 and rounded once: x = 2^e·m with m in [√½, √2), and
    /// ln m = 2·artanh(s) = 2·(s + s³/3 + s⁵/5 + …) with s = (m − 1)/(m + 1), |s| ≤ 0.172, to s¹⁵ (the rest is <
    /// 1e-14).
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

#[cfg(test)]
mod tests {
    use super::scalar;
    use crate::isa::{self, Isa};
    use crate::lanes::{LANES, Lanes, dispatch};

    /// # Safety
    /// The machine has the instruction set of `L`.
    #[inline(always)]
    unsafe fn lanes<L: Lanes>(x: &[f32; LANES], y: &mut [[f32; LANES]; 6]) {
        // SAFETY: arrays of sixteen; instructions by this function's contract.
        unsafe {
            let x = L::load(x.as_ptr());
            let [exp, sigmoid, silu] = [super::exp(x), super::sigmoid(x), super::silu(x)];
            let [gelu, tanh, slope] = [super::gelu(x), super::tanh(x), super::gelu_slope(x)];
            *y = [exp, sigmoid, silu, gelu, tanh, slope].map(|y| y.to_array());
        }
    }

    /// A million numbers of all exponents and both signs, and the places where something changes.
    fn arguments() -> impl Iterator<Item = f32> {
        let edges =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 88.722_83, 88.722_84, -87.336_55, -103.972, -104.1];
        (0..=u32::MAX).step_by(4099).map(f32::from_bits).chain(edges)
    }

    #[test]
    fn lanes_have_the_bits_of_the_scalar_functions() {
        let all: Vec<f32> = arguments().collect();
        for isa in Isa::all_available() {
            for x in all.as_chunks::<LANES>().0.iter().chain(all.last_chunk()) {
                let mut y = [[0.0; LANES]; 6];
                let out = &mut y;
                isa::with(isa, || {
                    // SAFETY: arrays of sixteen.
                    unsafe { dispatch!(lanes(x: &[f32; LANES], out: &mut [[f32; LANES]; 6])) }
                });
                for (f, name, y) in [
                    (scalar::exp as fn(f32) -> f32, "exp", y[0]),
                    (scalar::sigmoid, "sigmoid", y[1]),
                    (scalar::silu, "silu", y[2]),
                    (scalar::gelu, "gelu", y[3]),
                    (scalar::tanh, "tanh", y[4]),
                    (scalar::gelu_slope, "gelu_slope", y[5]),
                ] {
                    for (&x, y) in x.iter().zip(y) {
                        let same = y.to_bits() == f(x).to_bits() || y.is_nan() && f(x).is_nan();
                        assert!(same, "{name}({x:e}) is {y:e} on {} and {:e} alone", isa.name(), f(x));
                    }
                }
            }
        }
    }

    /// The error of `got` in units in the last place of the f32 nearest to `exact`.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if got == nearest && nearest.is_infinite() || got.is_nan() && nearest.is_nan() {
            return 0.0;
        }
        let size = nearest.abs().min(f32::MAX.next_down());
        (f64::from(got) - exact).abs() / (f64::from(size.next_up()) - f64::from(size))
    }

    fn worst(arguments: impl Iterator<Item = f32>, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
        arguments
            .map(|x| (ulps(f(x), exact(f64::from(x))), x))
            .fold((0.0, 0.0), |worst, next| if next.0 <= worst.0 { worst } else { next })
    }

    #[test]
    fn errors_are_as_documented() {
        let dense = |from: f32, to: f32| (0..1_000_000).map(move |i| from + (to - from) * (i as f32 / 1e6));
        let (error, at) = worst(arguments().chain(dense(-104.0, 89.0)), scalar::exp, libm::exp);
        assert!(error <= 1.0, "exp({at:e}) is off by {error}");
        let (error, at) = worst(arguments().chain(dense(0.5, 2.0)), scalar::log, libm::log);
        assert!(error <= 0.5001, "log({at:e}) is off by {error}");
        let exact = |x: f64| 1.0 / (1.0 + libm::exp(-x));
        let finite = || arguments().chain(dense(-88.0, 20.0)).filter(|x| *x > -88.0);
        let (error, at) = worst(finite(), scalar::sigmoid, exact);
        assert!(error <= 2.5, "sigmoid({at:e}) is off by {error}");
        let (error, at) = worst(finite(), scalar::silu, |x| x * exact(x));
        assert!(error <= 3.0, "silu({at:e}) is off by {error}");
        for x in dense(-12.0, 12.0) {
            let exact = 0.5 * f64::from(x) * (1.0 + libm::erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2));
            let error = (f64::from(scalar::gelu(x)) - exact).abs();
            assert!(error <= 5e-7 * (1.0 + f64::from(x.abs())), "gelu({x:e}) is off by {error:e}");
            let density = libm::exp(-0.5 * f64::from(x).powi(2)) / (2.0 * std::f64::consts::PI).sqrt();
            let exact = 0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2) + f64::from(x) * density;
            let error = (f64::from(scalar::gelu_slope(x)) - exact).abs();
            assert!(error <= 5e-7, "gelu_slope({x:e}) is off by {error:e}");
        }
        let small = |x: &f32| x.abs() < 1e-35;
        let others = arguments().chain(dense(-12.0, 12.0)).filter(|x| !small(x));
        let (error, at) = worst(others, scalar::tanh, libm::tanh);
        assert!(error <= 5.1, "tanh({at:e}) is off by {error}");
        for x in arguments().filter(small) {
            assert!((f64::from(scalar::tanh(x)) - f64::from(x)).abs() <= 1e-41, "tanh({x:e})");
        }
    }

    #[test]
    fn limits_are_exact() {
        assert_eq!(scalar::exp(0.0), 1.0);
        assert_eq!(scalar::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(scalar::exp(-1e30), 0.0);
        assert_eq!(scalar::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(scalar::exp(89.0), f32::INFINITY);
        assert_eq!(scalar::exp(-103.0), f32::from_bits(1));
        assert!(scalar::exp(f32::NAN).is_nan());
        assert_eq!(scalar::log(1.0), 0.0);
        assert_eq!(scalar::log(0.0), f32::NEG_INFINITY);
        assert_eq!(scalar::log(f32::INFINITY), f32::INFINITY);
        assert!(scalar::log(-1.0).is_nan() && scalar::log(f32::NAN).is_nan());
        assert_eq!(scalar::log(f32::from_bits(1)), -103.278_93);
        assert_eq!((scalar::sigmoid(0.0), scalar::sigmoid(200.0), scalar::sigmoid(-200.0)), (0.5, 1.0, 0.0));
        assert_eq!((scalar::silu(0.0), scalar::silu(200.0), scalar::silu(-200.0)), (0.0, 200.0, 0.0));
        assert_eq!((scalar::tanh(0.0), scalar::tanh(200.0), scalar::tanh(-200.0)), (0.0, 0.999_999_8, -0.999_999_8));
        assert!(scalar::tanh(f32::NAN).is_nan());
    }
}
