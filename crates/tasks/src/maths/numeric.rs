//! Values of formulas in complex numbers of double precision, at fixed points; for what has no exact form.

use num_traits::ToPrimitive;

use super::parser::Expr;
use crate::number::Rational;

/// Points at which formulas are compared; half of them negative.
const POINTS: usize = 8;
/// Points at which both must have a value.
const VALID_MIN: usize = 3;
/// Relative difference of equal values.
const TOLERANCE: f64 = 1e-9;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    const fn real(re: f64) -> Complex {
        Complex { re, im: 0.0 }
    }

    fn times(self, other: Complex) -> Complex {
        Complex { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    fn plus(self, other: Complex) -> Complex {
        Complex { re: self.re + other.re, im: self.im + other.im }
    }

    fn scaled(self, factor: f64) -> Complex {
        Complex { re: self.re * factor, im: self.im * factor }
    }

    fn norm(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn inverse(self) -> Complex {
        let square = self.re * self.re + self.im * self.im;
        Complex { re: self.re / square, im: -self.im / square }
    }

    fn ln(self) -> Complex {
        Complex { re: self.norm().ln(), im: self.im.atan2(self.re) }
    }

    fn exp(self) -> Complex {
        let size = self.re.exp();
        Complex { re: size * self.im.cos(), im: if self.im == 0.0 { 0.0 } else { size * self.im.sin() } }
    }

    fn power(self, exponent: Complex) -> Complex {
        if self.norm() == 0.0 {
            return Complex::real(if exponent.re > 0.0 { 0.0 } else { f64::NAN });
        }
        let power = exponent.times(self.ln()).exp();
        let whole = exponent.im == 0.0 && exponent.re.fract() == 0.0;
        if whole && self.im == 0.0 && exponent.re.abs() < 1e6 {
            return Complex::real(self.re.powi(exponent.re as i32));
        }
        power
    }

    fn is_finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }
}

/// Whether two formulas have equal values wherever both have one: at all positive points, and at negative ones where
/// both are real. `false` if there are too few points to tell.
pub(super) fn equal(a: &Expr, b: &Expr) -> bool {
    let mut valid = 0;
    for point in 0..POINTS {
        let (Some(x), Some(y)) = (value(a, point), value(b, point)) else { continue };
        if !x.is_finite() || !y.is_finite() {
            continue;
        }
        if is_negative(point) && (x.im != 0.0 || y.im != 0.0) {
            continue;
        }
        if x.plus(y.scaled(-1.0)).norm() > TOLERANCE * x.norm().max(y.norm()).max(1e-3) {
            return false;
        }
        valid += 1;
    }
    valid >= VALID_MIN
}

fn is_negative(point: usize) -> bool {
    point >= POINTS / 2
}

/// What a variable is at a point: a number in 0.3..2.3 that its name determines, with a sign.
fn variable(name: &str, point: usize) -> f64 {
    let seed = name.bytes().fold(17, |seed, byte| wels_data::random::bits(seed, 3, u64::from(byte), 0));
    let unit = (wels_data::random::bits(seed, 4, point as u64, 0) >> 11) as f64 / (1u64 << 53) as f64;
    let size = 0.3 + 2.0 * unit;
    if is_negative(point) { -size } else { size }
}

fn real(value: &Rational) -> Option<f64> {
    let (a, b) = (value.numer().to_f64()?, value.denom().to_f64()?);
    Some(a / b)
}

fn value(expr: &Expr, point: usize) -> Option<Complex> {
    Some(match expr {
        Expr::Number(number) => Complex::real(real(number)?),
        Expr::Name(name) => match name.as_str() {
            "pi" => Complex::real(std::f64::consts::PI),
            "e" => Complex::real(std::f64::consts::E),
            "i" => Complex { re: 0.0, im: 1.0 },
            name => Complex::real(variable(name, point)),
        },
        Expr::Infinity => return None,
        Expr::Sum(terms) => {
            let mut sum = Complex::real(0.0);
            for term in terms {
                sum = sum.plus(value(term, point)?);
            }
            sum
        }
        Expr::Product(factors) => {
            let mut product = Complex::real(1.0);
            for factor in factors {
                product = product.times(value(factor, point)?);
            }
            product
        }
        Expr::Power(base, exponent) => power(base, exponent, point)?,
        Expr::Call(name, arguments) => {
            let values = arguments.iter().map(|argument| value(argument, point)).collect::<Option<Vec<_>>>()?;
            call(name, &values)?
        }
    })
}

/// Odd roots of negative numbers are the real ones.
fn power(base: &Expr, exponent: &Expr, point: usize) -> Option<Complex> {
    let x = value(base, point)?;
    if let Expr::Number(number) = exponent
        && x.im == 0.0
        && x.re < 0.0
        && !number.is_integer()
        && let (Some(p), Some(q)) = (number.numer().to_i64(), number.denom().to_i64())
        && q % 2 == 1
    {
        let size = (-x.re).powf(p as f64 / q as f64);
        return Some(Complex::real(if p % 2 == 0 { size } else { -size }));
    }
    Some(x.power(value(exponent, point)?))
}

fn call(name: &str, arguments: &[Complex]) -> Option<Complex> {
    let of_real = |function: fn(f64) -> f64| {
        arguments.first().filter(|x| x.im == 0.0 && arguments.len() == 1).map(|x| Complex::real(function(x.re)))
    };
    match (name, arguments) {
        ("sin", _) => of_real(f64::sin),
        ("cos", _) => of_real(f64::cos),
        ("tan", _) => of_real(f64::tan),
        ("cot", _) => of_real(|x| x.tan().recip()),
        ("sec", _) => of_real(|x| x.cos().recip()),
        ("csc", _) => of_real(|x| x.sin().recip()),
        ("arcsin", _) => of_real(f64::asin),
        ("arccos", _) => of_real(f64::acos),
        ("arctan", _) => of_real(f64::atan),
        ("sinh", _) => of_real(f64::sinh),
        ("cosh", _) => of_real(f64::cosh),
        ("tanh", _) => of_real(f64::tanh),
        ("floor", _) => of_real(f64::floor),
        ("ceil", _) => of_real(f64::ceil),
        ("abs", [x]) => Some(Complex::real(x.norm())),
        ("ln", [x]) => Some(x.ln()),
        ("log", [x]) => Some(x.ln().scaled(std::f64::consts::LN_10.recip())),
        ("log", [base, x]) => Some(x.ln().times(base.ln().inverse())),
        _ => None,
    }
}
