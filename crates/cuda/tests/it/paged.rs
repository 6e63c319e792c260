//! Attention over pages: a sequence in two calls, beside others.

use std::ops::Range;
use std::sync::Arc;

use wels_cpu::naive::Naive;
use wels_device::{
    AttentionInputs, AttentionShape, CacheDtype, ColumnHeads, Device, ExpandedQuery, KvLayout, LatentLayout,
    LatentQuery, PagedSequences, Sequence, Tensor,
};

use crate::attention::{BF16_CASES, Case};
use crate::lab::{BF16_TOLERANCE, Operands, Outputs, empty, generations, relative_error, same, tensor, values};

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

fn expanded(device: &Arc<dyn Device>, numbers: CacheDtype, window: Option<usize>) -> Outputs {
    let layout = KvLayout { kv_heads: 2, own: 10, shared: 6, v: 12 };
    let (shape, offset) = (AttentionShape { heads: 4, kv_heads: 2, scale: 0.25, window, cap: window.map(|_| 0.7) }, 32);
    let mut pages = device.pages(numbers, 8, offset + layout.page_len());
    // Where there is a window.
    let sinks = tensor(device, 98, 1, 4);
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
            sinks: None,
            chosen: None,
        };
        device.append(&mut pages, PagedSequences { offset, sequences }, layout, inputs);
        let mut attended = empty(device, tokens, 4 * 12);
        let query = ExpandedQuery { shape, q: inputs.q, sinks: window.map(|_| &sinks), chosen: None };
        device.attend(&pages, PagedSequences { offset, sequences }, layout, query, &mut attended);
        out.push(("attended", values(&attended)));
    }
    // A page's copy serves as well as the page.
    device.copy_page(&mut pages, 1, 7);
    let sequences = [Sequence { pages: &[4, 7, 6], past: 20, new: 1 }];
    let (q, mut attended) = (tensor(device, 99, 1, 4 * 16), empty(device, 1, 4 * 12));
    let query = ExpandedQuery { shape, q: heads(&q, 0, 16, 16), sinks: None, chosen: None };
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
        let rotary = heads(&turned, 1, 9, 8);
        let query = LatentQuery { heads: count, scale: 0.2, absorbed: &absorbed, rotary, chosen: None };
        let mut attended = empty(device, count * tokens, 40);
        device.attend_latent(&pages, at, layout, query, &mut attended);
        out.push(("attended", values(&attended)));
    }
    out
}

#[test]
fn pages_of_keys_and_values() {
    for numbers in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
        for window in [None, Some(1), Some(6), Some(18)] {
            same(&format!("pages of {numbers:?}, {window:?}"), |device| expanded(device, numbers, window));
        }
    }
}

#[test]
fn pages_of_latents() {
    for numbers in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
        same(&format!("latents of {numbers:?}"), |device| latent(device, numbers));
    }
}

/// New tokens of two sequences in one call.
type Call = [usize; 2];

/// One token at a time, chunks, and both beside each other.
const CUTS: [&[Call]; 3] =
    [&[[70, 1], [30, 0], [1, 1], [1, 9], [28, 1]], &[[128, 11], [1, 0], [1, 1]], &[[0, 3], [5, 9], [125, 0]]];

/// The new tokens of a call.
struct New {
    past: Call,
    new: Call,
    /// Their rows in operands that hold the first sequence's tokens and then the second's.
    rows: [Range<usize>; 2],
}

/// Calls one after the other; the first sequence has `first` tokens in the end.
fn calls_of(cut: &[Call], first: usize) -> Vec<New> {
    let mut past = [0, 0];
    let call = |new: &Call| {
        let rows = [past[0]..past[0] + new[0], first + past[1]..first + past[1] + new[1]];
        let call = New { past, new: *new, rows };
        past = [past[0] + new[0], past[1] + new[1]];
        call
    };
    cut.iter().map(call).collect()
}

impl New {
    fn tokens(&self) -> usize {
        self.new[0] + self.new[1]
    }

    /// The sequences, whose pages are these.
    fn sequences<'a>(&self, pages: &'a [Vec<u32>; 2]) -> [Sequence<'a>; 2] {
        [0, 1].map(|i| Sequence { pages: &pages[i], past: self.past[i], new: self.new[i] })
    }

    /// The new tokens' rows of a tensor of all tokens.
    fn of(&self, device: &Arc<dyn Device>, all: &Tensor) -> Tensor {
        let mut some = Tensor::new(device, all.dtype(), self.tokens(), all.cols());
        device.copy_rows(all, self.rows[0].start, &mut some, 0, self.new[0]);
        device.copy_rows(all, self.rows[1].start, &mut some, self.new[0], self.new[1]);
        some
    }

    /// Puts such rows to their places among all.
    fn put(&self, some: &Tensor, all: &mut Tensor) {
        let device = some.device();
        device.copy_rows(some, 0, all, self.rows[0].start, self.new[0]);
        device.copy_rows(some, self.new[0], all, self.rows[1].start, self.new[1]);
    }
}

/// Pages of two sequences of up to so many tokens, and their number.
fn scattered(tokens: usize) -> ([Vec<u32>; 2], usize) {
    let count = tokens.div_ceil(16) as u32;
    let all: Vec<u32> = (0..count).flat_map(|at| [2 * count - at, at]).rev().collect();
    let (first, second) = all.split_at(count as usize);
    ([first.to_vec(), second.to_vec()], 2 * count as usize + 1)
}

/// Queries, keys and values, and the shared part, of some tokens.
struct Parts {
    q: Tensor,
    kv: Tensor,
    rotary: Tensor,
}

impl Parts {
    fn of(case: &Case, device: &Arc<dyn Device>, tokens: usize) -> Parts {
        let [q_pad, kv_pad, shared_pad] = case.pads;
        let rows = |stream, cols| Operands::of(device).rows(device, stream, 0..tokens, cols);
        let q = rows(1, q_pad + case.heads * (case.own + case.shared));
        let kv = rows(2, kv_pad + case.kv_heads * (case.own + case.v));
        Parts { q, kv, rotary: rows(3, shared_pad + case.shared) }
    }

    fn of_call(&self, device: &Arc<dyn Device>, call: &New) -> Parts {
        let [q, kv, rotary] = [&self.q, &self.kv, &self.rotary].map(|all| call.of(device, all));
        Parts { q, kv, rotary }
    }

    fn inputs(&self, case: &Case) -> AttentionInputs<'_> {
        let (Case { own, shared, v, .. }, [q_pad, kv_pad, shared_pad]) = (*case, case.pads);
        AttentionInputs {
            q: heads(&self.q, q_pad, own + shared, own + shared),
            k: heads(&self.kv, kv_pad, own + v, own),
            k_shared: (shared > 0).then(|| heads(&self.rotary, shared_pad, 0, shared)),
            v: heads(&self.kv, kv_pad + own, own + v, v),
            sinks: None,
            chosen: None,
        }
    }
}

fn shape_of(case: &Case) -> AttentionShape {
    AttentionShape {
        heads: case.heads,
        kv_heads: case.kv_heads,
        scale: 0.1,
        window: case.window,
        cap: case.window.map(|_| 0.7),
    }
}

/// Of two packed sequences.
fn forward(case: &Case, device: &Arc<dyn Device>, [first, second]: Call) -> Vec<f32> {
    let tokens = first + second;
    let parts = Parts::of(case, device, tokens);
    let starts = vec![0, first as u32, tokens as u32].into();
    let mut out = Operands::of(device).empty(device, tokens, case.heads * case.v);
    let mut stats = empty(device, tokens, case.heads * 2);
    device.attention(shape_of(case), &starts, parts.inputs(case), &mut out, &mut stats);
    values(&out)
}

/// The same over pages, call by call.
fn over_pages(case: &Case, device: &Arc<dyn Device>, [first, second]: Call, cut: &[Call]) -> Vec<f32> {
    let (tokens, offset) = (first + second, 32);
    let layout = KvLayout { kv_heads: case.kv_heads, own: case.own, shared: case.shared, v: case.v };
    let all = Parts::of(case, device, tokens);
    let (lists, count) = scattered(first.max(second));
    let mut pages = device.pages(CacheDtype::Bf16, count, offset + layout.page_len());
    let mut out = Operands::of(device).empty(device, tokens, case.heads * case.v);
    for call in calls_of(cut, first) {
        let (parts, sequences) = (all.of_call(device, &call), call.sequences(&lists));
        let at = PagedSequences { offset, sequences: &sequences };
        device.append(&mut pages, at, layout, parts.inputs(case));
        let mut attended = Operands::of(device).empty(device, call.tokens(), out.cols());
        let query = ExpandedQuery { shape: shape_of(case), q: parts.inputs(case).q, sinks: None, chosen: None };
        device.attend(&pages, at, layout, query, &mut attended);
        call.put(&attended, &mut out);
    }
    values(&out)
}

#[test]
fn pages_have_the_bits_of_the_forward_pass() {
    for rounds in generations() {
        for (number, case) in BF16_CASES.iter().enumerate() {
            let Some(device) = rounds.first() else { continue };
            let expected = forward(case, device, [130, 12]);
            for (device, cut) in rounds.iter().zip(CUTS.iter().cycle()) {
                assert!(over_pages(case, device, [130, 12], cut) == expected, "case {number}, {cut:?}");
            }
        }
    }
}

/// Beyond 1,024 keys, which several blocks share.
#[test]
fn long_sequences_have_the_bits_of_the_forward_pass() {
    let case = Case { heads: 1, kv_heads: 1, ..BF16_CASES[0] };
    for device in generations().iter().filter_map(|rounds| rounds.first()) {
        let expected = forward(&case, device, [1100, 20]);
        let cut = [[1024, 19], [66, 0], [9, 0], [1, 1]];
        assert!(over_pages(&case, device, [1100, 20], &cut) == expected);
    }
}

/// New tokens from which on a call of latents only appends: the plain loops are slow.
const MANY: usize = 512;

/// Latents of two sequences in some cut into calls; zeros for the tokens of calls that have [`MANY`].
fn over_latents(layout: LatentLayout, device: &Arc<dyn Device>, [first, second]: Call, cut: &[Call]) -> Vec<f32> {
    let (LatentLayout { latent, rotary }, count, tokens) = (layout, 3, first + second);
    let operands = Operands::of(device);
    let rows = |stream, cols| operands.rows(device, stream, 0..tokens, cols);
    let (latents, keys, turned) = (rows(1, latent), rows(2, rotary), rows(3, 8 + count * rotary));
    let absorbed = [4, 5, 6].map(|stream| rows(stream, latent));
    let (lists, page_count) = scattered(first.max(second));
    let mut pages = device.pages(CacheDtype::Bf16, page_count, layout.page_len());
    let mut out = [(); 3].map(|()| operands.empty(device, tokens, latent));
    out.iter_mut().for_each(|out| out.fill(0.0));
    for call in calls_of(cut, first) {
        let (sequences, new) = (call.sequences(&lists), call.tokens());
        let at = PagedSequences { offset: 0, sequences: &sequences };
        device.append_latent(&mut pages, at, layout, &call.of(device, &latents), &call.of(device, &keys));
        if new >= MANY {
            continue;
        }
        let mut of_heads = operands.empty(device, count * new, latent);
        for (head, all) in absorbed.iter().enumerate() {
            device.copy_rows(&call.of(device, all), 0, &mut of_heads, head * new, new);
        }
        let turned = call.of(device, &turned);
        let rotary = heads(&turned, 8, rotary, rotary);
        let query = LatentQuery { heads: count, scale: 0.05, absorbed: &of_heads, rotary, chosen: None };
        let mut attended = operands.empty(device, count * new, latent);
        device.attend_latent(&pages, at, layout, query, &mut attended);
        for (head, out) in out.iter_mut().enumerate() {
            let mut of_head = operands.empty(device, new, latent);
            device.copy_rows(&attended, head * new, &mut of_head, 0, new);
            call.put(&of_head, out);
        }
    }
    out.iter().flat_map(values).collect()
}

fn check_latents(layout: LatentLayout, lengths: Call, cuts: &[&[Call]]) {
    let naive: Arc<dyn Device> = Naive::new();
    let expected = over_latents(layout, &naive, lengths, cuts[0]);
    for rounds in generations() {
        let mut first: Option<Vec<f32>> = None;
        for (round, device) in rounds.iter().enumerate() {
            let cut = cuts[round % cuts.len()];
            let got = over_latents(layout, device, lengths, cut);
            let error = relative_error(&expected, &got);
            assert!(error <= BF16_TOLERANCE, "latents are off by {error:e}");
            assert!(first.get_or_insert_with(|| got.clone()) == &got, "round {round}, {cut:?}");
        }
    }
}

#[test]
fn latents_in_bf16() {
    let cuts: [&[Call]; 3] = [&[[20, 9]], &[[17, 1], [1, 0], [1, 8], [1, 0]], &[[3, 0], [17, 8], [0, 1]]];
    check_latents(LatentLayout { latent: 512, rotary: 64 }, [20, 9], &cuts);
    check_latents(LatentLayout { latent: 40, rotary: 8 }, [20, 9], &cuts);
}

/// Beyond 1,024 keys.
#[test]
fn long_latents_in_bf16() {
    let layout = LatentLayout { latent: 512, rotary: 64 };
    let cut: [&[Call]; 2] = [&[[1020, 0], [15, 1]], &[[1020, 0], [7, 0], [7, 1], [1, 0]]];
    let naive: Arc<dyn Device> = Naive::new();
    let expected = over_latents(layout, &naive, [1035, 1], cut[0]);
    for device in generations().iter().filter_map(|rounds| rounds.first()) {
        let [got, other] = cut.map(|cut| over_latents(layout, device, [1035, 1], cut));
        assert!(relative_error(&expected, &got) <= BF16_TOLERANCE);
        assert!(got == other);
    }
}

#[test]
#[should_panic(expected = "over a cache of CacheDtype::Bf16, and this is of F16")]
fn pages_of_another_format_are_refused() {
    let Some(device) = generations()[0].first().cloned() else {
        panic!("over a cache of CacheDtype::Bf16, and this is of F16")
    };
    let layout = LatentLayout { latent: 8, rotary: 8 };
    let mut pages = device.pages(CacheDtype::F16, 1, layout.page_len());
    let rows = Operands::Bf16.rows(&device, 1, 0..1, 8);
    let sequences = [Sequence { pages: &[0], past: 0, new: 1 }];
    device.append_latent(&mut pages, PagedSequences { offset: 0, sequences: &sequences }, layout, &rows, &rows);
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    expanded(device, CacheDtype::F32, Some(18))
}

/// In bf16: more tiles than a ring has stages, and more keys than a split.
pub fn some_in_bf16(device: &Arc<dyn Device>) -> Outputs {
    let case = Case { heads: 1, kv_heads: 1, ..BF16_CASES[0] };
    vec![("attended", over_pages(&case, device, [1060, 3], &[[600, 2], [459, 0], [1, 1]]))]
}

/// Latents in bf16.
pub fn some_latents_in_bf16(device: &Arc<dyn Device>) -> Outputs {
    let layout = LatentLayout { latent: 512, rotary: 64 };
    vec![("attended", over_latents(layout, device, [140, 3], &[[130, 2], [10, 1]]))]
}
