//! The kernels against their references, bit for bit, on every instruction set of this machine.

mod attention;
mod distil;
mod gemm;
mod head;
mod memory_bound;
mod paged;
mod properties;
mod quant;
mod table;

use wels_kernels::isa::{self, Isa};
use wels_kernels::par;
use wels_kernels::random;

/// Calls `check` on every instruction set with one thread, and on the best with two.
pub fn everywhere(check: impl Fn(&str) + Sync + Send) {
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

/// Fails at the first element that differs in any bit but the sign of zero.
pub fn assert_same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(g == e || (g.is_nan() && e.is_nan()), "{what}: element {i} is {g:e} instead of {e:e}");
    }
}
