//! Row by row, and the optimizer.

use wels_device::host::{Layout, Scaling, Table};
use wels_device::{AdamW, Device, Direction, Dtype, Gating, Ids, Rotary, RotaryColumns, Start, Tensor, WeightRef};

use std::sync::Arc;

use crate::lab::{
    Outputs, activation, activation_of, empty, empty_activation, near_rounded, numbers, rounds, same, same_rounded,
    tensor, values,
};

const SIZES: [(usize, usize); 6] = [(1, 1), (1, 37), (3, 16), (70, 129), (9, 300), (190, 3)];

#[test]
fn copies_and_additions() {
    for (rows, cols) in SIZES {
        let whole: Ids = vec![0, rows as u32].into();
        same("additions", |device| {
            let (x, mut y) = (tensor(device, 1, rows, cols), tensor(device, 2, rows, cols));
            let (bias, mut dbias) = (tensor(device, 3, 1, cols), tensor(device, 4, 1, cols));
            device.add(&x, &mut y);
            device.add_bias(&bias, &mut y);
            device.scale(&mut y, 0.3);
            device.soft_cap(&mut y, 0.4);
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
    let clamped = Gating::Clamped { alpha: 1.702, limit: 0.5 };
    for ((rows, cols), gating) in
        SIZES.into_iter().flat_map(|size| [Gating::Silu, clamped, Gating::GeluTanh].map(|it| (size, it)))
    {
        same(&format!("{gating:?}"), |device| {
            let of = |stream| tensor(device, stream, rows, cols);
            let mut gate = of(1);
            gate.set(0, &[-200.0]);
            let (up, dy) = (of(2), of(3));
            let (mut y, mut dgate, mut dup) = (of(4), of(5), of(6));
            device.gated(gating, &gate, &up, &mut y);
            device.gated_backward(gating, &dy, [&gate, &up], [&mut dgate, &mut dup]);
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
            let mut blended = tensor(device, 5, 1, len);
            device.blend(0.3, &grads, -1.7, &mut blended);
            let blended = ("blended", values(&blended));
            vec![("params", values(&params)), ("m", values(&m)), ("v", values(&v)), ("squares", sums), blended]
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

/// Of rows in bf16: pieces of eight whole and not, one warp a row and several, and more than their registers hold.
const WIDTHS: [(usize, usize); 9] =
    [(1, 1), (3, 37), (70, 24), (33, 129), (2, 800), (3, 2056), (2, 2051), (1, 4104), (1, 16_400)];

#[test]
fn copies_and_additions_in_bf16() {
    for (rows, cols) in WIDTHS {
        same_rounded("additions in bf16", |device| {
            let (x, mut y, mut z) = (
                activation(device, 1, rows, cols),
                activation(device, 2, rows, cols),
                activation(device, 3, rows, cols),
            );
            device.add(&x, &mut y);
            device.add_bias(&tensor(device, 4, 1, cols), &mut z);
            let mut scaled = activation(device, 4, rows, cols);
            device.scale(&mut scaled, 3.0);
            let (mut wide, mut odd) = (activation(device, 5, rows, cols + 16), activation(device, 6, rows, cols + 7));
            device.copy_columns(&x, 0, &mut wide, 8, cols);
            device.copy_columns(&x, cols / 2, &mut odd, 3, cols - cols / 2);
            let columns = [("columns", values(&wide)), ("odd columns", values(&odd))];
            let sums = [("y", values(&y)), ("z", values(&z)), ("scaled", values(&scaled))];
            sums.into_iter().chain(columns).collect()
        });
    }
}

#[test]
fn heads_in_bf16() {
    for (tokens, heads, width, gap) in [(1, 1, 4, 2), (5, 3, 7, 3), (33, 4, 16, 8)] {
        same_rounded("heads in bf16", |device| {
            let x = activation(device, 1, tokens, heads * (width + gap) + gap);
            let below = activation(device, 2, heads * tokens, width);
            let (mut split, mut joined) =
                (empty_activation(device, heads * tokens, width), empty_activation(device, tokens, heads * width));
            device.split_heads(&x, heads, gap, width + gap, &mut split);
            device.join_heads(&below, heads, &mut joined);
            vec![("split", values(&split)), ("joined", values(&joined))]
        });
    }
}

#[test]
fn norms_in_bf16() {
    for (rows, cols) in WIDTHS {
        near_rounded(&format!("rms_norm of {rows} rows of {cols} in bf16"), |device| {
            // Of this device: a list has one device's copy.
            let sequences: Ids = vec![0, rows as u32 / 3, rows as u32 / 3, rows as u32].into();
            let (x, w, dy) =
                (activation(device, 1, rows, cols), tensor(device, 2, 1, cols), activation(device, 3, rows, cols));
            let (mut y, mut rstd) = (empty_activation(device, rows, cols), empty(device, rows, 1));
            device.rms_norm(&x, &w, 1e-6, &mut y, &mut rstd);
            let mut out = vec![("y", values(&y)), ("rstd", values(&rstd))];
            for start in [Start::Zero, Start::Continue] {
                let (mut dx, mut dw) = (activation(device, 4, rows, cols), tensor(device, 5, 1, cols));
                let (dx_into, dw_into) = ((&mut dx, start), (&mut dw, start));
                device.rms_norm_backward(&dy, &x, &w, &rstd, &sequences, dx_into, dw_into);
                out.extend([("dx", values(&dx)), ("dw", values(&dw))]);
                let mut dbias = tensor(device, 6, 1, cols);
                device.bias_backward(&dy, &sequences, &mut dbias, start);
                out.push(("dbias", values(&dbias)));
            }
            out
        });
    }
}

/// dw of a norm and dbias of the rows of `starts`, in micro-batches that end at the sequences `cuts`.
fn gradients_in_parts(device: &Arc<dyn Device>, starts: &[u32], cuts: &[usize], cols: usize) -> [Vec<f32>; 2] {
    let (mut dw, mut dbias) = (empty(device, 1, cols), empty(device, 1, cols));
    let (w, mut start, mut first) = (tensor(device, 2, 1, cols), Start::Zero, 0);
    let rows = starts[starts.len() - 1] as usize;
    for cut in cuts {
        let (from, to) = (starts[first] as usize, starts[*cut] as usize);
        let part =
            |stream| activation_of(device, to - from, cols, &numbers(stream, rows * cols)[from * cols..to * cols]);
        let rstd = Tensor::of(device, to - from, 1, &numbers(4, rows)[from..to]);
        let sequences: Ids = starts[first..=*cut].iter().map(|at| at - from as u32).collect::<Vec<_>>().into();
        let (x, dy, mut dx) = (part(1), part(3), empty_activation(device, to - from, cols));
        let into = ((&mut dx, Start::Zero), (&mut dw, start));
        device.rms_norm_backward(&dy, &x, &w, &rstd, &sequences, into.0, into.1);
        device.bias_backward(&dy, &sequences, &mut dbias, start);
        (start, first) = (Start::Continue, *cut);
    }
    [values(&dw), values(&dbias)]
}

#[test]
fn micro_batches_change_no_bit_of_gradients_in_bf16() {
    let starts = [0, 70, 71, 71, 200, 333];
    for device in rounds() {
        for cols in [24, 37] {
            let whole = gradients_in_parts(&device, &starts, &[5], cols);
            for cuts in [&[1, 2, 3, 4, 5][..], &[2, 5], &[4, 5]] {
                assert_eq!(gradients_in_parts(&device, &starts, cuts, cols), whole, "cut at {cuts:?}, {cols} columns");
            }
        }
    }
}

#[test]
fn a_row_in_bf16_does_not_depend_on_its_batch() {
    for device in rounds() {
        for cols in [24, 37, 2056] {
            let (w, x) = (tensor(&device, 2, 1, cols), activation(&device, 1, 9, cols));
            let mut alone = empty_activation(&device, 1, cols);
            device.copy_rows(&x, 8, &mut alone, 0, 1);
            let norm = |x: &Tensor| {
                let (mut y, mut rstd) = (empty_activation(&device, x.rows(), cols), empty(&device, x.rows(), 1));
                device.rms_norm(x, &w, 1e-6, &mut y, &mut rstd);
                values(&y)
            };
            assert_eq!(norm(&x)[8 * cols..], norm(&alone), "the last of nine rows of {cols}");
        }
    }
}

#[test]
fn rotary_embedding_in_bf16() {
    for (half_width, stride, offset) in [(4, 12, 9), (16, 48, 8), (3, 7, 1)] {
        for (layout, direction) in [
            (Layout::Interleaved, Direction::Forward),
            (Layout::Interleaved, Direction::Backward),
            (Layout::HalfSplit, Direction::Forward),
            (Layout::HalfSplit, Direction::Backward),
        ] {
            same_rounded("rope in bf16", |device| {
                let (tokens, heads) = (11, 3);
                let rotary = Rotary::new(Table::new(2 * half_width, 1e4, &Scaling::None, 64), layout);
                let positions: Ids = (0..tokens as u32).map(|t| t * 7 % 60).collect::<Vec<_>>().into();
                let mut x = activation(device, 1, tokens, heads * stride + offset);
                let at = RotaryColumns { offset, head_stride: stride, heads };
                device.rope(&mut x, &positions, &rotary, at, direction);
                vec![("x", values(&x))]
            });
        }
    }
}

#[test]
fn gated_units_in_bf16() {
    let clamped = Gating::Clamped { alpha: 1.702, limit: 0.5 };
    for ((rows, cols), gating) in
        WIDTHS.into_iter().flat_map(|size| [Gating::Silu, clamped, Gating::GeluTanh].map(|it| (size, it)))
    {
        near_rounded(&format!("{gating:?} in bf16"), |device| {
            let of = |stream| activation(device, stream, rows, cols);
            let mut gate = of(1);
            gate.set(0, &[-200.0]);
            let (up, dy) = (of(2), of(3));
            let (mut y, mut dgate, mut dup) = (of(4), of(5), of(6));
            device.gated(gating, &gate, &up, &mut y);
            device.gated_backward(gating, &dy, [&gate, &up], [&mut dgate, &mut dup]);
            vec![("y", values(&y)), ("dgate", values(&dgate)), ("dup", values(&dup))]
        });
    }
}

#[test]
fn embedding_in_bf16() {
    for (tokens, rows, d) in [(1, 1, 3), (40, 9, 17), (5, 100, 32), (90, 2, 24)] {
        same_rounded("embedding in bf16", |device| {
            let ids: Ids = (0..tokens as u32).map(|t| t * t * 31 % rows as u32).collect::<Vec<_>>().into();
            let (table, dy) = (tensor(device, 1, rows, d), activation(device, 2, tokens, d));
            let half_table = activation(device, 4, rows, d);
            let (mut y, mut copied) = (empty_activation(device, tokens, d), empty_activation(device, tokens, d));
            device.gather(WeightRef::Plain(&table), &ids, &mut y);
            device.gather(WeightRef::Plain(&half_table), &ids, &mut copied);
            let mut out = vec![("y", values(&y)), ("copied", values(&copied))];
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
fn what_is_not_finite_in_bf16() {
    for device in rounds() {
        for len in [1, 8, 700] {
            let mut x = activation(&device, 1, 1, len);
            assert!(device.is_finite(&x), "{len} numbers");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x.set(len - 1, &[bad]);
                assert!(!device.is_finite(&x), "{bad} among {len} numbers");
            }
        }
    }
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

#[test]
fn what_planted_bugs_are_looked_for_in_is_right() {
    near_rounded("rows in bf16", in_bf16);
    near_rounded("experts in bf16", crate::experts::in_bf16);
}

/// For the planted bugs: more rows than are added at a time.
pub fn gradient(device: &Arc<dyn Device>) -> Outputs {
    let (dy, mut dbias) = (tensor(device, 1, 190, 40), empty(device, 1, 40));
    device.bias_backward(&dy, &vec![0, 190].into(), &mut dbias, Start::Zero);
    vec![("dbias", values(&dbias))]
}

/// For the planted bugs: rows of pieces that are whole and not, of one warp and several.
pub fn in_bf16(device: &Arc<dyn Device>) -> Outputs {
    let mut out = Vec::new();
    for (rows, cols) in [(9, 24), (3, 37), (2, 2056), (70, 300)] {
        let (x, w, mut y) =
            (activation(device, 1, rows, cols), tensor(device, 2, 1, cols), activation(device, 3, rows, cols));
        let (mut rstd, mut dw) = (empty(device, rows, 1), empty(device, 1, cols));
        let whole: Ids = vec![0, rows as u32].into();
        device.add(&x, &mut y);
        out.push(("sums", values(&y)));
        device.rms_norm(&x, &w, 1e-6, &mut y, &mut rstd);
        let (dy, mut dx) = (activation(device, 4, rows, cols), activation(device, 5, rows, cols));
        let into = ((&mut dx, Start::Continue), (&mut dw, Start::Zero));
        device.rms_norm_backward(&dy, &x, &w, &rstd, &whole, into.0, into.1);
        out.extend([("y", values(&y)), ("dx", values(&dx)), ("dw", values(&dw))]);
    }
    out
}
