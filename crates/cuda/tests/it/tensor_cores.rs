//! Products of operands rounded to bf16: by wgmma where columns are pieces of 16 bytes, else by mma.sync.

use std::sync::Arc;

use wels_device::host::convert;
use wels_device::{BlockType, Device, Groups, Ids, Precision, Router, Scoring, Source, Start, Tensor, WeightRef};

use crate::lab::{Outputs, activation, empty, empty_activation, near, near_in_bf16, rounds, tensor, values, within};
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
        device.linear_dx(Precision::Bf16, &[(&dy, (&w).into())], (&mut dx, start));
        out.push(("dx", values(&dx)));
    }
    out
}

/// Products whose columns are pieces of 16 bytes, long enough for a ring of stages to go around, and of several tiles.
pub fn by_wgmma(device: &Arc<dyn Device>) -> Outputs {
    let shape = (150, 72, 264);
    [dense(device, shape), dense(device, (40, 1600, 136)), weight_gradients(device, shape, &[])].concat()
}

/// Products of which some columns are not; rows of 240 are copied in such pieces all the same.
pub fn by_mma(device: &Arc<dyn Device>) -> Outputs {
    [dense(device, (150, 240, 131)), weight_gradients(device, (150, 33, 20), &[])].concat()
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
                device.grouped_dx(p, &dispatch, &[(&dy, (&w).into())], (&mut dx, start));
                out.push(("dx", values(&dx)));
            }
            out
        });
    }
}

/// Sequences of 1, 20, 0, 70 and as many rows as are left.
fn sequences(rows: usize) -> Vec<u32> {
    let ends = [1, 21, 21, 91].into_iter().filter(|end| *end < rows as u32);
    [0].into_iter().chain(ends).chain([rows as u32]).collect()
}

const EXPERTS: usize = 4;

/// The sequences of a batch as one micro-batch, or as several that begin at these sequences: gradients of a matrix and
/// of experts, continued from what is there.
fn weight_gradients(device: &Arc<dyn Device>, (tokens, k, n): (usize, usize, usize), cuts: &[usize]) -> Outputs {
    let starts = sequences(tokens);
    let cuts = [&[0], cuts, &[starts.len() - 1]].concat();
    let (mut dw, mut of_experts) = (tensor(device, 5, n, k), tensor(device, 6, EXPERTS * n, k));
    let mut of_slots = tensor(device, 7, EXPERTS * n, k);
    for piece in cuts.windows(2) {
        let (first, end) = (starts[piece[0]], starts[piece[1]]);
        let ids = Ids::from(starts[piece[0]..=piece[1]].iter().map(|start| start - first).collect::<Vec<_>>());
        let rows = (end - first) as usize;
        let cut = |stream: u64, cols: usize| {
            let (all, mut cut) = (tensor(device, stream, tokens, cols), empty(device, rows, cols));
            device.copy_rows(&all, first as usize, &mut cut, 0, rows);
            cut
        };
        let (x, dy, logits) = (cut(1, k), cut(2, n), cut(3, EXPERTS));
        device.linear_dw(Precision::Bf16, &x, &ids, &mut [(&dy, (&mut dw, Start::Continue))]);
        let (mut scores, mut weights) = (empty(device, rows, EXPERTS), empty(device, rows, 2));
        let dispatch = device.route(&ROUTER, &logits, None, &mut scores, &mut weights);
        let (slots, mut dweights) = (dispatch.slots(), empty(device, rows, 2));
        let (mut h, mut dh) = (empty(device, slots, n), empty(device, slots, n));
        device.fill(&mut h, 1.0);
        device.combine_backward(&dy, &h, &weights, &dispatch, &mut dh, &mut dweights);
        let groups = Groups::Tokens(&dispatch);
        device.grouped_dw(Precision::Bf16, &x, groups, &ids, &mut [(&dh, (&mut of_experts, Start::Continue))]);
        // The same rows of x, each in its slot.
        let mut x_slots = empty(device, slots, k);
        let mut none = empty(device, rows, 2);
        device.combine_backward(&x, &tensor(device, 8, slots, k), &weights, &dispatch, &mut x_slots, &mut none);
        let groups = Groups::Slots(&dispatch);
        device.grouped_dw(Precision::Bf16, &x_slots, groups, &ids, &mut [(&dh, (&mut of_slots, Start::Continue))]);
    }
    vec![("dense", values(&dw)), ("of tokens", values(&of_experts)), ("of slots", values(&of_slots))]
}

const ROUTER: Router = Router {
    scoring: Scoring::Sigmoid,
    experts: EXPERTS,
    top_k: 2,
    groups: 1,
    top_groups: 1,
    normalize: true,
    scale: 1.0,
};

#[test]
fn weight_gradients_are_those_of_plain_loops() {
    for shape in [(1, 8, 8), (25, 33, 20), (130, 72, 264), (200, 264, 16)] {
        near(&format!("dw {shape:?}"), |device| weight_gradients(device, shape, &[]));
    }
}

#[test]
fn micro_batches_change_no_bit_of_weight_gradients() {
    let Some(device) = rounds().into_iter().next() else { return };
    for shape in [(130, 33, 20), (150, 72, 264)] {
        let whole = weight_gradients(&device, shape, &[]);
        for cuts in [&[1][..], &[2], &[1, 2, 3, 4], &[4]] {
            assert_eq!(weight_gradients(&device, shape, cuts), whole, "{shape:?} cut at {cuts:?}");
        }
    }
}

/// The first rows of a batch have the bits that they have alone.
#[test]
fn rows_do_not_depend_on_their_batch() {
    let Some(device) = rounds().into_iter().next() else { return };
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

/// Widths of products of one x: of which all go together, and of which some go by mma.sync alone.
const LISTS: [&[usize]; 4] = [&[136, 24], &[264, 8, 72], &[40, 20, 264], &[8, 16, 24, 72]];

/// What products of `t` rows in lists of so many give: all at once, or one by one.
fn lists(device: &Arc<dyn Device>, (t, k, n): (usize, usize, &[usize]), at_once: bool) -> Vec<Vec<f32>> {
    let p = Precision::Bf16;
    let each = if at_once { n.len() } else { 1 };
    let rows = |stream, cols| {
        let mut rows = empty(device, t, cols);
        device.copy_rows(&tensor(device, stream, 150, cols), 0, &mut rows, 0, t);
        rows
    };
    let (x, starts, mut out) = (rows(1, k), Ids::from(sequences(t)), Vec::new());
    let mut dx = rows(2, k);
    let dispatch = routed(device, t, EXPERTS, 2);
    let slots = dispatch.slots();
    let mut dx_slots = tensor(device, 3, slots, k);
    for (number, n) in n.chunks(each).enumerate() {
        let of = |stream: usize, make: &dyn Fn(u64, usize) -> Tensor| -> Vec<Tensor> {
            n.iter().enumerate().map(|(i, n)| make((10 * stream + each * number + i) as u64, *n)).collect()
        };
        let (w, dy) = (of(1, &|stream, n| tensor(device, stream, n, k)), of(2, &rows));
        let (mut y, mut dw) = (of(3, &rows), of(4, &|stream, n| tensor(device, stream, n, k)));
        let mut products: Vec<_> = w.iter().map(WeightRef::Plain).zip(&mut y).collect();
        device.linear(p, &x, &mut products);
        let terms: Vec<_> = dy.iter().zip(w.iter().map(WeightRef::Plain)).collect();
        device.linear_dx(p, &terms, (&mut dx, Start::Continue));
        let start = |number: usize| if number == 1 { Start::Zero } else { Start::Continue };
        let into = dw.iter_mut().enumerate().map(|(i, dw)| (dw, start(each * number + i)));
        device.linear_dw(p, &x, &starts, &mut dy.iter().zip(into).collect::<Vec<_>>());
        out.extend(y.iter().chain(&dw).map(values));

        let w = of(5, &|stream, n| tensor(device, stream, EXPERTS * n, k));
        let dy = of(6, &|stream, n| tensor(device, stream, slots, n));
        let (mut y, mut dw) =
            (of(7, &|_, n| empty(device, slots, n)), of(8, &|stream, n| tensor(device, stream, EXPERTS * n, k)));
        let mut products: Vec<_> = w.iter().map(WeightRef::Plain).zip(&mut y).collect();
        device.grouped(p, &x, Groups::Tokens(&dispatch), &mut products);
        let terms: Vec<_> = dy.iter().zip(w.iter().map(WeightRef::Plain)).collect();
        device.grouped_dx(p, &dispatch, &terms, (&mut dx_slots, Start::Continue));
        let into = dw.iter_mut().map(|dw| (dw, Start::Continue));
        let mut gradients: Vec<_> = dy.iter().zip(into).collect();
        device.grouped_dw(p, &x, Groups::Tokens(&dispatch), &starts, &mut gradients);
        out.extend(y.iter().chain(&dw).map(values));
    }
    out.sort_by(|one, other| one.partial_cmp(other).expect("numbers"));
    out.extend([values(&dx), values(&dx_slots)]);
    out
}

/// Lists of three that are made in one launch.
pub fn by_lists(device: &Arc<dyn Device>) -> Outputs {
    lists(device, (150, 72, LISTS[1]), true).into_iter().map(|values| ("of a list", values)).collect()
}

#[test]
fn products_in_lists() {
    within(1e-4, "lists", by_lists);
}

#[test]
fn lists_have_the_bits_of_their_products() {
    let Some(device) = rounds().into_iter().next() else { return };
    for n in LISTS {
        for t in [3, 150] {
            let [at_once, one_by_one] = [true, false].map(|at_once| lists(&device, (t, 72, n), at_once));
            assert_eq!(at_once, one_by_one, "{t} rows, {n:?}");
        }
    }
}

/// The first rows of a batch have the bits that they have alone, of lists too.
#[test]
fn rows_of_lists_do_not_depend_on_their_batch() {
    let Some(device) = rounds().into_iter().next() else { return };
    let (k, p) = (72, Precision::Bf16);
    for widths in LISTS {
        let w: Vec<_> = widths.iter().zip(10..).map(|(n, stream)| tensor(&device, stream, *n, k)).collect();
        let of = |rows: usize| {
            let cut = |stream, cols| {
                let (all, mut cut) = (activation(&device, stream, 150, cols), empty_activation(&device, rows, cols));
                device.copy_rows(&all, 0, &mut cut, 0, rows);
                cut
            };
            let x = cut(1, k);
            let mut y: Vec<_> = widths.iter().map(|n| empty_activation(&device, rows, *n)).collect();
            device.linear(p, &x, &mut w.iter().map(WeightRef::Plain).zip(&mut y).collect::<Vec<_>>());
            let dy: Vec<_> = widths.iter().zip(20..).map(|(n, stream)| cut(stream, *n)).collect();
            let (mut dx, mut wide) = (empty_activation(&device, rows, k), empty(&device, rows, k));
            let terms: Vec<_> = dy.iter().zip(w.iter().map(WeightRef::Plain)).collect();
            device.linear_dx(p, &terms, (&mut dx, Start::Zero));
            device.linear_dx(p, &terms, (&mut wide, Start::Zero));
            if widths.len() <= 3 && widths.iter().all(|n| n.is_multiple_of(8)) {
                let rounded = values(&wide).into_iter().map(|it| convert::from_bf16(convert::to_bf16(it)));
                assert_eq!(values(&dx), rounded.collect::<Vec<_>>(), "a sum is rounded once");
            }
            y.iter().chain([&dx]).map(|it| (it.cols(), values(it))).collect::<Vec<_>>()
        };
        let all = of(150);
        for rows in [1, 9, 64, 70] {
            for ((cols, few), (_, all)) in of(rows).iter().zip(&all) {
                assert_eq!(few[..], all[..rows * cols], "{rows} rows of {widths:?}");
            }
        }
    }
}

/// Products of activations in bf16, all three ways, with weights in f32: dense, of a router, and of experts.
fn of_activations(device: &Arc<dyn Device>, (t, k, n): (usize, usize, usize)) -> Outputs {
    let (x, w, dy) = (activation(device, 1, t, k), tensor(device, 2, n, k), activation(device, 3, t, n));
    let (mut y, mut logits) = (empty_activation(device, t, n), empty(device, t, n));
    device.linear(Precision::Bf16, &x, &mut [(WeightRef::Plain(&w), &mut y)]);
    device.linear(Precision::Bf16, &x, &mut [(WeightRef::Plain(&w), &mut logits)]);
    let mut out = vec![("y", values(&y)), ("logits", values(&logits))];
    let starts = Ids::from(sequences(t));
    for start in [Start::Zero, Start::Continue] {
        let (mut dx, mut dw) = (activation(device, 4, t, k), tensor(device, 5, n, k));
        device.linear_dx(Precision::Bf16, &[(&dy, (&w).into())], (&mut dx, start));
        device.linear_dw(Precision::Bf16, &x, &starts, &mut [(&dy, (&mut dw, start))]);
        out.extend([("dx", values(&dx)), ("dw", values(&dw))]);
    }
    let dispatch = routed(device, t, EXPERTS, 2);
    let (slots, experts) = (dispatch.slots(), tensor(device, 6, EXPERTS * n, k));
    let (dy, mut y) = (activation(device, 7, slots, n), empty_activation(device, slots, n));
    device.grouped(Precision::Bf16, &x, Groups::Tokens(&dispatch), &mut [(WeightRef::Plain(&experts), &mut y)]);
    let (mut dx, mut dw) = (activation(device, 8, slots, k), tensor(device, 9, EXPERTS * n, k));
    device.grouped_dx(Precision::Bf16, &dispatch, &[(&dy, (&experts).into())], (&mut dx, Start::Continue));
    let groups = Groups::Tokens(&dispatch);
    device.grouped_dw(Precision::Bf16, &x, groups, &starts, &mut [(&dy, (&mut dw, Start::Continue))]);
    out.extend([("y of experts", values(&y)), ("dx of experts", values(&dx)), ("dw of experts", values(&dw))]);
    out
}

#[test]
fn products_of_activations() {
    for shape in [(1, 8, 8), (5, 33, 64), (70, 72, 264), (129, 24, 40)] {
        near_in_bf16(&format!("activations {shape:?}"), |device| of_activations(device, shape));
    }
}

/// A router's product is as exact as in f32, of which its choices hang.
#[test]
fn products_of_routers() {
    for (t, k, n) in [(3, 40, 8), (70, 264, 16), (9, 33, 5)] {
        near(&format!("router {t} {k} {n}"), |device| {
            let (x, w, mut y) = (activation(device, 1, t, k), tensor(device, 2, n, k), empty(device, t, n));
            device.linear(Precision::F32, &x, &mut [(WeightRef::Plain(&w), &mut y)]);
            vec![("logits", values(&y))]
        });
    }
}

/// Weights in files' formats, and parts of as many rows each.
#[test]
fn packed_weights_and_equal_parts() {
    for (format, t, k, n) in [
        (BlockType::Bf16, 9, 64, 40),
        (BlockType::Bf16, 3, 33, 8),
        (BlockType::F16, 9, 64, 40),
        (BlockType::F32, 2, 8, 8),
    ] {
        near_in_bf16(&format!("packed {format:?} {t} {k} {n}"), |device| {
            let matrix = |stream| {
                let rounded = activation(device, stream, n, k);
                device.pack(Source::Values { values: &values(&rounded), to: format }, n, k)
            };
            let (one, two) = (device.stack(vec![matrix(1)]), device.stack(vec![matrix(2), matrix(3)]));
            let (x, mut y) = (activation(device, 4, t, k), empty_activation(device, t, n));
            device.linear(Precision::Bf16, &x, &mut [(WeightRef::Packed(&one), &mut y)]);
            let (both, mut parts) = (activation(device, 5, 2 * t, k), empty_activation(device, 2 * t, n));
            device.grouped(Precision::Bf16, &both, Groups::Equal(2), &mut [(WeightRef::Packed(&two), &mut parts)]);
            vec![("y", values(&y)), ("parts", values(&parts))]
        });
    }
}
