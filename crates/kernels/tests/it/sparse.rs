//! Attention to chosen keys and the indexer that chooses them, against plain loops: every bit, however a sequence came
//! to be cached; and with all keys chosen the bits of attention to all.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::attention::index::{self, Indexer};
use wels_kernels::attention::index_loss::{self, IndexOperands};
use wels_kernels::attention::latent::LatentLayout;
use wels_kernels::attention::paged::{CacheDtype, Layout, PAGE, Pages, Sequence};
use wels_kernels::attention::{self, Chosen, Heads, HeadsMut, Keys, Shape};
use wels_kernels::reference::{attention as plain, convert, index as plain_index};

const HEADS: usize = 3;
const OWN: usize = 10;
const TURNED: usize = 6;
const V: usize = 20;
const SHAPE: Shape = Shape { heads: HEADS, kv_heads: HEADS, scale: 0.7, window: None, cap: None };
const STARTS: &[u32] = &[0, 45, 45, 46, 130];

/// Nine heads, so that some are done together and one alone; few numbers, so that scores are equal.
const INDEXERS: [Indexer; 4] = [
    Indexer { heads: 9, dim: 12, top_k: 1 },
    Indexer { heads: 9, dim: 12, top_k: 7 },
    Indexer { heads: 1, dim: 5, top_k: 30 },
    Indexer { heads: 2, dim: 16, top_k: 1000 },
];

/// Queries, weights and keys of an indexer; every third key is the one before it again.
fn index_operands(of: Indexer, tokens: usize, stream: u64) -> [Vec<f32>; 3] {
    let mut k = numbers(stream + 2, tokens * of.dim);
    for t in (2..tokens).step_by(3) {
        k.copy_within((t - 1) * of.dim..t * of.dim, t * of.dim);
    }
    [numbers(stream, tokens * of.heads * of.dim), numbers(stream + 1, tokens * of.heads), k]
}

/// Queries, keys beside values, shared keys, and the gradients of the outputs.
fn attention_operands(tokens: usize, stream: u64) -> [Vec<f32>; 4] {
    let q = numbers(stream, tokens * HEADS * (OWN + TURNED));
    let kv = numbers(stream + 1, tokens * HEADS * (OWN + V));
    [q, kv, numbers(stream + 2, tokens * TURNED), numbers(stream + 3, tokens * HEADS * V)]
}

fn views<'a>(q: &'a [f32], kv: &'a [f32], shared: &'a [f32]) -> (Heads<'a>, Keys<'a>, Heads<'a>) {
    let own = Heads { data: kv, row_stride: HEADS * (OWN + V), offset: 0, head_stride: OWN + V, dim: OWN };
    let keys = Keys { own, shared: Some(Heads::contiguous(shared, 1, TURNED)) };
    (Heads::contiguous(q, HEADS, OWN + TURNED), keys, Heads { offset: OWN, dim: V, ..own })
}

#[test]
fn the_choice_is_that_of_plain_loops() {
    let tokens = STARTS[4] as usize;
    for of in INDEXERS {
        let [q, w, k] = index_operands(of, tokens, 20);
        let expected = plain_index::choose(of, STARTS, &q, &w, &k);
        assert_eq!(expected.queries(), tokens);
        everywhere(|isa| assert_eq!(index::choose(of, STARTS, &q, &w, &k), expected, "{of:?} {isa}"));
    }
}

/// Out, stats, and the gradients of queries, keys beside values, and shared keys.
fn whole(chosen: Option<&Chosen>, operands: &[Vec<f32>; 4], slow: bool) -> [Vec<f32>; 5] {
    let [q, kv, shared, d_out] = operands;
    let tokens = STARTS[4] as usize;
    let (queries, keys, values) = views(q, kv, shared);
    let (mut out, mut stats) = (vec![f32::NAN; tokens * HEADS * V], vec![f32::NAN; tokens * HEADS * 2]);
    let forward = if slow { plain::forward } else { attention::forward };
    forward(SHAPE, None, chosen, STARTS, queries, keys, values, &mut out, &mut stats);
    let [mut dq, mut dkv, mut d_shared] = [q, kv, shared].map(|x| vec![f32::NAN; x.len()]);
    let (dk, dv) = HeadsMut::pair_like(&mut dkv, &keys.own, &values);
    let d_turned = keys.shared.as_ref().map(|shared| HeadsMut::like(&mut d_shared, shared));
    let backward = if slow { plain::backward } else { attention::backward };
    let dq_heads = HeadsMut::like(&mut dq, &queries);
    backward(SHAPE, chosen, STARTS, queries, keys, values, &out, &stats, d_out, dq_heads, dk, d_turned, dv);
    [out, stats, dq, dkv, d_shared]
}

#[test]
fn attention_to_the_chosen_equals_plain_loops_and_to_all_of_them_the_dense_one() {
    let tokens = STARTS[4] as usize;
    let operands = attention_operands(tokens, 30);
    let dense = whole(None, &operands, false);
    for of in INDEXERS {
        let [q, w, k] = index_operands(of, tokens, 20);
        let chosen = index::choose(of, STARTS, &q, &w, &k);
        let expected = whole(Some(&chosen), &operands, true);
        everywhere(|isa| {
            let names = ["out", "stats", "dq", "dkv", "d_shared"];
            for (name, (got, expected)) in
                names.iter().zip(whole(Some(&chosen), &operands, false).iter().zip(&expected))
            {
                assert_same(&format!("{name} {of:?} {isa}"), got, expected);
            }
        });
        if of.top_k > tokens {
            (0..5).for_each(|i| assert_same("all keys chosen", &expected[i], &dense[i]));
        } else {
            assert_ne!(expected[0], dense[0], "{of:?}");
        }
    }
}

/// Lengths after each call, as in `paged`: prompts, chunks, single tokens, a shorter past.
const CALLS: [[(usize, usize); 2]; 8] = [
    [(0, 1), (0, 40)],
    [(1, 19), (40, 41)],
    [(19, 100), (41, 46)],
    [(90, 91), (42, 42)],
    [(91, 92), (42, 43)],
    [(92, 97), (43, 44)],
    [(97, 98), (30, 47)],
    [(98, 98), (47, 48)],
];
const LEN: usize = 100;

fn rounded(dtype: CacheDtype, data: &[f32]) -> Vec<f32> {
    let round = |x: &f32| match dtype {
        CacheDtype::F32 => *x,
        CacheDtype::F16 => convert::from_f16(convert::to_f16(*x)),
        CacheDtype::Bf16 => convert::from_bf16(convert::to_bf16(*x)),
    };
    data.iter().map(round).collect()
}

fn rows(data: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    data[from * width..to * width].to_vec()
}

#[test]
fn any_cut_into_calls_chooses_and_attends_as_the_whole() {
    for kept in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Bf16] {
        // In f16 and bf16 with two of them.
        for of in INDEXERS.into_iter().skip(if kept == CacheDtype::F32 { 0 } else { 2 }) {
            everywhere(|isa| check_paged(&format!("{of:?} {kept:?} {isa}"), of, kept));
        }
    }
}

fn check_paged(name: &str, of: Indexer, kept: CacheDtype) {
    let layout = Layout { kv_heads: HEADS, own: OWN, shared: TURNED, v: V };
    let latent = LatentLayout { latent: V, rotary: TURNED };
    // Expanded keys, latents and index keys of one layer, with another's before.
    let parts = [layout.page_len(), latent.page_len(), Indexer::page_len(of.dim)];
    let offsets = [32, 32 + parts[0], 32 + parts[0] + parts[1]];
    let mut pages = Pages::new(kept, 20, offsets[2] + parts[2]);
    let owned: Vec<Vec<u32>> =
        (0..2).map(|s| (0..LEN.div_ceil(PAGE) as u32).map(|i| (7 * (7 * s + i) + 3) % 19).collect()).collect();
    let data = [0, 10].map(|s| (index_operands(of, LEN, 50 + s), attention_operands(LEN, 70 + s)));
    for call in CALLS {
        let mut all: [Vec<f32>; 6] = Default::default();
        let mut sequences = vec![];
        for (s, (from, to)) in call.into_iter().enumerate() {
            let ([q, w, k], [queries, kv, shared, _]) = &data[s];
            let widths = [of.heads * of.dim, of.heads, of.dim, HEADS * (OWN + TURNED), HEADS * (OWN + V), TURNED];
            for (all, (data, width)) in all.iter_mut().zip([q, w, k, queries, kv, shared].into_iter().zip(widths)) {
                all.extend(rows(data, width, from, to));
            }
            sequences.push(Sequence { pages: &owned[s], past: from, new: to - from });
        }
        let [q, w, k, queries, kv, shared] = &all;
        let (query_heads, keys, values) = views(queries, kv, shared);
        pages.append_index(offsets[2], of.dim, &sequences, k);
        let chosen = pages.choose(offsets[2], of, &sequences, q, w);
        let tokens = chosen.queries();
        pages.append(offsets[0], layout, &sequences, keys, values);
        let mut out = vec![f32::NAN; tokens * HEADS * V];
        pages.attend(offsets[0], layout, SHAPE, None, Some(&chosen), &sequences, query_heads, &mut out);
        // A latent is the first head's value.
        let latents: Vec<f32> = (0..tokens).flat_map(|t| values.row(t, 0)).copied().collect();
        let absorbed = numbers(90, tokens * HEADS * V);
        let own = Heads::contiguous(&absorbed, HEADS, V);
        let turned = Heads { offset: OWN, dim: TURNED, ..query_heads };
        let mut sums = vec![f32::NAN; absorbed.len()];
        pages.append_latent(offsets[1], latent, &sequences, &latents, shared);
        let to = HeadsMut::like(&mut sums, &own);
        pages.attend_latent(offsets[1], latent, HEADS, 0.3, Some(&chosen), &sequences, own, turned, to);

        let mut first = 0;
        for (s, (from, to)) in call.into_iter().enumerate() {
            let ([q, w, k], [queries, kv, shared, _]) = &data[s];
            let name = format!("{name}: sequence {s}, tokens {from}..{to}");
            let [k, kv, shared] = [k, kv, shared].map(|x| rounded(kept, x));
            let [q, w] = [(q, of.heads * of.dim), (w, of.heads)].map(|(x, width)| rows(x, width, from, to));
            let expected = plain_index::choose_cached(of, to - from, &q, &w, &k[..to * of.dim]);
            let own_choice = chosen.part(first..first + to - from);
            assert_eq!(own_choice, expected, "{name}");
            let queries = rows(queries, HEADS * (OWN + TURNED), from, to);
            let (query_heads, keys, values) = views(&queries, &kv, &shared);
            let mut whole = vec![f32::NAN; (to - from) * HEADS * V];
            plain::cached(SHAPE, None, Some(&expected), query_heads, to - from, keys, values, to, &mut whole);
            assert_same(&name, &out[first * HEADS * V..][..whole.len()], &whole);
            let both: Vec<f32> = (0..(to - from) * HEADS)
                .flat_map(|i| {
                    let turned = query_heads.row(i / HEADS, i % HEADS)[OWN..].to_vec();
                    [absorbed[(first * HEADS + i) * V..][..V].to_vec(), turned].concat()
                })
                .collect();
            let latents: Vec<f32> = (0..LEN).flat_map(|t| values.row(t, 0)).copied().collect();
            let c = Heads { data: &latents, row_stride: V, offset: 0, head_stride: 0, dim: V };
            let turned = Heads { data: &shared, row_stride: TURNED, offset: 0, head_stride: 0, dim: TURNED };
            let (shape, queries) = (Shape { scale: 0.3, ..SHAPE }, Heads::contiguous(&both, HEADS, V + TURNED));
            let keys = Keys { own: c, shared: Some(turned) };
            plain::cached(shape, None, Some(&expected), queries, to - from, keys, c, to, &mut whole);
            assert_same(&format!("{name}, latents"), &sums[first * HEADS * V..][..whole.len()], &whole);
            first += to - from;
        }
    }
}

#[test]
fn an_indexers_loss_and_gradients_equal_plain_loops() {
    let tokens = STARTS[4] as usize;
    let operands = attention_operands(tokens, 30);
    let (queries, keys, _) = views(&operands[0], &operands[1], &operands[2]);
    for of in INDEXERS {
        let [q, w, k] = &index_operands(of, tokens, 20);
        let chosen = index::choose(of, STARTS, q, w, k);
        let [_, stats, ..] = whole(Some(&chosen), &operands, false);
        let learn = |slow: bool| {
            let losses = if slow { plain_index::losses } else { index_loss::losses };
            let backward = if slow { plain_index::backward } else { index_loss::backward };
            let mut of_tokens = vec![f32::NAN; tokens];
            let scores = losses(SHAPE, &chosen, STARTS, queries, keys, &stats, &mut of_tokens);
            let mut gradients = [q, w, k].map(|x| vec![f32::NAN; x.len()]);
            let [dq, dw, dk] = gradients.each_mut().map(|x| &mut x[..]);
            backward(of, &chosen, STARTS, (&scores, 0.3), IndexOperands { q, w, k }, [dq, dw, dk]);
            let [dq, dw, dk] = gradients;
            [of_tokens, scores, dq, dw, dk]
        };
        let expected = learn(true);
        assert!(expected[0].iter().all(|loss| *loss > -1e-5), "divergences are not negative: {:?}", expected[0]);
        everywhere(|isa| {
            let names = ["losses", "scores", "dq", "dw", "dk"];
            for (name, (got, expected)) in names.iter().zip(learn(false).iter().zip(&expected)) {
                assert_same(&format!("{name} {of:?} {isa}"), got, expected);
            }
        });
    }
}

/// Microseconds of one query of DeepSeek-V3.2's widths (16 of its 128 heads) at some lengths of context:
/// `cargo test --release -p wels-kernels --test it -- --ignored --nocapture what_decoding`.
#[test]
#[ignore = "measures: cargo test --release -p wels-kernels --test it -- --ignored --nocapture what_decoding"]
fn what_decoding_takes_at_lengths_of_context() {
    const TOP_K: usize = 512;
    let (heads, latent) = (16, LatentLayout { latent: 512, rotary: 64 });
    let of = Indexer { heads: 64, dim: 128, top_k: TOP_K };
    let best = |work: &mut dyn FnMut()| {
        let time = |work: &mut dyn FnMut()| {
            let begin = std::time::Instant::now();
            work();
            begin.elapsed().as_secs_f64() * 1e6
        };
        (0..15).map(|_| time(work)).fold(f64::INFINITY, f64::min)
    };
    println!("{TOP_K} keys of {:>6} | to all | choose | to the chosen, of latents, one thread, µs", "");
    for len in [1 << 10, 1 << 12, 1 << 14] {
        let owned: Vec<u32> = (0..(len / PAGE) as u32).collect();
        let behind = latent.page_len();
        let mut pages = Pages::new(CacheDtype::F16, owned.len(), behind + Indexer::page_len(of.dim));
        let all = [Sequence { pages: &owned, past: 0, new: len }];
        pages.append_latent(0, latent, &all, &numbers(1, len * 512), &numbers(2, len * 64));
        pages.append_index(behind, of.dim, &all, &numbers(3, len * of.dim));
        let last = [Sequence { pages: &owned, past: len - 1, new: 1 }];
        let [q, w] = [numbers(4, of.heads * of.dim), numbers(5, of.heads)];
        let [own, turned] = [numbers(6, heads * 512), numbers(7, heads * 64)];
        let (own, turned) = (Heads::contiguous(&own, heads, 512), Heads::contiguous(&turned, heads, 64));
        let mut out = vec![0.0; heads * 512];
        wels_kernels::par::with_threads(1, || {
            let mut attend = |chosen: Option<&Chosen>| {
                best(&mut || {
                    let to = HeadsMut::like(&mut out, &own);
                    pages.attend_latent(0, latent, heads, 0.1, chosen, &last, own, turned, to);
                })
            };
            let dense = attend(None);
            let chosen = pages.choose(behind, of, &last, &q, &w);
            assert_eq!(chosen.of(0).len(), TOP_K.min(len));
            let sparse = attend(Some(&chosen));
            let choose = best(&mut || _ = pages.choose(behind, of, &last, &q, &w));
            println!("{TOP_K} keys of {len:>6} | {dense:>6.0} | {choose:>6.0} | {sparse:>6.0}");
        });
    }
}
