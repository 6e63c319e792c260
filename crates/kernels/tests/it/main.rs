//! The kernels against their references, bit for bit, on every instruction set of this machine.

mod attention;
mod bits;
mod compressed;
mod distil;
mod gemm;
mod head;
mod image_gradients;
mod images;
mod memory_bound;
mod paged;
mod pictures;
mod properties;
mod quant;
mod softmax;
mod sparse;
mod table;

use std::io::Write;
use std::sync::Once;

use wels_kernels::isa::{self, Isa};
use wels_kernels::par;
use wels_kernels::random;

/// Calls `check` on every instruction set of this machine with one thread, and on the best with two. What this leaves
/// out is said once, also where all tests pass.
pub fn everywhere(check: impl Fn(&str) + Sync + Send) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let missing = isa::missing();
        if !missing.is_empty() {
            // Not `eprintln!`, which the harness keeps to itself where a test passes.
            let line = format!("not tested here, since this machine has none of it: {}\n", missing.join(", "));
            std::io::stderr().write_all(line.as_bytes()).expect("standard error");
        }
    });
    for isa in Isa::all_available() {
        isa::with(isa, || check(isa.name()));
    }
    par::with_threads(2, || check("two threads"));
    par::with_threads(1, || check("one thread"));
}

/// Numbers in −1..1, the same every time.
pub fn numbers(stream: u64, len: usize) -> Vec<f32> {
    let key = random::Key { seed: 7, stream };
    (0..len as u64).map(|i| (2.0 * key.uniform_at(i) - 1.0) as f32).collect()
}

/// Fails at the first element that differs in any bit, the sign of zero included; a NaN is as good as another.
pub fn assert_same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let same = g.to_bits() == e.to_bits() || (g.is_nan() && e.is_nan());
        assert!(same, "{what}: element {i} is {g:e} instead of {e:e}");
    }
}

#[test]
#[should_panic(expected = "element 1 is -0e0 instead of 0e0")]
fn a_zero_of_the_other_sign_is_not_the_same() {
    assert_same("zeros", &[0.0, -0.0], &[0.0, 0.0]);
}

#[test]
fn every_set_is_tested_or_said_to_be_missing() {
    let missing = isa::missing();
    for isa in Isa::ALL {
        assert_ne!(Isa::all_available().any(|other| other == isa), missing.contains(&isa.name()), "{}", isa.name());
    }
}
