//! Attention over packed sequences, forward and backward.

use std::ops::Range;
use std::sync::Arc;

use wels_cpu::naive::Naive;
use wels_device::{AttentionGradients, AttentionInputs, AttentionShape, ColumnHeads, Device, Ids};

use crate::lab::{BF16_TOLERANCE, Operands, Outputs, empty, generations, relative_error, same, values};

#[derive(Clone, Copy)]
pub struct Case {
    pub heads: usize,
    pub kv_heads: usize,
    pub own: usize,
    pub shared: usize,
    pub v: usize,
    pub starts: &'static [u32],
    /// Whether keys and values are columns of one tensor.
    pub together: bool,
    /// Columns before the first head of queries, of keys, and before the shared part.
    pub pads: [usize; 3],
    pub window: Option<usize>,
}

/// Heads and key-value heads; widths of a head's own part of a key, of the shared part, of a value; and so on.
const fn case(
    [heads, kv_heads]: [usize; 2],
    [own, shared, v]: [usize; 3],
    starts: &'static [u32],
    together: bool,
    pads: [usize; 3],
) -> Case {
    Case { heads, kv_heads, own, shared, v, starts, together, pads, window: None }
}

impl Case {
    /// With a window of so many keys.
    const fn within(self, window: usize) -> Case {
        Case { window: Some(window), ..self }
    }
}

const ODD: [usize; 3] = [3, 2, 1];
const EVEN: [usize; 3] = [8, 16, 24];

const CASES: [Case; 8] = [
    case([1, 1], [1, 0, 1], &[0, 1], false, ODD),
    case([4, 2], [16, 0, 16], &[0, 5, 6, 40], false, ODD),
    case([3, 3], [12, 6, 9], &[0, 17, 17, 30], true, ODD),
    case([2, 2], [128, 64, 128], &[0, 3, 20], true, ODD),
    case([4, 1], [7, 5, 33], &[0, 35], false, ODD),
    case([2, 1], [4, 0, 4], &[0, 9, 30], true, ODD).within(1),
    case([4, 2], [8, 3, 6], &[0, 5, 70], false, ODD).within(7),
    case([2, 2], [5, 0, 9], &[0, 90], false, ODD).within(32),
];

/// In bf16: widths that tensor cores have kernels of, others, and these widths in columns that TMA cannot read.
pub const BF16_CASES: [Case; 7] = [
    case([2, 1], [64, 0, 64], &[0, 1, 1, 40, 330], false, EVEN),
    case([2, 1], [128, 0, 128], &[0, 130, 139], true, EVEN),
    case([2, 2], [128, 64, 128], &[0, 3, 134], true, EVEN),
    case([4, 2], [16, 0, 16], &[0, 5, 5, 40], true, EVEN),
    case([3, 3], [12, 6, 9], &[0, 17, 30], false, ODD),
    case([2, 1], [64, 0, 64], &[0, 7, 30], false, ODD),
    case([2, 1], [64, 0, 64], &[0, 7, 50], false, EVEN).within(9),
];

/// Rows of the operands, as packed sequences.
/// Cases with a window of so many keys have sinks too, and a cap.
const SINKS_WINDOW: usize = 7;

fn work(case: &Case, operands: Operands, rows: Range<usize>, starts: &[u32], device: &Arc<dyn Device>) -> Outputs {
    let Case { heads, kv_heads, own, shared, v, together, pads: [q_pad, k_pad, shared_pad], window, .. } = *case;
    let (starts, tokens): (Ids, usize) = (starts.into(), rows.len());
    let cap = (window == Some(SINKS_WINDOW)).then_some(0.8);
    let shape = AttentionShape { heads, kv_heads, scale: if own < 64 { 0.3 } else { 0.1 }, window, cap };
    let (qk, kv_width) = (own + shared, kv_heads * (own + v) + k_pad);
    let tensor = |stream, cols| operands.rows(device, stream, rows.clone(), cols);
    let q = tensor(1, heads * qk + q_pad);
    let both = tensor(2, kv_width);
    let values_alone = tensor(3, kv_heads * v);
    let rotary = tensor(4, shared + shared_pad);
    let (sinks, mut terms) = (crate::lab::tensor(device, 10, 1, heads), empty(device, tokens, heads));
    let part = |of, offset, head_stride, dim| ColumnHeads { of, offset, head_stride, dim };
    let inputs = AttentionInputs {
        q: part(&q, q_pad, qk, qk),
        k: part(&both, k_pad, own + v, own),
        k_shared: (shared > 0).then(|| part(&rotary, shared_pad, 0, shared)),
        v: if together { part(&both, k_pad + own, own + v, v) } else { part(&values_alone, 0, v, v) },
        sinks: (window == Some(SINKS_WINDOW)).then_some(&sinks),
        chosen: None,
    };
    let (mut out, mut stats) = (operands.empty(device, tokens, heads * v), empty(device, tokens, heads * 2));
    device.attention(shape, &starts, inputs, &mut out, &mut stats);
    let d_out = tensor(5, heads * v);
    let (mut dq, mut dk) = (tensor(6, q.cols()), tensor(7, both.cols()));
    let (mut dv, mut d_rotary) = (tensor(8, values_alone.cols()), tensor(9, rotary.cols()));
    let gradients = AttentionGradients {
        q: &mut dq,
        k: &mut dk,
        k_shared: (shared > 0).then_some(&mut d_rotary),
        v: (!together).then_some(&mut dv),
    };
    device.attention_backward(shape, &starts, inputs, &out, &stats, &d_out, gradients);
    match inputs.sinks {
        Some(sinks) => device.sink_terms(sinks, &out, &stats, &d_out, &mut terms),
        None => terms.fill(0.0),
    }
    vec![
        ("terms of sinks", values(&terms)),
        ("out", values(&out)),
        ("stats", values(&stats)),
        ("dq", values(&dq)),
        ("dk", values(&dk)),
        ("dv", values(&dv)),
        ("d_rotary", values(&d_rotary)),
    ]
}

/// All of a case's sequences.
fn whole(case: &Case, operands: Operands, device: &Arc<dyn Device>) -> Outputs {
    work(case, operands, 0..case.starts[case.starts.len() - 1] as usize, case.starts, device)
}

/// The outputs but for what the backward pass alone reads.
fn results(outputs: &Outputs) -> impl Iterator<Item = &(&'static str, Vec<f32>)> {
    outputs.iter().filter(|(name, _)| *name != "stats")
}

#[test]
fn packed() {
    for (number, case) in CASES.iter().enumerate() {
        same(&format!("attention {number}"), |device| whole(case, Operands::F32, device));
    }
}

/// Near the plain loops over the same operands, in any order of warps.
#[test]
fn packed_in_bf16() {
    for rounds in generations() {
        for (number, case) in BF16_CASES.iter().enumerate() {
            let expected = whole(case, Operands::Rounded, &(Naive::new() as Arc<dyn Device>));
            let mut first = None;
            for (round, device) in rounds.iter().enumerate() {
                let got = whole(case, Operands::Bf16, device);
                for ((name, expected), (_, got)) in results(&expected).zip(results(&got)) {
                    let error = relative_error(expected, got);
                    assert!(error <= BF16_TOLERANCE, "{name} of case {number} is off by {error:e}");
                }
                let first = first.get_or_insert_with(|| got.clone());
                assert_eq!(&got, first, "case {number} in round {round}");
            }
        }
    }
}

/// A sequence has the bits that it has alone.
#[test]
fn packed_or_alone_in_bf16() {
    for device in generations().iter().filter_map(|rounds| rounds.first()) {
        for (number, case) in BF16_CASES.iter().enumerate() {
            let packed = whole(case, Operands::Bf16, device);
            for pair in case.starts.windows(2).filter(|pair| pair[0] < pair[1]) {
                let [start, end] = [pair[0] as usize, pair[1] as usize];
                let alone = work(case, Operands::Bf16, start..end, &[0, pair[1] - pair[0]], device);
                let tokens = case.starts[case.starts.len() - 1] as usize;
                for ((name, packed), (_, alone)) in results(&packed).zip(results(&alone)) {
                    let cols = packed.len() / tokens;
                    assert_eq!(alone, &packed[start * cols..end * cols], "{name} of case {number}, tokens {pair:?}");
                }
            }
        }
    }
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    whole(&CASES[2], Operands::F32, device)
}

pub fn some_with_a_window(device: &Arc<dyn Device>) -> Outputs {
    whole(&CASES[6], Operands::F32, device)
}

/// Widths of 64 in bf16, long enough for a ring of tiles to go around.
pub fn some_in_bf16(device: &Arc<dyn Device>) -> Outputs {
    let outputs = whole(&BF16_CASES[0], Operands::of(device), device);
    results(&outputs).cloned().collect()
}
