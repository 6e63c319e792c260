//! Tiled attention against plain loops: every bit, on every instruction set, with one thread and several.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::attention::{self, Heads, HeadsMut, Keys, Shape};
use wels_kernels::par::SharedMut;
use wels_kernels::reference::attention as reference;

struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    own: usize,
    shared: usize,
    v: usize,
    starts: &'static [u32],
}

const CASES: [Case; 5] = [
    Case { name: "one token", heads: 1, kv_heads: 1, own: 4, shared: 0, v: 4, starts: &[0, 1] },
    Case { name: "GQA", heads: 6, kv_heads: 2, own: 8, shared: 0, v: 8, starts: &[0, 13, 13, 50] },
    Case { name: "MLA", heads: 3, kv_heads: 3, own: 32, shared: 16, v: 32, starts: &[0, 100, 131] },
    Case { name: "odd widths", heads: 2, kv_heads: 1, own: 5, shared: 2, v: 19, starts: &[0, 49] },
    Case { name: "long", heads: 1, kv_heads: 1, own: 16, shared: 0, v: 48, starts: &[0, 300] },
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
        Shape { heads: self.heads, kv_heads: self.kv_heads, scale: 0.7 }
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
        kernel(self.shape(), self.starts, q, k, v, &mut out, &mut stats);
        [out, stats]
    }

    fn backward(&self, inputs: &Inputs, [out, stats]: &[Vec<f32>; 2], plain: bool) -> [Vec<f32>; 3] {
        let (q, k, v) = self.operands(inputs);
        let mut dq = vec![f32::NAN; inputs.q.len()];
        let mut dkv = vec![f32::NAN; inputs.kv.len()];
        let mut dshared = vec![f32::NAN; inputs.shared.len()];
        let (row_stride, head_stride) = (k.own.row_stride, k.own.head_stride);
        let dq_heads = HeadsMut {
            data: SharedMut::new(&mut dq),
            row_stride: q.row_stride,
            offset: 0,
            head_stride: q.head_stride,
            dim: q.dim,
        };
        let dk = HeadsMut { data: SharedMut::new(&mut dkv), row_stride, offset: 0, head_stride, dim: self.own };
        let dv = HeadsMut { offset: self.own, dim: self.v, ..dk };
        let dk_shared = (self.shared > 0).then(|| HeadsMut {
            data: SharedMut::new(&mut dshared),
            row_stride: self.shared,
            offset: 0,
            head_stride: 0,
            dim: self.shared,
        });
        let kernel = if plain { reference::backward } else { attention::backward };
        kernel(self.shape(), self.starts, q, k, v, out, stats, &inputs.d_out, dq_heads, dk, dk_shared, dv);
        [dq, dkv, dshared]
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

#[test]
fn gradients_agree_with_finite_differences() {
    let case = &CASES[3];
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
