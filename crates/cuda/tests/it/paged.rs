//! Attention over pages: a sequence in two calls, beside others.

use std::sync::Arc;

use wels_device::{
    AttentionInputs, AttentionShape, CacheDtype, ColumnHeads, Device, ExpandedQuery, KvLayout, LatentLayout,
    LatentQuery, PagedSequences, Sequence, Tensor,
};

use crate::lab::{Outputs, empty, same, tensor, values};

/// New and past tokens of two sequences in each of two calls.
fn calls() -> [[Sequence<'static>; 2]; 2] {
    let (a, b): (&[u32], &[u32]) = (&[4, 1, 6], &[0, 3]);
    [
        [Sequence { pages: a, past: 0, new: 19 }, Sequence { pages: b, past: 0, new: 3 }],
        [Sequence { pages: a, past: 19, new: 2 }, Sequence { pages: b, past: 3, new: 14 }],
    ]
}

fn rows(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|sequence| sequence.new).sum()
}

fn heads(of: &Tensor, offset: usize, head_stride: usize, dim: usize) -> ColumnHeads<'_> {
    ColumnHeads { of, offset, head_stride, dim }
}

fn expanded(device: &Arc<dyn Device>, numbers: CacheDtype) -> Outputs {
    let layout = KvLayout { kv_heads: 2, own: 10, shared: 6, v: 12 };
    let (shape, offset) = (AttentionShape { heads: 4, kv_heads: 2, scale: 0.25 }, 32);
    let mut pages = device.pages(numbers, 8, offset + layout.page_len());
    let mut out = Vec::new();
    for (call, sequences) in calls().iter().enumerate() {
        let (tokens, stream) = (rows(sequences), 10 * call as u64);
        let (q, kv) = (tensor(device, stream + 1, tokens, 4 * 16), tensor(device, stream + 2, tokens, 2 * 22));
        let rotary = tensor(device, stream + 3, tokens, 6);
        let inputs = AttentionInputs {
            q: heads(&q, 0, 16, 16),
            k: heads(&kv, 0, 22, 10),
            k_shared: Some(heads(&rotary, 0, 0, 6)),
            v: heads(&kv, 10, 22, 12),
        };
        device.append(&mut pages, PagedSequences { offset, sequences }, layout, inputs);
        let mut attended = empty(device, tokens, 4 * 12);
        let query = ExpandedQuery { shape, q: inputs.q };
        device.attend(&pages, PagedSequences { offset, sequences }, layout, query, &mut attended);
        out.push(("attended", values(&attended)));
    }
    // A page's copy serves as well as the page.
    device.copy_page(&mut pages, 1, 7);
    let sequences = [Sequence { pages: &[4, 7, 6], past: 20, new: 1 }];
    let (q, mut attended) = (tensor(device, 99, 1, 4 * 16), empty(device, 1, 4 * 12));
    let query = ExpandedQuery { shape, q: heads(&q, 0, 16, 16) };
    device.attend(&pages, PagedSequences { offset, sequences: &sequences }, layout, query, &mut attended);
    out.push(("over a copied page", values(&attended)));
    out
}

fn latent(device: &Arc<dyn Device>, numbers: CacheDtype) -> Outputs {
    let (layout, count) = (LatentLayout { latent: 40, rotary: 8 }, 3);
    let mut pages = device.pages(numbers, 7, layout.page_len());
    let mut out = Vec::new();
    for (call, sequences) in calls().iter().enumerate() {
        let (tokens, stream) = (rows(sequences), 10 * call as u64);
        let at = PagedSequences { offset: 0, sequences };
        let (rows, keys) = (tensor(device, stream + 1, tokens, 40), tensor(device, stream + 2, tokens, 8));
        device.append_latent(&mut pages, at, layout, &rows, &keys);
        let (absorbed, turned) =
            (tensor(device, stream + 3, count * tokens, 40), tensor(device, stream + 4, tokens, 1 + count * 9));
        let query = LatentQuery { heads: count, scale: 0.2, absorbed: &absorbed, rotary: heads(&turned, 1, 9, 8) };
        let mut attended = empty(device, count * tokens, 40);
        device.attend_latent(&pages, at, layout, query, &mut attended);
        out.push(("attended", values(&attended)));
    }
    out
}

#[test]
fn pages_of_keys_and_values() {
    for numbers in [CacheDtype::F32, CacheDtype::F16] {
        same(&format!("pages of {numbers:?}"), |device| expanded(device, numbers));
    }
}

#[test]
fn pages_of_latents() {
    for numbers in [CacheDtype::F32, CacheDtype::F16] {
        same(&format!("latents of {numbers:?}"), |device| latent(device, numbers));
    }
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    expanded(device, CacheDtype::F32)
}
