//! Tiled attention against plain loops: every bit, on every instruction set, with one thread and several.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::attention::{self, Heads, HeadsMut, Keys, Shape};
use wels_kernels::reference::attention as reference;

struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    own: usize,
    shared: usize,
    v: usize,
    starts: &'static [u32],
    window: Option<usize>,
    sinks: bool,
    cap: Option<f32>,
}

#[rustfmt::skip]
const CASES: [Case; 14] = [
    Case { name: "one token", heads: 1, kv_heads: 1, own: 4, shared: 0, v: 4, starts: &[0, 1], window: None, sinks: false, cap: None },
    Case { name: "GQA", heads: 6, kv_heads: 2, own: 8, shared: 0, v: 8, starts: &[0, 13, 13, 50], window: None, sinks: false, cap: None },
    Case { name: "MLA", heads: 3, kv_heads: 3, own: 32, shared: 16, v: 32, starts: &[0, 100, 131], window: None, sinks: false, cap: None },
    Case { name: "odd widths", heads: 2, kv_heads: 1, own: 5, shared: 2, v: 19, starts: &[0, 49], window: None, sinks: false, cap: None },
    Case { name: "long", heads: 1, kv_heads: 1, own: 16, shared: 0, v: 48, starts: &[0, 300], window: None, sinks: false, cap: None },
    Case { name: "only itself", heads: 2, kv_heads: 1, own: 4, shared: 0, v: 4, starts: &[0, 70, 71], window: Some(1), sinks: false, cap: None },
    Case { name: "five", heads: 6, kv_heads: 2, own: 8, shared: 0, v: 8, starts: &[0, 13, 13, 90], window: Some(5), sinks: false, cap: None },
    Case { name: "32", heads: 2, kv_heads: 2, own: 16, shared: 4, v: 8, starts: &[0, 33, 200], window: Some(32), sinks: false, cap: None },
    Case { name: "61", heads: 1, kv_heads: 1, own: 16, shared: 0, v: 48, starts: &[0, 300], window: Some(61), sinks: false, cap: None },
    Case { name: "wide", heads: 2, kv_heads: 1, own: 5, shared: 0, v: 19, starts: &[0, 49], window: Some(49), sinks: false, cap: None },
    Case { name: "sinks", heads: 6, kv_heads: 2, own: 8, shared: 0, v: 8, starts: &[0, 13, 13, 50], window: None, sinks: true, cap: None },
    Case { name: "sinks, 5", heads: 4, kv_heads: 2, own: 8, shared: 0, v: 5, starts: &[0, 33], window: Some(5), sinks: true, cap: None },
    Case { name: "a cap", heads: 4, kv_heads: 2, own: 8, shared: 0, v: 5, starts: &[0, 33, 90], window: None, sinks: false, cap: Some(0.9) },
    Case { name: "a cap, 5", heads: 4, kv_heads: 2, own: 8, shared: 0, v: 5, starts: &[0, 33], window: Some(5), sinks: true, cap: Some(0.9) },
];

/// Queries, keys with values interleaved as MLA's up-projection gives them, and shared keys.
struct Inputs {
    q: Vec<f32>,
    kv: Vec<f32>,
    shared: Vec<f32>,
    d_out: Vec<f32>,
}

impl Case {
    fn tokens(&self) -> usize {
        *self.starts.last().unwrap() as usize
    }

    fn shape(&self) -> Shape {
        Shape { heads: self.heads, kv_heads: self.kv_heads, scale: 0.7, window: self.window, cap: self.cap }
    }

    fn sinks(&self) -> Option<Vec<f32>> {
        self.sinks.then(|| numbers(5, self.heads).into_iter().map(|sink| 3.0 * sink).collect())
    }

    fn inputs(&self) -> Inputs {
        let t = self.tokens();
        Inputs {
            q: numbers(1, t * self.heads * (self.own + self.shared)),
            kv: numbers(2, t * self.kv_heads * (self.own + self.v)),
            shared: numbers(3, t * self.shared),
            d_out: numbers(4, t * self.heads * self.v),
        }
    }

    fn operands<'a>(&self, inputs: &'a Inputs) -> (Heads<'a>, Keys<'a>, Heads<'a>) {
        let pair = self.own + self.v;
        let row_stride = self.kv_heads * pair;
        let own = Heads { data: &inputs.kv, row_stride, offset: 0, head_stride: pair, dim: self.own };
        let v = Heads { offset: self.own, dim: self.v, ..own };
        let shared = (self.shared > 0).then(|| Heads::contiguous(&inputs.shared, 1, self.shared));
        (Heads::contiguous(&inputs.q, self.heads, self.own + self.shared), Keys { own, shared }, v)
    }

    fn forward(&self, inputs: &Inputs, plain: bool) -> [Vec<f32>; 2] {
        let t = self.tokens();
        let (q, k, v) = self.operands(inputs);
        let (mut out, mut stats) = (vec![f32::NAN; t * self.heads * self.v], vec![f32::NAN; t * self.heads * 2]);
        let kernel = if plain { reference::forward } else { attention::forward };
        let sinks = self.sinks();
        kernel(self.shape(), sinks.as_deref(), None, self.starts, q, k, v, &mut out, &mut stats);
        [out, stats]
    }

    fn backward(&self, inputs: &Inputs, [out, stats]: &[Vec<f32>; 2], plain: bool) -> [Vec<f32>; 3] {
        let (q, k, v) = self.operands(inputs);
        let mut dq = vec![f32::NAN; inputs.q.len()];
        let mut dkv = vec![f32::NAN; inputs.kv.len()];
        let mut dshared = vec![f32::NAN; inputs.shared.len()];
        let dq_heads = HeadsMut::like(&mut dq, &q);
        let (dk, dv) = HeadsMut::pair_like(&mut dkv, &k.own, &v);
        let dk_shared = k.shared.as_ref().map(|shared| HeadsMut::like(&mut dshared, shared));
        let kernel = if plain { reference::backward } else { attention::backward };
        kernel(self.shape(), None, self.starts, q, k, v, out, stats, &inputs.d_out, dq_heads, dk, dk_shared, dv);
        [dq, dkv, dshared]
    }
}

/// Calls `visit` with the name of each case and what it gives forward and backward.
pub fn each(mut visit: impl FnMut(&str, &[f32])) {
    for case in &CASES {
        let inputs = case.inputs();
        let forward = case.forward(&inputs, false);
        let backward = case.backward(&inputs, &forward, false);
        forward.iter().chain(&backward).for_each(|results| visit(case.name, results));
    }
}

#[test]
fn forward_and_backward_equal_the_reference() {
    for case in &CASES {
        let inputs = case.inputs();
        let expected = case.forward(&inputs, true);
        let expected_gradients = case.backward(&inputs, &expected, true);
        everywhere(|isa| {
            let results = case.forward(&inputs, false);
            assert_same(&format!("{} out {isa}", case.name), &results[0], &expected[0]);
            assert_same(&format!("{} stats {isa}", case.name), &results[1], &expected[1]);
            let gradients = case.backward(&inputs, &results, false);
            for (what, (got, expected)) in
                ["dq", "dkv", "dshared"].iter().zip(gradients.iter().zip(&expected_gradients))
            {
                assert_same(&format!("{} {what} {isa}", case.name), got, expected);
            }
        });
    }
}

/// A window that holds the whole sequence changes no bit, a shorter one does.
#[test]
fn a_window_holds_so_many_keys() {
    let [plain, wide] = [None, Some(49)].map(|window| Case { window, ..CASES[9] });
    let [expected, got] = [&plain, &wide].map(|case| case.forward(&case.inputs(), false));
    assert_same("a wide window", &got[0], &expected[0]);
    let narrow = Case { window: Some(48), ..plain };
    let row = narrow.heads * narrow.v;
    let got = narrow.forward(&narrow.inputs(), false);
    assert_same("rows that see all", &got[0][..48 * row], &expected[0][..48 * row]);
    assert!(got[0][48 * row..] != expected[0][48 * row..], "the last row does not see the first key");
}

/// A sink is a key of its own score whose value is 0: what is left of the other weights is as with such a key, and its
/// gradient agrees with finite differences.
#[test]
fn sinks_take_their_share() {
    let case = &CASES[11];
    let (inputs, sinks) = (case.inputs(), case.sinks().unwrap());
    let loss = |sinks: &[f32]| -> f64 {
        let (q, k, v) = case.operands(&inputs);
        let (mut out, mut stats) = (vec![0.0; inputs.d_out.len()], vec![0.0; case.tokens() * case.heads * 2]);
        attention::forward(case.shape(), Some(sinks), None, case.starts, q, k, v, &mut out, &mut stats);
        out.iter().zip(&inputs.d_out).map(|(o, g)| *o as f64 * *g as f64).sum()
    };
    let [out, stats] = case.forward(&inputs, false);
    let mut expected = vec![f32::NAN; case.tokens() * case.heads];
    reference::sink_terms(&sinks, &out, &stats, &inputs.d_out, &mut expected);
    everywhere(|isa| {
        let mut terms = vec![f32::NAN; expected.len()];
        attention::sink_terms(&sinks, &out, &stats, &inputs.d_out, &mut terms);
        assert_same(&format!("terms {isa}"), &terms, &expected);
    });
    for h in 0..case.heads {
        let gradient: f64 = expected.iter().skip(h).step_by(case.heads).map(|term| *term as f64).sum();
        let at = |delta: f32| {
            let mut moved = sinks.clone();
            moved[h] += delta;
            loss(&moved)
        };
        let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((difference - gradient).abs() < 2e-3, "head {h}: {difference} by difference, {gradient} by rule");
    }
    let least = attention_with_sink_of(case, &inputs, -1e30);
    let none = Case { sinks: false, ..CASES[11] }.forward(&inputs, false);
    assert_same("a sink that weighs nothing", &least, &none[0]);
}

fn attention_with_sink_of(case: &Case, inputs: &Inputs, sink: f32) -> Vec<f32> {
    let (q, k, v) = case.operands(inputs);
    let (mut out, mut stats) = (vec![0.0; inputs.d_out.len()], vec![0.0; case.tokens() * case.heads * 2]);
    let sinks = vec![sink; case.heads];
    attention::forward(case.shape(), Some(&sinks), None, case.starts, q, k, v, &mut out, &mut stats);
    out
}

#[test]
fn gradients_agree_with_finite_differences() {
    for case in [&CASES[3], &CASES[6], &CASES[11], &CASES[12], &CASES[13]] {
        check_differences(case);
    }
}

fn check_differences(case: &Case) {
    let inputs = case.inputs();
    let results = case.forward(&inputs, false);
    let gradients = case.backward(&inputs, &results, false);
    let loss = |inputs: &Inputs| -> f64 {
        case.forward(inputs, false)[0].iter().zip(&inputs.d_out).map(|(o, g)| *o as f64 * *g as f64).sum()
    };
    for (which, gradient) in gradients.iter().enumerate() {
        for i in (0..gradient.len()).step_by(17) {
            let h = 1e-2;
            let at = |delta: f32| {
                let mut moved = case.inputs();
                [&mut moved.q, &mut moved.kv, &mut moved.shared][which][i] += delta;
                loss(&moved)
            };
            let difference = (at(h) - at(-h)) / (2.0 * h as f64);
            let error = (difference - gradient[i] as f64).abs();
            assert!(
                error < 2e-3,
                "operand {which}, element {i}: {} by difference, {} by rule",
                difference,
                gradient[i]
            );
        }
    }
}

/// Heads that overlap, in one view or in the two of a buffer, would be written to by two threads at once.
#[test]
fn gradients_that_overlap_are_refused() {
    let numbers = vec![0.0; 64];
    let heads = |offset, head_stride, dim| Heads { data: &numbers, row_stride: 16, offset, head_stride, dim };
    let refused = |of: &dyn Fn(&mut [f32])| {
        let mut data = vec![0.0; 64];
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| of(&mut data))).is_err()
    };
    let backward = |dq: HeadsMut, (dk, dv): (HeadsMut, HeadsMut)| {
        let (q, k, v) = (heads(0, 4, 4), Keys { own: heads(0, 8, 4), shared: None }, heads(4, 8, 4));
        let shape = Shape { heads: 2, kv_heads: 2, scale: 1.0, window: None, cap: None };
        let (out, stats) = (vec![0.0; 32], vec![1.0; 16]);
        attention::backward(shape, None, &[0, 4], q, k, v, &out, &stats, &out, dq, dk, None, dv);
    };
    let run = |dq: Heads, dk: Heads, dv: Heads| {
        let mut data = vec![0.0; 64];
        let mut of_q = vec![0.0; 64];
        backward(HeadsMut::like(&mut of_q, &dq), HeadsMut::pair_like(&mut data, &dk, &dv));
        data
    };
    let (q, k, v) = (heads(0, 4, 4), heads(0, 8, 4), heads(4, 8, 4));
    assert!(!refused(&|_| _ = run(q, k, v)), "parts side by side");
    assert!(refused(&|_| _ = run(heads(0, 2, 4), k, v)), "heads of one view");
    assert!(refused(&|_| _ = run(Heads { row_stride: 6, ..q }, k, v)), "rows of one view");
    assert!(refused(&|data| _ = HeadsMut::pair_like(data, &k, &heads(3, 8, 4))), "parts of a head");
    assert!(refused(&|data| _ = HeadsMut::pair_like(data, &k, &heads(6, 8, 4))), "a part and the next head");
    let narrow = |heads: Heads<'static>| Heads { row_stride: 12, ..heads };
    let (k, v) = (Heads { data: &[], ..k }, Heads { data: &[], ..v });
    assert!(refused(&|_| _ = run(q, narrow(k), narrow(v))), "a part and the next row");
}
