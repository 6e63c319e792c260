//! What the table of cases is for, and properties that no table states.

use crate::table::{self, Case, Size};
use crate::{assert_same, everywhere};
use std::time::Instant;

#[test]
fn kernels_equal_their_references() {
    table::each(Size::Small, &mut |case: Case| {
        let mut expected = case.outputs.clone();
        (case.reference)(&case.inputs, &mut expected);
        let (kernel, inputs, outputs) = (case.kernel, &case.inputs, &case.outputs);
        everywhere(|isa| {
            let mut got = outputs.clone();
            kernel(inputs, &mut got);
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert_same(&format!("{} ({isa}), output {i}", case.name), got, expected);
            }
        });
    });
}

/// Central differences in f64; of large inputs only some elements.
#[test]
fn gradients_equal_finite_differences() {
    const STEP: f64 = 1e-5;
    let mut checked = 0;
    table::each(Size::Small, &mut |case: Case| {
        let Some(loss) = case.loss else { return };
        let mut gradients = case.outputs.clone();
        (case.kernel)(&case.inputs, &mut gradients);
        let mut inputs: Vec<Vec<f64>> =
            case.inputs.iter().map(|input| input.iter().map(|&x| f64::from(x)).collect()).collect();
        for &(input, output) in loss.gradients {
            let gradient = &gradients[output];
            assert_eq!(gradient.len(), inputs[input].len(), "{}: output {output}", case.name);
            let greatest = gradient.iter().fold(1.0f32, |max, g| max.max(g.abs()));
            for i in (0..gradient.len()).step_by(gradient.len() / 200 + 1) {
                let x = inputs[input][i];
                let mut at = |x: f64| {
                    inputs[input][i] = x;
                    (loss.value)(&inputs)
                };
                let slope = (at(x + STEP) - at(x - STEP)) / (2.0 * STEP);
                at(x);
                let error = (slope - f64::from(gradient[i])).abs();
                let name = &case.name;
                assert!(error < 2e-6 * f64::from(greatest), "{name}: d{input}[{i}] is {}, slope {slope}", gradient[i]);
                checked += 1;
            }
        }
    });
    assert!(checked > 5000, "only {checked} derivatives were checked");
}

/// Prints the least time and the bandwidth of each case; the bytes are those of all inputs and outputs, each once.
#[test]
#[ignore = "measures: cargo test --release -p wels-kernels -- --ignored --nocapture speed"]
fn speed() {
    table::each(Size::Large, &mut |case: Case| {
        let mut outputs = case.outputs.clone();
        let seconds = (0..20).map(|_| {
            let start = Instant::now();
            (case.kernel)(&case.inputs, &mut outputs);
            start.elapsed().as_secs_f64()
        });
        let least = seconds.fold(f64::INFINITY, f64::min);
        let elements: usize = case.inputs.iter().chain(&outputs).map(Vec::len).sum();
        println!("{:>9.1} µs {:>6.1} GB/s  {}", least * 1e6, elements as f64 * 4e-9 / least, case.name);
    });
}
