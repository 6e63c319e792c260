//! The exact form of a formula: a quotient of two polynomials.
//!
//! A monomial is a product of atoms to rational powers: primes to powers in 0..1 (√6 is 2^½·3^½), i to 0 or 1, π, e and
//! variables. Products of such roots of primes are linearly independent over the rationals (Besicovitch, 1940), so two
//! formulas without opaque atoms are equal if and only if one cross product minus the other is the empty sum; π and e
//! are taken to be independent, and variables to be positive under roots. An opaque atom stands for a part that is none
//! of this, such as a sine; formulas with them may be equal though their forms differ. It is a number, by which the
//! builder knows the function and the forms of its arguments: as text they would double with each level of nesting.

use std::collections::BTreeMap;

use num_bigint::BigInt;
use num_rational::Ratio;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::parser::Expr;
use crate::number::Rational;

/// Most terms of a polynomial.
const TERMS_MAX: usize = 300;
/// Most products of terms in all.
const WORK_MAX: usize = 20_000;
/// Largest power of a sum.
const POWER_MAX: u64 = 64;
/// Largest coefficient, in bits.
const BITS_MAX: u64 = 4096;
/// Largest factor that is looked for under a root.
const DIVISOR_MAX: u64 = 20_000;
/// Largest numerator and denominator of a power: sums and products of two such powers fit in 64 bits.
const EXPONENT_MAX: u64 = 1 << 30;

type Exponent = Ratio<i64>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Prime(BigInt),
    I,
    Pi,
    E,
    Name(String),
    /// By its number in [`FormBuilder`].
    Opaque(usize),
}

type Monomial = BTreeMap<Atom, Exponent>;
type Polynomial = BTreeMap<Monomial, Rational>;

/// A quotient of polynomials.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Form {
    numerator: Polynomial,
    denominator: Polynomial,
}

/// There is no such form: a division by zero, infinity, or more work than is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NoForm;

type Formed<T> = Result<T, NoForm>;

/// Builds forms; counts the work. Forms may be compared only by the builder that has made them both.
pub(super) struct FormBuilder {
    work: usize,
    /// The numbers of opaque atoms, by the function and its arguments.
    opaques: BTreeMap<(String, Vec<Form>), usize>,
}

impl FormBuilder {
    pub(super) fn new() -> FormBuilder {
        FormBuilder { work: 0, opaques: BTreeMap::new() }
    }

    /// Allows as much work again as a new builder does.
    pub(super) fn reset_work(&mut self) {
        self.work = 0;
    }

    /// The form of `expr`.
    pub(super) fn form(&mut self, expr: &Expr) -> Formed<Form> {
        match expr {
            Expr::Number(number) => Ok(Form::of(constant(number.clone()))),
            Expr::Name(name) => Ok(Form::of(atom(match name.as_str() {
                "pi" => Atom::Pi,
                "e" => Atom::E,
                "i" => Atom::I,
                name => Atom::Name(name.to_owned()),
            }))),
            Expr::Infinity => Err(NoForm),
            Expr::Sum(terms) => {
                let mut sum = Form::of(Polynomial::new());
                for term in terms {
                    let term = self.form(term)?;
                    sum = self.add(&sum, &term)?;
                }
                Ok(sum)
            }
            Expr::Product(factors) => {
                let mut product = Form::of(constant(Rational::one()));
                for factor in factors {
                    let factor = self.form(factor)?;
                    product = self.times(&product, &factor)?;
                }
                Ok(product)
            }
            Expr::Power(base, exponent) => {
                let (base, exponent) = (self.form(base)?, self.form(exponent)?);
                self.power(&base, &exponent)
            }
            Expr::Call(name, arguments) => {
                let arguments = arguments.iter().map(|argument| self.form(argument)).collect::<Formed<Vec<Form>>>()?;
                Ok(call(name, &arguments).unwrap_or_else(|| self.opaque(name, arguments)))
            }
        }
    }

    /// Whether two forms are equal; `None` where only a look at values can tell.
    pub(super) fn equal(&mut self, a: &Form, b: &Form) -> Formed<Option<bool>> {
        let difference = self.add(a, &b.negative())?;
        if difference.numerator.is_empty() {
            return Ok(Some(true));
        }
        Ok((!a.has_opaque() && !b.has_opaque()).then_some(false))
    }

    /// Whether one form is a number times the other, and whether that number is positive.
    pub(super) fn proportional(&mut self, a: &Form, b: &Form) -> Formed<Option<bool>> {
        let (left, right) =
            (self.multiply(&a.numerator, &b.denominator)?, self.multiply(&b.numerator, &a.denominator)?);
        let (Some((monomial, x)), Some(y)) = (left.iter().next(), left.keys().next().and_then(|m| right.get(m))) else {
            return Ok((left.is_empty() && right.is_empty()).then_some(true));
        };
        debug_assert!(left.contains_key(monomial));
        let factor = x / y;
        let scaled: Polynomial = right.iter().map(|(m, c)| (m.clone(), c * &factor)).collect();
        Ok((scaled == left).then(|| factor.is_positive()))
    }

    fn add(&mut self, a: &Form, b: &Form) -> Formed<Form> {
        let mut numerator = self.multiply(&a.numerator, &b.denominator)?;
        for (monomial, coefficient) in self.multiply(&b.numerator, &a.denominator)? {
            add_term(&mut numerator, monomial, coefficient);
        }
        Ok(Form { numerator, denominator: self.multiply(&a.denominator, &b.denominator)? })
    }

    fn times(&mut self, a: &Form, b: &Form) -> Formed<Form> {
        Ok(Form {
            numerator: self.multiply(&a.numerator, &b.numerator)?,
            denominator: self.multiply(&a.denominator, &b.denominator)?,
        })
    }

    fn multiply(&mut self, a: &Polynomial, b: &Polynomial) -> Formed<Polynomial> {
        self.work += a.len() * b.len() + 1;
        if self.work > WORK_MAX {
            return Err(NoForm);
        }
        let mut product = Polynomial::new();
        for (m, x) in a {
            for (n, y) in b {
                let mut powers = m.clone();
                for (atom, exponent) in n {
                    let sum = powers.remove(atom).unwrap_or_else(Exponent::zero) + exponent;
                    powers.insert(atom.clone(), bounded(sum)?);
                }
                let (monomial, factor) = reduced(powers)?;
                let coefficient = x * y * factor;
                if coefficient.numer().bits() + coefficient.denom().bits() > BITS_MAX {
                    return Err(NoForm);
                }
                add_term(&mut product, monomial, coefficient);
            }
        }
        if product.len() > TERMS_MAX { Err(NoForm) } else { Ok(product) }
    }

    fn power(&mut self, base: &Form, exponent: &Form) -> Formed<Form> {
        let Some(exponent_value) = exponent.rational() else {
            return Ok(self.opaque("power", vec![base.clone(), exponent.clone()]));
        };
        let (Some(p), Some(q)) = (exponent_value.numer().to_i64(), exponent_value.denom().to_i64()) else {
            return Ok(self.opaque("power", vec![base.clone(), exponent.clone()]));
        };
        if p.unsigned_abs() > 100_000 || q > 1000 {
            return Ok(self.opaque("power", vec![base.clone(), exponent.clone()]));
        }
        let exact = match (base.numerator.len(), base.denominator.len()) {
            (0, _) if p > 0 => Some(Form::of(Polynomial::new())),
            (0, _) if p < 0 => return Err(NoForm),
            (1, 1) => monomial_power(base, Exponent::new(p, q))?,
            _ => None,
        };
        match exact {
            Some(form) => Ok(form),
            None if q == 1 && p.unsigned_abs() <= POWER_MAX => {
                let mut power = Form::of(constant(Rational::one()));
                for _ in 0..p.unsigned_abs() {
                    power = self.times(&power, base)?;
                }
                Ok(if p < 0 { power.inverse()? } else { power })
            }
            None => Ok(self.opaque("power", vec![base.clone(), exponent.clone()])),
        }
    }

    /// A part without an exact form: for the same function of the same arguments the same atom.
    fn opaque(&mut self, name: &str, arguments: Vec<Form>) -> Form {
        let next = self.opaques.len();
        Form::of(atom(Atom::Opaque(*self.opaques.entry((name.to_owned(), arguments)).or_insert(next))))
    }
}

impl Form {
    fn of(numerator: Polynomial) -> Form {
        Form { numerator, denominator: constant(Rational::one()) }
    }

    fn negative(&self) -> Form {
        let numerator = self.numerator.iter().map(|(monomial, c)| (monomial.clone(), -c)).collect();
        Form { numerator, denominator: self.denominator.clone() }
    }

    fn inverse(self) -> Formed<Form> {
        if self.numerator.is_empty() {
            return Err(NoForm);
        }
        Ok(Form { numerator: self.denominator, denominator: self.numerator })
    }

    fn has_opaque(&self) -> bool {
        let mut atoms = self.numerator.keys().chain(self.denominator.keys()).flat_map(BTreeMap::keys);
        atoms.any(|atom| matches!(atom, Atom::Opaque(_)))
    }

    /// Its value, if it is a rational number.
    pub(super) fn rational(&self) -> Option<Rational> {
        let value = |polynomial: &Polynomial| match polynomial.len() {
            0 => Some(Rational::zero()),
            1 => polynomial.get(&Monomial::new()).cloned(),
            _ => None,
        };
        let (numerator, denominator) = (value(&self.numerator)?, value(&self.denominator)?);
        (!denominator.is_zero()).then(|| numerator / denominator)
    }
}

fn constant(value: Rational) -> Polynomial {
    if value.is_zero() { Polynomial::new() } else { Polynomial::from([(Monomial::new(), value)]) }
}

fn atom(atom: Atom) -> Polynomial {
    Polynomial::from([(Monomial::from([(atom, Exponent::one())]), Rational::one())])
}

/// The power itself; none that is too large or too fine to calculate with.
fn bounded(power: Exponent) -> Formed<Exponent> {
    let size = power.numer().unsigned_abs().max(power.denom().unsigned_abs());
    if size > EXPONENT_MAX { Err(NoForm) } else { Ok(power) }
}

fn add_term(polynomial: &mut Polynomial, monomial: Monomial, coefficient: Rational) {
    let sum = polynomial.remove(&monomial).unwrap_or_else(Rational::zero) + coefficient;
    if !sum.is_zero() {
        polynomial.insert(monomial, sum);
    }
}

/// Powers of primes brought into 0..1 and of i into 0 or 1; what is taken out is the second value.
fn reduced(powers: Monomial) -> Formed<(Monomial, Rational)> {
    let mut factor = Rational::one();
    let mut kept = Monomial::new();
    for (atom, exponent) in powers {
        let left = match &atom {
            Atom::Prime(prime) => {
                let whole = exponent.floor().to_integer();
                factor *= integer_power(&Rational::from_integer(prime.clone()), whole)?;
                exponent - Exponent::from_integer(whole)
            }
            Atom::I if exponent.is_integer() => {
                let turns = exponent.to_integer().rem_euclid(4);
                if turns >= 2 {
                    factor = -factor;
                }
                Exponent::from_integer(turns % 2)
            }
            _ => exponent,
        };
        if !left.is_zero() {
            kept.insert(atom, left);
        }
    }
    Ok((kept, factor))
}

fn integer_power(base: &Rational, exponent: i64) -> Formed<Rational> {
    let bits = (base.numer().bits() + base.denom().bits()).saturating_mul(exponent.unsigned_abs());
    if bits > BITS_MAX + 2 * exponent.unsigned_abs() || exponent.unsigned_abs() > BITS_MAX {
        return Err(NoForm);
    }
    let exponent_size = exponent.unsigned_abs() as u32;
    let power = Rational::new(base.numer().pow(exponent_size), base.denom().pow(exponent_size));
    match exponent {
        ..0 if base.is_zero() => Err(NoForm),
        ..0 => Ok(Rational::one() / power),
        _ => Ok(power),
    }
}

/// A single term over a single term, to a rational power; `None` where that has no exact form.
fn monomial_power(base: &Form, exponent: Exponent) -> Formed<Option<Form>> {
    let (Some((above, x)), Some((below, y))) = (base.numerator.iter().next(), base.denominator.iter().next()) else {
        return Ok(None);
    };
    let mut powers = above.clone();
    for (atom, power) in below {
        let difference = powers.remove(atom).unwrap_or_else(Exponent::zero) - power;
        powers.insert(atom.clone(), bounded(difference)?);
    }
    let coefficient = x / y;
    let whole = exponent.is_integer();
    if !whole && powers.contains_key(&Atom::I) {
        return Ok(None);
    }
    let multiplied = powers.into_iter().map(|(atom, power)| bounded(power * exponent).map(|power| (atom, power)));
    let mut powers = multiplied.collect::<Formed<Monomial>>()?;
    let mut factor = Rational::one();
    if whole {
        factor = integer_power(&coefficient, exponent.to_integer())?;
    } else {
        if coefficient.is_negative() {
            match exponent.denom() {
                // The real root.
                q if q % 2 == 1 && exponent.numer() % 2 != 0 => factor = -factor,
                q if q % 2 == 1 => {}
                2 => drop(powers.insert(Atom::I, Exponent::from_integer(*exponent.numer()))),
                _ => return Ok(None),
            }
        }
        for (number, sign) in [(coefficient.numer().abs(), 1), (coefficient.denom().clone(), -1)] {
            for (prime, count) in factors(number) {
                let power = powers.remove(&Atom::Prime(prime.clone())).unwrap_or_else(Exponent::zero);
                let sum = power + exponent * Exponent::from_integer(sign * count);
                powers.insert(Atom::Prime(prime), bounded(sum)?);
            }
        }
    }
    let (monomial, taken) = reduced(powers)?;
    Ok(Some(Form::of(Polynomial::from([(monomial, factor * taken)]))))
}

/// Prime factors with their counts. What is left of a large number after small divisors counts as a prime, except
/// squares.
fn factors(mut number: BigInt) -> Vec<(BigInt, i64)> {
    let mut found = Vec::new();
    let mut divisor = 2u64;
    while divisor <= DIVISOR_MAX && BigInt::from(divisor * divisor) <= number {
        let mut count = 0;
        while (&number % divisor).is_zero() {
            number /= divisor;
            count += 1;
        }
        if count > 0 {
            found.push((BigInt::from(divisor), count));
        }
        divisor += if divisor == 2 { 1 } else { 2 };
    }
    if !number.is_one() {
        let root = number.sqrt();
        if &root * &root == number {
            found.push((root, 2));
        } else {
            found.push((number, 1));
        }
    }
    found
}

/// Functions of rational numbers that have rational values.
fn call(name: &str, arguments: &[Form]) -> Option<Form> {
    let values = arguments.iter().map(Form::rational).collect::<Option<Vec<Rational>>>()?;
    let integer = |value: &Rational, max: u64| {
        value.is_integer().then(|| value.to_integer().to_u64()).flatten().filter(|value| *value <= max)
    };
    let value = match (name, values.as_slice()) {
        ("abs", [x]) => x.abs(),
        ("floor", [x]) => x.floor(),
        ("ceil", [x]) => x.ceil(),
        ("factorial", [x]) => {
            let product = (1..=integer(x, 200)?).fold(BigInt::one(), |product, k| product * k);
            Rational::from_integer(product)
        }
        ("binom", [n, k]) => {
            let (n, k) = (integer(n, 1000)?, integer(k, 1000)?);
            let product = (0..k).fold(BigInt::one(), |product, j| product * (n.saturating_sub(j)) / (j + 1));
            Rational::from_integer(product)
        }
        ("ln" | "log", [x]) if x.is_one() => Rational::zero(),
        ("max", [first, rest @ ..]) => rest.iter().fold(first.clone(), |a, b| a.max(b.clone())),
        ("min", [first, rest @ ..]) => rest.iter().fold(first.clone(), |a, b| a.min(b.clone())),
        ("sin" | "tan" | "arcsin" | "arctan", [x]) if x.is_zero() => Rational::zero(),
        ("cos" | "sec", [x]) if x.is_zero() => Rational::one(),
        _ => return None,
    };
    Some(Form::of(constant(value)))
}
