//! Products of operands rounded to bf16: by wgmma where columns are pieces of 16 bytes, else by mma.sync.

use std::sync::Arc;

use wels_device::{Device, Groups, Precision, Start, WeightRef};

use crate::lab::{Outputs, empty, near, tensor, values};
use crate::products::routed;

/// T, K, N.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 8, 8), (1, 70, 130), (5, 33, 64), (64, 64, 256), (130, 72, 264), (129, 200, 24), (257, 16, 128)];

/// y and both ways of dx.
fn dense(device: &Arc<dyn Device>, (t, k, n): (usize, usize, usize)) -> Outputs {
    let (x, w, dy) = (tensor(device, 1, t, k), tensor(device, 2, n, k), tensor(device, 3, t, n));
    let mut y = empty(device, t, n);
    device.linear(Precision::Bf16, &x, &mut [(WeightRef::Plain(&w), &mut y)]);
    let mut out = vec![("y", values(&y))];
    for start in [Start::Zero, Start::Continue] {
        let mut dx = tensor(device, 4, t, k);
        device.linear_dx(Precision::Bf16, &dy, &w, (&mut dx, start));
        out.push(("dx", values(&dx)));
    }
    out
}

#[test]
fn dense_products() {
    for shape in SHAPES {
        near(&format!("dense {shape:?}"), |device| dense(device, shape));
    }
}

#[test]
fn products_by_expert() {
    for (tokens, k, n, experts, top_k) in [(1, 8, 16, 4, 1), (90, 20, 70, 7, 3), (150, 40, 264, 4, 2)] {
        near(&format!("grouped {tokens} {k} {n}"), |device| {
            let dispatch = routed(device, tokens, experts, top_k);
            let slots = dispatch.slots();
            let (x, w) = (tensor(device, 1, tokens, k), tensor(device, 2, experts * n, k));
            let (h, dy) = (tensor(device, 3, slots, k), tensor(device, 4, slots, n));
            let (mut of_tokens, mut of_slots) = (empty(device, slots, n), empty(device, slots, n));
            let p = Precision::Bf16;
            device.grouped(p, &x, Groups::Tokens(&dispatch), &mut [(WeightRef::Plain(&w), &mut of_tokens)]);
            device.grouped(p, &h, Groups::Slots(&dispatch), &mut [(WeightRef::Plain(&w), &mut of_slots)]);
            let mut out = vec![("of tokens", values(&of_tokens)), ("of slots", values(&of_slots))];
            for start in [Start::Zero, Start::Continue] {
                let mut dx = tensor(device, 5, slots, k);
                device.grouped_dx(p, &dy, &dispatch, &w, (&mut dx, start));
                out.push(("dx", values(&dx)));
            }
            out
        });
    }
}

/// The first rows of a batch have the bits that they have alone.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let Some(emulator) = crate::lab::emulator() else { return };
    let device: Arc<dyn Device> = wels_cuda::Cuda::on(emulator);
    for (t, k, n) in SHAPES {
        let w = tensor(&device, 2, n, k);
        let of = |rows: usize| {
            let mut x = empty(&device, rows, k);
            device.copy_rows(&tensor(&device, 1, t, k), 0, &mut x, 0, rows);
            let mut y = empty(&device, rows, n);
            device.linear(Precision::Bf16, &x, &mut [(WeightRef::Plain(&w), &mut y)]);
            values(&y)
        };
        let all = of(t);
        for rows in [1, t / 2 + 1] {
            assert_eq!(of(rows), all[..rows * n], "{rows} of {t} rows, {k} to {n}");
        }
    }
}
