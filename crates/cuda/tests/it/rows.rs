//! Row by row, and the optimizer.

use wels_device::host::{Layout, Scaling, Table};
use wels_device::{AdamW, Device, Direction, Dtype, Ids, Rotary, RotaryColumns, Start, Tensor, WeightRef};

use std::sync::Arc;

use crate::lab::{Outputs, empty, numbers, same, tensor, values};

const SIZES: [(usize, usize); 5] = [(1, 1), (1, 37), (3, 16), (70, 129), (9, 300)];

#[test]
fn copies_and_additions() {
    for (rows, cols) in SIZES {
        let whole: Ids = vec![0, rows as u32].into();
        same("additions", |device| {
            let (x, mut y) = (tensor(device, 1, rows, cols), tensor(device, 2, rows, cols));
            let (bias, mut dbias) = (tensor(device, 3, 1, cols), tensor(device, 4, 1, cols));
            device.add(&x, &mut y);
            device.add_bias(&bias, &mut y);
            device.bias_backward(&x, &whole, &mut dbias, Start::Continue);
            let mut from_zero = empty(device, 1, cols);
            device.bias_backward(&x, &whole, &mut from_zero, Start::Zero);
            let mut wide = tensor(device, 5, rows, cols + 7);
            device.copy_columns(&x, cols / 2, &mut wide, 3, cols - cols / 2);
            let mut copied = tensor(device, 6, rows + 2, cols);
            device.copy_rows(&x, 0, &mut copied, 2, rows);
            vec![
                ("y", values(&y)),
                ("dbias", values(&dbias)),
                ("dbias from zero", values(&from_zero)),
                ("columns", values(&wide)),
                ("rows", values(&copied)),
            ]
        });
    }
}

#[test]
fn heads_side_by_side_and_one_below_the_other() {
    for (tokens, heads, width) in [(1, 1, 4), (5, 3, 7), (33, 4, 16)] {
        same("heads", |device| {
            let x = tensor(device, 1, tokens, heads * (width + 2) + 3);
            let (mut below, mut beside) = (empty(device, heads * tokens, width), empty(device, tokens, heads * width));
            device.split_heads(&x, heads, 3, width + 2, &mut below);
            device.join_heads(&below, heads, &mut beside);
            vec![("below", values(&below)), ("beside", values(&beside))]
        });
    }
}

#[test]
fn norms() {
    for (rows, cols) in SIZES {
        let whole: Ids = vec![0, rows as u32].into();
        same("rms_norm", |device| {
            let (x, w, dy) = (tensor(device, 1, rows, cols), tensor(device, 2, 1, cols), tensor(device, 3, rows, cols));
            let (mut y, mut rstd) = (empty(device, rows, cols), empty(device, rows, 1));
            device.rms_norm(&x, &w, 1e-6, &mut y, &mut rstd);
            let mut out = vec![("y", values(&y)), ("rstd", values(&rstd))];
            for start in [Start::Zero, Start::Continue] {
                let (mut dx, mut dw) = (tensor(device, 4, rows, cols), tensor(device, 5, 1, cols));
                device.rms_norm_backward(&dy, &x, &w, &rstd, &whole, (&mut dx, start), (&mut dw, start));
                out.extend([("dx", values(&dx)), ("dw", values(&dw))]);
            }
            out
        });
    }
}

#[test]
fn rotary_embedding() {
    for layout in [Layout::Interleaved, Layout::HalfSplit] {
        for direction in [Direction::Forward, Direction::Backward] {
            same("rope", |device| {
                let (tokens, heads, half) = (11, 3, 4);
                let rotary = Rotary::new(Table::new(2 * half, 1e4, &Scaling::None, 64), layout);
                let positions: Ids = (0..tokens as u32).map(|t| t * 7 % 60).collect::<Vec<_>>().into();
                let mut x = tensor(device, 1, tokens, heads * 12 + 5);
                let at = RotaryColumns { offset: 5 + 4, head_stride: 12, heads };
                device.rope(&mut x, &positions, &rotary, at, direction);
                vec![("x", values(&x))]
            });
        }
    }
}

#[test]
fn gated_units() {
    for (rows, cols) in SIZES {
        same("swiglu", |device| {
            let of = |stream| tensor(device, stream, rows, cols);
            let mut gate = of(1);
            gate.set(0, &[-200.0]);
            let (up, dy) = (of(2), of(3));
            let (mut y, mut dgate, mut dup) = (of(4), of(5), of(6));
            device.swiglu(&gate, &up, &mut y);
            device.swiglu_backward(&dy, &gate, &up, &mut dgate, &mut dup);
            vec![("y", values(&y)), ("dgate", values(&dgate)), ("dup", values(&dup))]
        });
    }
}

#[test]
fn embedding() {
    for (tokens, rows, d) in [(1, 1, 3), (40, 9, 17), (5, 100, 32)] {
        same("embedding", |device| {
            let ids: Ids = (0..tokens as u32).map(|t| t * t * 31 % rows as u32).collect::<Vec<_>>().into();
            let (table, dy) = (tensor(device, 1, rows, d), tensor(device, 2, tokens, d));
            let mut y = empty(device, tokens, d);
            device.gather(WeightRef::Plain(&table), &ids, &mut y);
            let mut out = vec![("y", values(&y))];
            for start in [Start::Zero, Start::Continue] {
                let mut dtable = tensor(device, 3, rows, d);
                device.gather_backward(&dy, &ids, &mut dtable, start);
                out.push(("dtable", values(&dtable)));
            }
            out
        });
    }
}

#[test]
fn optimizer() {
    for len in [1, 300, 4096, 9001] {
        same("adamw", |device| {
            let (mut params, grads) = (tensor(device, 1, 1, len + 9), tensor(device, 2, 1, len));
            let (mut m, mut v) = (tensor(device, 3, 1, len), Tensor::zeros(device, 1, len));
            let squares: Vec<f32> = numbers(4, len).iter().map(|x| x * x).collect();
            v.set(0, &squares);
            let rule = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 7 };
            device.adamw((&mut params, 5), &grads, (&mut m, &mut v), &rule, 0.3);
            let sums = device.squares(&grads);
            vec![("params", values(&params)), ("m", values(&m)), ("v", values(&v)), ("squares", sums)]
        });
    }
}

#[test]
fn number_formats_and_what_is_not_finite() {
    same("bf16", |device| {
        let mut half = Tensor::new(device, Dtype::Bf16, 3, 11);
        half.fill(1.2345);
        half.set(5, &numbers(1, 20));
        let mut copy = Tensor::new(device, Dtype::Bf16, 3, 11);
        device.copy_rows(&half, 0, &mut copy, 0, 3);
        let finite = |x: &Tensor| f32::from(u8::from(device.is_finite(x)));
        let mut x = tensor(device, 2, 700, 3);
        let mut found = vec![finite(&x), finite(&half)];
        x.set(2099, &[f32::NAN]);
        found.push(finite(&x));
        x.set(2099, &[f32::NEG_INFINITY]);
        found.push(finite(&x));
        vec![("copy", values(&copy)), ("finite", found)]
    });
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    let (x, w, mut y) = (tensor(device, 1, 3, 100), tensor(device, 2, 1, 100), tensor(device, 3, 3, 100));
    let mut rstd = empty(device, 3, 1);
    device.add(&x, &mut y);
    let sums = values(&y);
    device.rms_norm(&x, &w, 1e-6, &mut y, &mut rstd);
    vec![("sums", sums), ("y", values(&y)), ("rstd", values(&rstd))]
}
