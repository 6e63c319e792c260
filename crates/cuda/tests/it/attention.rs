//! Attention over packed sequences, forward and backward.

use std::sync::Arc;

use wels_device::{AttentionGradients, AttentionInputs, AttentionShape, ColumnHeads, Device, Ids};

use crate::lab::{Outputs, empty, same, tensor, values};

struct Case {
    heads: usize,
    kv_heads: usize,
    own: usize,
    shared: usize,
    v: usize,
    starts: &'static [u32],
    /// Whether keys and values are columns of one tensor.
    together: bool,
}

const CASES: [Case; 5] = [
    Case { heads: 1, kv_heads: 1, own: 1, shared: 0, v: 1, starts: &[0, 1], together: false },
    Case { heads: 4, kv_heads: 2, own: 16, shared: 0, v: 16, starts: &[0, 5, 6, 40], together: false },
    Case { heads: 3, kv_heads: 3, own: 12, shared: 6, v: 9, starts: &[0, 17, 17, 30], together: true },
    Case { heads: 2, kv_heads: 2, own: 128, shared: 64, v: 128, starts: &[0, 3, 20], together: true },
    Case { heads: 4, kv_heads: 1, own: 7, shared: 5, v: 33, starts: &[0, 35], together: false },
];

fn work(case: &Case, device: &Arc<dyn Device>) -> Outputs {
    let Case { heads, kv_heads, own, shared, v, .. } = *case;
    let starts: Ids = case.starts.into();
    let tokens = *case.starts.last().expect("an end") as usize;
    let shape = AttentionShape { heads, kv_heads, scale: 0.3 };
    let (qk, kv_width) = (own + shared, kv_heads * (own + v) + 2);
    let q = tensor(device, 1, tokens, heads * qk + 3);
    let both = tensor(device, 2, tokens, kv_width);
    let values_alone = tensor(device, 3, tokens, kv_heads * v);
    let rotary = tensor(device, 4, tokens, shared + 1);
    let part = |of, offset, head_stride, dim| ColumnHeads { of, offset, head_stride, dim };
    let inputs = AttentionInputs {
        q: part(&q, 3, qk, qk),
        k: part(&both, 2, own + v, own),
        k_shared: (shared > 0).then(|| part(&rotary, 1, 0, shared)),
        v: if case.together { part(&both, 2 + own, own + v, v) } else { part(&values_alone, 0, v, v) },
    };
    let (mut out, mut stats) = (empty(device, tokens, heads * v), empty(device, tokens, heads * 2));
    device.attention(shape, &starts, inputs, &mut out, &mut stats);
    let d_out = tensor(device, 5, tokens, heads * v);
    let (mut dq, mut dk) = (tensor(device, 6, tokens, q.cols()), tensor(device, 7, tokens, both.cols()));
    let (mut dv, mut d_rotary) =
        (tensor(device, 8, tokens, values_alone.cols()), tensor(device, 9, tokens, shared + 1));
    let gradients = AttentionGradients {
        q: &mut dq,
        k: &mut dk,
        k_shared: (shared > 0).then_some(&mut d_rotary),
        v: (!case.together).then_some(&mut dv),
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

#[test]
fn packed() {
    for (number, case) in CASES.iter().enumerate() {
        same(&format!("attention {number}"), |device| work(case, device));
    }
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    work(&CASES[2], device)
}
