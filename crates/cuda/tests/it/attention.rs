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
}

const ODD: [usize; 3] = [3, 2, 1];
const EVEN: [usize; 3] = [8, 16, 24];

#[rustfmt::skip]
const CASES: [Case; 5] = [
    Case { heads: 1, kv_heads: 1, own: 1, shared: 0, v: 1, starts: &[0, 1], together: false, pads: ODD },
    Case { heads: 4, kv_heads: 2, own: 16, shared: 0, v: 16, starts: &[0, 5, 6, 40], together: false, pads: ODD },
    Case { heads: 3, kv_heads: 3, own: 12, shared: 6, v: 9, starts: &[0, 17, 17, 30], together: true, pads: ODD },
    Case { heads: 2, kv_heads: 2, own: 128, shared: 64, v: 128, starts: &[0, 3, 20], together: true, pads: ODD },
    Case { heads: 4, kv_heads: 1, own: 7, shared: 5, v: 33, starts: &[0, 35], together: false, pads: ODD },
];

/// In bf16: widths that tensor cores have kernels of, others, and these widths in columns that TMA cannot read.
#[rustfmt::skip]
pub const BF16_CASES: [Case; 6] = [
    Case { heads: 2, kv_heads: 1, own: 64, shared: 0, v: 64, starts: &[0, 1, 1, 40, 330], together: false, pads: EVEN },
    Case { heads: 2, kv_heads: 1, own: 128, shared: 0, v: 128, starts: &[0, 130, 139], together: true, pads: EVEN },
    Case { heads: 2, kv_heads: 2, own: 128, shared: 64, v: 128, starts: &[0, 3, 134], together: true, pads: EVEN },
    Case { heads: 4, kv_heads: 2, own: 16, shared: 0, v: 16, starts: &[0, 5, 5, 40], together: true, pads: EVEN },
    Case { heads: 3, kv_heads: 3, own: 12, shared: 6, v: 9, starts: &[0, 17, 30], together: false, pads: ODD },
    Case { heads: 2, kv_heads: 1, own: 64, shared: 0, v: 64, starts: &[0, 7, 30], together: false, pads: ODD },
];

/// Rows of the operands, as packed sequences.
fn work(case: &Case, operands: Operands, rows: Range<usize>, starts: &[u32], device: &Arc<dyn Device>) -> Outputs {
    let Case { heads, kv_heads, own, shared, v, together, pads: [q_pad, k_pad, shared_pad], .. } = *case;
    let (starts, tokens): (Ids, usize) = (starts.into(), rows.len());
    let shape = AttentionShape { heads, kv_heads, scale: if own < 64 { 0.3 } else { 0.1 } };
    let (qk, kv_width) = (own + shared, kv_heads * (own + v) + k_pad);
    let tensor = |stream, cols| operands.rows(device, stream, rows.clone(), cols);
    let q = tensor(1, heads * qk + q_pad);
    let both = tensor(2, kv_width);
    let values_alone = tensor(3, kv_heads * v);
    let rotary = tensor(4, shared + shared_pad);
    let part = |of, offset, head_stride, dim| ColumnHeads { of, offset, head_stride, dim };
    let inputs = AttentionInputs {
        q: part(&q, q_pad, qk, qk),
        k: part(&both, k_pad, own + v, own),
        k_shared: (shared > 0).then(|| part(&rotary, shared_pad, 0, shared)),
        v: if together { part(&both, k_pad + own, own + v, v) } else { part(&values_alone, 0, v, v) },
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
    vec![
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

/// Widths of 64 in bf16, long enough for a ring of tiles to go around.
pub fn some_in_bf16(device: &Arc<dyn Device>) -> Outputs {
    let outputs = whole(&BF16_CASES[0], Operands::of(device), device);
    results(&outputs).cloned().collect()
}
