//! Operands, and one piece of work done by both devices.

use std::sync::Arc;

use wels_cpu::naive::Naive;
use wels_cpu::testing::VARIABLE;
use wels_cuda::Cuda;
use wels_cuda::launch::emulator::Emulator;
use wels_device::host::convert;
use wels_device::host::convert::{from_bf16, to_bf16};
use wels_device::{Device, Dtype, Tensor};

pub type Outputs = Vec<(&'static str, Vec<f32>)>;

/// Does `work` on the naive device, and on all of [`rounds`]. Results have the bits of the plain loops, but for the
/// sign of zeros, and are the same in each.
pub fn same(what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs) {
    compare(what, work, |a, b| a == b || a.is_nan() && b.is_nan());
}

/// How far results may be from the plain loops' where sums have an order of their own; of 1 where they are smaller.
pub const TOLERANCE: f32 = 1e-5;

/// The same within [`TOLERANCE`].
pub fn near(what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs) {
    within(TOLERANCE, what, work);
}

/// The same within a tolerance of its own, where sums are of many large terms: a card's tensor cores cut off what an
/// emulated one rounds.
pub fn within(tolerance: f32, what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs) {
    compare(what, work, |a, b| (a - b).abs() <= tolerance * a.abs().max(1.0));
}

/// As [`same`] with activations in bf16 ([`activation`]) where the device is no plain loop's: results are those of the
/// plain loops, rounded once.
pub fn same_rounded(what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs) {
    compare(what, work, |a, b| a == b || rounded(a) == b || a.is_nan() && b.is_nan());
}

/// The same within a unit of bf16's last place, of what is small a unit of 0.01's.
pub fn near_rounded(what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs) {
    compare(what, work, |a, b| a == b || (a - b).abs() <= a.abs().max(0.01) / 128.0);
}

/// The nearest bf16.
pub fn rounded(x: f32) -> f32 {
    from_bf16(to_bf16(x))
}

fn compare(what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs, agree: impl Fn(f32, f32) -> bool) {
    let rounds = rounds();
    if rounds.is_empty() {
        return;
    }
    let naive: Arc<dyn Device> = Naive::new();
    let expected = work(&naive);
    let mut first: Option<Outputs> = None;
    for (round, device) in rounds.iter().enumerate() {
        let got = work(device);
        for ((name, expected), (_, got)) in expected.iter().zip(&got) {
            check(&format!("{what}: {name}"), expected, got, &agree);
        }
        let first = first.get_or_insert_with(|| got.clone());
        for ((name, first), (_, got)) in first.iter().zip(&got) {
            check(&format!("{what}: {name} in round {round}"), first, got, |a, b| a.to_bits() == b.to_bits());
        }
    }
}

/// What kernels are tried on: a card, twice, where `WELS_TEST_DEVICE` is `cuda`; else the emulator in eight orders.
pub fn rounds() -> Vec<Arc<dyn Device>> {
    if std::env::var(VARIABLE).is_ok_and(|name| name == "cuda") {
        return vec![Cuda::open().unwrap_or_else(|why| panic!("{why}")); 2];
    }
    let of_seed = |seed| Some(Cuda::on(Emulator::open(seed).ok()?) as Arc<dyn Device>);
    if emulator().is_some() { (1..=8).filter_map(of_seed).collect() } else { Vec::new() }
}

/// The emulator in eight orders as Hopper, in as many as Ampere, and as a card with less shared memory than most
/// kernels take; a card, twice, where `WELS_TEST_DEVICE` is `cuda`.
pub fn generations() -> Vec<Vec<Arc<dyn Device>>> {
    if std::env::var(VARIABLE).is_ok_and(|name| name == "cuda") {
        return vec![rounds()];
    }
    let of = |seed, major, minor| {
        let emulator = Emulator::open(seed).ok()?;
        emulator.set_capability(major, minor);
        Some(Cuda::on(emulator) as Arc<dyn Device>)
    };
    let ampere = (1..=8).filter_map(|seed| of(seed, 8, 0)).collect();
    vec![rounds(), ampere, of(1, 8, 6).into_iter().collect()]
}

/// How far sums of bf16 in an order of their own may be from the plain loops', by the norm.
pub const BF16_TOLERANCE: f64 = 1e-2;

/// ‖got − expected‖ / ‖expected‖, infinite where one of the two is not finite.
pub fn relative_error(expected: &[f32], got: &[f32]) -> f64 {
    assert_eq!(expected.len(), got.len());
    let square = |x: f64| x * x;
    let off: f64 = expected.iter().zip(got).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = expected.iter().map(|a| square(f64::from(*a))).sum();
    let error = if off == 0.0 { 0.0 } else { (off / all).sqrt() };
    if error.is_finite() { error } else { f64::INFINITY }
}

/// In which format operands are, and to which their numbers are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    F32,
    /// Numbers of bf16, as f32.
    Rounded,
    Bf16,
}

impl Operands {
    /// Those of attention in bf16: in this format where a card computes, in f32 where plain loops do.
    pub fn of(device: &Arc<dyn Device>) -> Operands {
        if device.name() == "cuda" { Operands::Bf16 } else { Operands::Rounded }
    }

    fn dtype(self) -> Dtype {
        if self == Operands::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
    }

    /// Rows of a tensor of [`numbers`].
    pub fn rows(self, device: &Arc<dyn Device>, stream: u64, rows: std::ops::Range<usize>, cols: usize) -> Tensor {
        let mut values = numbers(stream, rows.end * cols).split_off(rows.start * cols);
        if self != Operands::F32 {
            values.iter_mut().for_each(|x| *x = convert::from_bf16(convert::to_bf16(*x)));
        }
        let mut tensor = self.empty(device, rows.len(), cols);
        tensor.set(0, &values);
        tensor
    }

    /// A tensor for an output.
    pub fn empty(self, device: &Arc<dyn Device>, rows: usize, cols: usize) -> Tensor {
        Tensor::new(device, self.dtype(), rows, cols)
    }
}

/// The emulator; none, and a line that says so, where it could not be built.
pub fn emulator() -> Option<Arc<Emulator>> {
    match Emulator::open(1) {
        Ok(emulator) => Some(emulator),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// The first output that is further than `tolerance` from what it should be, of 1 where that is smaller.
pub fn difference(expected: &Outputs, got: &Outputs, tolerance: f32) -> Option<String> {
    let near = |a: f32, b: f32| a == b || (a - b).abs() <= tolerance * a.abs().max(1.0);
    let differs = |a: f32, b: f32| !(near(a, b) || a.is_nan() && b.is_nan());
    expected.iter().zip(got).find_map(|((name, expected), (_, got))| {
        let count = expected.iter().zip(got).filter(|(a, b)| differs(**a, **b)).count();
        (count > 0).then(|| format!("{count} of {} elements of {name} differ", got.len()))
    })
}

fn check(what: &str, expected: &[f32], got: &[f32], same: impl Fn(f32, f32) -> bool) {
    assert_eq!(expected.len(), got.len(), "elements of {what}");
    let wrong = expected.iter().zip(got).position(|(a, b)| !same(*a, *b));
    let Some(at) = wrong else { return };
    let count = expected.iter().zip(got).filter(|(a, b)| !same(**a, **b)).count();
    panic!("{what}: element {at} is {:e} and not {:e}, and {count} of {} differ", got[at], expected[at], got.len());
}

/// Numbers around 0, different for each `stream`.
pub fn numbers(stream: u64, len: usize) -> Vec<f32> {
    let mut state = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() + next()).collect()
}

/// A tensor of such numbers.
pub fn tensor(device: &Arc<dyn Device>, stream: u64, rows: usize, cols: usize) -> Tensor {
    Tensor::of(device, rows, cols, &numbers(stream, rows * cols))
}

/// As [`near`], within what rounding a result to bf16 does.
pub fn near_in_bf16(what: &str, work: impl Fn(&Arc<dyn Device>) -> Outputs) {
    compare(what, work, |a, b| (a - b).abs() <= a.abs() / 128.0 + 1e-4);
}

/// A tensor for an output.
pub fn empty(device: &Arc<dyn Device>, rows: usize, cols: usize) -> Tensor {
    Tensor::new(device, Dtype::F32, rows, cols)
}

/// Its values.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_host().into_owned()
}

/// Activations: numbers that bf16 has, by cards in bf16, by the plain loops in f32.
pub fn activation(device: &Arc<dyn Device>, stream: u64, rows: usize, cols: usize) -> Tensor {
    activation_of(device, rows, cols, &numbers(stream, rows * cols))
}

/// As [`activation`] of these numbers, which are rounded.
pub fn activation_of(device: &Arc<dyn Device>, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    let mut tensor = empty_activation(device, rows, cols);
    tensor.set(0, &values.iter().map(|x| rounded(*x)).collect::<Vec<_>>());
    tensor
}

/// Activations for an output.
pub fn empty_activation(device: &Arc<dyn Device>, rows: usize, cols: usize) -> Tensor {
    let dtype = if device.name() == "cuda" { Dtype::Bf16 } else { Dtype::F32 };
    Tensor::new(device, dtype, rows, cols)
}
